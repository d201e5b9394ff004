"""Packed weight formats, bit for bit: shapes, and the dense matrix that packed bytes stand for. No kernels here."""
