"""Compression of weights as IR: one Relax function, `transform_params`, from a model's weights to packed parameters.

Every layer is independent of the others, so that the function can be run layer by layer (`LazyTransformParams`) with
one layer in memory. It is emitted here and not lifted out of the inference functions (`LiftTransformParams`), because
lifting keeps only what an inference function uses, which would drop the error statistics, and in silence skips what
it can't lift.
"""

from collections.abc import Sequence

import tvm
from tvm import relax

from hwpq_tvm.schedules.compress.contribution import contribution_factors
from hwpq_tvm.schedules.compress.quantization import STATISTICS as STATISTICS_COLUMNS
from hwpq_tvm.schedules.compress.reconstruction import normalize_rows, row_products
from hwpq_tvm.schedules.linear_float32 import linear_float32

from .kernel_calls import call_kernel
from .linears import OUTPUT_NAMES
from .packing import compressed_types, input_gram_name, input_squares_name
from .plan import LinearGroup, LinearPlan
from .reconstruct import reconstruct

TRANSFORM = "transform_params"
STATISTICS = ".statistics"
OUTPUT_ERROR = ".output_error"


def transform_module(groups: Sequence[LinearGroup]) -> tvm.IRModule:
    """Emit the compression of some groups of linears.

    Parameters
    ----------
    groups
        Groups whose weights are packed.

    Returns
    -------
    tvm.IRModule
        With one entry function, `transform_params`, of the weights `[N, K]`, the input squares `[K]` and, where
        something is reconstructed, the Gram matrices `[K, K]` (with a mean diagonal of 1) of the groups' inputs. Its
        outputs are named by its attribute `hwpq.outputs`: for each linear its statistics `[N, STATISTICS]` and, where
        it was reconstructed, `[N, 2]`: the squared error of its output on the calibration data and the squared output,
        both with the row's largest weight brought to 1; then the packed parameters of the group.
    """
    return _Transform(groups).emit()


class _Transform:
    def __init__(self, groups: Sequence[LinearGroup]) -> None:
        self.groups = groups
        self.builder = relax.BlockBuilder()
        self.names: list[str] = []
        self.outputs: list[relax.Expr] = []
        self.inputs: dict[str, relax.Var] = {}
        self.factors: dict[tuple[str, str], relax.Var] = {}
        self.reconstructions: dict[tuple[object, ...], tvm.ir.GlobalVar] = {}

    def emit(self) -> tvm.IRModule:
        for group in self.groups:
            self._input(input_squares_name(group), (group.K,))
            for linear in group.members:
                self._input(linear.weight, (linear.N, linear.K))
                if linear.needs_gram:
                    self._input(input_gram_name(group), (group.K, group.K))
                    self._reconstruction(linear)
        with self.builder.function(TRANSFORM, list(self.inputs.values())):
            with self.builder.dataflow():
                for group in self.groups:
                    self._group(group)
            self.builder.emit_func_output(self.builder.emit(relax.Tuple(self.outputs)))
        mod = self.builder.get()
        mod[TRANSFORM] = mod[TRANSFORM].with_attr({OUTPUT_NAMES: self.names, "num_input": 0})
        return mod

    def _input(self, name: str, shape: tuple[int, ...]) -> None:
        self.inputs.setdefault(name, relax.Var(name, relax.TensorType(shape, "float32")))

    def _output(self, name: str, value: relax.Expr) -> None:
        self.names.append(name)
        self.outputs.append(self.builder.emit_output(value))

    def _reconstruction(self, linear: LinearPlan) -> tvm.ir.GlobalVar:
        key = (linear.N, linear.K, linear.scheme.reconstruct, linear.selection)
        if key not in self.reconstructions:
            assert linear.selection is not None
            method = linear.scheme.reconstruct
            self.reconstructions[key] = reconstruct(self.builder, linear.N, linear.K, method, linear.selection)
        return self.reconstructions[key]

    def _group(self, group: LinearGroup) -> None:
        parts: list[list[relax.Expr]] = []
        for linear in group.members:
            parts.append(self._linear(group, linear))
        for name, values in zip(compressed_types(group), zip(*parts, strict=True), strict=True):
            self._output(name, values[0] if len(values) == 1 else relax.op.concat(list(values), axis=0))

    def _linear(self, group: LinearGroup, linear: LinearPlan) -> list[relax.Expr]:
        """Compress one weight; what is returned are its packed parts."""
        N, K = linear.N, linear.K
        W, squares = self.inputs[linear.weight], self.inputs[input_squares_name(group)]
        factors = self._factors(squares, linear.scheme.metric, K)
        out = [relax.TensorType(*part) for part in linear.format.source.packed(N, K).values()]
        out.append(relax.TensorType([N, STATISTICS_COLUMNS], "float32"))
        clip_search = linear.scheme.clip_search
        if not linear.needs_gram:
            func = linear.format.compress(N, K, selection=linear.selection, clip_search=clip_search)
            *packed, statistics = call_kernel(self.builder, func, [W, factors, squares], out)
        else:
            G = self.inputs[input_gram_name(group)]
            V = self.builder.emit(relax.Call(self._reconstruction(linear), [W, factors, squares, G]))
            func = linear.format.compress(N, K, selection=None, clip_search=clip_search, reconstructed=True)
            *packed, statistics, stored = call_kernel(self.builder, func, [W, V, factors, squares], [*out, W.ty])
            self._output(linear.name + OUTPUT_ERROR, self._output_error(W, stored, G))
        self._output(linear.name + STATISTICS, statistics)
        return packed

    def _factors(self, squares: relax.Var, metric: str, K: int) -> relax.Var:
        key = (squares.name, metric)
        if key not in self.factors:
            func = contribution_factors(metric, K)
            (self.factors[key],) = call_kernel(self.builder, func, [squares], [relax.TensorType([K], "float32")])
        return self.factors[key]

    def _output_error(self, W: relax.Var, stored: relax.Var, G: relax.Var) -> relax.Expr:
        """Per row `(W-D) G (W-D)^T` and `W G W^T` for what is stored, D."""
        N, K = (int(size) for size in W.ty.shape.values)
        column = relax.TensorType([N], "float32")
        rows, scale = call_kernel(self.builder, normalize_rows(N, K), [W], [W.ty, column])
        lost = self.builder.emit(rows - stored / relax.op.expand_dims(scale, 1))
        columns = []
        for each in (lost, rows):
            (image,) = call_kernel(self.builder, linear_float32((N,), K, K), [each, G], [W.ty])
            (product,) = call_kernel(self.builder, row_products(N, K), [image, each], [column])
            columns.append(relax.op.expand_dims(product, 1))
        return relax.op.concat(columns, axis=1)
