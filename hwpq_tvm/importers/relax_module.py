"""Imports Relax modules: entry functions whose weights are named parameters, with their values beside them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import tvm
from tvm import relax, tirx
from tvm.relax.expr_functor import PyExprMutator, mutator

from hwpq_tvm.errors import ImportModelError
from hwpq_tvm.importers.imported_model import ImportedModel, ModelMetadata
from hwpq_tvm.relax_passes.linears import constant_array

# What TVM calls a function that is fused with no other.
_OPAQUE = 8
_PARAMS, _NUM_INPUT = "params", "num_input"


class ArraySource:
    """Weights that are arrays in memory.

    Parameters
    ----------
    arrays
        TVM tensors or NumPy arrays by name.
    """

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        self._arrays = arrays

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a weight."""
        return tuple(int(size) for size in self._arrays[name].shape)

    def load(self, name: str) -> np.ndarray:
        """Read one weight, of the type that it has."""
        value = self._arrays[name]
        return np.ascontiguousarray(value.numpy() if hasattr(value, "numpy") else value)

    def load_index(self, name: str, index: int) -> np.ndarray:
        """Read one part along the first axis."""
        return np.ascontiguousarray(self.load(name)[index])

    def reads_parts(self, name: str) -> bool:
        """Whether a part is read without the rest: it is, unless the array has to be made of something else first."""
        return isinstance(self._arrays[name], np.ndarray)


def import_relax(module: tvm.IRModule, params: Mapping[str, Any] | None) -> ImportedModel:
    """Import a Relax module.

    Parameters
    ----------
    module
        Its entries are the functions with an attribute `num_input`, which counts the inputs in front of the weights,
        or else `main`, whose weights are the parameters that there are values for. It is not changed.
    params
        Values of the weights, by name, or by entry in the order of its weights, as `relax.frontend.detach_params`
        gives them: TVM tensors, NumPy arrays or torch tensors; None where the functions have them in their attribute
        `params`.

    Returns
    -------
    The entries, their inputs in front and then all weights of all of them. Matrices and larger arrays that are
    constants in the module become weights too.

    Raises
    ------
    ImportModelError
        When there is no entry, naming all weights without a value of their type and all values without a weight; or
        when the entries are not plain sequences of calls.
    """
    entries = _entries(module)
    module = _plain(module, entries)
    values = _values(module, entries, params or {})
    weights = {entry: _weights(module[entry], values) for entry in entries}
    _check_values(weights, values, params or {})
    lifted: dict[str, np.ndarray] = {}
    names: dict[Any, str] = {}
    lifters = {entry: _LiftConstants(entry, names, lifted) for entry in entries}
    bodies = {entry: lifter.visit_expr(module[entry].body) for entry, lifter in lifters.items()}
    types = {str(weight.name): weight.ty for each in weights.values() for weight in each}
    types |= {name: weight.ty for lifter in lifters.values() for name, weight in lifter.weights.items()}
    functions = {
        # TVM can't fuse functions of symbolic shapes that it did not make.
        variable: f.with_attr("op_pattern", _OPAQUE) if isinstance(f, tirx.PrimFunc) else f
        for variable, f in module.functions.items()
    }
    for entry in entries:
        function, own = module[entry], {str(w.name): w for w in weights[entry]} | lifters[entry].weights
        inputs = [param for param in function.params if param not in weights[entry]]
        ordered = [own[name] if name in own else relax.Var(name, type_) for name, type_ in types.items()]
        rewritten = relax.Function([*inputs, *ordered], bodies[entry], function.ret_ty, attrs=function.attrs)
        rewritten = rewritten.without_attr(_PARAMS) if _PARAMS in function.attrs else rewritten
        functions[module.get_global_var(entry)] = rewritten.with_attr({_NUM_INPUT: len(inputs), "global_symbol": entry})
    arrays = {name: lifted[name] if name in lifted else values[name] for name in types}
    return ImportedModel(
        module=tvm.IRModule(functions),
        entries=entries,
        parameters=ArraySource(arrays),
        metadata=ModelMetadata(
            architecture="Relax module",
            source="Relax module",
            source_bytes=sum(_nbytes(array) for array in arrays.values()),
            source_format="relax",
        ),
        tokenizer_files={},
        notes=_notes(lifted),
    )


def _entries(module: tvm.IRModule) -> tuple[str, ...]:
    functions = {str(v.name_hint): f for v, f in module.functions_items() if isinstance(f, relax.Function)}
    entries = sorted(name for name, function in functions.items() if function.attrs and _NUM_INPUT in function.attrs)
    if entries:
        return tuple(entries)
    if "main" in functions:
        return ("main",)
    raise ImportModelError(
        f"the Relax module has the functions {', '.join(functions) or 'none'}: expected `main`, or functions with an"
        " attribute num_input, which counts the inputs in front of the weights"
    )


