"""The float model in transformers, and windows of a text for it."""

import sys
from pathlib import Path

import numpy as np
import torch


def load_model(path: Path) -> torch.nn.Module:
    """Read a GGUF file or a folder into transformers, in float32."""
    from transformers import AutoConfig, AutoModelForCausalLM

    if path.is_dir():
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    config = AutoConfig.from_pretrained(str(path.parent), gguf_file=path.name)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    tensors = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
    model.load_state_dict(tensors, strict=False)
    model.tie_weights()
    return model.eval()


def spread(ids: np.ndarray, samples: int, length: int) -> list[np.ndarray]:
    """At most so many windows, evenly spread over a text."""
    if len(ids) < length:
        sys.exit(f"a text of {len(ids)} tokens is too short for one window of {length}")
    starts = np.arange(0, len(ids) - length + 1, length)
    chosen = np.linspace(0, len(starts) - 1, min(samples, len(starts))).round().astype(int)
    return [ids[start : start + length] for start in starts[chosen]]
