"""Rotary frequencies that transformers chooses anew in each forward pass: chosen once, by the longest text."""

from collections.abc import Iterator
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS


def fix_frequencies(model: PreTrainedModel, max_seq_len: int) -> tuple[str, ...]:
    """Make a model's rotary frequencies independent of the positions that it computes.

    "dynamic" frequencies are those of the original model until a text is longer than that allows, which `max_seq_len`
    never is. "longrope" has two sets, of which transformers takes one by the length of the text that is computed; with
    a KV cache one text has to keep to one of them.

    Parameters
    ----------
    model
        The model, which is changed.
    max_seq_len
        Number of positions.

    Returns
    -------
    What differs from transformers, as sentences.
    """
    notes: dict[str, None] = {}
    module: Any
    for module in model.modules():
        for layer_type, prefix, kind in _variants(module):
            if "dynamic" in kind:
                frequencies = getattr(module, f"{prefix}original_inv_freq")
            elif kind == "longrope":
                parameters = module.config.rope_parameters
                original = (parameters if layer_type is None else parameters[layer_type])[
                    "original_max_position_embeddings"
                ]
                if max_seq_len > original:
                    frequencies, _ = ROPE_INIT_FUNCTIONS[kind](
                        module.config, torch.device("cpu"), seq_len=original + 1, layer_type=layer_type
                    )
                    notes[
                        f"rotary positions use the long factors of longrope for texts of any length, since max_seq_len"
                        f" is {max_seq_len}; transformers uses the short ones up to {original} tokens, and so does a"
                        f" build with max_seq_len up to {original}"
                    ] = None
                else:
                    frequencies = getattr(module, f"{prefix}original_inv_freq")
            else:
                continue
            setattr(module, f"{prefix}inv_freq", frequencies.clone())
            if layer_type is None:
                module.rope_type = "default"
            else:
                module.rope_type[layer_type] = "default"
    return tuple(notes)


def _variants(module: torch.nn.Module) -> Iterator[tuple[str | None, str, str]]:
    """Kinds of frequencies of a module: type of layer, prefix of its buffers, name of the kind."""
    kinds = getattr(module, "rope_type", None)
    if isinstance(kinds, str):
        yield None, "", kinds
    elif isinstance(kinds, dict):
        yield from ((layer_type, f"{layer_type}_", kind) for layer_type, kind in list(kinds.items()))
