"""Imports torch modules of any kind, by their example inputs, and programs that torch.export made of them."""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
import tvm
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, TensorArgument
from torch.utils import _pytree as pytree
from tvm import relax

from hwpq_tvm.errors import ImportModelError
from hwpq_tvm.importers.exported_program import (
    Origin,
    export,
    in_known_operators,
    make_all_inputs_plain,
    module_path,
    name_inputs,
    simplify,
    size_limits,
    translate,
)
from hwpq_tvm.importers.imported_model import ImportedModel, ModelMetadata
from hwpq_tvm.importers.in_place import functional
from hwpq_tvm.importers.kept_state import check_state
from hwpq_tvm.importers.sources import ModelParameters, TorchSource
from hwpq_tvm.importers.structure import copy_without_weights, parameter_aliases

MAIN = "main"
_ADVICE = (
    "write that part of the module in other operators, or build the parts around it one by one (fixed shapes instead of"
    " dynamic ones need fewer operators)"
)
# What is computed with besides float32: sizes, indices and masks.
_DTYPES = {
    torch.float32,
    torch.float64,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
}


def import_torch_module(module: torch.nn.Module, example_inputs: Any, dynamic_shapes: Any) -> ImportedModel:
    """Import a module by tracing it.

    Parameters
    ----------
    module
        Any module that torch.export can trace. It is not changed; half-precision weights become float32.
    example_inputs
        Tuple of its positional inputs, dictionary of its inputs by name, or its one input, a tensor.
    dynamic_shapes
        Dimensions that vary, as `torch.export.export` takes them; None for none.

    Returns
    -------
    The entry `main`: the tensors among the inputs, then the weights, to a tuple of the tensors that it returns.

    Raises
    ------
    ImportModelError
        When there are no example inputs, or the module computes something that can't be expressed.
    """
    origin = Origin(type(module).__name__, "", _ADVICE)
    if example_inputs is None:
        raise ImportModelError(
            f"{origin.name} is a torch module, which is imported by tracing it: give example_inputs, a tuple of tensors"
            " or a dictionary of them by name (and dynamic_shapes for dimensions that vary, as torch.export takes them)"
        )
    positional, keywords = _arguments(example_inputs)
    _check_loaded(dict(module.named_parameters()), origin)
    strange = [
        f"{name} is {parameter.dtype}"
        for name, parameter in module.named_parameters()
        if not parameter.is_floating_point()
    ]
    if strange:
        raise ImportModelError(
            f"{origin.name} has parameters that are no floating-point numbers: {', '.join(strange)}; {_ADVICE}"
        )
    aliases = parameter_aliases(module)
    skeleton = copy_without_weights(module)
    program = export(skeleton, positional, dynamic_shapes, origin, keywords=keywords)
    names = _dimension_names(module, positional, keywords, dynamic_shapes)
    parameters = dict(module.named_parameters())
    return _import(program, origin, aliases, parameters, names, (positional, keywords))


def import_exported_program(program: ExportedProgram) -> ImportedModel:
    """Import what `torch.export.export` returned; it is not changed.

    Returns
    -------
    As `import_torch_module`; dimensions are dynamic as they are in the program.

    Raises
    ------
    ImportModelError
        When it computes something that can't be expressed, or in other float types than float32.
    """
    origin = Origin(_class_name(program), "", _ADVICE)
    # A program of its own, of which the weights are not copied.
    parameters = dict(program.named_parameters())
    _check_loaded(parameters, origin)
    try:
        copied = program.run_decompositions({})
    except Exception as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise ImportModelError(
            f"{origin.name} can't be made a program that overwrites nothing ({type(error).__name__}: {reason});"
            f" {_ADVICE}"
        ) from error
    copied = in_known_operators(functional(copied, origin.name, _ADVICE))
    names: dict[int, tuple[str, ...]] = {}
    for name, parameter in parameters.items():
        key = id(parameter)
        names[key] = (*names.get(key, ()), name)
    aliases = {each[0]: each for each in names.values()}
    examples = program.example_inputs if program.example_inputs is not None else ((), {})
    return _import(copied, origin, aliases, parameters, {}, examples)


