"""What this CPU can run, found without the compiler library, in LLVM's names of features."""

import os
import platform
from collections.abc import Iterable
from pathlib import Path

# Features that LLVM uses on its own accord when a target has them: LLVM's name -> the kernel's (/proc/cpuinfo). What
# is not listed (such as `sgx` or `waitpkg`) needs an explicit intrinsic, which no kernel here uses.
_X86 = {
    "sse3": "pni",
    "ssse3": "ssse3",
    "sse4.1": "sse4_1",
    "sse4.2": "sse4_2",
    "crc32": "sse4_2",
    "cx16": "cx16",
    "popcnt": "popcnt",
    "movbe": "movbe",
    "lzcnt": "abm",
    "bmi": "bmi1",
    "bmi2": "bmi2",
    "adx": "adx",
    "avx": "avx",
    "avx2": "avx2",
    "fma": "fma",
    "f16c": "f16c",
    "aes": "aes",
    "pclmul": "pclmulqdq",
    "gfni": "gfni",
    "vaes": "vaes",
    "vpclmulqdq": "vpclmulqdq",
    "avxvnni": "avx_vnni",
    "avxvnniint8": "avx_vnni_int8",
    "avxifma": "avx_ifma",
    "avxneconvert": "avx_ne_convert",
    "avx512f": "avx512f",
    "avx512cd": "avx512cd",
    "avx512dq": "avx512dq",
    "avx512bw": "avx512bw",
    "avx512vl": "avx512vl",
    "avx512ifma": "avx512ifma",
    "avx512vbmi": "avx512vbmi",
    "avx512vbmi2": "avx512_vbmi2",
    "avx512vnni": "avx512_vnni",
    "avx512bitalg": "avx512_bitalg",
    "avx512vpopcntdq": "avx512_vpopcntdq",
    "avx512bf16": "avx512_bf16",
    "avx512fp16": "avx512_fp16",
    "amx-tile": "amx_tile",
    "amx-int8": "amx_int8",
    "amx-bf16": "amx_bf16",
}
_AARCH64 = {
    "fp-armv8": "fp",
    "neon": "asimd",
    "fullfp16": "asimdhp",
    "fp16fml": "asimdfhm",
    "dotprod": "asimddp",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "lse": "atomics",
    "crc": "crc32",
    "rdm": "asimdrdm",
    "rcpc": "lrcpc",
    "complxnum": "fcma",
    "jsconv": "jscvt",
    "sve": "sve",
    "sve2": "sve2",
}
_NAMES = {"x86_64": _X86, "aarch64": _AARCH64}

# Where Linux says what the CPU can do.
_CPUINFO = Path("/proc/cpuinfo")

# ELF header: bytes 18-19 (little endian) name the architecture.
_ELF_MACHINES = {62: "x86_64", 183: "aarch64"}


def host_cores() -> int:
    """Cores this process may run on: its affinity mask counts, not the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def architecture() -> str:
    """Architecture of this machine, `x86_64` and `aarch64` among others."""
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


def library_architecture(library: Path) -> str | None:
    """Architecture that a shared library holds code for; None where it is no ELF file or of an unknown one."""
    with library.open("rb") as file:
        header = file.read(20)
    if len(header) < 20 or not header.startswith(b"\x7fELF"):
        return None
    return _ELF_MACHINES.get(int.from_bytes(header[18:20], "little"))


def _kernel_flags() -> frozenset[str] | None:
    """Flags of this CPU as Linux lists them; None where there is no such list."""
    try:
        lines = _CPUINFO.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return None


def found_features() -> frozenset[str]:
    """Features of this CPU (LLVM's names), whether or not code is compiled for them; empty where nobody tells."""
    flags, names = _kernel_flags() or frozenset(), _NAMES.get(architecture(), {})
    return frozenset(feature for feature, flag in names.items() if flag in flags)


def missing_features(required: Iterable[str]) -> tuple[str, ...]:
    """Those of `required` (LLVM's names) that this CPU lacks; empty where the operating system does not tell."""
    flags, names = _kernel_flags(), _NAMES.get(architecture(), {})
    if flags is None:
        return ()
    return tuple(sorted(feature for feature in required if feature in names and names[feature] not in flags))
