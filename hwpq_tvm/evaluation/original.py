"""The model that compressed ones are compared with: an artefact, or a source model compiled as float32."""

from pathlib import Path
from typing import Any

from ..config import HWPQConfig, LayerScheme
from ..runtime.artifact import MANIFEST, load
from ..runtime.compiled_model import CompiledModel

_FLOAT32 = LayerScheme(sparsity=None, dtype="float32")


def load_original(model: Any, *, max_seq_len: int, progress: bool = True) -> CompiledModel:
    """Load what compressed models are compared with.

    Parameters
    ----------
    model
        An artefact folder, or what `hwpq_tvm.build` takes: that is compiled for this machine with float32 weights,
        activations and KV cache, in memory of 4 bytes a weight.
    max_seq_len
        Tokens that a model which is compiled here has to hold.
    progress
        Whether to show progress on stderr (never when stderr is no terminal).

    Returns
    -------
    CompiledModel

    Raises
    ------
    HwpqError
        As `load` and `build`.
    """
    if isinstance(model, str | Path) and (Path(model) / MANIFEST).is_file():
        return load(model)
    from ..compiler import build

    config = HWPQConfig(default=_FLOAT32, lm_head=_FLOAT32)
    return build(model, "cpu", config=config, calibration=None, max_seq_len=max_seq_len, progress=progress)
