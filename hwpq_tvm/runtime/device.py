"""Where a model runs: on the CPU, which works in the memory of NumPy's arrays, or on a GPU, which has its own."""

import ctypes
import importlib
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..cuda_toolkit import toolkit_folders
from ..errors import DependencyError, TargetError
from .tvm_runtime import aligned_empty, as_array, as_tensor, library_folders, runtime

# DLDeviceType
_CODES = {"cpu": 1, "cuda": 2}

# CUDA runtime library that TVM's package was linked with, and the major version of CUDA that it needs of a driver.
_CUDA_RUNTIME = "libcudart.so.13"
CUDA_MAJOR = 13

# Zeros that are copied to a GPU at a time, in bytes: the runtime has no function that fills memory there.
_ZEROS = 4 << 20

# How CUDA, its driver and C++ say that there is no memory left.
_NO_MEMORY = re.compile("out.of.memory|bad_alloc", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Device:
    """A device, and the way of tensors to it and back.

    Attributes
    ----------
    kind
        "cpu" or "cuda".
    index
        Which GPU.
    copies
        Whether tensors are copied to it; otherwise it works in the host's memory.
    """

    kind: Literal["cpu", "cuda"]
    index: int = 0
    copies: bool = False

    @classmethod
    def parse(cls, word: str) -> "Device":
        """Read "cpu", "cuda" or "cuda:1".

        Raises
        ------
        TargetError
            When it is something else.
        """
        match = re.fullmatch(r"(cpu)|cuda(?::(\d+))?", word)
        if match is None:
            raise TargetError(f'device={word!r}: expected "cpu", "cuda" or "cuda:N" with the number of a GPU.')
        return CPU if match[1] else cls("cuda", int(match[2] or 0), copies=True)

    def __str__(self) -> str:
        return "cpu" if self.kind == "cpu" else f"cuda:{self.index}"

    @property
    def code(self) -> int:
        """DLDeviceType."""
        return _CODES[self.kind]

    def from_host(self, array: np.ndarray) -> Any:
        """Tensor of the device with the values of `array`; the same memory where nothing needs copying.

        A copy is whole when this returns: `array` may change then.
        """
        host = as_tensor(array)
        if not self.copies:
            return host
        tensor = self._empty(host.shape, str(host.dtype))
        self._copy(host, tensor)
        return tensor

    def to_host(self, tensor: Any) -> np.ndarray:
        """Values of a tensor of the device, once all that was started before, and the copy, has come to its end."""
        if not self.copies:
            return as_array(tensor)
        shape, dtype = tuple(tensor.shape), np.dtype(str(tensor.dtype))
        array = aligned_empty(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize).view(dtype).reshape(shape)
        self._copy(tensor, as_tensor(array))
        return array

    def zeros(self, shape: Sequence[int], dtype: str) -> Any:
        """Tensor of the device that is filled with zeros."""
        nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        host = aligned_empty(min(nbytes, _ZEROS) if self.copies else nbytes)
        host[...] = 0
        if not self.copies:
            return as_tensor(host.view(dtype).reshape(shape))
        tensor = self._empty(shape, dtype)
        ffi = runtime()
        view = ffi.get_global_func("runtime.TVMTensorCreateView")
        for start in range(0, nbytes, _ZEROS):
            size = min(_ZEROS, nbytes - start)
            self._copy(as_tensor(host[:size]), view(tensor, ffi.Shape((size,)), ffi.dtype("uint8"), start))
        return tensor

    def synchronize(self) -> None:
        """Wait for all that was started on the device."""
        if self.copies:
            self._wait()

    def stream(self) -> AbstractContextManager[Any]:
        """Context whose kernels run in the order of the copies, whatever stream the caller has set for TVM."""
        return runtime().use_raw_stream(self._ffi(), 0) if self.copies else nullcontext()

    @contextmanager
    def room_for(self, what: str, nbytes: int | None = None) -> Iterator[None]:
        """Context that says for what there was no memory; its other errors stay what they are.

        Parameters
        ----------
        what
            Is put there.
        nbytes
            Its bytes, where they are known.

        Raises
        ------
        TargetError
            When memory has run out, of the device or of the host.
        """
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            text = str(error) or type(error).__name__
            if not isinstance(error, MemoryError) and not _NO_MEMORY.search(text):
                raise
            where = "the host" if isinstance(error, MemoryError) or "bad_alloc" in text else self
            size = "" if nbytes is None else f" ({nbytes / 1e6:.0f} MB)"
            raise TargetError(
                f"{where} has no memory left for {what}{size}: {text.splitlines()[0]}. Free memory there, or use "
                "another device."
            ) from error

    def _copy(self, source: Any, destination: Any) -> None:
        """Copy between host and device, and wait for it: TVM's function only starts it (cudaMemcpyAsync)."""
        runtime().get_global_func("runtime.TVMTensorCopyFromTo")(source, destination)
        self._wait()

    def _wait(self) -> None:
        runtime().get_global_func("runtime.Device_StreamSync")(self._ffi(), 0)

    def _empty(self, shape: Sequence[int], dtype: str) -> Any:
        allocate = runtime().get_global_func("runtime.TVMTensorAllocWithScope")
        return allocate(runtime().Shape(tuple(shape)), runtime().dtype(dtype), self._ffi(), None)

    def _ffi(self) -> Any:
        return runtime().device(self.kind, self.index)


CPU = Device("cpu")


class Input:
    """A small input that is given anew in every call, always in the same memory of the device.

    Parameters
    ----------
    device
        Where it is read.
    shape, dtype
        Of the tensor.

    Attributes
    ----------
    tensor
        What the entry functions take.
    """

    def __init__(self, device: Device, shape: Sequence[int], dtype: str) -> None:
        self._host = CPU.zeros(shape, dtype)
        self._values = as_array(self._host)
        self._device = device
        self.tensor = device.from_host(self._values) if device.copies else self._host

    def set(self, value: int | np.ndarray) -> None:
        """Fill it with a value, or with one for each element, which are there when this returns."""
        self._values[...] = value
        if self._device.copies:
            self._device._copy(self._host, self.tensor)


@cache
def load_cuda_runtime() -> None:
    """Load the part of TVM's runtime that drives NVIDIA GPUs.

    Raises
    ------
    DependencyError
        When it, the CUDA runtime library or the driver's library is missing.
    """
    ffi = runtime()
    for path in _cuda_runtime_candidates():
        try:
            ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)  # it is found by its name from now on
            break
        except OSError:
            continue
    else:
        raise DependencyError(
            f"the CUDA runtime library ({_CUDA_RUNTIME}) can't be loaded. Run: pip install 'hwpq-tvm[cuda]', or "
            f"install a CUDA {CUDA_MAJOR} toolkit."
        )
    libinfo = importlib.import_module("tvm_ffi.libinfo")
    try:
        libinfo.load_lib_ctypes("tvm", "tvm_runtime_cuda", "RTLD_GLOBAL", extra_lib_paths=library_folders())
    except (OSError, RuntimeError) as error:
        raise DependencyError(
            f"TVM's runtime library for NVIDIA GPUs can't be loaded ({error}). Install the NVIDIA driver, or run: pip "
            "install --force-reinstall 'apache-tvm==0.27.0.post1'"
        ) from error
    if ffi.get_global_func("device_api.cuda", allow_missing=True) is None:
        raise DependencyError("the installed apache-tvm has no CUDA. Run: pip install 'apache-tvm==0.27.0.post1'")


def _cuda_runtime_candidates() -> Iterator[str | Path]:
    """The libraries of toolkits where nvcc is looked for, too, then whatever the loader finds by its name."""
    for tools in toolkit_folders():
        for folder in ("lib64", "lib"):
            if (library := tools.parent / folder / _CUDA_RUNTIME).is_file():
                yield library
    yield _CUDA_RUNTIME
