"""Models of transformers that are run without a cache -> Relax: one function for each entry that is described."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import tvm
from torch import fx
from torch.export import Dim, ExportedProgram
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils.generic import ModelOutput
from tvm import relax

from hwpq_tvm.errors import ImportModelError
from hwpq_tvm.importers.dense_attention import ATTENTION_NAME, takes_masks
from hwpq_tvm.importers.dense_attention_lowering import OPERATOR, convert_dense_attention
from hwpq_tvm.importers.exported_program import (
    Origin,
    export,
    make_all_inputs_plain,
    name_inputs,
    simplify,
    size_limits,
    translate,
)
from hwpq_tvm.importers.structure import copy_without_weights, parameter_aliases
from hwpq_tvm.relax_passes.linears import OUTPUT_NAMES

# What the inputs that are traced have of a symbolic dimension, by its turn: different, and neither 0 nor 1.
_TRACED_SIZES = (2, 7, 5, 3)


@dataclass(frozen=True, slots=True)
class Input:
    """One input of an entry.

    Attributes
    ----------
    name
        Its name.
    shape
        Its dimensions; a string names a symbolic one. Those of one name are equal in all inputs of an entry.
    dtype
        Type of its elements.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: torch.dtype = torch.int64


@dataclass(frozen=True, slots=True)
class Entry:
    """One way to run a model.

    Attributes
    ----------
    name
        Name of the function.
    inputs
        What it takes.
    run
        Runs a model on these inputs by name; gives what the model returns.
    bounds
        The largest value of a symbolic dimension, by name, where it is known other than by tracing.
    """

    name: str
    inputs: tuple[Input, ...]
    run: Callable[[PreTrainedModel, Mapping[str, torch.Tensor]], Any]
    bounds: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class TransformersModel:
    """A model in Relax.

    Attributes
    ----------
    module
        The entry functions and their kernels. An entry's attribute `tir_var_upper_bound` has the largest values of its
        symbolic dimensions where there is a limit, `hwpq.outputs` the names of what it returns.
    entries
        Names of the entry functions.
    weights
        Names of the weights, in the order of the entries' parameters.
    constants
        Values of those weights that are no parameters of the model (buffers, constants of its code).
    notes
        What a user should know about the import.
    """

    module: tvm.IRModule
    entries: tuple[str, ...]
    weights: tuple[str, ...]
    constants: dict[str, torch.Tensor]
    notes: tuple[str, ...]


def import_entries(
    model: PreTrainedModel, entries: Sequence[Entry], advice: str, notes: Sequence[str] = ()
) -> TransformersModel:
    """Turn a model of transformers into Relax; its weights' values are not read.

    Parameters
    ----------
    model
        The model; its parameters may be on the meta device. It is not changed.
    entries
        The functions to make.
    advice
        How refusals end: what can be imported instead, or how.
    notes
        What to tell the user besides what is found here.

    Raises
    ------
    ImportModelError
        When the model computes something that can't be expressed.
    """
    origin = Origin(type(model).__name__, "model.", advice)
    aliases = parameter_aliases(model)
    skeleton = copy_without_weights(model)
    _attend_by(skeleton, ATTENTION_NAME)
    traced = [_trace(skeleton, entry, origin) for entry in entries]
    if not all([takes_masks(program) for program, _ in traced]):
        # It has an attention of its own, which is compiled as it is written.
        _attend_by(skeleton, "eager")
        traced = [_trace(skeleton, entry, origin) for entry in entries]
    named = [name_inputs(program, aliases, origin) for program, _ in traced]
    used = {name for names, _ in named for node, name in names.items() if node.users}
    # Every program has placeholders for all weights, whether it uses them or not.
    weights = tuple(name for name in dict.fromkeys(named[0][0].values()) if name in used)
    functions: dict[tvm.ir.GlobalVar, tvm.ir.BaseFunc] = {}
    for entry, (program, outputs), (names, _) in zip(entries, traced, named, strict=True):
        lower_bounds, upper_bounds = _limits(program, entry, origin)
        make_all_inputs_plain(program)
        translated = translate(
            program,
            entry.name,
            weight_names={node.name: name for node, name in names.items()},
            weights=weights,
            dimensions={(each.name, axis): dim for each, axis, dim in _symbolic(entry)},
            lower_bounds=lower_bounds,
            upper_bounds={**upper_bounds, **entry.bounds},
            origin=origin,
            converters={OPERATOR: convert_dense_attention},
        )
        functions |= {
            variable: function.with_attr(OUTPUT_NAMES, outputs) if variable.name_hint == entry.name else function
            for variable, function in translated.items()
        }
    relaxed = tvm.IRModule(functions)
    relax.analysis.well_formed(relaxed)  # raises
    return TransformersModel(
        module=relaxed,
        entries=tuple(sorted(entry.name for entry in entries)),
        weights=weights,
        constants={name: value for _, constants in named for name, value in constants.items() if name in used},
        notes=tuple(notes),
    )


