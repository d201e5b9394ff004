"""Packed weight formats, bit for bit: shapes, a slow plain NumPy packer and its inverse. No kernels here."""
