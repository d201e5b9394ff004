"""Operators of torch that TVM's importer lacks, or gets wrong: how each becomes Relax."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx
from tvm import relax, tirx
from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

from hwpq_tvm.errors import ImportModelError
from hwpq_tvm.importers.arithmetic import ARITHMETIC
from hwpq_tvm.importers.dense_attention_lowering import convert_scaled_dot_product_attention
from hwpq_tvm.importers.negative_indices import convert_index, convert_index_put

# Makes Relax of one node of an exported program: `(node, importer) -> value`, where `importer.env` has the values of
# the nodes before it (`custom_convert_map` of TVM's `from_exported_program`).
Converter = Callable[[fx.Node, Any], Any]


def arguments(node: fx.Node) -> tuple[Any, ...]:
    """Positional arguments of a node: their types are the operator's."""
    return node.args


def _size(node: fx.Node, importer: Any) -> Any:
    """Convert a read of a dimension to the dimension: an integer where it is known (TVM makes a tensor of it)."""
    tensor, axis = node.args
    dimension = importer.shape_of(importer.env[tensor])[axis]
    return int(dimension) if isinstance(dimension, tirx.IntImm) else dimension


def _move(node: fx.Node, importer: Any) -> Any:
    """Convert a move to another device, of which there is one only, with a cast if there is one."""
    x, dtype = importer.env[node.args[0]], str(node.meta["val"].dtype).removeprefix("torch.")
    return x if str(x.ty.dtype) == dtype else importer.block_builder.emit(relax.op.astype(x, dtype))


def _layer_norm(node: fx.Node, importer: Any) -> relax.Var:
    """Convert a LayerNorm that has no weight or no bias: to one of ones, or zeros (TVM takes None for a node)."""
    x, shape, *rest = arguments(node)
    defaults: list[Any] = [None, None, 1e-5, None]
    weight, bias, epsilon, _ = [*rest, *defaults[len(rest) :]]
    builder, size = importer.block_builder, [int(dim) for dim in shape]
    weight = builder.emit(relax.op.ones(size, "float32")) if weight is None else importer.env[weight]
    bias = builder.emit(relax.op.zeros(size, "float32")) if bias is None else importer.env[bias]
    axes = list(range(-len(size), 0))
    return builder.emit(relax.op.nn.layer_norm(importer.env[x], weight, bias, axes=axes, epsilon=epsilon))


def _repeat_interleave(node: fx.Node, importer: Any) -> relax.Var:
    """Convert the repetition of each element a fixed number of times, one after the other."""
    x, repeats, dim = (*node.args, *(node.kwargs.get("dim"),))[:3]
    return importer.block_builder.emit(relax.op.repeat(importer.env[x], repeats, dim))


def _repeat(node: fx.Node, importer: Any) -> relax.Var:
    """Convert `x.repeat(...)`; that of dimensions of 1 may have symbolic counts (for TVM they have to be integers)."""
    x = importer.env[node.args[0]]
    counts = [importer.env[count] if isinstance(count, fx.Node) else count for count in arguments(node)[1]]
    sizes = [1] * (len(counts) - x.ty.ndim) + list(x.ty.shape.values)
    if all(isinstance(count, int) for count in counts) or not all(
        _is(size, 1) or _is(count, 1) for size, count in zip(sizes, counts, strict=True)
    ):
        return ExportedProgramImporter._repeat(importer, node)
    shape = [size if _is(count, 1) else count for size, count in zip(sizes, counts, strict=True)]
    return importer.block_builder.emit(relax.op.broadcast_to(x, shape))


def _is(size: Any, number: int) -> bool:
    """Whether a dimension is known to be a number."""
    return isinstance(size, int | tirx.IntImm) and int(size) == number


def _slice(node: fx.Node, importer: Any) -> relax.Var:
    """Convert a slice; where torch knows that all of it is there, so does Relax (TVM makes it `min(size, end)`)."""
    defaults: list[Any] = [None, 0, None, None, 1]
    x, dim, start, end, step = [*arguments(node), *defaults[len(node.args) :]]
    length = node.meta["val"].shape[dim]
    stop = end.meta["val"] if isinstance(end, fx.Node) else end
    whole = isinstance(length, torch.SymInt) and isinstance(stop, torch.SymInt) and start in (None, 0) and step == 1
    if not whole or length.node.expr != stop.node.expr:
        return ExportedProgramImporter._slice(importer, node)
    sliced = relax.op.strided_slice(
        importer.env[x], axes=[dim], begin=[0], end=[importer.env[end]], assume_inbound=True
    )
    return importer.block_builder.emit(sliced)


def _reshape(node: fx.Node, importer: Any) -> relax.Var:
    """Convert a view; one of the same symbolic shape is left out (TVM can't compare those)."""
    x = importer.env[node.args[0]]
    dims = [importer.env[dim] if isinstance(dim, fx.Node) else dim for dim in arguments(node)[1]]
    if arguments(node)[0].meta["val"].shape == node.meta["val"].shape:
        return x
    return importer._emit_torch_reshape(x, dims)