def _import(
    program: ExportedProgram,
    origin: Origin,
    aliases: Mapping[str, tuple[str, ...]],
    parameters: Mapping[str, torch.Tensor],
    dimension_names: Mapping[tuple[int, int], str],
    examples: tuple[Any, Any],
) -> ImportedModel:
    check_state(program, origin.name)
    _check_objects(program, origin)
    _keep_tensors(program, origin)
    simplify(program)
    _check_dtypes(program, origin)
    names, constants = name_inputs(program, aliases, origin)
    inputs = _user_inputs(program)
    dimensions, lower_bounds, upper_bounds = _dimensions(program, inputs, dimension_names)
    used = {name for node, name in names.items() if node.users}
    weights = tuple(name for name in dict.fromkeys(names.values()) if name in used)
    make_all_inputs_plain(program)
    functions = translate(
        program,
        MAIN,
        weight_names={node.name: name for node, name in names.items()},
        weights=weights,
        dimensions=dimensions,
        lower_bounds=lower_bounds,
        upper_bounds=upper_bounds,
        origin=origin,
    )
    relaxed = tvm.IRModule(functions)
    relax.analysis.well_formed(relaxed)  # raises
    kept = {name: value for name, value in constants.items() if name in used}
    return ImportedModel(
        module=relaxed,
        entries=(MAIN,),
        parameters=ModelParameters(TorchSource(parameters), {name: name for name in weights if name not in kept}, kept),
        metadata=ModelMetadata(
            architecture=origin.name,
            source=origin.name,
            source_bytes=sum(each.numel() * each.element_size() for each in parameters.values()),
            source_format="torch",
        ),
        tokenizer_files={},
        example_inputs=_example_arrays(examples, inputs),
    )


def _arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword inputs, floats as float32: the module is traced in that."""
    if isinstance(example_inputs, Mapping):
        positional, keywords = (), dict(example_inputs)
    else:
        several = isinstance(example_inputs, list | tuple)
        positional, keywords = tuple(example_inputs) if several else (example_inputs,), {}
    if next(_tensors((positional, keywords)), None) is None:
        raise ImportModelError(
            f"example_inputs are {type(example_inputs).__name__} without a torch.Tensor: give a tuple of tensors, or a"
            " dictionary of them by name"
        )
    return pytree.tree_map_only(
        torch.Tensor, lambda x: x.float() if x.is_floating_point() else x, (positional, keywords)
    )


def _check_loaded(parameters: Mapping[str, torch.Tensor], origin: Origin) -> None:
    on_meta = [name for name, parameter in parameters.items() if parameter.is_meta]
    if on_meta:
        raise ImportModelError(f"weights of {origin.name} are on the meta device: {', '.join(on_meta)}; load them")


def _tensors(inputs: Any) -> Iterator[torch.Tensor]:
    """All tensors of nested inputs, in the order of torch.export."""
    return (leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, torch.Tensor))


def _class_name(program: ExportedProgram) -> str:
    """Class of the module that a program was made of."""
    for node in program.graph.nodes:
        for _, kind in (node.meta.get("nn_module_stack") or {}).values():
            return str(kind).rpartition(".")[2]
    return "ExportedProgram"


def _check_objects(program: ExportedProgram, origin: Origin) -> None:
    strange = [
        str(spec.target)
        for spec in program.graph_signature.input_specs
        if spec.kind in (InputKind.CUSTOM_OBJ, InputKind.TOKEN)
    ]
    if strange:
        raise ImportModelError(f"{origin.name} holds objects that are no tensors ({', '.join(strange)}); {_ADVICE}")


def _keep_tensors(program: ExportedProgram, origin: Origin) -> None:
    """Drop inputs and outputs that are no tensors: torch.export has made constants of them."""
    signature = program.graph_signature
    nodes = {node.name: node for node in program.graph.find_nodes(op="placeholder")}
    for spec in [spec for spec in signature.input_specs if isinstance(spec.arg, ConstantArgument)]:
        if spec.arg.name in nodes:
            program.graph.erase_node(nodes[spec.arg.name])
        signature.input_specs.remove(spec)
    if numbers := [spec.arg.name for spec in signature.input_specs if not isinstance(spec.arg, TensorArgument)]:
        raise ImportModelError(
            f"{origin.name} takes numbers that vary ({', '.join(numbers)}): expected tensors; make them tensors, or fix"
            " them"
        )
    output = next(iter(program.graph.find_nodes(op="output")))
    kept = [number for number, value in enumerate(output.args[0]) if isinstance(value, fx.Node)]
    specs = [signature.output_specs[number] for number in kept]
    if not kept:
        raise ImportModelError(f"{origin.name} returns no tensor: expected at least one")
    if numbers := [spec.arg.name for spec in specs if not isinstance(spec.arg, TensorArgument)]:
        raise ImportModelError(f"{origin.name} returns numbers that vary ({', '.join(numbers)}): expected tensors")
    output.args = (tuple(output.args[0][number] for number in kept),)
    signature.output_specs[:] = specs


def _check_dtypes(program: ExportedProgram, origin: Origin) -> None:
    """Name all types that can't be computed with, and the modules where they are."""
    found: dict[str, str] = {}
    for node in program.graph.nodes:
        for value in _tensors(node.meta.get("val")):
            if value.dtype not in _DTYPES:
                where = f"input or weight {node.name}" if node.op == "placeholder" else module_path(node, origin)
                found.setdefault(str(value.dtype).removeprefix("torch."), where)
    if found:
        places = ", ".join(f"{dtype} in {where}" for dtype, where in found.items())
        raise ImportModelError(
            f"{origin.name} computes with types that there are no kernels for: {places}; expected float32 and integers:"
            " export module.float(), and write complex numbers as pairs of real ones"
        )


