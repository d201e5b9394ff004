"""Causal language models of transformers -> Relax: torch.export once, then one Relax function per entry."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import tvm
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind
from transformers import PreTrainedModel
from tvm import relax

from hwpq_tvm.errors import ImportModelError
from hwpq_tvm.importers.cached_attention import ATTENTION_NAME, OPERATOR, STATE_ARGUMENT, CacheState
from hwpq_tvm.importers.imported_model import CacheSize
from hwpq_tvm.importers.structure import copy_without_weights, parameter_aliases, supported_models
from hwpq_tvm.importers.translate import keep_one_token, make_all_inputs_plain, translate
from hwpq_tvm.schedules.kv_cache import row_elements

ENTRIES = ("decode", "prefill")


@dataclass(frozen=True, slots=True)
class CausalLM:
    """A causal language model in Relax.

    Attributes
    ----------
    module
        The entry functions and their kernels.
    weights
        Names of the weights, in the order of the entries' parameters.
    constants
        Values of those weights that are no parameters of the model (buffers, constants of its code).
    kv_cache_shape
        `(layers, 2, batch, kv_heads, max_seq_len, row)`; see `hwpq_tvm.schedules.kv_cache`.
    """

    module: tvm.IRModule
    weights: tuple[str, ...]
    constants: dict[str, torch.Tensor]
    kv_cache_shape: tuple[int, ...]


class _CachedForward(torch.nn.Module):
    """The forward pass that is exported: explicit positions, logits where they are asked for, cache in and out."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, logits_at: torch.Tensor, past_lengths: torch.Tensor, kv_cache: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        state = CacheState(kv_cache, past_lengths)
        positions = past_lengths.to(torch.int64)[:, None] + torch.arange(input_ids.shape[1])
        output = self.model(
            input_ids=input_ids,
            position_ids=positions,
            use_cache=False,
            logits_to_keep=logits_at,
            **{STATE_ARGUMENT: state},
        )
        return output.logits, state.cache


def import_causal_lm(model: PreTrainedModel, size: CacheSize) -> CausalLM:
    """Turn a causal language model of transformers into Relax; its weights' values are not read.

    Parameters
    ----------
    model
        The model; its parameters may be on the meta device. It is not changed.
    size
        Of the KV cache.

    Raises
    ------
    ImportModelError
        When the model computes something that can't be expressed.
    """
    architecture = type(model).__name__
    aliases = parameter_aliases(model)
    skeleton = copy_without_weights(model)
    skeleton.config._attn_implementation = ATTENTION_NAME
    program = _export(skeleton, architecture, size)
    _simplify(program)
    _check_matrices(program, architecture)
    kv_cache_shape = _kv_cache_shape(program, skeleton, architecture, size)
    names, constants = _name_inputs(program, aliases)
    used = {name for node, name in names.items() if node.users}
    weights = tuple(name for name in dict.fromkeys(names.values()) if name in used)
    functions: dict[tvm.ir.GlobalVar, tvm.ir.BaseFunc] = {}
    make_all_inputs_plain(program, kv_cache_shape)
    for entry in ("prefill", "decode"):
        if entry == "decode":
            keep_one_token(program, architecture)
        functions |= translate(
            program,
            entry,
            weight_names={node.name: name for node, name in names.items()},
            weights=weights,
            kv_cache_shape=kv_cache_shape,
            architecture=architecture,
        )
    module = tvm.IRModule(functions)
    relax.analysis.well_formed(module)  # raises
    return CausalLM(
        module=module,
        weights=weights,
        constants={name: value for name, value in constants.items() if name in used},
        kv_cache_shape=kv_cache_shape,
    )


def _export(skeleton: PreTrainedModel, architecture: str, size: CacheSize) -> ExportedProgram:
    """Trace the model with a symbolic number of tokens and of logits."""
    length, logits = 7, 3
    inputs = (
        torch.zeros(size.max_batch, length, dtype=torch.int64),
        torch.zeros(logits, dtype=torch.int64),
        torch.zeros(size.max_batch, dtype=torch.int32),
        torch.zeros(1, dtype=getattr(torch, size.dtype)),
    )
    shapes = ({1: Dim("seq_len")}, {0: Dim("num_logits")}, None, None)
    try:
        with torch.no_grad():
            return torch.export.export(_CachedForward(skeleton), inputs, dynamic_shapes=shapes, strict=False)
    except ImportModelError as error:
        raise ImportModelError(f"{architecture} can't be imported: {error}; {supported_models()}") from error
    except Exception as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise ImportModelError(
            f"{architecture} can't be exported by torch.export ({type(error).__name__}: {reason}); {supported_models()}"
        ) from error


