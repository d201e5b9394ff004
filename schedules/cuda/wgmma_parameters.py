"""How a matrix product of warpgroups is cut, and what of it fits a GPU."""

from dataclasses import dataclass

from hwpq_tvm.schedules.cuda.architectures import ARCHITECTURES
from hwpq_tvm.schedules.cuda.mma_formats import MMA_FORMATS, ROWS, STEP, TOKENS, MmaFormat
from hwpq_tvm.schedules.cuda.mma_parameters import MOST_BYTES, OTHER_REGISTERS, REGISTERS_PER_SM, MmaParameters
from hwpq_tvm.schedules.cuda.threads import WARP
from hwpq_tvm.schedules.cuda.wgmma_instructions import ROW_BYTES, SWIZZLE_BYTES
from hwpq_tvm.schedules.layouts.tiles import padded_in_features

WARPS = 4
# Formats whose registers are what is stored.
FORMATS = (
    "mma_sparse24_float8",
    "mma_dense_float8",
    "mma_sparse24_float16",
    "mma_dense_float16",
    "mma_sparse24_int8",
    "mma_dense_int8",
)
MOST_TOKENS = 256
# One stage is multiplied, the one before may still be, and at least one is on its way.
FEWEST_STAGES = 3
REGISTERS_PER_THREAD = 255


@dataclass(frozen=True, slots=True)
class WgmmaParameters:
    """A thread block's share of a matrix product on warpgroup instructions.

    Attributes
    ----------
    row_warpgroups
        Warpgroups along output features, each with 64 of them.
    token_tile
        Tokens of a block, all of which each warpgroup multiplies with: a multiple of 8 (of 16 for int8 from 32 on).
    stages
        Stages of copies: one is worked on, one may still be read, the others are under way.
    rows_per_stage
        128-byte rows of a token's in_features in a stage.
    k_splits
        Thread blocks that share K; their sums meet in a second kernel.
    """

    row_warpgroups: int
    token_tile: int
    stages: int = 4
    rows_per_stage: int = 1
    k_splits: int = 1

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return WARP * WARPS * self.row_warpgroups

    @property
    def row_blocks(self) -> int:
        """Blocks of 16 output features of a thread block."""
        return WARPS * self.row_warpgroups

    @property
    def rows(self) -> int:
        """Output features of a thread block."""
        return ROWS * self.row_blocks

    @property
    def results(self) -> MmaParameters:
        """The warps' shares of the results: as of a product on `mma`, so that both end alike."""
        return MmaParameters(self.row_blocks, 1, self.token_tile, k_splits=self.k_splits)

    def tiles_per_stage(self, form: MmaFormat) -> int:
        """Steps of 64 in_features in a stage."""
        return self.rows_per_stage * ROW_BYTES // (STEP * form.element_bytes)

    @property
    def activation_bytes(self) -> int:
        """Bytes of a stage's activations."""
        return self.token_tile * self.rows_per_stage * ROW_BYTES

    def weight_bytes(self, form: MmaFormat) -> int:
        """Bytes of a stage's weights."""
        return self.row_blocks * self.tiles_per_stage(form) * form.tile_bytes

    def shared_bytes(self, name: str, group_size: int | None = None) -> int:
        """Bytes of shared memory: all stages, or the results that take their place at the end.

        The stages begin at a multiple of 1024 bytes: that may be up to so much behind the start.
        """
        stage = self.activation_bytes + self.weight_bytes(MMA_FORMATS[name])
        return max(SWIZZLE_BYTES + self.stages * stage, 4 * self.token_tile * self.results.pitch)

    def why_not(
        self, name: str, N: int, K: int, group_size: int | None = None, architecture: str = "sm_90a"
    ) -> str | None:
        """Say why these parameters don't go with a linear on an architecture (a key of `ARCHITECTURES`).

        Returns
        -------
        A reason, or None where nothing is wrong.
        """
        limits = ARCHITECTURES[architecture]
        if not limits.wgmma:
            return f"{limits.name} has no warpgroup instructions"
        if name not in FORMATS or group_size is not None:
            return f"{name}{'' if group_size is None else f' in groups of {group_size}'}: weights are unpacked first"
        form = MMA_FORMATS[name]
        counts = (self.row_warpgroups, self.rows_per_stage, self.k_splits)
        if min(counts) < 1 or self.stages < FEWEST_STAGES:
            return f"counts are at least 1, stages at least {FEWEST_STAGES}"
        step = 16 if form.integer and self.token_tile > 24 else TOKENS
        if not TOKENS <= self.token_tile <= MOST_TOKENS or self.token_tile % step:
            return f"token_tile is a multiple of {step} up to {MOST_TOKENS}"
        # Weights of two stages are held: those of the one before may still be read.
        weights = 2 * self.tiles_per_stage(form) * form.tile_bytes // (4 * WARP)
        registers = self.token_tile // 2 + weights + OTHER_REGISTERS
        if registers > REGISTERS_PER_THREAD or self.threads * registers > REGISTERS_PER_SM or self.threads > 1024:
            return f"{self.threads} threads with {registers} registers each don't fit"
        steps = padded_in_features(K, None) // STEP
        chunks = -(-steps // self.tiles_per_stage(form))
        if self.k_splits > 1 and (self.k_splits - 1) * -(-chunks // self.k_splits) >= chunks:
            return f"{chunks} stages of K are too few for {self.k_splits} splits"
        if N // ROWS * steps * form.tile_bytes >= MOST_BYTES:
            return "weights of 2 GB and more take wider indices"
        need = self.shared_bytes(name)
        if need > limits.shared_memory_per_block:
            return f"{need} bytes of shared memory, and {limits.name} has {limits.shared_memory_per_block}"
        return None
