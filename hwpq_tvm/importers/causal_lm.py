"""Causal language models of transformers -> Relax: torch.export once, then one Relax function per entry."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import tvm
from torch.export import Dim, ExportedProgram
from torch.utils._sympy.value_ranges import ValueRanges
from transformers import PreTrainedModel
from tvm import relax

from hwpq_tvm.errors import ImportModelError
from hwpq_tvm.importers.attention_lowering import AttentionCalls
from hwpq_tvm.importers.cached_attention import ATTENTION_NAME, OPERATOR, CacheState, attending_to
from hwpq_tvm.importers.experts import EXPERTS_NAME, EXPERTS_OPERATOR, ExpertCalls
from hwpq_tvm.importers.exported_program import (
    Origin,
    export,
    make_all_inputs_plain,
    name_inputs,
    set_shape,
    simplify,
    translate,
)
from hwpq_tvm.importers.imported_model import CacheSize
from hwpq_tvm.importers.own_attention import adapt_attention
from hwpq_tvm.importers.rotary_variants import fix_frequencies
from hwpq_tvm.importers.structure import copy_without_weights, parameter_aliases, supported_models
from hwpq_tvm.importers.token_mixing import check_token_mixing
from hwpq_tvm.schedules.kv_cache import row_elements

ENTRIES = ("decode", "prefill")
# What a configuration calls layers that the attention operator can stand for.
_KINDS = {"full_attention", "sliding_attention"}


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
    notes
        What differs from the model in transformers, as sentences.
    """

    module: tvm.IRModule
    weights: tuple[str, ...]
    constants: dict[str, torch.Tensor]
    kv_cache_shape: tuple[int, ...]
    notes: tuple[str, ...]


