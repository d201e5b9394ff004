"""The KV cache: how its rows are stored in either element type, and writing to it, as plain TensorIR.

The cache is one tensor ``[layers, 2, batch, kv_heads, max_len, row]``, keys at 0 and values at 1. A row belongs to one
token and one head:

``float32``
    ``head_dim`` numbers.
``int8``
    ``head_dim`` numbers q in -127 .. 127, then the 4 bytes of one float32 scale, in the machine's order: the number at
    d is ``scale * q[d]``. Symmetric: ``scale = max|x| / 127``, q rounded half to even. A row whose scale would fall
    below float32's smallest normal number is stored as zeros with scale 1. One that holds an infinity or a NaN gets
    such a scale, so that it does not pass for a finite one.
"""

import functools
from typing import Any, Literal, get_args

from tvm.script.ir_builder import tirx as T
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.compress.quantization import INT8_LARGEST, SMALLEST_NORMAL
from hwpq_tvm.schedules.compress.vectors import MAGNITUDE
from hwpq_tvm.schedules.kernel_attr import describe
from hwpq_tvm.schedules.tir_builder import argument, let, loop, prim_func, store, symbol, when

KVCacheDtype = Literal["float32", "int8"]
KV_CACHE_DTYPES: tuple[KVCacheDtype, ...] = get_args(KVCacheDtype)

# Bytes of a row's scale, behind its int8 numbers.
SCALE_BYTES = 4


def row_elements(head_dim: int, cache_dtype: str) -> int:
    """Elements of a row: the last dimension of the cache."""
    return head_dim if cache_dtype == "float32" else head_dim + SCALE_BYTES


def row_scale(cache: Any, row: list[Any]) -> Any:
    """Read the scale of an int8 row of the cache; `row` are the indices that lead to it."""
    head_dim = int(cache.shape[-1]) - SCALE_BYTES
    return T.reinterpret("float32", cache[(*row, T.ramp(head_dim, 1, SCALE_BYTES))])


def scale_of(largest: Any) -> Any:
    """Scale of a row whose largest magnitude is given; a NaN stays one."""
    scale = largest / T.float32(INT8_LARGEST)
    return T.Select(scale < T.float32(SMALLEST_NORMAL), T.float32(1), scale)


@functools.cache
def kv_cache_update(
    *,
    layers: int,
    batch: int,
    kv_heads: int,
    head_dim: int,
    max_len: int,
    seq_len: int | None,
    cache_dtype: KVCacheDtype = "float32",
) -> PrimFunc:
    """Describe the kernel that writes new keys and values into the cache.

    Parameters
    ----------
    layers, batch, kv_heads, head_dim, max_len, cache_dtype
        Dimensions and element type of the cache.
    seq_len
        Number of new tokens; None makes it a symbolic dimension of that name.

    Returns
    -------
    A function of ``(key [batch, kv_heads, seq_len, head_dim] float32, value (the same), past_lengths [batch] int32,
    kv_cache, layer int64)``. Row ``past + i`` of the layer becomes the new token ``i``; rows at or beyond ``max_len``
    are not written.
    """
    fields: dict[str, Any] = {
        "layers": layers,
        "batch": batch,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "max_len": max_len,
        "seq_len": -1 if seq_len is None else seq_len,
        "cache_dtype": cache_dtype,
    }
    with prim_func("kv_cache_update") as result:
        args = UpdateArguments(**fields)
        with loop("b", batch) as b, loop("h", kv_heads) as h, loop("i", args.length) as i:
            position = let("position", T.Cast("int64", args.past_lengths[b]) + i)
            with when(position < max_len):
                for half, new in enumerate((args.key, args.value)):
                    row = [args.layer, half, b, h, position]
                    if cache_dtype == "float32":
                        with loop("d", head_dim) as d:
                            store(args.cache, [*row, d], new[b, h, i, d])
                    else:
                        quantize_row(new, [b, h, i], args.cache, row)
    return describe(result[0], op="kv_cache_update", **fields)


class UpdateArguments:
    """The arguments of an update, declared in the function that is being built."""

    def __init__(
        self, layers: int, batch: int, kv_heads: int, head_dim: int, max_len: int, seq_len: int, cache_dtype: str
    ) -> None:
        self.length = symbol("seq_len") if seq_len == -1 else seq_len
        new_shape = (batch, kv_heads, self.length, head_dim)
        cache_shape = (layers, 2, batch, kv_heads, max_len, row_elements(head_dim, cache_dtype))
        self.key = argument("key", new_shape, "float32")
        self.value = argument("value", new_shape, "float32")
        self.past_lengths = argument("past_lengths", (batch,), "int32")
        self.cache = argument("kv_cache", cache_shape, cache_dtype)
        self.layer = T.arg("layer", T.int64())


def quantize_row(new: Any, source: list[Any], cache: Any, row: list[Any]) -> None:
    """Write one row of new numbers as int8."""
    head_dim = int(new.shape[-1])
    largest = T.alloc_buffer((1,), "int32", layout=None)
    store(largest, [0], T.int32(0))
    with loop("d", head_dim) as d:
        bits = T.reinterpret("int32", new[(*source, d)])
        # Among the bits of magnitudes those of a NaN are the largest.
        store(largest, [0], T.max(largest[0], T.bitwise_and(bits, T.int32(MAGNITUDE))))
    scale = let("scale", scale_of(T.reinterpret("float32", largest[0])))
    with loop("d", head_dim) as d:
        rounded = T.nearbyint(new[(*source, d)] / scale)
        # min() gives its second argument for a NaN, so that what is cast is a number in any case.
        clamped = T.max(T.min(rounded, T.float32(INT8_LARGEST)), T.float32(-INT8_LARGEST))
        store(cache, [*row, d], T.Cast("int8", T.Cast("int32", clamped)))
    store(cache, [*row, T.ramp(head_dim, 1, SCALE_BYTES)], T.reinterpret(f"int8x{SCALE_BYTES}", scale))
