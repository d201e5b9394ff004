"""Models of transformers that compute everything at once -> Relax: text encoders, classifiers, vision models."""

import inspect
from collections.abc import Mapping

import torch
from transformers import PreTrainedModel

from hwpq_tvm.errors import ImportModelError
from hwpq_tvm.importers.transformers_model import Entry, Input, TransformersModel, import_entries

ENTRIES = ("main",)
ADVICE = (
    "supported are models of transformers that take input_ids or pixel_values, attend through its attention interface"
    " and compute with float32 tensors; any other module can be built with example_inputs"
)
# Pixels of a side where a model does not say: what image processors make.
_IMAGE_SIZE = 224


def import_encoder(model: PreTrainedModel) -> TransformersModel:
    """Turn a model of transformers that has no cache into Relax; its weights' values are not read.

    Parameters
    ----------
    model
        The model; its parameters may be on the meta device. It is not changed.

    Returns
    -------
    TransformersModel
        With the entry `main`. For text it takes `input_ids [batch, seq_len]` int64, `attention_mask` and, if there are
        several types of tokens, `token_type_ids` of the same shape and type; for images `pixel_values [batch, channels,
        height, width]` float32. It returns the tensors that the model returns, in their order.

    Raises
    ------
    ImportModelError
        When the model computes something that can't be expressed.
    """
    inputs, notes = main_inputs(model)

    def run(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor]) -> object:
        return model(**inputs, **without_cache(model))

    entry = Entry(ENTRIES[0], inputs, run, position_limit(model, "seq_len"))
    return import_entries(model, [entry], ADVICE, notes)


def main_inputs(model: PreTrainedModel) -> tuple[tuple[Input, ...], tuple[str, ...]]:
    """What a model, or an encoder, takes; and what is to be said about it."""
    kind, config = model.main_input_name, model.config
    accepted = inspect.signature(model.forward).parameters
    if kind == "input_ids":
        names = [kind, *(name for name in ("attention_mask",) if name in accepted)]
        if "token_type_ids" in accepted and getattr(config, "type_vocab_size", 0) > 1:
            names.append("token_type_ids")
        return tuple(Input(name, ("batch", "seq_len")) for name in names), ()
    if kind == "pixel_values":
        size = getattr(config, "image_size", None)
        height, width = size if isinstance(size, list | tuple) else (size or _IMAGE_SIZE,) * 2
        image = ("batch", int(getattr(config, "num_channels", 3)), int(height), int(width))
        note = f"images are of {height} x {width} pixels" + ("" if size else ": the model's configuration says no size")
        return (Input(kind, image, torch.float32),), (note,)
    if kind == "input_features" and hasattr(config, "num_mel_bins") and hasattr(config, "max_source_positions"):
        # Two convolutions, the second of which takes every other frame.
        shape = ("batch", config.num_mel_bins, 2 * config.max_source_positions)
        return (Input(kind, shape, torch.float32),), ()
    raise ImportModelError(f"{type(model).__name__} takes {kind}, of which it does not say what shape it has; {ADVICE}")


def without_cache(model: torch.nn.Module) -> dict[str, bool]:
    """Arguments of a forward pass that returns no cache."""
    return {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}


def position_limit(model: PreTrainedModel, dimension: str) -> dict[str, int]:
    """How long a text can be, by the configuration: tables of positions that are read by index have no other limit."""
    config = model.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None) or getattr(config, "max_target_positions", None)
    if limit is None:
        return {}
    # RoBERTa counts positions from behind the one of its padding.
    behind = [
        table.padding_idx + 1
        for table in model.modules()
        if isinstance(table, torch.nn.Embedding) and table.num_embeddings == limit and table.padding_idx is not None
    ]
    return {dimension: limit - max(behind, default=0)}
