"""What the entry functions of a module take and return, as manifests have it."""

from collections.abc import Iterable

import tvm
from tvm import relax, tirx

from .relax_passes.linears import OUTPUT_NAMES, looked_up_rows
from .runtime.manifest import EntrySpec, TensorSpec

# Attributes of a function: the largest value of each symbolic dimension, by name, which memory is planned for; and the
# smallest.
UPPER_BOUNDS, LOWER_BOUNDS = "tir_var_upper_bound", "tir_var_lower_bound"


def entry_spec(function: relax.Function) -> EntrySpec:
    """Inputs, outputs and limits of an imported entry function; its attribute `hwpq.outputs`, if any, names outputs."""
    inputs = [_tensor(str(p.name), p.ty) for p in function.params[: int(function.attrs["num_input"])]]
    types = list(function.ret_ty.fields) if isinstance(function.ret_ty, relax.TupleType) else [function.ret_ty]
    given = function.attrs.get(OUTPUT_NAMES)
    names = [f"output_{i}" for i in range(len(types))] if given is None else [str(name) for name in given]
    upper, lower = (
        {str(name): int(bound) for name, bound in (function.attrs.get(attribute) or {}).items()}
        for attribute in (UPPER_BOUNDS, LOWER_BOUNDS)
    )
    outputs = [_tensor(name, type_) for name, type_ in zip(names, types, strict=True)]
    rows = looked_up_rows(function)
    ids = {each.name: rows[each.name] for each in inputs if each.name in rows}
    return EntrySpec(tuple(inputs), tuple(outputs), upper, lower, ids)


def entry_specs(mod: tvm.IRModule, entries: Iterable[str]) -> dict[str, EntrySpec]:
    """Inputs, outputs and limits of some entry functions, by name."""
    return {entry: entry_spec(mod[entry]) for entry in entries}


def _tensor(name: str, type_: relax.TensorType) -> TensorSpec:
    shape = tuple(int(dim) if isinstance(dim, tirx.IntImm) else str(dim) for dim in type_.shape.values)
    return TensorSpec(name, shape, str(type_.dtype))
