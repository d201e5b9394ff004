"""The parameters of linears on tensor-core layouts: what there is to choose, and what is chosen by predicted time.

A linear for up to four tokens is a matrix-vector product on CUDA cores; more tokens are for tensor cores, with the
instructions of warps (`mma`) or of warpgroups (`wgmma`). Where the
number of tokens isn't known, a kernel holds several ranges of tokens, each with parameters of its own (a plan).
"""

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import inf, prod
from typing import Any

from tvm.target import Target

from hwpq_tvm.errors import UnsupportedSchemeError
from hwpq_tvm.schedules.cuda.devices import Device, reference_device
from hwpq_tvm.schedules.cuda.gemv import MAX_TOKENS, GemvParameters
from hwpq_tvm.schedules.cuda.mma_formats import ROWS, STEP
from hwpq_tvm.schedules.cuda.mma_parameters import MmaParameters
from hwpq_tvm.schedules.cuda.occupancy import WARP
from hwpq_tvm.schedules.cuda.performance import Prediction, predict
from hwpq_tvm.schedules.cuda.wgmma_parameters import WgmmaParameters
from hwpq_tvm.schedules.cuda.work import Linear, work_of

Parameters = GemvParameters | MmaParameters | WgmmaParameters
# Parameters with the most tokens that they serve (None: any number), ascending.
Plan = tuple[tuple[int | None, Parameters], ...]

# Ranges of tokens that may have a kernel of their own, by the largest of each; more are predicted as LARGE.
BUCKETS = (MAX_TOKENS, 8, 16, 32, 64, 128, 256, 512, 1024)
LARGE = 2048
# Kernels of a plan at most, and how much more time than with parameters of its own a range may take to get there.
MOST_KERNELS = 6
TOLERANCES = (0.05, 0.1, 0.2, 0.4, inf)

# What a tuner walks, as far as it fits.
ROW_WARPS = (1, 2, 4, 8)
BLOCKS_PER_WARP = (1, 2, 4)
TOKEN_TILES = (8, 16, 32, 64, 128, 256)
TOKEN_WARPS = (1, 2, 4)
K_WARPS = (1, 2, 4)
K_SPLITS = (1, 2, 3, 4, 6, 8, 12, 16)
STAGES = (2, 3, 4, 6, 8)
STEPS_PER_STAGE = (1, 2, 4, 8)
ROW_WARPGROUPS = (1, 2)
ROWS_PER_STAGE = (1, 2)
GEMV_K_WARPS = (1, 2, 4, 8, 16)
GEMV_ROW_BLOCKS = (1, 2, 4, 8)
GEMV_UNROLL = (1, 2, 4, 8)
# Threads of a block: fewer leave quarters of a multiprocessor without a warp, more have nothing to gain.
LEAST_THREADS, MOST_THREADS = 64, 512
# Thread blocks for each multiprocessor from which splitting in_features gains nothing.
ENOUGH_BLOCKS = 4

# What predicted time chooses from: warps along rows, row blocks of each, warps along tokens and along in_features.
_LIKELY_WARPS = {
    "few tokens": ((4, 1, 1, 1), (4, 2, 1, 1), (2, 1, 1, 2), (2, 2, 1, 2), (1, 1, 1, 4), (8, 1, 1, 1)),
    "many tokens": ((4, 1, 1, 1), (4, 2, 1, 1), (4, 2, 2, 1), (2, 4, 2, 1), (4, 4, 1, 1), (4, 4, 2, 1)),
}
_FEW = 32
# Stages, and steps of tiles of up to 640 bytes in each; larger tiles have half as many steps.
_LIKELY_STAGES = {
    "few tokens": ((3, 2), (4, 2), (6, 2), (3, 4), (4, 4), (3, 8)),
    "many tokens": ((3, 2), (4, 2), (3, 4)),
}
_SMALL_TILE = 640


@dataclass(frozen=True, slots=True)
class Choice:
    """Parameters, and what is predicted of them."""

    parameters: Parameters
    prediction: Prediction

    @property
    def rank(self) -> tuple[float, int, int, int]:
        """Orders choices by predicted time to 10 ns; of equals the smaller one is first."""
        work = self.prediction.work
        return round(self.prediction.microseconds, 2), work.launches, work.shared_bytes, work.threads


