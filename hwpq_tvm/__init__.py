"""Compress language models with HWPQ inside Apache TVM: `hwpq_tvm.build(model, target="cpu")`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .versions import check_versions

if TYPE_CHECKING:
    from .calibration_text import Calibration as Calibration
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
    "load": "runtime.artifact",
    "tune": "tuning.autotune",
}

__all__ = ["Calibration", "CompiledModel", "HWPQConfig", "HwpqError", "LayerScheme", "build", "load", "tune"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'hwpq_tvm' has no attribute {name!r}")
    return getattr(import_module(f".{_PUBLIC[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
