"""What torch.export gives -> entry functions of Relax, for every kind of model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import tvm
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from tvm import relax, tirx
from tvm.relax.expr_functor import PyExprMutator, mutator
from tvm.relax.frontend.torch import from_exported_program
from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

from hwpq_tvm.errors import ImportModelError
from hwpq_tvm.importers.checked_conversion import checked
from hwpq_tvm.importers.converters import CONVERTERS, Converter
from hwpq_tvm.importers.in_place import functional, overwrites
from hwpq_tvm.importers.kept_state import check_state
from hwpq_tvm.importers.quiet_export import quiet_failure

# What TVM 0.27 converts to an operator that it has no code for.
_BROKEN = {"pixel_shuffle.default"}


@dataclass(frozen=True, slots=True)
class Origin:
    """The model that is imported, as messages speak of it.

    Attributes
    ----------
    name
        Class of the model.
    prefix
        Where the model is within the module that is exported, such as `"model."`: left out of the paths of its modules
        and the names of its weights.
    advice
        What can be imported instead, or how: the end of a refusal.
    """

    name: str
    prefix: str
    advice: str

    def path(self, path: str) -> str:
        """Full name in the model of a module or weight of what was exported."""
        return path.removeprefix(self.prefix)


def export(
    module: torch.nn.Module,
    inputs: tuple[Any, ...],
    dynamic_shapes: Any,
    origin: Origin,
    *,
    keywords: Mapping[str, Any] | None = None,
) -> ExportedProgram:
    """Trace a module with `torch.export`.

    Parameters
    ----------
    module
        The module; parameters may have no memory.
    inputs, keywords
        Example inputs, whose values mean nothing.
    dynamic_shapes
        Dimensions that vary, as `torch.export.export` takes them.
    origin
        The model, for messages.

    Raises
    ------
    ImportModelError
        When the module can't be traced, with the first line of torch's reason.
    """
    try:
        with torch.no_grad(), quiet_failure():
            program = torch.export.export(
                module, inputs, dict(keywords or {}), dynamic_shapes=dynamic_shapes, strict=False
            )
    except ImportModelError as error:
        raise ImportModelError(f"{origin.name} can't be imported: {error}; {origin.advice}") from error
    except Exception as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise ImportModelError(
            f"{origin.name} can't be exported by torch.export ({type(error).__name__}: {reason}); {origin.advice}"
        ) from error
    check_state(program, origin.name, origin.prefix)
    return in_known_operators(functional(program, origin.name, origin.advice))


def in_known_operators(program: ExportedProgram) -> ExportedProgram:
    """Take operators that can't be converted apart into others, where torch knows how."""
    known, table = _known(CONVERTERS), torch.export.default_decompositions()
    tried: set[Any] = set()
    while True:
        calls = {node.target for node in program.graph.nodes if node.op == "call_function"}
        unknown = {call for call in calls - tried if call.__name__ not in known and call in table}
        if not unknown:
            return program
        program = program.run_decompositions({call: table[call] for call in unknown})
        tried |= unknown  # what they are made of may be unknown, too


def simplify(program: ExportedProgram) -> None:
    """Remove what computes nothing but would be a copy in Relax: casts to the same type, factors of one.

    Squares (in every norm) become products, which vectorise where a power is a call for each element.
    """
    aten = torch.ops.aten
    casts = {aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten._to_copy.default, aten.alias.default}
    for node in program.graph.nodes:
        nothing = node.target in casts or (node.target is aten.mul.Tensor and node.args[1] == 1.0)
        if nothing and node.args[0].meta["val"].dtype == node.meta["val"].dtype:
            node.replace_all_uses_with(node.args[0])
        elif node.target is aten.pow.Tensor_Scalar and node.args[1] == 2:
            node.target, node.args = aten.mul.Tensor, (node.args[0], node.args[0])
    for node in reversed(program.graph.nodes):
        if node.op == "call_function" and not node.users and not overwrites(node):
            program.graph.erase_node(node)


