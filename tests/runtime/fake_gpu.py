"""A GPU that is made up: the CPU's memory under its name, and kernels that only note how they are started.

What a real one would be given by the host code, the virtual machine and the runtime goes through all of them; so a
process that uses this can run nothing else.
"""

import ctypes
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hwpq_tvm.device_code import _Reader
from hwpq_tvm.gpu import GPU, Driver
from hwpq_tvm.runtime import compiled_model, device_check
from hwpq_tvm.runtime.tvm_runtime import runtime

_DYNAMIC = "tirx.use_dyn_shared_memory"
_POINTER = 4  # kTVMFFIOpaquePtr

# What a library has to export for the runtime to find a function in it.
_STUB = """
extern "C" int __tvm_ffi_{name}(void*, const void* arguments, int count, void*) {{
  note("{name}", arguments, count);
  return 0;
}}
"""
_NOTE = """
static void (*note)(const char*, const void*, int);
extern "C" void set_note(void* function) { note = (decltype(note))function; }
"""


class _Any(ctypes.Structure):
    """TVMFFIAny."""

    _fields_ = (("type", ctypes.c_int32), ("padding", ctypes.c_uint32), ("value", ctypes.c_int64))


@dataclass(frozen=True)
class Launch:
    """How a kernel was started."""

    kernel: str
    pointers: tuple[int, ...]
    sizes: Mapping[str, int]

    @property
    def dynamic_bytes(self) -> int:
        return self.sizes.get(_DYNAMIC, 0)

    def extent(self, name: str) -> int:
        return self.sizes.get(name, 1)

    @property
    def threads(self) -> int:
        return self.extent("threadIdx.x") * self.extent("threadIdx.y") * self.extent("threadIdx.z")


def install(capability: tuple[int, int]) -> list[Launch]:
    """Make up a GPU; returns the list that launches are added to."""
    launches: list[Launch] = []
    tags: dict[str, tuple[str, ...]] = {}

    @ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.POINTER(_Any), ctypes.c_int)
    def note(name: bytes, arguments: object, count: int) -> None:
        own = tags[name.decode()]
        given = [arguments[place] for place in range(count)]
        pointers = tuple(each.value or 0 for each in given[: count - len(own)] if each.type == _POINTER)
        sizes = {tag: each.value for tag, each in zip(own, given[count - len(own) :], strict=True)}
        launches.append(Launch(name.decode(), pointers, sizes))

    def load(content: bytes) -> object:
        tags.update(_launch_tags(bytes(content)))
        folder = Path(tempfile.mkdtemp(prefix="hwpq-fake-"))
        (folder / "kernels.cc").write_text(_NOTE + "".join(_STUB.format(name=name) for name in tags))
        library = folder / "kernels.so"
        subprocess.run(["g++", "-shared", "-fPIC", "-o", library, folder / "kernels.cc"], check=True)
        ctypes.CDLL(str(library)).set_note(note)
        return runtime().load_module(str(library))

    ffi = runtime()
    ffi.register_global_func("device_api.cuda", ffi.get_global_func("device_api.cpu"), override=True)
    ffi.register_global_func("ffi.Module.load_from_bytes.cuda", load, override=True)
    gpu = GPU(0, "made up", capability, 1 << 30)
    device_check.find_gpus = lambda: Driver((13, 9), (gpu,), None)
    compiled_model.load_cuda_runtime = lambda: None
    return launches


def _launch_tags(content: bytes) -> dict[str, tuple[str, ...]]:
    """What each kernel of a CUDA module is given besides its arguments."""
    reader = _Reader(content)
    if reader.string() != b"cubin":
        raise ValueError("the library holds no binary")
    found = {}
    for _ in range(reader.number()):
        name = reader.string().decode()
        reader.string()
        reader.skip(4 * reader.number())
        found[name] = tuple(reader.string().decode() for _ in range(reader.number()))
        reader.skip(4 * reader.number())
    return found
