"""Mixtures of experts as one operator: traced through transformers' experts interface, lowered expert by expert.

A model whose experts are stacked weights (`transformers.integrations.moe`) calls `experts_function` below instead of
its own loop over the experts that were chosen. That becomes the operator `hwpq::experts`, of which torch knows the
shape only. In Relax each expert gets the rows of the tokens that chose it, as many as there are at run time, computes
what the module computes for one expert, and adds it to the result.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch.export import Dim, ExportedProgram
from transformers import PreTrainedModel
from transformers.integrations.moe import ExpertsInterface
from tvm import relax, tirx

from hwpq_tvm.errors import ImportModelError
from hwpq_tvm.importers.converters import CONVERTERS
from hwpq_tvm.importers.exported_program import Origin, check_operators, export, module_path, simplify
from hwpq_tvm.relax_passes.kernel_calls import call_kernel, extents
from hwpq_tvm.schedules.experts import expert_routing, expert_rows, expert_sum

EXPERTS_NAME = "hwpq_experts"
EXPERTS_OPERATOR = "experts.default"
# Name of the number of tokens that chose an expert.
EXPERT_TOKENS = "expert_tokens"

torch.library.define("hwpq::experts", "(Tensor x, Tensor chosen, Tensor weights, Tensor[] parameters) -> Tensor")


@torch.library.register_fake("hwpq::experts")
def _shape(
    x: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor, parameters: Sequence[torch.Tensor]
) -> torch.Tensor:
    return torch.empty_like(x)


def experts_function(
    module: torch.nn.Module, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """Stand in for the forward pass of a module of experts (`transformers.integrations.moe.ExpertsInterface`)."""
    parameters = dict(module.named_parameters())
    problems = [
        f"{name} is {list(parameter.shape)}, not stacked along the experts"
        for name, parameter in parameters.items()
        if parameter.shape[0] != module.num_experts or parameter.ndim not in (2, 3)
    ]
    if module.has_post_expert_norm:
        problems.append("what an expert computes is normalised")
    if hidden_states.ndim != 2 or top_k_index.shape != top_k_weights.shape:
        problems.append(f"it is given {[list(x.shape) for x in (hidden_states, top_k_index, top_k_weights)]}")
    if problems:
        raise ImportModelError(
            f"the experts of {type(module).__name__} can't be taken apart ({'; '.join(problems)}): expected stacked"
            " weights [experts, ...], tokens [tokens, features] and their choices [tokens, top_k]"
        )
    return torch.ops.hwpq.experts(hidden_states, top_k_index, top_k_weights, list(parameters.values()))


ExpertsInterface.register(EXPERTS_NAME, experts_function)


class _OneExpert(torch.nn.Module):
    """What a module of experts computes with the weights of one of them."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        # Not as a submodule: its stacked parameters are no inputs of what is traced.
        self._experts: tuple[Any] = (module,)
        self._names = [name for name, _ in module.named_parameters()]

    def forward(self, x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        (experts,) = self._experts
        given = dict(zip(self._names, parameters, strict=True))

        def linear(name: str, x: torch.Tensor) -> torch.Tensor:
            weight = given[name].T if experts.is_transposed else given[name]
            return torch.nn.functional.linear(x, weight, given.get(f"{name}_bias"))

        if experts.has_gate:
            return linear("down_proj", experts._apply_gate(linear("gate_up_proj", x)))
        return linear("down_proj", experts.act_fn(linear("up_proj", x)))


def _export_expert(module: torch.nn.Module, features: int, origin: Origin) -> ExportedProgram:
    """Trace one expert on any number of tokens."""
    slices = tuple(torch.zeros(()).expand(parameter.shape[1:]) for parameter in module.parameters())
    shapes = {"x": {0: Dim(EXPERT_TOKENS)}, "parameters": tuple(None for _ in slices)}
    program = export(_OneExpert(module), (torch.zeros(7, features), *slices), shapes, origin)
    simplify(program)
    check_operators(program, CONVERTERS, origin)
    placeholders = program.graph.find_nodes(op="placeholder")
    if constants := [node.name for node in placeholders[: -1 - len(slices)]]:
        raise ImportModelError(
            f"{origin.name} uses constants within an expert ({', '.join(constants)}): expected nothing but its own"
            f" weights; {origin.advice}"
        )
    return program


class ExpertCalls:
    """Lowers the experts operator; a converter of `hwpq_tvm.importers.converters`.

    Parameters
    ----------
    model
        The model that was exported.
    origin
        The same, for messages.
    """

    def __init__(self, model: PreTrainedModel, origin: Origin) -> None:
        self._model = model
        self._origin = origin
        self._programs: dict[str, ExportedProgram] = {}

    def __call__(self, node: fx.Node, importer: Any) -> relax.Var:
        """Convert one node (`custom_convert_map` of `from_exported_program`)."""
        arguments: tuple[Any, ...] = node.args
        x, chosen, weights = (importer.env[arg] for arg in arguments[:3])
        parameters = [importer.env[arg] for arg in arguments[3]]
        builder = importer.block_builder
        program = self._program(node, int(x.ty.shape.values[1]))
        M, N = x.ty.shape.values
        (tokens,), top_k = extents([M]), int(chosen.ty.shape.values[1])
        experts = int(parameters[0].ty.shape.values[0])
        order, starts, counts = call_kernel(
            builder,
            expert_routing(tokens, top_k, experts),
            [chosen],
            [
                relax.TensorType([M * top_k], "int32"),
                relax.TensorType([experts], "int32"),
                relax.TensorType([experts], "int64"),
            ],
        )
        rows = [tirx.Var(EXPERT_TOKENS, "int64") for _ in range(experts)]
        builder.match_cast(builder.emit(relax.op.tensor_to_shape(counts)), relax.ShapeType(rows))
        total: list[relax.Var] = []
        for expert in range(experts):
            place = [order, starts, relax.prim_value(tirx.IntImm("int64", expert))]
            read = expert_rows(tokens, EXPERT_TOKENS, int(N), top_k, experts)
            (own,) = call_kernel(builder, read, [x, *place], [relax.TensorType([rows[expert], N], "float32")])
            index = relax.const(expert, "int64")
            slices = [builder.emit(relax.op.take(parameter, index, axis=0)) for parameter in parameters]
            y = _convert(program, [own, *slices], importer)
            add = expert_sum(tokens, EXPERT_TOKENS, int(N), top_k, experts, first=not total)
            total = call_kernel(builder, add, [y, *place, weights, *total], [x.ty], {0: 5} if total else None)
        return total[0]

    def _program(self, node: fx.Node, features: int) -> ExportedProgram:
        path = module_path(node, self._origin)
        if path not in self._programs:
            module = self._model.get_submodule(path)
            self._programs[path] = _export_expert(module, features, self._origin)
        return self._programs[path]


def _convert(program: ExportedProgram, inputs: Sequence[relax.Expr], importer: Any) -> relax.Expr:
    """Emit what a program computes from inputs, into the function that is being imported."""
    given = iter(inputs)
    for node in program.graph.nodes:
        if node.op == "output":
            (result,) = node.args[0]
            return importer.env[result]
        if node.op == "placeholder":
            importer.env[node] = next(given)
        else:
            importer.env[node] = importer.convert_map[node.target.__name__](node, importer)
    raise AssertionError("an exported program ends with its output")