def name_inputs(
    program: ExportedProgram, aliases: Mapping[str, tuple[str, ...]], origin: Origin
) -> tuple[dict[fx.Node, str], dict[str, torch.Tensor]]:
    """Name the inputs of a program that are weights.

    Parameters
    ----------
    program
        The exported program.
    aliases
        All names of tied parameters, by the one to use.
    origin
        The model.

    Returns
    -------
    names, constants
        The name of each placeholder that is a weight, and the values of those that are no parameters: buffers, and
        constants of the model's code.
    """
    canonical = {alias: name for name, names in aliases.items() for alias in names}
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    names, constants = {}, {}
    values: dict[str, Callable[[str], torch.Tensor]] = {
        InputKind.BUFFER.name: lambda target: dict(program.named_buffers())[target],
        InputKind.CONSTANT_TENSOR.name: lambda target: program.constants[target],
    }
    for spec in program.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            continue
        target = origin.path(spec.target)
        if spec.kind is InputKind.PARAMETER:
            target = canonical.get(target, target)
        else:
            constants[target] = values[spec.kind.name](spec.target)
        names[nodes[spec.arg.name]] = target
    return names, constants


def make_all_inputs_plain(program: ExportedProgram) -> None:
    """Make weights inputs like the others.

    The importer binds buffers and copies the values of parameters; inputs it only declares.
    """
    for spec in program.graph_signature.input_specs:
        spec.kind, spec.target = InputKind.USER_INPUT, None
    program.constants.clear()


def set_shape(placeholder: fx.Node, shape: tuple[int, ...]) -> None:
    """Change the shape of an input, of which the importer asks `tensor_meta` before `val`."""
    placeholder.meta["val"] = torch.empty(shape, dtype=placeholder.meta["val"].dtype, device="meta")
    placeholder.meta.pop("tensor_meta", None)


def _known(converters: Mapping[str, Converter]) -> set[str]:
    """Names of the operators that can be converted."""
    return (ExportedProgramImporter().convert_map.keys() | converters.keys()) - _BROKEN


def check_operators(program: ExportedProgram, converters: Mapping[str, Converter], origin: Origin) -> None:
    """Raise ImportModelError naming every operator that can't be converted, and a module where it is."""
    known = _known(converters)
    missing: dict[str, str] = {}
    for node in program.graph.nodes:
        if node.op == "call_function" and node.target.__name__ not in known:
            missing.setdefault(node.target.__name__, module_path(node, origin))
    if missing:
        places = ", ".join(f"{operator} in {path}" for operator, path in missing.items())
        raise ImportModelError(
            f"{origin.name} uses operators that TVM's importer doesn't know: {places}; {origin.advice}"
        )


def module_path(node: fx.Node, origin: Origin) -> str:
    """Full name of the module that a node stems from."""
    stack = node.meta.get("nn_module_stack") or {}
    path = next((path for path, _ in reversed(stack.values())), "")
    return origin.path(path) or "the model"


def translate(
    program: ExportedProgram,
    entry: str,
    *,
    weight_names: Mapping[str, str],
    weights: tuple[str, ...],
    dimensions: Mapping[tuple[str, int], str],
    upper_bounds: Mapping[str, int],
    origin: Origin,
    lower_bounds: Mapping[str, int] | None = None,
    converters: Mapping[str, Converter] | None = None,
) -> dict[tvm.ir.GlobalVar, tvm.ir.BaseFunc]:
    """Translate an exported forward pass to an entry function.

    Parameters
    ----------
    program
        The exported program, prepared by `make_all_inputs_plain`.
    entry
        Name of the entry function.
    weight_names
        Name of the weight for each placeholder that is one; tied placeholders have the same.
    weights
        Names of the weights in the order of the entry's parameters, also those that this entry does not use, as long
        as the program has placeholders for them.
    dimensions
        Name of a dimension by an input and an axis that have it, where it is symbolic.
    upper_bounds, lower_bounds
        The largest and the smallest value of each of these dimensions, by name, where there is a limit.
    origin
        The model.
    converters
        How to make Relax of operators, besides `CONVERTERS`, which they go before.

    Returns
    -------
    The entry function and the TensorIR functions that it calls, whose names end with the entry's.

    Raises
    ------
    ImportModelError
        When there are operators without a converter, or TVM fails.
    """
    table = {**CONVERTERS, **(converters or {})}
    check_operators(program, table, origin)
    try:
        module = from_exported_program(
            program,
            keep_params_as_input=True,
            custom_convert_map=checked(table, lambda node: module_path(node, origin)),
            run_ep_decomposition=False,
        )
    except ImportModelError as error:
        raise ImportModelError(f"{origin.name} can't be imported: {error}; {origin.advice}") from error
    except Exception as error:
        raise ImportModelError(
            f"TVM can't translate {origin.name} to Relax ({type(error).__name__}: {error}); {origin.advice}"
        ) from error
    function = _with_named_parameters(module["main"], weight_names, weights)
    limits = {"tir_var_upper_bound": upper_bounds, "tir_var_lower_bound": lower_bounds or {}}
    module["main"] = _with_named_dimensions(function, dimensions, limits)
    return _renamed(module, entry)


