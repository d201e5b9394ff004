"""Replaces every planned linear by the kernel of its scheme, and emits the compression of its weight as IR beside it.

The inference functions then take packed parameters. What makes those out of the model's weights is one more Relax
function, `transform_params`: `[W, s] -> packed, statistics` for each layer, independent of the others, so that it can
be run layer by layer (`LazyTransformParams`) with one layer in memory. It is emitted here and not lifted out of the
inference functions (`LiftTransformParams`), because lifting keeps only what an inference function uses, which would
drop the error statistics, and in silence skips what it can't lift.
"""

from dataclasses import dataclass

import tvm
from tvm import relax, tirx
from tvm.relax.expr_functor import PyExprMutator, mutator

from hwpq_tvm.schedules.activations import quantize_activations
from hwpq_tvm.schedules.compress.quantization import STATISTICS as STATISTICS_COLUMNS
from hwpq_tvm.schedules.kernel_attr import description
from hwpq_tvm.schedules.layouts.tiles import padded_in_features, padded_rows
from hwpq_tvm.schedules.lead import row_count

from .linears import OUTPUT_NAMES, EmbeddingCall, LinearCall, find_embeddings, find_linears
from .plan import LinearGroup, Plan

TRANSFORM = "transform_params"
STATISTICS = ".statistics"
INPUT_SQUARES = ".input_squares"


def packed_name(group: LinearGroup) -> str:
    """Prefix of the packed parameters of a group: `a.q_proj+k_proj` for the layers `a.q_proj` and `a.k_proj`."""
    parents, leaves = zip(*(linear.name.rpartition(".")[::2] for linear in group.members), strict=True)
    if len(set(parents)) > 1:
        return "+".join(linear.name for linear in group.members)
    return f"{parents[0]}.{'+'.join(leaves)}" if parents[0] else "+".join(leaves)


def input_squares_name(group: LinearGroup) -> str:
    """Name of the calibration sums `s [K]` of the group's input, as `transform_params` asks for them."""
    return packed_name(group) + INPUT_SQUARES


def packing_groups(plan: Plan) -> list[LinearGroup]:
    """Groups whose weights are packed: those of the linears, then embeddings that are no linear."""
    linears = {linear.weight for linear in plan.linears}
    tables = [LinearGroup((table,)) for table in plan.embeddings if table.weight not in linears]
    return [*tables, *(group for group in plan.groups if group.format.packs)]


@dataclass(frozen=True)
class _Packed:
    """Packed parameters of one group: variables of the inference functions, and where each member's rows start."""

    group: LinearGroup
    variables: tuple[relax.Var, ...]
    rows: dict[str, int]
    padded: int


def _packed_parameters(group: LinearGroup) -> _Packed:
    parts = [linear.format.packed(linear.N, linear.K) for linear in group.members]
    variables = []
    for part, (shape, dtype) in parts[0].items():
        blocks = sum(packed[part][0][0] for packed in parts)
        variables.append(relax.Var(f"{packed_name(group)}.{part}", relax.TensorType([blocks, *shape[1:]], dtype)))
    rows, padded = {}, 0
    for linear, packed in zip(group.members, parts, strict=True):
        rows[linear.weight] = padded
        padded += packed["scale"][0][0]  # one scale per row, rows padded to whole blocks
    return _Packed(group, tuple(variables), rows, padded)


