"""Other methods, written plainly in torch from their papers: what the benchmarks measure against.

Weights are `[N, K]` (out_features, in_features). `gram [K, K]` is the sum over the calibration tokens of x^T x, whose
diagonal `squares [K]` is all that Wanda asks for. What comes back is the compressed weight, in float32.
"""
