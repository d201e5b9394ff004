"""Attention without a cache in Relax: a call of one kernel, whoever asks for it.

Besides the operator of `dense_attention`, that is `torch.nn.functional.scaled_dot_product_attention` of any module.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from tvm import relax, tirx

from hwpq_tvm.errors import ImportModelError
from hwpq_tvm.relax_passes.kernel_calls import call_kernel
from hwpq_tvm.schedules.dense_attention import dense_attention

OPERATOR = "dense_attention.default"


@dataclass(frozen=True, slots=True)
class _Call:
    """One attention of a program, in Relax.

    Attributes
    ----------
    query, key, value
        `[batch, heads, length, features]`.
    mask, bias
        Four dimensions each, or None.
    """

    query: relax.Expr
    key: relax.Expr
    value: relax.Expr
    mask: relax.Expr | None
    bias: relax.Expr | None
    scale: float
    causal: bool
    softcap: float | None = None


def convert_dense_attention(node: fx.Node, importer: Any) -> relax.Var:
    """Convert `hwpq::dense_attention` (a converter of `importers.converters`)."""
    query, key, value, mask, bias, scale, causal, softcap = node.args
    env = importer.env
    # T5 adds zeros where there is no bias.
    if isinstance(bias, fx.Node) and bias.target is torch.ops.aten.zeros.default:
        bias = None
    call = _Call(
        query=env[query],
        key=env[key],
        value=env[value],
        mask=None if mask is None else env[mask],
        bias=None if bias is None else env[bias],
        scale=float(scale),  # type: ignore[arg-type]
        causal=bool(causal),
        softcap=softcap,  # type: ignore[arg-type]
    )
    return _emit(call, importer.block_builder)


def convert_scaled_dot_product_attention(node: fx.Node, importer: Any) -> relax.Var:
    """Convert `torch.nn.functional.scaled_dot_product_attention` of three or four dimensions."""
    builder = importer.block_builder
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    query, key, value = (importer.env[given[name]] for name in ("query", "key", "value"))
    mask = importer.env[given["attn_mask"]] if given.get("attn_mask") is not None else None
    ndim = query.ty.ndim
    if given.get("dropout_p", 0.0) != 0.0 or ndim not in (3, 4):
        raise ImportModelError(
            f"scaled_dot_product_attention of {ndim} dimensions with dropout {given.get('dropout_p', 0.0)}: expected"
            " three or four and no dropout; export the model in eval mode, with heads as one dimension"
        )
    if ndim == 3:
        query, key, value = (builder.emit(relax.op.expand_dims(each, 1)) for each in (query, key, value))
        mask = builder.emit(relax.op.expand_dims(mask, 1)) if mask is not None and mask.ty.ndim == 3 else mask
    if mask is not None and mask.ty.ndim < 4:
        mask = builder.emit(relax.op.expand_dims(mask, list(range(4 - mask.ty.ndim))))
    scale = given.get("scale")
    head_dim = int(query.ty.shape.values[3])
    call = _Call(
        query,
        key,
        value,
        mask=mask,
        bias=None,
        scale=float(head_dim**-0.5 if scale is None else scale),  # type: ignore[arg-type]
        causal=bool(given.get("is_causal", False)),
    )
    out = builder.emit(relax.op.permute_dims(_emit(call, builder), [0, 2, 1, 3]))
    return out if ndim == 4 else builder.emit(relax.op.squeeze(out, 1))


def _emit(call: _Call, builder: relax.BlockBuilder) -> relax.Var:
    """Call the kernel; the result is `[batch, q_len, heads, value_dim]`."""
    batch, heads, q_len, head_dim = call.query.ty.shape.values
    _, kv_heads, kv_len, value_dim = call.value.ty.shape.values
    rows = [_as_it_lies(each, builder) for each in (call.query, call.key, call.value)]
    func = dense_attention(
        batch=_known(batch),
        heads=int(heads),
        kv_heads=int(kv_heads),
        q_len=_known(q_len),
        kv_len=_known(kv_len),
        head_dim=int(head_dim),
        value_dim=int(value_dim),
        scale=call.scale,
        causal=call.causal,
        softcap=call.softcap,
        mask=None if call.mask is None else str(call.mask.ty.dtype),
        mask_dims=_dims(call.mask),
        bias_dims=_dims(call.bias),
        heads_first=tuple(first for _, first in rows),
    )
    args = [*(row for row, _ in rows), *(each for each in (call.mask, call.bias) if each is not None)]
    (out,) = call_kernel(builder, func, args, [relax.TensorType((batch, q_len, heads, value_dim), "float32")])
    return out


def _as_it_lies(heads_first: relax.Expr, builder: relax.BlockBuilder) -> tuple[relax.Expr, bool]:
    """What `[batch, heads, length, features]` was transposed from, and whether it still has heads first."""
    value = builder.lookup_binding(heads_first) if isinstance(heads_first, relax.Var) else None
    if (
        isinstance(value, relax.Call)
        and value.op.name == "relax.permute_dims"
        and value.attrs.axes is not None
        and [int(axis) for axis in value.attrs.axes] == [0, 2, 1, 3]
    ):
        return value.args[0], False
    return heads_first, True


def _known(size: Any) -> int | None:
    return int(size) if isinstance(size, tirx.IntImm) else None


def _dims(tensor: relax.Expr | None) -> tuple[bool, ...] | None:
    """Which dimensions a mask has."""
    return None if tensor is None else tuple(_known(size) != 1 for size in tensor.ty.shape.values)
