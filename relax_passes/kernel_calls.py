"""Calls of TensorIR kernels, as passes emit them."""

from collections.abc import Mapping, Sequence

from tvm import relax, tirx

from hwpq_tvm.schedules.kernel_attr import kernel_name


def call_kernel(
    builder: relax.BlockBuilder,
    func: tirx.PrimFunc,
    args: Sequence[relax.Expr],
    out: Sequence[relax.TensorType],
    inplace: Mapping[int, int] | None = None,
) -> list[relax.Var]:
    """Add a kernel to the module, once however often it is called, and emit a call.

    Parameters
    ----------
    builder
        Of the function that calls.
    func
        A description.
    args
        Its inputs.
    out
        Types of its outputs.
    inplace
        Output -> number of the input that it is written to; by default all outputs are fresh memory.

    Returns
    -------
    list of relax.Var
        The outputs.
    """
    gvar = builder.add_func(func, kernel_name(func))
    types = list(out) if len(out) > 1 else out[0]
    if inplace:
        places = [inplace.get(i, -1) for i in range(len(out))]
        result = builder.emit(relax.op.call_tir_inplace(gvar, list(args), places, out_ty=types))
    else:
        result = builder.emit(relax.call_tir(gvar, relax.Tuple(list(args)), types))
    if len(out) == 1:
        return [result]
    return [builder.emit(relax.TupleGetItem(result, i)) for i in range(len(out))]


def extents(lead: Sequence[relax.Expr]) -> list[int | str]:
    """Leading dimensions of a tensor as kernel builders take them: symbolic ones by name.

    One that is computed of others, such as `3 * seq_len`, is for a kernel a dimension like any other.
    """
    return [
        int(dim) if isinstance(dim, tirx.IntImm) else dim.name if isinstance(dim, tirx.Var) else f"rows{axis}"
        for axis, dim in enumerate(lead)
    ]


def bound_as(builder: relax.BlockBuilder, var: relax.Var, value: relax.Expr) -> relax.Expr:
    """A value that takes the place of a variable: one that is seen outside of its block has to stay so."""
    return value if isinstance(var, relax.DataflowVar) else builder.emit_output(value)
