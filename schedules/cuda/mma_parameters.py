"""How a matrix product on tensor cores is cut, and what of it fits a GPU."""

from dataclasses import dataclass

from hwpq_tvm.schedules.cuda.architectures import ARCHITECTURES, Architecture
from hwpq_tvm.schedules.cuda.mma_formats import MMA_FORMATS, ROWS, STEP, TOKENS
from hwpq_tvm.schedules.cuda.threads import WARP
from hwpq_tvm.schedules.layouts.tiles import padded_in_features

# Floats between the rows of results in shared memory: neighbouring lanes' pairs of tokens then lie in other banks.
RESULT_PADDING = 4
# Bytes of the scales of a group: bfloat16 of 16 output rows.
GROUP_SCALE_BYTES = 2 * ROWS
# Sums of a thread that leave room for operands among its 255 registers, without scales of groups and with them, and
# registers that everything else takes.
MOST_SUMS, MOST_GROUPED_SUMS = 128, 64
OTHER_REGISTERS = 40
REGISTERS_PER_SM = 65536
# Indices are 32 bits wide.
MOST_BYTES = 1 << 31


@dataclass(frozen=True, slots=True)
class MmaParameters:
    """A thread block's share of a matrix product, and how it gets its operands.

    Attributes
    ----------
    row_warps
        Warps along output features.
    blocks_per_warp
        Blocks of 16 output features of a warp.
    token_tile
        Tokens of a thread block, a multiple of 8 for each of `token_warps`.
    token_warps
        Warps along tokens.
    k_warps
        Warps that share the steps of a stage; their sums meet in shared memory.
    k_splits
        Thread blocks that share K; their sums meet in a second kernel.
    stages
        Stages of copies: one is worked on while the others are under way.
    steps_per_stage
        Steps of 64 in_features that are copied together.
    """

    row_warps: int
    blocks_per_warp: int
    token_tile: int
    token_warps: int = 1
    k_warps: int = 1
    k_splits: int = 1
    stages: int = 4
    steps_per_stage: int = 2

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return WARP * self.row_warps * self.token_warps * self.k_warps

    @property
    def row_blocks(self) -> int:
        """Blocks of 16 output features of a thread block."""
        return self.row_warps * self.blocks_per_warp

    @property
    def rows(self) -> int:
        """Output features of a thread block."""
        return ROWS * self.row_blocks

    @property
    def warp_tokens(self) -> int:
        """Tokens of a warp."""
        return self.token_tile // self.token_warps

    @property
    def warp_steps(self) -> int:
        """Steps of a stage that a warp works on."""
        return self.steps_per_stage // self.k_warps

    @property
    def sums(self) -> int:
        """Sums of a thread."""
        return self.blocks_per_warp * self.warp_tokens // 2

    @property
    def pitch(self) -> int:
        """Floats from a token's results to the next one's in shared memory."""
        return self.rows + RESULT_PADDING

    def groups_per_stage(self, group_size: int) -> int:
        """Groups of in_features in a stage."""
        return self.steps_per_stage * STEP // group_size

    def stage_bytes(self, name: str, group_size: int | None = None) -> int:
        """Bytes that a stage copies: weights, activations, scales of groups."""
        form = MMA_FORMATS[name]
        step = self.row_blocks * form.tile_bytes + self.token_tile * STEP * form.element_bytes
        scales = 0
        if group_size is not None:
            scales = self.row_blocks * self.groups_per_stage(group_size) * GROUP_SCALE_BYTES
        return self.steps_per_stage * step + scales

    def shared_bytes(self, name: str, group_size: int | None = None) -> int:
        """Bytes of shared memory: all stages, or the results that take their place at the end."""
        results = 4 * self.k_warps * self.token_tile * self.pitch
        return max(self.stages * self.stage_bytes(name, group_size), results)

    def why_not(
        self, name: str, N: int, K: int, group_size: int | None = None, architecture: str = "sm_80"
    ) -> str | None:
        """Say why these parameters don't go with a linear on an architecture (a key of `ARCHITECTURES`).

        Returns
        -------
        A reason, or None where nothing is wrong.
        """
        return self._why_not_shape() or self._why_not_linear(name, N, K, group_size, ARCHITECTURES[architecture])

    def _why_not_shape(self) -> str | None:
        counts = (self.row_warps, self.blocks_per_warp, self.token_warps, self.k_warps, self.k_splits)
        if min(*counts, self.steps_per_stage) < 1 or self.stages < 2:
            return "counts are at least 1, stages at least 2"
        if self.token_tile < 1 or self.token_tile % (TOKENS * self.token_warps):
            return f"token_tile is a multiple of {TOKENS} for each of token_warps"
        if self.threads > 1024:
            return f"{self.threads} threads, and a block has 1024 at most"
        if self.steps_per_stage % self.k_warps:
            return "k_warps divides steps_per_stage"
        if self.threads * (self.sums + OTHER_REGISTERS) > REGISTERS_PER_SM:
            return f"{self.threads} threads with {self.sums} sums each don't fit the registers"
        return None

    def _why_not_linear(
        self, name: str, N: int, K: int, group_size: int | None, architecture: Architecture
    ) -> str | None:
        form = MMA_FORMATS[name]
        if form.operand == "e4m3" and not architecture.float8:
            return f"{architecture.name} has no float8 instructions"
        most = MOST_SUMS if group_size is None else MOST_GROUPED_SUMS
        if self.sums > most:
            return f"{self.sums} sums of a thread, and registers hold {most}"
        if group_size is not None and self.warp_steps * STEP % group_size:
            return "a warp's steps of a stage are whole groups"
        steps = padded_in_features(K, group_size) // STEP
        chunks = -(-steps // self.steps_per_stage)
        if self.k_splits > 1 and (self.k_splits - 1) * -(-chunks // self.k_splits) >= chunks:
            return f"{chunks} stages of K are too few for {self.k_splits} splits"
        if N // ROWS * steps * form.tile_bytes >= MOST_BYTES:
            return "weights of 2 GB and more take wider indices"
        need = self.shared_bytes(name, group_size)
        if need > architecture.shared_memory_per_block:
            return f"{need} bytes of shared memory, and {architecture.name} has {architecture.shared_memory_per_block}"
        return None
