"""What the same model would take in the formats that it competes with."""

from math import prod

import numpy as np

from ..schedules.layouts.packed import tensors
from .artifact_facts import Artifact, Layer

# What a rival is called, the layout and group size of its layers, and those of the layer that makes logits, which is
# kept at int8 (as in the presets).
_INT8 = ("dense_int8", None)
_RIVALS = (
    ("float16", ("dense_float16", None), ("dense_float16", None)),
    ("dense int8", _INT8, _INT8),
    ("dense int4 g64", ("dense_int4", 64), _INT8),
)


def rival_sizes(artifact: Artifact) -> dict[str, int]:
    """Compute the size of a model's weights in dense formats.

    Parameters
    ----------
    artifact
        The model; what is no linear layer stays as it is there.

    Returns
    -------
    dict
        Name of a format -> bytes: those of the packed tensors, scales and padding counted.
    """
    others = artifact.weight_bytes - sum(layer.nbytes for layer in artifact.layers)
    return {
        name: round(
            others + sum(_nbytes(layer, head if _is_head(artifact, layer) else body) for layer in artifact.layers)
        )
        for name, body, head in _RIVALS
    }


def _is_head(artifact: Artifact, layer: Layer) -> bool:
    """Whether a layer makes logits, or is the table of embeddings: its rows are the vocabulary."""
    generation = artifact.manifest.generation
    return generation is not None and layer.out_features == generation.vocab_size


def _nbytes(layer: Layer, layout: tuple[str, int | None]) -> int:
    packed = tensors(*layout, layer.out_features, layer.in_features)
    return sum(prod(shape) * np.dtype(dtype).itemsize for shape, dtype in packed.values())