def _simplify(program: ExportedProgram) -> None:
    """Remove what computes nothing but would be a copy in Relax: casts to the same type, factors of one.

    Squares (in every norm) become products, which vectorise where a power is a call for each element.
    """
    aten = torch.ops.aten
    casts = {aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten._to_copy.default}
    for node in program.graph.nodes:
        nothing = node.target in casts or (node.target is aten.mul.Tensor and node.args[1] == 1.0)
        if nothing and node.args[0].meta["val"].dtype == node.meta["val"].dtype:
            node.replace_all_uses_with(node.args[0])
        elif node.target is aten.pow.Tensor_Scalar and node.args[1] == 2:
            node.target, node.args = aten.mul.Tensor, (node.args[0], node.args[0])
    for node in reversed(program.graph.nodes):
        if node.op == "call_function" and not node.users:
            program.graph.erase_node(node)


def _check_matrices(program: ExportedProgram, architecture: str) -> None:
    """Refuse matrices that are not used as linear layers or tables of embeddings: they would never be compressed."""
    aten = torch.ops.aten
    parameters = {spec.arg.name: spec.target for spec in program.graph_signature.input_specs if spec.target}
    for node in program.graph.find_nodes(op="placeholder"):
        if node.name not in program.graph_signature.inputs_to_parameters or node.meta["val"].ndim < 2:
            continue
        for user in node.users:
            matrix = user.args[1] if user.target is aten.linear.default else user.args[0]
            if user.target not in (aten.linear.default, aten.embedding.default) or matrix is not node:
                name = parameters[node.name].removeprefix("model.")
                raise ImportModelError(
                    f"{architecture} uses {name} in {user.target}: expected matrices in torch.nn.Linear and"
                    f" torch.nn.Embedding only; {supported_models()}"
                )


def _kv_cache_shape(
    program: ExportedProgram, skeleton: PreTrainedModel, architecture: str, size: CacheSize
) -> tuple[int, ...]:
    """Derive the cache's shape from the attention calls that were traced."""
    calls = [node for node in program.graph.nodes if node.op == "call_function" and node.target.__name__ == OPERATOR]
    if not calls:
        raise ImportModelError(
            f"{architecture} has no layer that attends through transformers' attention interface; {supported_models()}"
        )
    heads = {(int(call.args[1].meta["val"].shape[1]), int(call.args[1].meta["val"].shape[3])) for call in calls}
    if len(heads) > 1:
        raise ImportModelError(
            f"the layers of {architecture} have keys of {sorted(heads)} (heads, head_dim): expected the same in every"
            f" layer, since they share one cache; {supported_models()}"
        )
    _check_windows(skeleton, architecture, [call.args[7] for call in calls])
    ((kv_heads, head_dim),) = heads
    return (len(calls), 2, size.max_batch, kv_heads, size.max_seq_len, row_elements(head_dim, size.dtype))


def _check_windows(skeleton: PreTrainedModel, architecture: str, windows: list[int | None]) -> None:
    """Refuse kinds of attention that a model expresses by its mask only: no mask was built, so it would get lost."""
    kinds = getattr(skeleton.config.get_text_config(), "layer_types", None)
    if kinds is None:
        return
    seen = ["full_attention" if window is None else "sliding_attention" for window in windows]
    if list(kinds) != seen:
        raise ImportModelError(
            f"the layers of {architecture} should attend as {sorted(set(kinds))} by its configuration, but as"
            f" {sorted(set(seen))} by what they ask of the attention interface; {supported_models()}"
        )


def _name_inputs(
    program: ExportedProgram, aliases: dict[str, tuple[str, ...]]
) -> tuple[dict[torch.fx.Node, str], dict[str, torch.Tensor]]:
    """Name the inputs of the program that are weights, and collect the values of those that are no parameters."""
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
        target = spec.target.removeprefix("model.")
        if spec.kind is InputKind.PARAMETER:
            target = canonical[target]
        else:
            constants[target] = values[spec.kind.name](spec.target)
        names[nodes[spec.arg.name]] = target
    return names, constants
