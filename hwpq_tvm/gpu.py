"""What NVIDIA GPUs this machine has and which device code runs on them, found through the driver, without TVM."""

import ctypes
import re
from dataclasses import dataclass
from typing import Any, Literal

# Names of the driver's library. It comes with the driver, never with a toolkit or a package.
_LIBRARIES = ("libcuda.so.1", "nvcuda.dll")

# CUdevice_attribute: the two halves of the compute capability, and the shared memory that a block may ask for.
_CAPABILITY = (75, 76)
_SHARED_MEMORY = 97
_ERROR_NO_DEVICE = 100

# The oldest compute capability that kernels exist for.
_OLDEST = (8, 0)

# Capabilities of Jetson boards whose major one is a desktop's: binaries of the one don't run on the other (CUDA C++
# Programming Guide, "Binary Compatibility").
_JETSON = {(8, 7)}


@dataclass(frozen=True, slots=True)
class GPU:
    """A GPU.

    Attributes
    ----------
    index
        Its number, as in the device "cuda:0".
    name
        As the driver calls it.
    capability
        Compute capability, such as (8, 0) of an A100.
    memory_bytes
        Memory on the board.
    shared_bytes
        Shared memory that a thread block may ask for; None where that is not known.
    """

    index: int
    name: str
    capability: tuple[int, int]
    memory_bytes: int
    shared_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Driver:
    """The driver and the GPUs that it gives to this process.

    Attributes
    ----------
    cuda_version
        CUDA version that it supports, such as (13, 0); None where there is no driver.
    gpus
        What it finds, `CUDA_VISIBLE_DEVICES` considered.
    problem
        Why there are none; None where there are.
    """

    cuda_version: tuple[int, int] | None
    gpus: tuple[GPU, ...]
    problem: str | None


def find_gpus() -> Driver:
    """Ask the driver; what is wrong with it is told, not raised."""
    library = _load()
    if library is None:
        return Driver(None, (), "there is no NVIDIA driver (libcuda.so.1)")
    number = ctypes.c_int()
    version = None
    if library.cuDriverGetVersion(ctypes.byref(number)) == 0:
        version = number.value // 1000, number.value % 1000 // 10
    if (code := library.cuInit(0)) != 0 or (code := library.cuDeviceGetCount(ctypes.byref(number))) != 0:
        what = "the driver finds no GPU" if code == _ERROR_NO_DEVICE else f"the driver fails ({_name(library, code)})"
        return Driver(version, (), what)
    gpus = tuple(_gpu(library, index) for index in range(number.value))
    return Driver(version, gpus, None if gpus else "the driver finds no GPU")


def _load() -> Any:
    for name in _LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _name(library: Any, code: int) -> str:
    text = ctypes.c_char_p()
    known = library.cuGetErrorName(code, ctypes.byref(text)) == 0 and text.value
    return text.value.decode() if known and text.value else f"error {code}"


def _gpu(library: Any, index: int) -> GPU:
    device, value = ctypes.c_int(), ctypes.c_int()
    library.cuDeviceGet(ctypes.byref(device), index)
    attributes = []
    for attribute in (*_CAPABILITY, _SHARED_MEMORY):
        library.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        attributes.append(value.value)
    major, minor, shared_bytes = attributes
    name = ctypes.create_string_buffer(256)
    library.cuDeviceGetName(name, len(name), device)
    memory = ctypes.c_size_t()
    library.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    return GPU(index, name.value.decode(errors="replace"), (major, minor), memory.value, shared_bytes)


def capability_of(architecture: str) -> tuple[int, int]:
    """Compute capability that an architecture's name stands for: (9, 0) for "sm_90a".

    Raises
    ------
    ValueError
        When it is no such name.
    """
    match = re.fullmatch(r"sm_(\d+)(\d)[af]?", architecture)
    if match is None:
        raise ValueError(f"{architecture!r} is no name of an architecture, such as sm_80")
    return int(match[1]), int(match[2])


def how_it_runs(architecture: str, capability: tuple[int, int]) -> Literal["binary", "ptx"] | None:
    """How device code that was built for an architecture runs on a GPU.

    Device code holds a binary for its architecture and PTX for newer ones. A binary runs on GPUs of the same major
    capability whose minor one is not lower, but not on Jetson boards, and one with the suffix "a" on its own
    architecture only (CUDA C++ Programming Guide, "Application Compatibility").

    Returns
    -------
    str or None
        "binary"; "ptx", which the driver compiles when it is loaded; or None where it does not run.
    """
    built = capability_of(architecture)
    same = capability == built if architecture.endswith("a") else capability[0] == built[0] and capability >= built
    if same and capability not in _JETSON:
        return "binary"
    return "ptx" if capability > built else None


def too_old(gpu: GPU) -> str | None:
    """What to tell who has a GPU that no kernels exist for; None where it is new enough."""
    if gpu.capability >= _OLDEST:
        return None
    return (
        f"{gpu.name} has compute capability {dotted(gpu.capability)}: kernels need {dotted(_OLDEST)} or more. Use "
        'another GPU, or the target "cpu".'
    )


def why_not_run(
    architecture: str, gpu: GPU, driver: Driver, cuda_version: tuple[int, int], shared_bytes: int = 0
) -> str | None:
    """Why device code does not run on a GPU, and what to do; None where it does.

    Parameters
    ----------
    architecture
        What it was built for, such as "sm_80".
    gpu, driver
        The GPU, and the driver that found it.
    cuda_version
        Of the compiler, or that of the libraries that the code runs with if theirs is newer.
    shared_bytes
        Shared memory that the largest kernel asks for.
    """
    if (problem := too_old(gpu)) is not None:
        return problem
    how = how_it_runs(architecture, gpu.capability)
    if how is None:
        return (
            f"code for {architecture} needs compute capability {dotted(capability_of(architecture))} or more, and "
            f'{gpu.name} has {dotted(gpu.capability)}. Build the model with target "cuda" on this machine, or with '
            '"cuda:sm_80" for older ones.'
        )
    if gpu.shared_bytes is not None and shared_bytes > gpu.shared_bytes:
        return (
            f"a kernel for {architecture} takes {shared_bytes // 1024} KB of shared memory, and {gpu.name} gives a "
            f'block {gpu.shared_bytes // 1024} KB. Build the model with target "cuda" on this machine.'
        )
    # Drivers load binaries of their own major version, and compile PTX that is not newer than they are.
    needed = cuda_version if how == "ptx" else (cuda_version[0], 0)
    if driver.cuda_version is None or driver.cuda_version >= needed:
        return None
    why = f" to compile the PTX of {architecture} for {gpu.name}" if how == "ptx" else ""
    older = driver.cuda_version[0] == needed[0]
    return (
        f"the NVIDIA driver supports CUDA {dotted(driver.cuda_version)}, and {dotted(needed)} or more is needed{why}. "
        "Update the driver" + (f", or build the model with nvcc {dotted(driver.cuda_version)}." if older else ".")
    )


def dotted(number: tuple[int, ...]) -> str:
    """A version as people write it."""
    return ".".join(map(str, number))