def _plain(module: tvm.IRModule, entries: tuple[str, ...]) -> tvm.IRModule:
    """Bring the entries into dataflow blocks, without calls of other Relax functions."""
    module = tvm.transform.Sequential(
        [relax.transform.InlinePrivateFunctions(), relax.transform.Normalize(), relax.transform.ConvertToDataflow(1)]
    )(module)
    others = [
        str(v.name_hint)
        for v, f in module.functions_items()
        if isinstance(f, relax.Function) and str(v.name_hint) not in entries
    ]
    if others:
        raise ImportModelError(
            f"the Relax module has functions besides its entries ({', '.join(others)}): make them private, so that"
            " they are inlined, or give them an attribute num_input"
        )
    problems = []
    for entry in entries:
        function = module[entry]
        if not all(isinstance(block, relax.DataflowBlock) for block in function.body.blocks):
            problems.append(f"{entry} branches or has side effects: expected a sequence of calls")
        unknown = [str(p.name) for p in function.params if not _is_known_tensor(p.ty)]
        if unknown:
            problems.append(
                f"{entry} takes {', '.join(unknown)} of unknown shape or no tensors: expected R.Tensor(shape, dtype)"
            )
        fields = function.ret_ty.fields if isinstance(function.ret_ty, relax.TupleType) else [function.ret_ty]
        if not all(_is_known_tensor(field) for field in fields):
            problems.append(f"{entry} returns {function.ret_ty}: expected tensors of known shape, or one tuple of them")
    if problems:
        raise ImportModelError(f"the Relax module can't be imported: {'; '.join(problems)}")
    return module


def _is_known_tensor(type_: Any) -> bool:
    return isinstance(type_, relax.TensorType) and isinstance(type_.shape, relax.ShapeExpr)


def _values(module: tvm.IRModule, entries: tuple[str, ...], params: Mapping[str, Any]) -> dict[str, Any]:
    """Values of weights by name."""
    values: dict[str, Any] = {}
    for entry in entries:
        function = module[entry]
        given = params.get(entry)
        if not isinstance(given, Sequence):
            given = list(function.attrs[_PARAMS]) if function.attrs and _PARAMS in function.attrs else []
        if len(given) > len(function.params):
            raise ImportModelError(
                f"there are {len(given)} values for the weights of {entry}, which has {len(function.params)} parameters"
            )
        names = [str(param.name) for param in function.params[len(function.params) - len(given) :]]
        values |= dict(zip(names, given, strict=True))
    values |= {name: value for name, value in params.items() if hasattr(value, "shape")}
    return {name: _array(name, value) for name, value in values.items()}


def _array(name: str, value: Any) -> Any:
    """A torch tensor as an array, everything else as it is."""
    if not isinstance(value, torch.Tensor):
        return value
    try:
        return value.detach().cpu().numpy()
    except (TypeError, NotImplementedError) as error:
        dtype = str(value.dtype).removeprefix("torch.")
        raise ImportModelError(
            f"the value of {name} is a torch tensor of {dtype} on the device {value.device}, of which NumPy makes no"
            " array: load it, and give it in the type that the module takes"
        ) from error


def _weights(function: relax.Function, values: Mapping[str, Any]) -> list[relax.Var]:
    """The parameters of an entry that are weights."""
    if function.attrs and _NUM_INPUT in function.attrs:
        return list(function.params[int(function.attrs[_NUM_INPUT]) :])
    return [param for param in function.params if str(param.name) in values]


def _check_values(weights: Mapping[str, list[relax.Var]], values: Mapping[str, Any], params: Mapping[str, Any]) -> None:
    """Compare weights with the values that there are for them."""
    problems = []
    types: dict[str, relax.TensorType] = {}
    for entry, variables in weights.items():
        for weight in variables:
            name, shape = str(weight.name), list(weight.ty.shape.values)
            if not all(isinstance(size, tirx.IntImm) for size in shape):
                problems.append(f"{name} of {entry} is {shape}: weights have to have a fixed shape")
                continue
            before = types.setdefault(name, weight.ty)
            expected = ([int(size) for size in shape], str(weight.ty.dtype))
            if ([int(size) for size in before.shape.values], str(before.dtype)) != expected:
                problems.append(f"{name} is {before} in one entry and {weight.ty} in {entry}")
            elif name not in values:
                problems.append(f"{name} {expected[0]} of {entry} has no value")
            elif (found := ([int(size) for size in values[name].shape], str(values[name].dtype))) != expected:
                problems.append(f"the value of {name} is {found[1]} {found[0]}, expected {expected[1]} {expected[0]}")
    unknown = [name for name, value in params.items() if hasattr(value, "shape") and name not in types]
    if unknown:
        problems.append(f"there are values for {', '.join(unknown)}, which no entry takes as a weight")
    if problems:
        raise ImportModelError(
            f"the weights of the Relax module do not fit it: {'; '.join(problems)}; give params={{name: array}}, and"
            " inputs in front of the weights (their number is the attribute num_input)"
        )


@mutator
class _LiftConstants(PyExprMutator):
    """Turns constant matrices and larger arrays of floats into weights, one that is used in many places into one.

    Parameters
    ----------
    entry
        The function that is rewritten.
    names, arrays
        Name of each constant that is a weight already, and the values by name: shared by all entries.
    """

    def __init__(self, entry: str, names: dict[Any, str], arrays: dict[str, np.ndarray]) -> None:
        super().__init__()
        self.entry, self.names, self.arrays = entry, names, arrays
        self.weights: dict[str, relax.Var] = {}

    def visit_generic_const_(self, constant: tvm.ir.GenericConst) -> relax.Expr:
        array = constant_array(constant)
        if array is None or array.ndim < 2 or array.size < 2 or array.dtype != np.float32:
            return constant
        name = self.names.setdefault(constant, f"{self.entry}.constant_{len(self.arrays)}")
        self.arrays.setdefault(name, array)
        return self.weights.setdefault(name, relax.Var(name, relax.TensorType(array.shape, "float32")))


def _notes(lifted: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    if not lifted:
        return ()
    shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in lifted.items())
    return (f"constants of the Relax module became weights: {shapes}",)


def _nbytes(array: Any) -> int:
    return int(np.prod([int(size) for size in array.shape], dtype=np.int64)) * np.dtype(str(array.dtype)).itemsize
