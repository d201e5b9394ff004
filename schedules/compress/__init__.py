"""Contribution, selection, quantization and packing of weights: one TensorIR function per packed format."""