def _attend_by(skeleton: PreTrainedModel, implementation: str) -> None:
    """Choose the attention function of all modules: encoder and decoder may have copies of the configuration."""
    for module in skeleton.modules():
        if isinstance(config := getattr(module, "config", None), PretrainedConfig):
            config._attn_implementation = implementation


class _Forward(torch.nn.Module):
    """The forward pass that is exported: it has the named inputs of an entry, and returns tensors only.

    Parameters
    ----------
    model, entry
        What is run.
    output_names
        Gets the names of the outputs when the module is traced.
    """

    def __init__(self, model: PreTrainedModel, entry: Entry, output_names: list[str]) -> None:
        super().__init__()
        self.model = model
        self.entry = entry

        def forward(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
            outputs = self._run(inputs)
            output_names[:] = outputs
            return tuple(outputs.values())

        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        forward.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [inspect.Parameter(each.name, kind) for each in entry.inputs]
        )
        self.forward = forward

    def _run(self, inputs: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
        sizes: dict[str, Any] = {}
        values = {each.name: value for each, value in zip(self.entry.inputs, inputs, strict=True)}
        for each, axis, dim in _symbolic(self.entry):
            size = values[each.name].shape[axis]
            torch._check(size == sizes.setdefault(dim, size))
        return dict(_tensors(self.entry.run(self.model, values)))


def _tensors(output: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors of what a model returns, with their names."""
    if isinstance(output, torch.Tensor):
        yield name or "output", output
    elif isinstance(output, ModelOutput):
        for key, value in output.items():
            yield from _tensors(value, f"{name}.{key}" if name else key)
    elif isinstance(output, list | tuple):
        for number, value in enumerate(output):
            yield from _tensors(value, f"{name or 'output'}.{number}")


def _symbolic(entry: Entry) -> Iterator[tuple[Input, int, str]]:
    """Inputs and axes that have symbolic dimensions, and the names of these."""
    for each in entry.inputs:
        for axis, dim in enumerate(each.shape):
            if isinstance(dim, str):
                yield each, axis, dim


def _trace(skeleton: PreTrainedModel, entry: Entry, origin: Origin) -> tuple[ExportedProgram, list[str]]:
    """Export one entry; returns the program and the names of its outputs."""
    names = dict.fromkeys(dim for _, _, dim in _symbolic(entry))
    sizes = dict(zip(names, _TRACED_SIZES, strict=False))
    inputs = tuple(
        torch.ones([sizes[dim] if isinstance(dim, str) else dim for dim in each.shape], dtype=each.dtype)
        for each in entry.inputs
    )
    shapes = tuple(
        {axis: Dim.AUTO for axis, dim in enumerate(each.shape) if isinstance(dim, str)} for each in entry.inputs
    )
    outputs: list[str] = []
    program = export(_Forward(skeleton, entry, outputs), inputs, shapes, origin)
    simplify(program)
    return program, outputs


def _limits(program: ExportedProgram, entry: Entry, origin: Origin) -> tuple[dict[str, int], dict[str, int]]:
    """The smallest and largest values of symbolic dimensions, such as the length of a table of positions."""
    placeholders = {node.name: node for node in program.graph.find_nodes(op="placeholder")}
    lower_bounds: dict[str, int] = {}
    upper_bounds: dict[str, int] = {}
    for each, axis, dim in _symbolic(entry):
        size = _size(placeholders[each.name], axis)
        if isinstance(size, int):
            raise ImportModelError(
                f"{origin.name} computes only with {each.name} whose dimension {axis} ({dim}) is {size}: expected any"
                f" {dim}; {origin.advice}"
            )
        for bounds, limit in zip((lower_bounds, upper_bounds), size_limits(program, size), strict=True):
            if limit is not None:
                bounds[dim] = limit
    return lower_bounds, upper_bounds


def _size(placeholder: fx.Node, axis: int) -> Any:
    return placeholder.meta["val"].shape[axis]
