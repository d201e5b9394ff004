"""What the kernels of a linear move and compute, counted from its shape and their parameters.

Counts of bytes, operations, blocks and shared memory follow from the kernels' structure. Registers and instructions are
estimates: nothing of them decides much, and ptxas's figures can take their place (`Work.registers`).
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hwpq_tvm.schedules.cuda.gemv import GemvParameters
from hwpq_tvm.schedules.cuda.mma_formats import METADATA_BYTES, MMA_FORMATS, ROWS, STEP, TOKENS, MmaFormat
from hwpq_tvm.schedules.cuda.mma_parameters import GROUP_SCALE_BYTES, MmaParameters
from hwpq_tvm.schedules.cuda.occupancy import WARP
from hwpq_tvm.schedules.cuda.performance import Work
from hwpq_tvm.schedules.cuda.wgmma_parameters import WgmmaParameters
from hwpq_tvm.schedules.layouts.tiles import activation_columns, padded_in_features, padded_rows

# Registers of a thread that are neither sums nor operands, and the most there are.
_OTHER_REGISTERS = 36
_MOST_REGISTERS = 255
# Instructions of a thread for one asynchronous copy with its address, and for a turn of the main loop.
_COPY_INSTRUCTIONS = 3
_TURN_INSTRUCTIONS = 12


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear on tensor-core layouts.

    Attributes
    ----------
    name
        Weight format, a key of `MMA_FORMATS`.
    N, K
        Output features, a multiple of 16, and input features.
    group_size
        in_features that share a scale; None is the row.
    """

    name: str
    N: int
    K: int
    group_size: int | None = None

    @classmethod
    def of(cls, kernel: Mapping[str, Any]) -> "Linear":
        """Read the description of a linear."""
        return cls(kernel["weight_format"], kernel["N"], kernel["K"], kernel.get("group_size"))

    @property
    def form(self) -> MmaFormat:
        """The weight format."""
        return MMA_FORMATS[self.name]

    @property
    def multiplied(self) -> str:
        """What tensor cores multiply, as descriptions name it."""
        return {"s8": "int8", "f16": "float16", "e4m3": "float8_e4m3fn"}[self.form.operand]

    @property
    def steps(self) -> int:
        """Tiles along in_features."""
        return padded_in_features(self.K, self.group_size) // STEP

    @property
    def tiles(self) -> int:
        """Tiles of the weight."""
        return self.N // ROWS * self.steps

    @property
    def halves(self) -> int:
        """Instructions in place of one: where half a step has a scale of its own, half of a 2:4 operand is zeros."""
        return 2 if self.form.sparse and self.group_size == STEP // 2 else 1

    @property
    def scale_bytes(self) -> int:
        """Bytes of all scales."""
        if self.group_size is not None:
            return self.N // ROWS * -(-self.K // self.group_size) * GROUP_SCALE_BYTES
        return 0 if self.form.stored == "float16" else 4 * self.N


@functools.lru_cache(maxsize=256)
def moved_by(linear: Linear, tokens: int) -> Mapping[str, int]:
    """Bytes that any kernel of a linear has to move, by what they are."""
    form = linear.form
    return {
        "weights": linear.tiles * form.value_bytes,
        "metadata": linear.tiles * METADATA_BYTES if form.sparse else 0,
        "scales": linear.scale_bytes,
        "activations": padded_rows(tokens) * (activation_columns(linear.K) * form.element_bytes + 4),
        "outputs": 4 * tokens * linear.N,
    }


@functools.singledispatch
def work_of(parameters: Any, linear: Linear, tokens: int) -> Work:
    """Count the work of a linear for a number of tokens with a kernel's parameters."""
    raise TypeError(f"{type(parameters).__name__} are parameters of no kernel")


