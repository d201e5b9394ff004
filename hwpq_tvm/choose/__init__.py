"""Choosing the scheme of each layer of a model: `--preset auto`."""
