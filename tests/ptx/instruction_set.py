"""All instructions that the interpreter knows: importing their modules registers what decodes them."""

from . import (  # noqa: F401
    async_copy,
    async_proxy,
    conversions,
    floats,
    integers,
    matrix_load,
    matrix_multiply,
    memory_access,
    moves,
    warp,
    wgmma,
)
from .decode import DECODERS

__all__ = ["DECODERS"]
