"""Floating-point weights: float16 as it is, float8 as codes of e4m3fn (sign, 4 bits of exponent, 3 of mantissa)."""

import ml_dtypes
import numpy as np

LARGEST = {"float16": 65504.0, "float8_e4m3fn": 448.0}


def code_dtype(dtype: str) -> str:
    """How values of a dtype are stored."""
    return "uint8" if dtype == "float8_e4m3fn" else dtype


def decode(codes: np.ndarray) -> np.ndarray:
    """Read stored values as float32."""
    return (codes.view(ml_dtypes.float8_e4m3fn) if codes.dtype == np.uint8 else codes).astype(np.float32)
