"""The parameters of AVX-512's kernels of linears for many tokens: what there is to choose, and what is by hand.

There are two kernels. One unpacks weights in memory, for any number of tokens; the other in registers, again for every
register tile of tokens: it is for few, where weights are to be read as fast as memory gives them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from hwpq_tvm.schedules.layouts.tiles import STEP, TOKENS, padded

# What a tuner walks. Tasks of a thread: each makes its own copy of the activations.
TASKS = (1, 2, 4)
# Register tiles; those of weights that are unpacked in memory share loads of weights and shuffles.
UNPACKED_TOKENS = (4, 8)
FUSED_TOKENS = (2, 4, 8, 16)
BLOCK_TILES = (4, 8, 16, 32)
ACTIVATION_BYTES = (1 << 17, 1 << 18, 1 << 19, 1 << 20)
UNPACKED_PREFETCH = (0, 1280)
STREAMS = (2, 4, 8)
FUSED_PREFETCH = (0, 1280, 2560, 5120)
# Registers for sums: each pair of streams takes one for every token, and another one; more would not stay there.
MOST_SUMS = 18


@dataclass(frozen=True, slots=True)
class Avx512GemmParameters:
    """How weights and activations meet where weights are unpacked in memory.

    Attributes
    ----------
    near_blocks
        Row blocks that a task takes. They go in pairs, and the last task may have fewer.
    block_tiles
        Tiles of weights that are unpacked together, as long as they are whole groups: the first-level cache holds them.
    activation_bytes
        Activations that meet a pair of blocks before the next ones come: the second-level cache holds them.
    tokens
        Rows of activations of a register tile.
    prefetch
        Bytes ahead in the packed weights that are asked for while some are unpacked; 0 asks for nothing.
    """

    near_blocks: int
    block_tiles: int = 16
    activation_bytes: int = 1 << 19
    tokens: int = TOKENS
    prefetch: int = 0


@dataclass(frozen=True, slots=True)
class Avx512FusedParameters:
    """How weights and activations meet where weights are unpacked in registers.

    Attributes
    ----------
    near_blocks
        Row blocks that a task takes. The last task may have fewer.
    tokens
        Rows of activations of a register tile. Where there are more, the weights are read again, from a cache.
    streams
        Row blocks that are read in turns, far apart in memory; an even number.
    prefetch
        Bytes ahead in each stream that are asked for; 0 asks for nothing.
    """

    near_blocks: int
    tokens: int
    streams: int
    prefetch: int


def default(blocks: int, threads: int) -> Avx512GemmParameters:
    """Choose by hand, for some blocks of output rows: an equal share of the pairs for every thread."""
    return _shares(blocks, threads)[0]


def points(
    blocks: int, steps: int, group_steps: int, threads: int, M: int | None
) -> list[Avx512GemmParameters | Avx512FusedParameters]:
    """List what a tuner may choose, `default` first.

    Parameters
    ----------
    blocks, steps
        Tiles of the weight, along out_features and in_features.
    group_steps
        Tiles that are not cut: those of a group.
    threads
        How many work.
    M
        Tokens; None where their number isn't known.
    """
    unpacked = _unpacked(blocks, steps, group_steps, threads, M)
    return [*_shares(blocks, threads), *_fused(blocks, threads, M), *unpacked]


def _shares(blocks: int, threads: int) -> list[Avx512GemmParameters]:
    """From an equal share of the pairs of row blocks for every thread down to one pair in a task."""
    pairs = -(-blocks // 2)
    shares = dict.fromkeys(-(-pairs // tasks) for tasks in range(min(threads, pairs), pairs + 1))
    return [Avx512GemmParameters(2 * share) for share in shares]


def _unpacked(blocks: int, steps: int, group_steps: int, threads: int, M: int | None) -> Iterator[Avx512GemmParameters]:
    """Every way to cut tiles and activations; of those that come to the same for M tokens the first."""
    seen: set[tuple[int, ...]] = set()
    shares, sizes = _near_blocks(blocks, 2, threads), [size for size in BLOCK_TILES if size >= group_steps]
    for share, tokens, block_tiles, activation_bytes, prefetch in product(
        shares, _tokens(UNPACKED_TOKENS, M), sizes, ACTIVATION_BYTES, UNPACKED_PREFETCH
    ):
        together = max(1, activation_bytes // (tokens * steps * STEP))
        if M is not None:
            together = min(together, -(-M // tokens))
        effect = (share, tokens, min(block_tiles, steps), together, prefetch)
        if effect not in seen:
            seen.add(effect)
            yield Avx512GemmParameters(share, block_tiles, activation_bytes, tokens, prefetch)


def _fused(blocks: int, threads: int, M: int | None) -> Iterator[Avx512FusedParameters]:
    for streams, tokens in product(STREAMS, _tokens(FUSED_TOKENS, M)):
        if streams // 2 * (tokens + 1) <= MOST_SUMS:
            for share, prefetch in product(_near_blocks(blocks, streams, threads), FUSED_PREFETCH):
                yield Avx512FusedParameters(share, tokens, streams, prefetch)


def _tokens(sizes: tuple[int, ...], M: int | None) -> list[int]:
    """Sizes of register tiles: the smallest that holds M tokens, or the largest, and half of it."""
    if M is None:
        return list(sizes)
    fitting = next((size for size in sizes if size >= M), sizes[-1])
    return [size for size in sizes if fitting // 2 <= size <= fitting]


def _near_blocks(blocks: int, streams: int, threads: int) -> list[int]:
    """Row blocks of a task, where every thread has some tasks, of so many streams; none where they don't fill them."""
    shares = (-(-blocks // (threads * tasks)) for tasks in TASKS)
    return list(dict.fromkeys(padded(share, streams) for share in shares if share >= streams or streams == STREAMS[0]))