def _user_inputs(program: ExportedProgram) -> list[fx.Node]:
    names = [spec.arg.name for spec in program.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT]
    nodes = {node.name: node for node in program.graph.find_nodes(op="placeholder")}
    return [nodes[name] for name in names]


def _dimensions(
    program: ExportedProgram, inputs: list[fx.Node], names: Mapping[tuple[int, int], str]
) -> tuple[dict[tuple[str, int], str], dict[str, int], dict[str, int]]:
    """Name the symbolic dimensions, by input and axis, and find how small and how large they can be."""
    known: dict[Any, str] = {}
    dimensions: dict[tuple[str, int], str] = {}
    lower_bounds: dict[str, int] = {}
    upper_bounds: dict[str, int] = {}
    for number, node in enumerate(inputs):
        for axis, size in enumerate(node.meta["val"].shape):
            if not isinstance(size, torch.SymInt) or not size.node.expr.is_Symbol:
                continue
            name = known.setdefault(size.node.expr, names.get((number, axis), f"{node.name}_{axis}"))
            dimensions[node.name, axis] = name
            for bounds, limit in zip((lower_bounds, upper_bounds), size_limits(program, size), strict=True):
                if limit is not None:
                    bounds[name] = limit
    return dimensions, lower_bounds, upper_bounds


def _dimension_names(
    module: torch.nn.Module, positional: tuple[Any, ...], keywords: Mapping[str, Any], dynamic_shapes: Any
) -> dict[tuple[int, int], str]:
    """Names that the user gave to dimensions, by the number of the input and the axis."""
    signature = inspect.signature(module.forward)
    if isinstance(dynamic_shapes, Mapping):
        by_name = dict(dynamic_shapes)
    else:
        by_name = dict(zip(signature.bind(*positional, **keywords).arguments, dynamic_shapes or (), strict=False))
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            by_name.update(by_name.pop(name, None) or {})
    # Inputs by name are traced in the order in which they are given, whatever the signature's.
    given = {**signature.bind_partial(*positional).arguments, **keywords}
    shapes = [by_name.get(name) for name in given]
    names = {}
    number = 0
    for value, shape in zip(given.values(), shapes, strict=False):
        for spec in _leaf_shapes(value, shape):
            pairs = spec.items() if isinstance(spec, Mapping) else enumerate(spec or ())
            names.update({(number, axis): dim.__name__ for axis, dim in pairs if hasattr(dim, "__name__")})
            number += 1
    return names


def _leaf_shapes(value: Any, shape: Any) -> Iterator[Any]:
    """What was said of the dimensions of each tensor of a nested input."""
    if isinstance(value, torch.Tensor):
        yield shape
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _leaf_shapes(each, None if shape is None else shape.get(key))
    elif isinstance(value, list | tuple):
        for number, each in enumerate(value):
            yield from _leaf_shapes(each, None if shape is None else shape[number])


def _example_arrays(examples: tuple[Any, Any], inputs: list[fx.Node]) -> tuple[np.ndarray, ...] | None:
    """The example inputs as arrays; None where the program has none, or none with values."""
    tensors = list(_tensors(examples))
    if len(tensors) != len(inputs) or any(
        each.is_meta or isinstance(each, torch._subclasses.FakeTensor) for each in tensors
    ):
        return None
    return tuple(each.detach().cpu().contiguous().numpy() for each in tensors)