class _CachedForward(torch.nn.Module):
    """The forward pass that is exported: explicit positions, logits where they are asked for, cache in and out."""

    def __init__(self, model: PreTrainedModel, arguments: dict[str, Any]) -> None:
        super().__init__()
        self.model = model
        self.arguments = arguments
        known = inspect.signature(model.forward).parameters
        self.takes_anything = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in known.values())
        self.known = set(known)

    def forward(
        self, input_ids: torch.Tensor, logits_at: torch.Tensor, past_lengths: torch.Tensor, kv_cache: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        state = CacheState(kv_cache, past_lengths)
        positions = past_lengths.to(torch.int64)[:, None] + torch.arange(input_ids.shape[1])
        arguments = {"position_ids": positions, "use_cache": False, **self.arguments}
        if not self.takes_anything:
            arguments = {name: value for name, value in arguments.items() if name in self.known}
        heads = 0

        def keep(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            """Compute logits where they are asked for only."""
            nonlocal heads
            heads += 1
            return (inputs[0][:, logits_at], *inputs[1:])

        hook = self.model.get_output_embeddings().register_forward_pre_hook(keep)
        try:
            with attending_to(state):
                output = self.model(input_ids=input_ids, **arguments)
        finally:
            hook.remove()
        if heads != 1:
            raise ImportModelError(f"its output embeddings are called {heads} times: expected once, for the logits")
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
    origin = Origin(type(model).__name__, "model.", supported_models())
    aliases = parameter_aliases(model)
    skeleton = copy_without_weights(model)
    skeleton.config._attn_implementation = ATTENTION_NAME
    skeleton.config._experts_implementation = EXPERTS_NAME
    _check_kinds(skeleton, origin)
    notes = fix_frequencies(skeleton, size.max_seq_len)
    arguments = adapt_attention(skeleton, size.max_seq_len)
    program = _export(_CachedForward(skeleton, arguments), size, origin)
    simplify(program)
    calls = _attention_calls(program, origin)
    check_token_mixing(program, origin, tokens="input_ids", chosen="logits_at")
    _check_windows(skeleton, [call.args[8] for call in calls], origin)
    head_dim, kv_cache_shape = _kv_cache_shape(calls, size)
    names, constants = name_inputs(program, aliases, origin)
    used = {name for node, name in names.items() if node.users}
    weights = tuple(name for name in dict.fromkeys(names.values()) if name in used)
    functions: dict[tvm.ir.GlobalVar, tvm.ir.BaseFunc] = {}
    make_all_inputs_plain(program)
    _set_cache_shape(program, calls, kv_cache_shape)
    for entry in ("prefill", "decode"):
        if entry == "decode":
            _keep_one_token(program)
        functions |= translate(
            program,
            entry,
            weight_names={node.name: name for node, name in names.items()},
            weights=weights,
            dimensions={("input_ids", 1): "seq_len", ("logits_at", 0): "num_logits"},
            upper_bounds=dict.fromkeys(("seq_len", "num_logits"), size.max_seq_len),
            origin=origin,
            converters={
                OPERATOR: AttentionCalls(kv_cache_shape, head_dim),
                EXPERTS_OPERATOR: ExpertCalls(skeleton, origin),
            },
        )
    module = tvm.IRModule(functions)
    relax.analysis.well_formed(module)  # raises
    return CausalLM(
        module=module,
        weights=weights,
        constants={name: value for name, value in constants.items() if name in used},
        kv_cache_shape=kv_cache_shape,
        notes=notes,
    )


def _export(forward: _CachedForward, size: CacheSize, origin: Origin) -> ExportedProgram:
    """Trace the model with a symbolic number of tokens and of logits."""
    length, logits = 7, 3
    inputs = (
        torch.zeros(size.max_batch, length, dtype=torch.int64),
        torch.zeros(logits, dtype=torch.int64),
        torch.zeros(size.max_batch, dtype=torch.int32),
        torch.zeros(1, dtype=getattr(torch, size.dtype)),
    )
    # A few tokens at least, or models that look back by two or three would be refused for their assumptions about this.
    longest = max(size.max_seq_len, length)
    shapes = ({1: Dim("seq_len", min=4, max=longest)}, {0: Dim("num_logits")}, None, None)
    program = export(forward, inputs, shapes, origin)
    # TVM would take them for known bounds; a text may be shorter.
    for symbol, known in program.range_constraints.items():
        program.range_constraints[symbol] = ValueRanges(1, known.upper)
    return program


def _attention_calls(program: ExportedProgram, origin: Origin) -> list[Any]:
    calls = [node for node in program.graph.nodes if node.op == "call_function" and node.target.__name__ == OPERATOR]
    if not calls:
        raise ImportModelError(
            f"{origin.name} has no layer that attends through transformers' attention interface; {origin.advice}"
        )
    return calls


def _kv_cache_shape(calls: Sequence[Any], size: CacheSize) -> tuple[int, tuple[int, ...]]:
    """Numbers of a row, and the cache's shape: as many heads and numbers as the largest layer has."""
    keys, values = ([call.args[place].meta["val"].shape for call in calls] for place in (1, 2))
    kv_heads = max(int(shape[1]) for shape in keys)
    head_dim = max(int(shape[3]) for shape in [*keys, *values])
    row = row_elements(head_dim, size.dtype)
    return head_dim, (len(calls), 2, size.max_batch, kv_heads, size.max_seq_len, row)


def _set_cache_shape(program: ExportedProgram, calls: Sequence[Any], kv_cache_shape: tuple[int, ...]) -> None:
    """Give the cache its shape, wherever it is handed on."""
    cache = _input(program, "kv_cache")
    set_shape(cache, kv_cache_shape)
    for call in calls:
        for item in call.users:
            if item.args[1] == 1:
                item.meta["val"] = cache.meta["val"]


def _check_kinds(skeleton: PreTrainedModel, origin: Origin) -> None:
    """Refuse kinds of layers that are no attention to the last or to all tokens, by the configuration."""
    kinds = set(getattr(skeleton.config.get_text_config(), "layer_types", None) or ()) - _KINDS
    if kinds:
        raise ImportModelError(
            f"{origin.name} has layers of {', '.join(sorted(kinds))} by its configuration (layer_types): expected"
            f" {' and '.join(sorted(_KINDS))}, which is what the KV cache serves; {origin.advice}"
        )


def _check_windows(skeleton: PreTrainedModel, windows: list[int | None], origin: Origin) -> None:
    """Refuse windows that a model expresses by its mask only: no mask was built, so they would get lost."""
    config = skeleton.config.get_text_config()
    seen = ["full_attention" if window is None else "sliding_attention" for window in windows]
    kinds = getattr(config, "layer_types", None)
    if kinds is None and getattr(config, "sliding_window", None) and set(seen) == {"full_attention"}:
        kinds = ["sliding_attention"]
    if kinds is not None and list(kinds) != seen:
        raise ImportModelError(
            f"the layers of {origin.name} should attend as {sorted(set(kinds))} by its configuration, but as"
            f" {sorted(set(seen))} by what they ask of the attention interface; {origin.advice}"
        )


def _keep_one_token(program: ExportedProgram) -> None:
    """Narrow the forward pass to one token per sequence, whose logits are always asked for."""
    ids = _input(program, "input_ids")
    set_shape(ids, (ids.meta["val"].shape[0], 1))
    logits_at = _input(program, "logits_at")
    user: Any
    for user in list(logits_at.users):
        # Position 0 of one position is all there is.
        user.replace_all_uses_with(user.args[0])
        program.graph.erase_node(user)
    program.graph.erase_node(logits_at)
    specs = program.graph_signature.input_specs
    specs[:] = [spec for spec in specs if spec.arg.name != logits_at.name]


def _input(program: ExportedProgram, name: str) -> torch.fx.Node:
    return next(node for node in program.graph.nodes if node.op == "placeholder" and node.name == name)