@mutator
class _ReplaceVariables(PyExprMutator):
    """Replaces the functions that a function calls."""

    def __init__(self, variables: Mapping[str, tvm.ir.GlobalVar]) -> None:
        super().__init__()
        self.variables = variables

    def visit_global_var_(self, variable: tvm.ir.GlobalVar) -> tvm.ir.GlobalVar:
        return self.variables[str(variable.name_hint)]


def _renamed(module: tvm.IRModule, entry: str) -> dict[tvm.ir.GlobalVar, tvm.ir.BaseFunc]:
    """Name the function `main` as the entry, and end the names of what it calls with the entry's."""
    builder = relax.BlockBuilder()
    variables = {}
    for variable, kernel in module.functions.items():
        if isinstance(kernel, tirx.PrimFunc):
            name = f"{variable.name_hint}_{entry}"
            variables[str(variable.name_hint)] = builder.add_func(kernel.with_attr("global_symbol", name), name)
    function = module["main"]
    body = _ReplaceVariables(variables).visit_expr(function.body)
    function = relax.Function(function.params, body, function.ret_ty, attrs=function.attrs)
    builder.add_func(function.with_attr("global_symbol", entry), entry)
    return dict(builder.get().functions.items())


def _with_named_parameters(
    function: relax.Function, weight_names: Mapping[str, str], weights: tuple[str, ...]
) -> relax.Function:
    """Put the inputs first, name the weights as in the model, and let tied ones share one parameter."""
    by_name: dict[str, relax.Var] = {}
    inputs = []
    replaced = {}
    for parameter in function.params:
        if parameter.name not in weight_names:
            inputs.append(parameter)
            continue
        name = weight_names[parameter.name]
        replaced[parameter] = by_name.setdefault(name, relax.Var(name, parameter.ty))
    body = function.bind_params(replaced)
    parameters = [*inputs, *(by_name[name] for name in weights)]
    renamed = relax.Function(parameters, body.body, body.ret_ty, attrs=function.attrs)
    return renamed.with_attr("num_input", len(inputs))


def _with_named_dimensions(
    function: relax.Function, dimensions: Mapping[tuple[str, int], str], limits: Mapping[str, Mapping[str, int]]
) -> relax.Function:
    """Name the symbolic dimensions and say how large and how small they can be."""
    shapes = {str(parameter.name): parameter.ty.shape.values for parameter in function.params}
    names: dict[tirx.Var, tirx.Var] = {}
    for (parameter, axis), name in dimensions.items():
        variable = shapes[parameter][axis] if parameter in shapes else None
        if isinstance(variable, tirx.Var):
            names.setdefault(variable, tirx.Var(name, "int64"))
    function = function.bind_symbolic_vars(names) if names else function
    named = {str(variable.name) for variable in names.values()}
    for attribute, known in limits.items():
        # TVM's own have the names from before.
        if function.attrs is not None and attribute in function.attrs:
            function = function.without_attr(attribute)
        if bounds := {name: bound for name, bound in known.items() if name in named}:
            function = function.with_attr(attribute, bounds)
    return function


def size_limits(program: ExportedProgram, size: torch.SymInt) -> tuple[int | None, int | None]:
    """The smallest and the largest value of a symbolic dimension, by what was traced; None where there is no limit.

    torch takes dimensions that vary for neither 0 nor 1, which is no limit of what the program computes.
    """
    limits = program.range_constraints.get(size.node.expr)
    if limits is None:
        return None, None
    smallest = int(limits.lower) if limits.lower.is_Integer and int(limits.lower) > 2 else None
    largest = int(limits.upper) if limits.upper.is_Integer and int(limits.upper) < 2**31 else None  # infinity is none
    return smallest, largest