@mutator
class _UsePacked(PyExprMutator):
    """Rewrites one inference function to call the kernels of the plan on packed parameters."""

    def __init__(self, mod: tvm.IRModule, function: relax.Function, plan: Plan, packed: list[_Packed]) -> None:
        super().__init__(mod)
        self.packed = {linear.weight: entry for entry in packed for linear in entry.group.members}
        self.plans = {layer.weight: layer for layer in plan.layers}
        self.linears = {call.output: call for call in find_linears(function)}
        self.embeddings = {call.output: call for call in find_embeddings(function) if call.weight.name in self.packed}
        self.quantized: dict[relax.Expr, list[relax.Expr]] = {}
        self.products: dict[tuple[relax.Expr, str], relax.Var] = {}

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        if binding.var in self.linears:
            result = self._linear(self.linears[binding.var])
        elif binding.var in self.embeddings:
            result = self._embedding(self.embeddings[binding.var])
        else:
            super().visit_var_binding_(binding)
            return
        self.set_var_remap(binding.var, result)

    def _emit(self, func: tirx.PrimFunc, args: list[relax.Expr], out: list[relax.TensorType]) -> relax.Var:
        gvar = self.builder_.add_func(func, _kernel_name(func))
        return self.builder_.emit(relax.call_tir(gvar, relax.Tuple(args), out[0] if len(out) == 1 else out))

    def _quantize(self, activation: relax.Expr) -> list[relax.Expr]:
        """Quantize an activation once, however many kernels read it."""
        if activation not in self.quantized:
            *lead, k = activation.ty.shape.values
            func = quantize_activations(_extents(lead), int(k))
            rows = padded_rows(row_count([int(dim) if isinstance(dim, tirx.IntImm) else dim for dim in lead]))
            columns = padded_in_features(int(k))
            out = [relax.TensorType([rows, columns], "int8"), relax.TensorType([rows], "float32")]
            pair = self._emit(func, [activation], out)
            self.quantized[activation] = [self.builder_.emit(relax.TupleGetItem(pair, i)) for i in range(2)]
        return self.quantized[activation]

    def _linear(self, call: LinearCall) -> relax.Var:
        activation, plan = self.visit_expr(call.activation), self.plans[call.weight.name]
        lead = activation.ty.shape.values[:-1]
        if not plan.format.packs:
            func = plan.format.linear(_extents(lead), plan.N, plan.K, bias=False)
            return self._emit(func, [activation, call.weight], [relax.TensorType([*lead, plan.N], "float32")])
        packed = self.packed[plan.weight]
        key = (activation, packed.group.name)
        if key not in self.products:
            func = plan.format.linear(_extents(lead), packed.padded, plan.K, bias=False)
            args = [*self._quantize(activation), *packed.variables]
            self.products[key] = self._emit(func, args, [relax.TensorType([*lead, packed.padded], "float32")])
        product, first = self.products[key], packed.rows[plan.weight]
        if packed.padded == plan.N:
            return product
        return self.builder_.emit(relax.op.strided_slice(product, [len(lead)], [first], [first + plan.N]))

    def _embedding(self, call: EmbeddingCall) -> relax.Var:
        ids, plan = self.visit_expr(call.ids), self.plans[call.weight.name]
        lead = ids.ty.shape.values
        func = plan.format.embedding(_extents(lead), plan.N, plan.K)
        args = [ids, *self.packed[plan.weight].variables]
        rows = self._emit(func, args, [relax.TensorType([*lead, plan.K], "float32")])
        return self.builder_.emit(relax.op.reshape(rows, call.output.ty.shape))


def _extents(lead: list[relax.Expr]) -> list[int | str]:
    """Leading dimensions as kernel builders take them: symbolic ones by name."""
    return [int(dim) if isinstance(dim, tirx.IntImm) else dim.name for dim in lead]


def _kernel_name(func: tirx.PrimFunc) -> str:
    """Name for the module: what the kernel does, on which format and shape; the module makes it unique."""
    kernel = description(func) or {}
    return "_".join(str(kernel[part]) for part in ("op", "weight_format", "N", "K") if part in kernel)


