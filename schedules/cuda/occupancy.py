"""How many blocks of a kernel fit on a multiprocessor at a time, and what keeps more away.

The arithmetic of NVIDIA's occupancy calculator for compute capability 8.0 to 9.0.
"""

from dataclasses import dataclass

from hwpq_tvm.schedules.cuda.architectures import Architecture

WARP = 32
REGISTERS_PER_SM = 65536
# Registers are given to warps in units of 256, shared memory to blocks in units of 128 bytes, 1 KB for the system.
_REGISTER_UNIT = 256
_SHARED_UNIT = 128
_SHARED_OF_SYSTEM = 1024


@dataclass(frozen=True, slots=True)
class Occupancy:
    """Blocks that share a multiprocessor.

    Attributes
    ----------
    blocks
        At a time; 0 when one doesn't fit.
    warps
        Of these blocks.
    fraction
        Of the warps that a multiprocessor can hold.
    limit
        What keeps another block away: "threads", "blocks", "registers" or "shared memory".
    """

    blocks: int
    warps: int
    fraction: float
    limit: str


def occupancy(architecture: Architecture, threads: int, registers: int, shared_bytes: int) -> Occupancy:
    """Count the blocks that a multiprocessor holds.

    Parameters
    ----------
    architecture
        Its limits.
    threads, shared_bytes
        Of a block.
    registers
        Of a thread.
    """
    warps = -(-threads // WARP)
    registers_of_warp = _whole(registers * WARP, _REGISTER_UNIT)
    # A warp lives in one of four quarters, each with a quarter of the registers.
    warps_by_registers = 4 * (REGISTERS_PER_SM // 4 // registers_of_warp) if registers_of_warp else 1 << 20
    shared = _whole(shared_bytes, _SHARED_UNIT) + _SHARED_OF_SYSTEM
    fitting = {
        "threads": architecture.threads_per_sm // (warps * WARP),
        "blocks": architecture.blocks_per_sm,
        "registers": warps_by_registers // warps,
        "shared memory": architecture.shared_memory_per_sm // shared
        if shared_bytes <= architecture.shared_memory_per_block
        else 0,
    }
    limit = min(fitting, key=lambda name: fitting[name])
    blocks = fitting[limit]
    return Occupancy(blocks, blocks * warps, blocks * warps * WARP / architecture.threads_per_sm, limit)


def _whole(size: int, unit: int) -> int:
    return -(-size // unit) * unit
