"""Inner products of 32-bit words on CUDA cores: packed weights, and the activations that 2:4 metadata picks.

A word holds four int8, four codes of float8 e4m3 or two float16. Integers are multiplied four at a time (`dp4a`), the
others in float32. The steps are device functions of CUDA C, because TVM would copy the expressions of one step into
every use of its result.
"""

from typing import Any

from tvm.backend.cuda.op import cuda_func_call

from hwpq_tvm.schedules.tir_builder import let

# What unpacking e4m3 as float16 makes of a value: float16's exponent is biased by 15, e4m3's by 7.
FLOAT8_FACTOR = 2.0**8

# Result and arguments are int unless the name says float; bodies by name.
_FUNCTIONS = {
    # __byte_perm would mask the selector first.
    "permute": (
        "int low, int high, int selector",
        'int d; asm("prmt.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(low), "r"(high), "r"(selector)); return d;',
    ),
    "dot_of_bytes": ("int a, int b, int sum", "return __dp4a(a, b, sum);"),
    "low_nibbles": ("int word", "return word << 4 & 0xf0f0f0f0;"),
    "high_nibbles": ("int word", "return word & 0xf0f0f0f0;"),
    # Exponent and mantissa of e4m3 move behind the sign to where float16 has them; subnormals stay subnormals.
    "even_bytes": ("int word", "return word << 8 & 0x80008000 | (word << 8 & 0x7f007f00) >> 1;"),
    "odd_bytes": ("int word", "return word & 0x80008000 | (word & 0x7f007f00) >> 1;"),
    "float_of_low": (
        "int word",
        'float f; asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"((unsigned short)word)); return f;',
    ),
    "float_of_high": (
        "int word",
        'float f; asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"((unsigned short)(word >> 16))); return f;',
    ),
    # A byte of each word, two groups of four; its four indices become nibbles, those of the second group plus 4.
    "byte_selectors": (
        "int bytes",
        "int b = bytes & 0x00ff00ff, n = (b | b << 4) & 0x0f0f0f0f; return (n | n << 2) & 0x33333333 | 0x44004400;",
    ),
    # A nibble of each half word, a group of four; index i becomes bytes 2i and 2i + 1.
    "half_selectors": (
        "int word, int shift",
        "int n = word >> shift & 0x000f000f; return ((n | n << 6) & 0x03030303) * 0x22 + 0x10101010;",
    ),
}


def _call(name: str, *arguments: Any) -> Any:
    """Bind the result of a device function."""
    parameters, body = _FUNCTIONS[name]
    c_type, dtype = ("float", "float32") if name.startswith("float") else ("int", "int32")
    function = "word_" + name  # not the name of the variable
    source = f"__device__ __forceinline__ {c_type} {function}({parameters}) {{ {body} }}"
    return let(name, cuda_func_call(function, *arguments, source_code=source, return_type=dtype))


def permute(low: Any, high: Any, selector: Any) -> Any:
    """Pick four bytes out of two words by the low four nibbles of `selector`: 0 .. 3 of `low`, 4 .. 7 of `high`."""
    return _call("permute", low, high, selector)


def nibble_words(word: Any) -> tuple[Any, Any]:
    """Unpack the low and the high nibbles of a word as words of int8, each 16 times its value."""
    return _call("low_nibbles", word), _call("high_nibbles", word)


def float8_words(word: Any) -> tuple[Any, Any]:
    """Unpack the even and the odd bytes of a word, e4m3, as words of float16, each 2^-8 of its value."""
    return _call("even_bytes", word), _call("odd_bytes", word)


def floats(word: Any, operand: str) -> list[Any]:
    """Values of a word of "f16" or "e4m3" in float32, those of e4m3 even bytes first and 2^-8 of what they are."""
    if operand == "f16":
        return [_call("float_of_low", word), _call("float_of_high", word)]
    return [value for half in float8_words(word) for value in floats(half, "f16")]


def add_product(total: Any, weights: Any, activations: Any, operand: str) -> Any:
    """Add the inner product of two words of "s8", or of two lists of `floats`, to a sum."""
    if operand == "s8":
        return _call("dot_of_bytes", weights, activations, total)
    for weight, activation in zip(weights, activations, strict=True):
        total = total + weight * activation
    return total


def byte_selectors(first: Any, second: Any, t: Any) -> tuple[Any, Any]:
    """Selectors for `permute` by the metadata of two words of int8 or float8, two groups of four each.

    Parameters
    ----------
    first, second
        Words of metadata, of a nibble ``i0 | i1 << 2`` for each group.
    t
        Which byte of them counts: two groups. The first group is the low word of activations, the second the high one.

    Returns
    -------
    Selectors of the elements that `first` and `second` keep.
    """
    both = _call("byte_selectors", permute(first, second, t | t + 4 << 8))
    return both, both >> 16


def half_selectors(word: Any, t: Any) -> tuple[Any, Any]:
    """Selectors for `permute` by the metadata of two words of float16, a group of four each.

    Parameters
    ----------
    word
        Metadata: 16 bits of each of the two, of a nibble ``i0 | i1 << 2`` for each group.
    t
        Which nibble of them counts. The low word of activations holds elements 0 and 1 of the group.
    """
    both = _call("half_selectors", word, t * 4)
    return both, both >> 16
