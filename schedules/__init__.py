"""TensorIR: packed weight formats, compression arithmetic, kernels, and the table of what exists."""
