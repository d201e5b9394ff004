"""Tiny models of many architectures, and how they are built."""

from pathlib import Path

from transformers import PreTrainedModel

import hwpq_tvm
from hwpq_tvm import HWPQConfig, LayerScheme
from tests.tiny_hf import tiny

SCHEMES = {
    "float32": HWPQConfig(default=LayerScheme(None, "float32"), lm_head=LayerScheme(None, "float32")),
    "int8": HWPQConfig(default=LayerScheme(None, "int8")),
}
# Positions of the cache, and sequences that are computed together.
LENGTH = 48
BATCH = 3


def model_of(architecture: str) -> PreTrainedModel:
    """The same random model in every process; it never ends a text by itself."""
    return tiny(architecture, seed=5, eos_token_id=None)


def compile_one(architecture: str, scheme: str, folder: Path) -> None:
    """Build a model and save it."""
    import torch

    torch.set_num_threads(1)
    built = hwpq_tvm.build(
        model_of(architecture),
        "cpu",
        config=SCHEMES[scheme],
        calibration=None,
        max_batch=BATCH,
        max_seq_len=LENGTH,
        progress=False,
    )
    built.save(folder)
