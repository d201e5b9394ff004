"""Encoder-decoders of transformers (T5, BART, Whisper) -> Relax: one function for the encoder, one for the decoder."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.generic import ModelOutput

from hwpq_tvm.importers.encoder import main_inputs, position_limit, without_cache
from hwpq_tvm.importers.transformers_model import Entry, Input, TransformersModel, import_entries

ENTRIES = ("decoder", "encoder")
ADVICE = (
    "supported are encoder-decoders of transformers whose encoder takes input_ids or input_features, and that attend"
    " through its attention interface"
)


def import_encoder_decoder(model: PreTrainedModel) -> TransformersModel:
    """Turn an encoder-decoder of transformers into Relax; its weights' values are not read.

    Parameters
    ----------
    model
        The model; its parameters may be on the meta device. It is not changed.

    Returns
    -------
    TransformersModel
        With the entries `encoder(input_ids [batch, seq_len], attention_mask)` or `encoder(input_features)`, which
        return `last_hidden_state [batch, seq_len, features]`, and `decoder(decoder_input_ids [batch, target_len],
        encoder_hidden_states, (attention_mask))`, which returns what the model returns: the logits of every token of
        the prefix, which it computes as a whole each time. `attention_mask` is that of the encoder's tokens.

    Raises
    ------
    ImportModelError
        When the model computes something that can't be expressed.
    """
    encoder = model.get_encoder()
    inputs, notes = main_inputs(encoder)
    masks = tuple(each for each in inputs if each.name == "attention_mask")
    length: int | str = "seq_len" if masks else model.config.max_source_positions
    hidden = Input("encoder_hidden_states", ("batch", length, int(encoder.config.hidden_size)), torch.float32)
    ids = Input("decoder_input_ids", ("batch", "target_len"))

    def encode(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor]) -> Any:
        encoder = model.get_encoder()
        return encoder(**inputs, **without_cache(encoder))

    def decode(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor]) -> Any:
        given = dict(inputs)
        # Where no mask says which tokens there are, transformers would look for several texts in one.
        given["decoder_attention_mask"] = torch.ones_like(given[ids.name])
        encoded = BaseModelOutput(last_hidden_state=given.pop(hidden.name))
        output = model(encoder_outputs=encoded, **given, **without_cache(model))
        # What came in needs not go out again.
        return ModelOutput({name: each for name, each in output.items() if not name.startswith("encoder_")})

    entries = [
        Entry("encoder", inputs, encode, position_limit(model, "seq_len") if masks else {}),
        Entry("decoder", (ids, hidden, *masks), decode, position_limit(model, "target_len")),
    ]
    return import_entries(model, entries, ADVICE, notes)
