"""The GPU architectures that kernels are generated for: what each has, by its name as nvcc spells it.

A leaf: it loads nothing of TVM, so that whoever parses a user's word can read the limits.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hwpq_tvm.errors import TargetError

if TYPE_CHECKING:
    from tvm.target import Target


@dataclass(frozen=True, slots=True)
class Architecture:
    """What kernels have to know about an architecture.

    Attributes
    ----------
    name
        As nvcc spells it, such as "sm_80"; a suffix "a" means instructions that no later architecture has.
    shared_memory_per_block
        Bytes that one thread block may use (with the launch attribute that allows more than 48 KB).
    shared_memory_per_sm
        Bytes that the blocks of a multiprocessor share; each block takes 1 KB more than it asks for.
    threads_per_sm, blocks_per_sm
        Of a multiprocessor at most. Its registers are 65536 of 32 bits everywhere.
    float8
        Whether tensor cores multiply float8 e4m3 (`mma` on sm_89, `wgmma` on sm_90a).
    wgmma
        Whether there are warpgroup instructions.
    """

    name: str
    shared_memory_per_block: int
    shared_memory_per_sm: int
    threads_per_sm: int
    blocks_per_sm: int
    float8: bool = False
    wgmma: bool = False


# CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture
    for architecture in (
        Architecture("sm_80", 163 * 1024, 164 * 1024, 2048, 32),
        Architecture("sm_86", 99 * 1024, 100 * 1024, 1536, 16),
        Architecture("sm_89", 99 * 1024, 100 * 1024, 1536, 24, float8=True),
        Architecture("sm_90a", 227 * 1024, 228 * 1024, 2048, 32, float8=True, wgmma=True),
    )
}


def architecture_of(target: "Target") -> Architecture:
    """Find the architecture of a target of kind "cuda".

    Raises
    ------
    TargetError
        When kernels aren't generated for it.
    """
    name = str(target.attrs.get("arch", ""))
    if name not in ARCHITECTURES:
        raise TargetError(
            f"CUDA architecture {name or '(none)'}: kernels exist for {', '.join(ARCHITECTURES)}; name one of them, "
            f'such as "cuda:{next(iter(ARCHITECTURES))}".'
        )
    return ARCHITECTURES[name]
