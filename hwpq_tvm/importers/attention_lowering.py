"""The attention operator in Relax: a call that updates the cache in place, and a call that reads it."""

from collections.abc import Sequence
from typing import Any

import tvm
from torch import fx
from tvm import relax, tirx

from hwpq_tvm.schedules.attention import attention
from hwpq_tvm.schedules.kernel_attr import KERNEL_ATTR
from hwpq_tvm.schedules.kv_cache import kv_cache_update


class AttentionCalls:
    """Lowers the attention operator to calls of TensorIR functions, one function for all layers that are alike.

    A converter of `hwpq_tvm.importers.converters`; each entry function needs one of its own.

    Parameters
    ----------
    kv_cache_shape
        `(layers, 2, batch, kv_heads, max_seq_len, row)`; see `hwpq_tvm.schedules.kv_cache`.
    head_dim
        Numbers of a row of the cache. A layer whose keys or values are shorter, or have fewer heads, gets zeros in
        addition: they change no score, and what they add to its output is cut off.
    """

    def __init__(self, kv_cache_shape: tuple[int, ...], head_dim: int) -> None:
        self.kv_cache_shape = kv_cache_shape
        self.head_dim = head_dim
        self.functions: dict[tvm.tirx.PrimFunc, tvm.ir.GlobalVar] = {}

    def _global(self, builder: relax.BlockBuilder, function: tvm.tirx.PrimFunc) -> tvm.ir.GlobalVar:
        if function not in self.functions:
            name = str(function.attrs[KERNEL_ATTR]["op"])
            taken = {str(variable.name_hint) for variable in self.functions.values()}
            if name in taken:
                name = f"{name}_{len(taken)}"
            self.functions[function] = builder.add_func(function.with_attr("global_symbol", name), name)
        return self.functions[function]

    def __call__(self, node: fx.Node, importer: Any) -> tuple[relax.Var, relax.Var]:
        """Convert one node (`custom_convert_map` of `from_exported_program`)."""
        query, key, value, past_lengths, cache = (importer.env[arg] for arg in node.args[:5])
        bias = None if node.args[5] is None else importer.env[node.args[5]]
        constants: tuple[Any, ...] = node.args[6:]
        layer, scale, window, softcap = constants
        builder = importer.block_builder
        layers, _, batch, kv_heads, max_len, _ = self.kv_cache_shape
        _, heads, length, _ = query.ty.shape.values
        heads, value_dim = int(heads), int(value.ty.shape.values[3])
        all_heads = heads // int(key.ty.shape.values[1]) * kv_heads
        query = _padded(builder, query, {1: all_heads, 3: self.head_dim})
        key, value = (_padded(builder, each, {1: kv_heads, 3: self.head_dim}) for each in (key, value))
        if bias is not None:
            bias = _padded(builder, bias, {0: all_heads})
        shape: dict[str, Any] = {
            "layers": layers,
            "batch": batch,
            "kv_heads": kv_heads,
            "head_dim": self.head_dim,
            "max_len": max_len,
            "cache_dtype": str(cache.ty.dtype),
        }
        seq_len = int(length) if isinstance(length, tirx.IntImm) else None
        update = kv_cache_update(**shape, seq_len=seq_len)
        attend = attention(
            **shape,
            heads=all_heads,
            seq_len=seq_len,
            scale=scale,
            window=window,
            softcap=softcap,
            score_bias=bias is not None,
        )
        index = relax.prim_value(tirx.IntImm("int64", layer))
        cache = builder.emit(
            relax.op.call_tir_inplace(
                self._global(builder, update), [key, value, past_lengths, cache, index], [3], out_ty=cache.ty
            )
        )
        out = builder.emit(
            relax.op.call_tir(
                self._global(builder, attend),
                [query, cache, past_lengths, *([] if bias is None else [bias]), index],
                out_ty=relax.TensorType((batch, length, all_heads, self.head_dim), "float32"),
            )
        )
        if (heads, value_dim) != (all_heads, self.head_dim):
            out = builder.emit(relax.op.strided_slice(out, [2, 3], [0, 0], [heads, value_dim]))
        return out, cache


def _padded(builder: relax.BlockBuilder, x: relax.Var, sizes: dict[int, int]) -> relax.Var:
    """Append zeros along some axes until they have these sizes."""
    for axis, size in sizes.items():
        shape: Sequence[Any] = list(x.ty.shape.values)
        if missing := size - int(shape[axis]):
            zeros = relax.op.zeros([missing if i == axis else dim for i, dim in enumerate(shape)], "float32")
            x = builder.emit(relax.op.concat([x, builder.emit(zeros)], axis=axis))
    return x