@work_of.register
def _gemv(parameters: GemvParameters, linear: Linear, tokens: int) -> Work:
    form, moved = linear.form, moved_by(linear, tokens)
    blocks = parameters.grid(linear.N)
    # Two tiles of half a warp's size are read together.
    tiles_per_read = max(1, WARP * 16 // form.value_bytes)
    tiles_of_warp = -(-linear.steps // (parameters.k_warps * tiles_per_read)) * tiles_per_read
    ahead = min(parameters.unroll * tiles_per_read, tiles_of_warp)
    # Values of a lane in a tile; those of integers are multiplied four at a time.
    values = ROWS * STEP // WARP // (2 if form.sparse else 1)
    words = values * form.element_bytes // 4
    if form.integer:
        instructions = words * ((5 if form.sparse else 1) + (2 if form.sparse else 1) * tokens)
    else:
        instructions = words * (5 if form.sparse else 1) + values * (2 + 2 * tokens)
    instructions += 6 + 4 * tokens
    registers = ahead * (form.value_bytes // WARP // 4 + (4 if form.sparse else 0)) // tiles_per_read
    return Work(
        name="gemv",
        kernel=(
            f"GEMV: {parameters.row_blocks} x {parameters.k_warps} warps along rows and in_features, "
            f"{parameters.unroll} reads ahead"
        ),
        blocks=blocks,
        threads=parameters.threads,
        registers=min(_MOST_REGISTERS, _OTHER_REGISTERS + registers + 8 * tokens),
        shared_bytes=parameters.shared_bytes(tokens),
        moved=moved,
        # Each block reads the activations of its own.
        l2_bytes=sum(moved.values()) + (blocks - 1) * moved["activations"],
        streamed=parameters.warps * tiles_of_warp * form.tile_bytes,
        in_flight=parameters.warps * ahead * form.tile_bytes,
        shared_traffic=2 * blocks * parameters.shared_bytes(tokens),
        instructions=linear.tiles * instructions + blocks * parameters.warps * 60,
    )


@work_of.register
def _mma(parameters: MmaParameters, linear: Linear, tokens: int) -> Work:
    form, moved = linear.form, moved_by(linear, tokens)
    row_tiles = -(-(linear.N // ROWS) // parameters.row_blocks)
    token_tiles = -(-tokens // parameters.token_tile)
    tiles = row_tiles * token_tiles
    stages = -(-linear.steps // parameters.steps_per_stage)
    stages_of_block = -(-stages // parameters.k_splits)
    stage_bytes = parameters.stage_bytes(linear.name, linear.group_size)
    partials = 4 * parameters.k_splits * tokens * linear.N if parameters.k_splits > 1 else 0
    steps = stages * parameters.steps_per_stage  # of a tile, all splits together
    token_bytes = STEP * form.element_bytes * parameters.token_tile
    weight_bytes = stage_bytes - parameters.steps_per_stage * token_bytes
    read = form.tile_bytes * parameters.row_blocks * parameters.token_warps + token_bytes * parameters.row_warps
    # Sums, weights, activations of all tokens (the compiler loads them early), scales, places to copy from and to.
    registers = (
        parameters.blocks_per_warp * parameters.warp_tokens // 2
        + parameters.blocks_per_warp * (4 * form.mmas + 2)
        + parameters.warp_tokens // TOKENS * 4
        + (0 if linear.group_size is None else 4 * parameters.blocks_per_warp)
        + 2 * -(-stage_bytes // 16 // parameters.threads)
    )
    return Work(
        name=f"mma {parameters.rows}x{parameters.token_tile}"
        + (f" split-K {parameters.k_splits}" if parameters.k_splits > 1 else ""),
        kernel=(
            f"tensor cores: tiles of {parameters.rows} x {parameters.token_tile}, "
            f"{parameters.row_warps} x {parameters.token_warps} x {parameters.k_warps} warps along rows, tokens and "
            f"in_features, {parameters.stages} stages of {parameters.steps_per_stage * STEP} in_features, "
            f"K split {parameters.k_splits} ways"
        ),
        blocks=tiles * parameters.k_splits,
        threads=parameters.threads,
        registers=min(_MOST_REGISTERS, _OTHER_REGISTERS + registers),
        shared_bytes=parameters.shared_bytes(linear.name, linear.group_size),
        moved=moved,
        l2_bytes=tiles * stages * stage_bytes + moved["outputs"] + 2 * partials,
        streamed=stages_of_block * weight_bytes,
        in_flight=min(parameters.stages - 1, stages_of_block) * weight_bytes,
        shared_traffic=tiles * (stages * stage_bytes + steps * read),
        instructions=tiles * (stages * _stage_instructions(parameters, linear, stage_bytes)),
        operations=linear.halves * 2 * tiles * parameters.rows * parameters.token_tile * steps * STEP,
        multiplied=linear.multiplied,
        sparse=form.sparse,
        chains=parameters.blocks_per_warp * parameters.warp_tokens // TOKENS,
        launches=2 if parameters.k_splits > 1 else 1,
        partials=partials,
        token_tiles=token_tiles,
    )


@work_of.register
def _wgmma(parameters: WgmmaParameters, linear: Linear, tokens: int) -> Work:
    form, moved = linear.form, moved_by(linear, tokens)
    row_tiles = -(-(linear.N // ROWS) // parameters.row_blocks)
    token_tiles = -(-tokens // parameters.token_tile)
    tiles = row_tiles * token_tiles
    tiles_per_stage = parameters.tiles_per_stage(form)
    stages = -(-linear.steps // tiles_per_stage)
    weight_bytes = parameters.weight_bytes(form)
    stage_bytes = weight_bytes + parameters.activation_bytes
    # Weights go to registers, activations are read by each warpgroup's instructions.
    read = weight_bytes + parameters.activation_bytes * parameters.row_warpgroups
    sums = parameters.token_tile // 2
    weights = 2 * tiles_per_stage * form.tile_bytes // (4 * WARP)
    warp_instructions = tiles_per_stage * (-(-form.tile_bytes // (WARP * 16)) + form.mmas * form.segments)
    copies = -(-stage_bytes // 16 // WARP)
    return Work(
        name=f"wgmma {parameters.rows}x{parameters.token_tile}",
        kernel=(
            f"warpgroups: tiles of {parameters.rows} x {parameters.token_tile}, {parameters.stages} stages of "
            f"{tiles_per_stage * STEP} in_features"
        ),
        blocks=tiles,
        threads=parameters.threads,
        registers=min(_MOST_REGISTERS, _OTHER_REGISTERS + sums + weights),
        shared_bytes=parameters.shared_bytes(linear.name),
        moved=moved,
        l2_bytes=tiles * stages * stage_bytes + moved["outputs"],
        streamed=stages * weight_bytes,
        in_flight=min(parameters.stages - 2, stages) * weight_bytes,
        shared_traffic=tiles * stages * (stage_bytes + read),
        instructions=tiles
        * stages
        * (parameters.threads // WARP * (warp_instructions + _TURN_INSTRUCTIONS) + copies * _COPY_INSTRUCTIONS),
        operations=2 * tiles * parameters.rows * parameters.token_tile * linear.steps * STEP,
        multiplied=linear.multiplied,
        sparse=form.sparse,
        wgmma=True,
        chains=max(1, parameters.token_tile // 32),
        token_tiles=token_tiles,
    )


def _stage_instructions(parameters: MmaParameters, linear: Linear, stage_bytes: int) -> int:
    """Instructions of all warps of a block for one stage, roughly."""
    form = linear.form
    warps, token_groups = parameters.threads // WARP, parameters.warp_tokens // TOKENS
    # Loads of a tile and its metadata; three instructions unpack a register of nibbles or of float8 as float16.
    loads = -(-form.value_bytes // (WARP * 16)) + (1 if form.sparse else 0)
    registers = 4 * form.mmas * form.segments
    unpacking = 2 * registers if form.stored == "int4" or (form.stored, form.operand) == ("float8", "f16") else 0
    mmas = form.mmas * form.segments * linear.halves
    step = parameters.blocks_per_warp * (loads + unpacking) + token_groups * form.segments
    step += parameters.blocks_per_warp * token_groups * mmas
    per_warp = parameters.warp_steps * step + _TURN_INSTRUCTIONS
    if linear.group_size is not None:
        groups = max(1, parameters.warp_steps * STEP // linear.group_size)
        # Four sums become float32 and are multiplied and added.
        per_warp += groups * parameters.blocks_per_warp * (4 + 8 * token_groups)
    copies = -(-stage_bytes // 16 // WARP)
    return warps * per_warp + copies * _COPY_INSTRUCTIONS
