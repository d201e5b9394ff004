"""The modules that an exported library holds besides its host code, read from where the runtime would read them."""

import ctypes
from pathlib import Path

from hwpq_tvm.device_code import read_modules


def library_modules(library: Path) -> dict[str, bytes]:
    """Kind and bytes of each module, in order."""
    size = ctypes.c_uint64.in_dll(ctypes.CDLL(str(library)), "__tvm_ffi__library_bin")
    return dict(read_modules(ctypes.string_at(ctypes.addressof(size), size.value + 8)))