def _transpose(node: fx.Node, importer: Any) -> relax.Var:
    """Convert `x.T`."""
    return importer.block_builder.emit(relax.op.permute_dims(importer.env[node.args[0]]))


def _top_k(node: fx.Node, importer: Any) -> relax.Var:
    """Convert the choice of the largest: also where their order does not matter, which TVM refuses."""
    x, k, *rest = importer.retrieve_args(node)
    axis, largest = (*rest, *(-1, True)[len(rest) :])[:2]
    return importer.block_builder.emit(
        relax.op.topk(
            x,
            k=k,
            axis=node.kwargs.get("dim", axis),
            largest=node.kwargs.get("largest", largest),
            ret_type="both",
            dtype="int64",
        )
    )


def _batch_norm(node: fx.Node, importer: Any) -> relax.Expr:
    """Convert a BatchNorm with the statistics that it has stored (TVM takes those of the batch)."""
    x, weight, bias, mean, variance, training, _, epsilon, _ = node.args
    if training or mean is None:
        raise ImportModelError(
            "a BatchNorm takes its statistics from the batch: expected stored ones; call eval() on the model, and keep"
            " track_running_stats"
        )
    builder, size = importer.block_builder, [importer.env[mean].ty.shape.values[0]]
    weight = builder.emit(relax.op.ones(size, "float32")) if weight is None else importer.env[weight]
    bias = builder.emit(relax.op.zeros(size, "float32")) if bias is None else importer.env[bias]
    statistics = (importer.env[mean], importer.env[variance])
    normalised = relax.op.nn.batch_norm(
        importer.env[x], weight, bias, *statistics, axis=1, epsilon=epsilon, training=False
    )
    return builder.emit(relax.TupleGetItem(builder.emit(normalised), 0))


def _deviation(node: fx.Node, importer: Any) -> relax.Var:
    """Convert a standard deviation (TVM's does not read how many values to take off their number)."""
    return importer.block_builder.emit(relax.op.sqrt(ExportedProgramImporter._var_correction(importer, node)))


def _extreme(operator: Callable[..., relax.Expr]) -> Callable[[fx.Node, Any], relax.Var]:
    """Convert the largest or smallest of some dimensions."""

    def convert(node: fx.Node, importer: Any) -> relax.Var:
        x, *given = node.args
        named: Mapping[str, Any] = dict(zip(("dim", "keepdim"), given, strict=False)) | node.kwargs
        dims, keepdim = named.get("dim"), named.get("keepdim", False)
        axes = [dims] if isinstance(dims, int) else list(dims or ())  # none are all
        return importer.block_builder.emit(operator(importer.env[x], axes or None, keepdim))

    return convert


def _where(node: fx.Node, importer: Any) -> relax.Var:
    """Convert a choice between tensors and numbers."""
    condition, *choices = node.args
    dtype = str(node.meta["val"].dtype).removeprefix("torch.")
    values = [importer.env[each] if isinstance(each, fx.Node) else relax.const(each, dtype) for each in choices]
    return importer.block_builder.emit(relax.op.where(importer.env[condition], *values))


def _celu(node: fx.Node, importer: Any) -> relax.Var:
    """Convert a CELU, `max(x, 0) + min(alpha * (exp(x / alpha) - 1), 0)` (TVM's formula holds for no alpha but 1)."""
    x, alpha = importer.env[node.args[0]], (*arguments(node), 1.0)[1]
    builder, dtype = importer.block_builder, x.ty.dtype
    zero, one, scale = (relax.const(value, dtype) for value in (0, 1, alpha))
    # Of what is negative only, so that the exponential can't overflow.
    below = builder.emit(relax.op.exp(relax.op.divide(relax.op.minimum(x, zero), scale)))
    below = builder.emit(relax.op.multiply(scale, relax.op.subtract(below, one)))
    return builder.emit(relax.op.add(relax.op.maximum(x, zero), below))


CONVERTERS: dict[str, Converter] = {
    **ARITHMETIC,
    "amax.default": _extreme(relax.op.max),
    "amin.default": _extreme(relax.op.min),
    "batch_norm.default": _batch_norm,
    "celu.default": _celu,
    "index.Tensor": convert_index,
    "index_put.default": convert_index_put,
    "layer_norm.default": _layer_norm,
    "numpy_T.default": _transpose,
    "repeat.default": _repeat,
    "repeat_interleave.self_int": _repeat_interleave,
    "reshape.default": _reshape,
    "scaled_dot_product_attention.default": convert_scaled_dot_product_attention,
    "slice.Tensor": _slice,
    "std.correction": _deviation,
    "sym_size.int": _size,
    "to.device": _move,
    "topk.default": _top_k,
    "view.default": _reshape,
    **dict.fromkeys(("where.Scalar", "where.ScalarOther", "where.ScalarSelf"), _where),
}