def default(kernel: Mapping[str, Any], target: Target) -> Plan:
    """Choose the parameters by which a linear is predicted to take least time.

    Parameters
    ----------
    kernel
        The description of a linear on tensor-core layouts, as `kernel_attr.description` gives it.
    target
        What it will run on; times are predicted for the reference device of its architecture.

    Returns
    -------
    A single entry where the number of tokens is known. Otherwise one for each range of tokens, where neighbours share
    parameters that are predicted to be nearly as fast as their own.
    """
    linear, device = Linear.of(kernel), reference_device(target)
    if -1 in kernel["lead"]:
        return ranges(linear, device)
    return ((None, best(linear, device, prod(kernel["lead"])).parameters),)


def space(kernel: Mapping[str, Any], target: Target, tokens: int) -> list[Parameters]:
    """List every choice that this module knows for a number of tokens, the one by predicted time first."""
    return list(_space(Linear.of(kernel), reference_device(target), tokens))


@functools.lru_cache(maxsize=64)
def _space(linear: Linear, device: Device, tokens: int) -> tuple[Parameters, ...]:
    points = _gemv_points(linear, tokens) if tokens <= MAX_TOKENS else _tensor_core_points(linear, device, tokens)
    return tuple(dict.fromkeys([best(linear, device, tokens).parameters, *points]))


def choice(linear: Linear, device: Device, tokens: int, parameters: Parameters) -> Choice | None:
    """Predict the time with some parameters; None where they don't fit the device."""
    prediction = predict(work_of(parameters, linear, tokens), device)
    return None if prediction is None else Choice(parameters, prediction)


@functools.lru_cache(maxsize=4096)
def best(linear: Linear, device: Device, tokens: int) -> Choice:
    """Choose parameters for a number of tokens by predicted time.

    Raises
    ------
    UnsupportedSchemeError
        When none fit.
    """
    points = _gemv_points(linear, tokens) if tokens <= MAX_TOKENS else _likely_points(linear, device, tokens)
    found = [each for point in points if (each := choice(linear, device, tokens, point)) is not None]
    if not found:
        raise UnsupportedSchemeError(
            f"no kernel for a linear of {linear.N} x {linear.K} features with {linear.name} weights fits "
            f"{device.architecture.name}: {_why_none(linear, device, tokens)}. Choose another format for it."
        )
    return min(found, key=lambda each: each.rank)


