"""Compress language models with HWPQ inside Apache TVM, and run them on generated kernels.

A model in, a compiled model out, which writes, and which a folder keeps:

>>> import hwpq_tvm
>>> config = hwpq_tvm.HWPQConfig.preset("small")
>>> model = hwpq_tvm.build("MODEL", target="cpu", config=config)
>>> answer = "".join(model.generate("The capital of France is", max_new_tokens=8))
>>> model.save("artefact")

Elsewhere, without torch and without the compiler:

>>> model = hwpq_tvm.load("artefact")
>>> again = "".join(model.generate("The capital of France is", max_new_tokens=8))

What there is, each with its own help:

=============== ========================================================================
build           compress a model (a Hugging Face folder, GGUF, ONNX, torch, Relax) and compile it
HWPQConfig      what is done to which layer: a default, overrides, presets, JSON
LayerScheme     sparsity, dtype, groups, metric and reconstruction of one layer
choose_config   find the scheme of each layer for a budget of perplexity, size or speed
Calibration     which text a build reads, and how much of it
tune            search for faster kernels on the device that the model will run on
load            read an artefact folder that `CompiledModel.save` or `hwpq build` wrote
CompiledModel   generate, generate_batch, chat, call, save; its report and its target
HwpqError       base of every error that a model, a machine or an argument can cause
=============== ========================================================================

Measuring is in `hwpq_tvm.evaluate` (perplexity) and `hwpq_tvm.benchmark` (speed). The command `hwpq` does all of this
from a shell.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .versions import check_versions

if TYPE_CHECKING:
    from .calibration_text import Calibration as Calibration
    from .choose.choose import choose_config as choose_config
    from .compiler import build as build
    from .config import HWPQConfig as HWPQConfig
    from .config import LayerScheme as LayerScheme
    from .errors import HwpqError as HwpqError
    from .runtime.artifact import load as load
    from .runtime.compiled_model import CompiledModel as CompiledModel
    from .tuning.autotune import tune as tune

check_versions()

__version__ = "0.1.0"

# Public name -> module that defines it. Loaded on first use (PEP 562), so that `load` in a process that only runs
# models never imports torch or the compiler.
_PUBLIC = {
    "Calibration": "calibration_text",
    "CompiledModel": "runtime.compiled_model",
    "HWPQConfig": "config",
    "HwpqError": "errors",
    "LayerScheme": "config",
    "build": "compiler",
    "choose_config": "choose.choose",
    "load": "runtime.artifact",
    "tune": "tuning.autotune",
}

__all__ = [
    "Calibration",
    "CompiledModel",
    "HWPQConfig",
    "HwpqError",
    "LayerScheme",
    "build",
    "choose_config",
    "load",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'hwpq_tvm' has no attribute {name!r}")
    return getattr(import_module(f".{_PUBLIC[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
