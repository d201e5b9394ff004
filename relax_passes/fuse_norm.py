"""Fuses RMSNorm and LayerNorm, the residual addition before them and the quantization after them, to one kernel."""

import tvm
from tvm import relax

from hwpq_tvm.schedules.norm import norm

from .dataflow import Dataflow, float_rows, same_type
from .norms import Norm, find_norm
from .replace_kernels import Replacement, quantizations, replace_kernels


def _match(dataflow: Dataflow, var: relax.Var) -> Replacement | None:
    """What takes the place of the normalisation that ends in a variable."""
    readers = dataflow.readers.get(var, ())
    if not readers or not isinstance(var, relax.DataflowVar) or (found := find_norm(dataflow, var)) is None:
        return None
    rows = float_rows(found.x)
    if rows is None:
        return None
    terms, returns_sum = _terms(dataflow, var, found)
    quantizers, quantized = quantizations(dataflow, var)
    returns_float = len(quantizers) < len(readers)
    func = norm(
        *rows,
        kind=found.kind,
        epsilon=found.epsilon,
        residual=len(terms) == 2,
        bias=found.bias is not None,
        returns_sum=returns_sum,
        returns_float=returns_float,
        returns_int8=bool(quantizers),
    )
    args = [*terms, found.weight, *([] if found.bias is None else [found.bias])]
    out: list[relax.TensorType] = []
    replaces: dict[relax.Var, int] = {}
    for wanted, each in ((returns_sum, found.x), (returns_float, var)):
        if wanted:
            replaces[each] = len(out)
            out.append(each.ty)
    if quantizers:
        replaces.update({item: len(out) + number for item, number in quantized.items()})
        out += quantizers[0].ty.fields
    return Replacement(var, func, args, out, replaces, tuple(quantizers))


def _terms(dataflow: Dataflow, var: relax.Var, found: Norm) -> tuple[list[relax.Expr], bool]:
    """The terms of the sum that is normalised, or what else is; and whether the sum has other readers."""
    add = dataflow.call(found.x, "relax.add")
    if add is None or not isinstance(found.x, relax.DataflowVar):
        return [found.x], False
    if not all(same_type(term, found.x) for term in add.args):
        return [found.x], False
    others = [
        reader
        for reader in dataflow.readers[found.x]
        if not any(dataflow.value(reader).same_as(inner) for inner in found.inner)
    ]
    # A reader that comes earlier needs the sum before this kernel has run.
    if any(dataflow.position[reader] < dataflow.position[var] for reader in others):
        return [found.x], False
    return list(add.args), bool(others)


@tvm.transform.module_pass(opt_level=0, name="FuseNorm")
class FuseNorm:
    """Call one kernel for each RMSNorm or LayerNorm over the last axis.

    A sum of two tensors of one shape that is normalised becomes the kernel's business; so does the quantization of the
    result. The kernel gives the sum and the float32 result only where something else reads them. Normalisations over
    other axes, and those that are handed out of their dataflow block, stay.
    """

    def transform_module(self, mod: tvm.IRModule, ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Return the module with fused normalisations."""
        return replace_kernels(mod, _match)