def _why_none(linear: Linear, device: Device, tokens: int) -> str:
    """What is wrong with the smallest point."""
    architecture, reason = device.architecture, None
    if tokens <= MAX_TOKENS:
        reason = GemvParameters(1, 1, 1).why_not(linear.name, linear.K, tokens)
    else:
        steps = max(1, (linear.group_size or 0) // STEP)
        smallest = MmaParameters(2, 1, TOKEN_TILES[0], stages=2, steps_per_stage=steps)
        reason = smallest.why_not(linear.name, linear.N, linear.K, linear.group_size, architecture.name)
    return reason or f"a thread block takes more threads, registers or shared memory than {device.name} has"


@functools.lru_cache(maxsize=512)
def ranges(linear: Linear, device: Device) -> Plan:
    """Cut the numbers of tokens in ranges with parameters of their own, which are few."""
    few_tokens = (BUCKETS[0], best(linear, device, BUCKETS[0]).parameters)
    plans = (_shared(linear, device, tolerance) for tolerance in TOLERANCES)
    return (few_tokens, *next(plan for plan in plans if len(plan) < MOST_KERNELS))


def _shared(linear: Linear, device: Device, tolerance: float) -> Plan:
    """Let neighbouring ranges share parameters, as many as lose no more than `tolerance` by that."""
    plan: list[tuple[int | None, Parameters]] = []
    rest = [*BUCKETS[1:], LARGE]
    while rest:
        for served in range(len(rest), 0, -1):
            loss, parameters = _shared_by(linear, device, tuple(rest[:served]))
            if loss <= tolerance or served == 1:
                break
        plan.append((rest[served - 1] if served < len(rest) else None, parameters))
        rest = rest[served:]
    return tuple(plan)


@functools.lru_cache(maxsize=512)
def _shared_by(linear: Linear, device: Device, tokens: tuple[int, ...]) -> tuple[float, Parameters]:
    """Among the best parameters of some numbers of tokens those that lose least for any of the others, and how much."""
    own = {count: best(linear, device, count) for count in tokens}

    def loss(parameters: Parameters) -> float:
        found = ((choice(linear, device, count, parameters), own[count]) for count in tokens)
        return max(
            each.prediction.microseconds / alone.prediction.microseconds - 1 if each else inf for each, alone in found
        )

    losses = {each: loss(each) for each in dict.fromkeys(each.parameters for each in own.values())}
    chosen = min(losses, key=lambda each: losses[each])
    return losses[chosen], chosen


def _gemv_points(linear: Linear, tokens: int) -> Iterator[GemvParameters]:
    for k_warps, row_blocks, unroll in product(GEMV_K_WARPS, GEMV_ROW_BLOCKS, GEMV_UNROLL):
        point = GemvParameters(k_warps, row_blocks, unroll)
        if point.threads <= MOST_THREADS and point.why_not(linear.name, linear.K, tokens) is None:
            yield point


def _tensor_core_points(linear: Linear, device: Device, tokens: int) -> Iterator[Parameters]:
    tiles = [tile for tile in TOKEN_TILES if tile <= _whole_tile(tokens)]
    stages = tuple(product(STAGES, STEPS_PER_STAGE))
    for warps in product(ROW_WARPS, BLOCKS_PER_WARP, TOKEN_WARPS, K_WARPS):
        yield from _cut(linear, device, tokens, warps, tiles, stages, K_SPLITS)
    yield from _wgmma_points(linear, device, tiles)


def _likely_points(linear: Linear, device: Device, tokens: int) -> Iterator[Parameters]:
    range_ = "few tokens" if tokens <= _FEW else "many tokens"
    stages = _LIKELY_STAGES[range_]
    if linear.form.tile_bytes > _SMALL_TILE:
        stages = tuple((count, steps // 2) for count, steps in stages)
    # Few tokens make one tile, so that weights are read once.
    tiles = [_whole_tile(tokens)]
    if tokens > _FEW:
        tiles = [tile for tile in TOKEN_TILES if _FEW < tile <= tiles[0]]
    for warps in _LIKELY_WARPS[range_]:
        for tile in tiles:
            blocks = _thread_blocks(linear, tokens, warps[0] * warps[1], tile)
            # Enough to give every multiprocessor a block, or two.
            splits = [ways for ways in K_SPLITS if ways == 1 or ways * blocks <= 2 * device.sms]
            yield from _cut(linear, device, tokens, warps, [tile], stages, (1, *splits[1:][-2:]))
    yield from _wgmma_points(linear, device, tiles)


def _wgmma_points(linear: Linear, device: Device, tiles: Iterable[int]) -> Iterator[WgmmaParameters]:
    for tile, warpgroups, rows, stages in product(tiles, ROW_WARPGROUPS, ROWS_PER_STAGE, STAGES):
        point = WgmmaParameters(warpgroups, tile, stages, rows)
        if point.why_not(linear.name, linear.N, linear.K, linear.group_size, device.architecture.name) is None:
            yield point


def _cut(
    linear: Linear,
    device: Device,
    tokens: int,
    warps: tuple[int, int, int, int],
    tiles: Iterable[int],
    stages: Sequence[tuple[int, int]],
    k_splits: Sequence[int],
) -> Iterator[MmaParameters]:
    """List what goes with some warps: `tiles` of tokens, `stages` with the steps in each, splits of in_features."""
    row_warps, row_blocks, token_warps, k_warps = warps
    if not LEAST_THREADS <= WARP * row_warps * token_warps * k_warps <= MOST_THREADS:
        return
    architecture = device.architecture
    # `mma` on float8 is emulated where there is `wgmma`.
    if architecture.wgmma and linear.form.operand == "e4m3":
        return
    for tile in tiles:
        blocks = _thread_blocks(linear, tokens, row_warps * row_blocks, tile)
        for splits, (count, steps) in product(k_splits, stages):
            if splits > 1 and blocks * splits > ENOUGH_BLOCKS * device.sms:
                continue
            point = MmaParameters(row_warps, row_blocks, tile, token_warps, k_warps, splits, count, steps)
            if point.why_not(linear.name, linear.N, linear.K, linear.group_size, architecture.name) is None:
                yield point


def _thread_blocks(linear: Linear, tokens: int, row_blocks: int, token_tile: int) -> int:
    """Thread blocks where in_features aren't split."""
    return -(-(linear.N // ROWS) // row_blocks) * -(-tokens // token_tile)


def _whole_tile(tokens: int) -> int:
    """Smallest tile that holds all tokens, or the largest there is."""
    return next((tile for tile in TOKEN_TILES if tile >= tokens), TOKEN_TILES[-1])
