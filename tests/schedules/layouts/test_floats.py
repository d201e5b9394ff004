import numpy as np

from hwpq_tvm.schedules.layouts import floats


def e4m3(code: int) -> float:
    """Value of a code as OCP's specification of 8-bit floats has it."""
    sign, exponent, mantissa = -1.0 if code & 0x80 else 1.0, code >> 3 & 15, code & 7
    return sign * (2.0 ** (exponent - 7) * (1 + mantissa / 8) if exponent else 2.0**-6 * mantissa / 8)


def test_float8_codes() -> None:
    codes = np.array([code for code in range(256) if code & 0x7F != 0x7F], np.uint8)
    values = floats.decode(codes)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, [e4m3(int(code)) for code in codes])
    assert values.max() == floats.LARGEST["float8_e4m3fn"]
    assert floats.code_dtype("float8_e4m3fn") == "uint8"


def test_float16_is_as_it_is() -> None:
    halves = np.array([1.5, -65504, 2.0**-24], np.float16)
    np.testing.assert_array_equal(floats.decode(halves), [1.5, -floats.LARGEST["float16"], 2.0**-24])
