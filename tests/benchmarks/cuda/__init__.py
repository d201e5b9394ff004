"""The kernels on a GPU: right, and how fast, beside what is predicted and what torch has."""
