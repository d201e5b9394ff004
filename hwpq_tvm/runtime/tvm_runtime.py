"""The TVM runtime library without the compiler: loading it, its threads, its tensors, its virtual machine.

`import tvm` loads the compiler library too (259 MB) and half of TVM's Python. Running a compiled model needs only
`libtvm_runtime.so`, `libtvm_runtime_extra.so` and the `tvm_ffi` package, so that is all this module touches:
`hwpq_tvm.load` starts in a fraction of a second, and a later `import tvm` in the same process (by `hwpq_tvm.build`)
works as usual, because both then share the runtime libraries.
"""

import importlib
import importlib.util
import os
import sys
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..cpu import host_cores
from ..errors import DependencyError, HwpqError

# Generated code loads whole vectors from its arguments: every tensor starts at a multiple of this many bytes.
ALIGNMENT = 64

CPU_CODE = 1  # kDLCPU
_POOLED_ALLOCATOR = 2  # tvm::runtime::memory::AllocatorType::kPooled
_ANY_CORE = 1  # tvm::runtime::threading::ThreadGroup::kBig


def _import_ffi() -> ModuleType:
    """Import tvm_ffi, without the torch that it would import where torch is installed (seconds, and memory)."""
    if "tvm_ffi" in sys.modules or "torch" in sys.modules:
        return importlib.import_module("tvm_ffi")
    sys.modules["torch"] = None  # type: ignore[assignment]  # makes `import torch` an ImportError
    try:
        return importlib.import_module("tvm_ffi")
    finally:
        del sys.modules["torch"]


def library_folders() -> list[Path]:
    """Where TVM's libraries lie; TVM itself is not imported.

    Raises
    ------
    DependencyError
        When TVM is not installed.
    """
    spec = importlib.util.find_spec("tvm")
    if spec is None or not spec.submodule_search_locations:
        raise DependencyError("apache-tvm is not installed. Run: pip install 'apache-tvm==0.27.0.post1'")
    folders = [Path(spec.submodule_search_locations[0]) / "lib"]
    if os.environ.get("TVM_LIBRARY_PATH"):
        folders.insert(0, Path(os.environ["TVM_LIBRARY_PATH"]))
    return folders


@cache
def runtime() -> ModuleType:
    """`tvm_ffi` with the TVM runtime libraries loaded.

    Raises
    ------
    DependencyError
        When TVM is not installed, or its runtime libraries can't be loaded.
    """
    # TVM would bind this very thread and its workers to the first cores, whatever the process's own affinity says.
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    ffi = _import_ffi()
    libinfo = importlib.import_module("tvm_ffi.libinfo")
    try:
        for name in ("tvm_runtime", "tvm_runtime_extra"):  # sorts are in the second
            libinfo.load_lib_ctypes("tvm", name, "RTLD_GLOBAL", extra_lib_paths=library_folders())
    except (OSError, RuntimeError) as error:
        raise DependencyError(
            f"TVM's runtime libraries can't be loaded ({error}). Run: pip install --force-reinstall "
            "'apache-tvm==0.27.0.post1'"
        ) from error
    return ffi


def aligned_empty(nbytes: int) -> np.ndarray:
    """Uninitialised bytes that start at a multiple of ALIGNMENT."""
    raw = np.empty(nbytes + ALIGNMENT, np.uint8)
    offset = -raw.ctypes.data % ALIGNMENT
    return raw[offset : offset + nbytes]


def as_tensor(array: np.ndarray) -> Any:
    """TVM tensor of `array`: the same memory when it is aligned, contiguous and writable, a copy otherwise."""
    array = np.asarray(array)
    if not array.flags.c_contiguous or not array.flags.writeable or array.ctypes.data % ALIGNMENT:
        copy = aligned_empty(array.nbytes).view(array.dtype).reshape(array.shape)
        copy[...] = array
        array = copy
    return runtime().from_dlpack(array, require_alignment=ALIGNMENT, require_contiguous=True)


def as_array(tensor: Any) -> np.ndarray:
    """NumPy view of a TVM tensor on the CPU."""
    return np.from_dlpack(tensor)


_configured = threading.local()  # TVM keeps one pool per calling thread


def use_threads(count: int) -> None:
    """Run compiled kernels that the calling thread starts on `count` threads (itself among them)."""
    if getattr(_configured, "count", None) == count:
        return
    configure = runtime().get_global_func("runtime.config_threadpool")
    if not hasattr(_configured, "count"):
        # The first call of a thread makes its pool, which can't grow later: make it large enough for any later wish.
        size = max(count, host_cores())
        configure(_ANY_CORE, size, [str(core) for core in range(size)])
    configure(_ANY_CORE, count, [str(core) for core in range(count)])
    _configured.count = count


def threads_in_use() -> int:
    """Threads that kernels started by the calling thread run on."""
    return int(runtime().get_global_func("runtime.NumThreads")())


class VirtualMachine:
    """Entry functions of one compiled library.

    Parameters
    ----------
    library
        Shared library that `tvm.compile(...).export_library(...)` wrote.
    device
        DLDeviceType and number of the device that it was compiled for; by default the CPU.

    Raises
    ------
    HwpqError
        When the file is not such a library.
    """

    def __init__(self, library: Path, device: tuple[int, int] = (CPU_CODE, 0)) -> None:
        try:
            self._module = runtime().load_module(str(library))["vm_load_executable"]()
        except (AttributeError, OSError, RuntimeError, ValueError) as error:
            raise HwpqError(
                f"{library}: TVM can't load it ({str(error).splitlines()[0]}). Build the model again."
            ) from (error)
        # Sizes are computed on the CPU, whatever the kernels run on: the machine looks for it among its devices.
        devices = [device] if device[0] == CPU_CODE else [device, (CPU_CODE, 0)]
        self._module["vm_initialization"](*(value for each in devices for value in (*each, _POOLED_ALLOCATOR)))

    def entry(self, name: str) -> Callable[..., Any]:
        """Entry function `name`."""
        return self._module[name]

    def instrument(self, function: Any | None) -> None:
        """Let `function` be called before and after every call that the machine makes; None ends it.

        Its arguments: the callee, its name, whether the call is yet to come, the result (of a call that was), and the
        callee's arguments.
        """
        self._module["set_instrument"](function)