def _transform_function(builder: relax.BlockBuilder, groups: list[LinearGroup]) -> None:
    """Emit `transform_params`: for each group the packed parts of its members, concatenated, and their statistics."""
    weights = {
        linear.weight: relax.Var(linear.weight, relax.TensorType([linear.N, linear.K], "float32"))
        for group in groups
        for linear in group.members
    }
    squares = {
        group.name: relax.Var(input_squares_name(group), relax.TensorType([group.K], "float32")) for group in groups
    }
    names: list[str] = []
    outputs: list[relax.Expr] = []
    with builder.function(TRANSFORM, [*weights.values(), *squares.values()]):
        with builder.dataflow():
            for group in groups:
                parts: dict[str, list[relax.Expr]] = {}
                for linear in group.members:
                    args = [weights[linear.weight], squares[group.name]]
                    func = linear.format.compress(linear.N, linear.K, linear.scheme.metric)
                    gvar = builder.add_func(func, _kernel_name(func))
                    parts_of_one = linear.format.packed(linear.N, linear.K)
                    out = [relax.TensorType(*part) for part in parts_of_one.values()]
                    out.append(relax.TensorType([linear.N, STATISTICS_COLUMNS], "float32"))
                    result = builder.emit(relax.call_tir(gvar, relax.Tuple(args), out))
                    fields = [builder.emit(relax.TupleGetItem(result, i)) for i in range(len(out))]
                    for part, value in zip(parts_of_one, fields, strict=False):
                        parts.setdefault(part, []).append(value)
                    names.append(linear.name + STATISTICS)
                    outputs.append(builder.emit_output(fields[-1]))
                for part, values in parts.items():
                    names.append(f"{packed_name(group)}.{part}")
                    joined = values[0] if len(values) == 1 else builder.emit(relax.op.concat(values, axis=0))
                    outputs.append(builder.emit_output(joined))
        builder.emit_func_output(builder.emit(relax.Tuple(outputs)))
    gvar = builder.get().get_global_var(TRANSFORM)
    builder.update_func(gvar, builder.get()[gvar].with_attr({OUTPUT_NAMES: names, "num_input": 0}))


@tvm.transform.module_pass(opt_level=0, name="CompressLinears")
class CompressLinears:
    """Apply a plan to the entry functions of a float module.

    Parameters
    ----------
    plan
        What becomes of each linear.
    entries
        Names of the entry functions. Afterwards all of them take the same weights in the same order: those that stay
        as they are, then the packed ones.
    """

    def __init__(self, plan: Plan, entries: tuple[str, ...]) -> None:
        self.plan = plan
        self.entries = entries

    def transform_module(self, mod: tvm.IRModule, ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Return the module with rewritten entries and, where anything is packed, `transform_params`."""
        groups = packing_groups(self.plan)
        for entry in self.entries:
            packed = [_packed_parameters(group) for group in groups]
            rewriter = _UsePacked(mod, mod[entry], self.plan, packed)
            body = rewriter.visit_expr(mod[entry].body)
            function = mod[entry]
            params = [*function.params, *(variable for group in packed for variable in group.variables)]
            mod = rewriter.builder_.get()
            mod[entry] = relax.Function(params, body, attrs=function.attrs)
        mod = relax.transform.DeadCodeElimination(list(self.entries))(mod)
        mod = drop_unused_weights(mod, self.entries)
        if groups:
            builder = relax.BlockBuilder(mod)
            _transform_function(builder, groups)
            mod = builder.get()
        return mod


def drop_unused_weights(mod: tvm.IRModule, entries: tuple[str, ...]) -> tvm.IRModule:
    """Remove the weights that no entry uses, so that all entries keep the same ones in the same order."""
    weights = {entry: mod[entry].params[int(mod[entry].attrs["num_input"]) :] for entry in entries}
    used: set[int] = set()
    for entry in entries:
        # By identity: a packed weight may carry the name of the float one that it stands for.
        free = set(relax.analysis.free_vars(mod[entry].body))
        used |= {i for i, weight in enumerate(weights[entry]) if weight in free}
    for entry in entries:
        function = mod[entry]
        inputs = function.params[: int(function.attrs["num_input"])]
        params = [*inputs, *(weight for i, weight in enumerate(weights[entry]) if i in used)]
        mod[entry] = relax.Function(params, function.body, function.ret_ty, attrs=function.attrs)
    return mod
