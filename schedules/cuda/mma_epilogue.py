"""From sums to results: the shares of K meet, scales are applied, and 16 bytes along output features are stored.

A warp's sums lie as the instruction leaves them, two tokens of an output feature beside each other. They go through
shared memory, from which a lane reads four output features of a token, once for each warp that has a share of K. Where
thread blocks have shares too, a second kernel adds theirs, always in the same order.
"""

from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from hwpq_tvm.schedules.cuda.linear_arguments import LinearArguments
from hwpq_tvm.schedules.cuda.mma_formats import MMA_FORMATS, ROWS
from hwpq_tvm.schedules.cuda.mma_parameters import MmaParameters
from hwpq_tvm.schedules.cuda.ptx import store_vector
from hwpq_tvm.schedules.cuda.rolled import rolled
from hwpq_tvm.schedules.cuda.threads import launch
from hwpq_tvm.schedules.tir_builder import let, store, when

# Output features that a lane stores together.
VECTOR = 4
COMBINE_THREADS = 256


class Epilogue:
    """The end of a matrix product."""

    def __init__(self, arguments: LinearArguments, parameters: MmaParameters) -> None:
        """Declare the workspace of a product whose K is split among thread blocks; called outside of a kernel."""
        self.arguments, self.parameters = arguments, parameters
        self.form = MMA_FORMATS[arguments.name]
        # What is summed: integers as they are, until a group or the whole row gets its scale.
        self.dtype = "int32" if self.form.integer and arguments.group_size is None else "float32"
        self.workspace = None
        if parameters.k_splits > 1:
            shape = (parameters.k_splits, arguments.M, arguments.N)
            self.workspace = T.alloc_buffer(shape, self.dtype, scope="global", layout=None)
            IRBuilder.name("workspace", self.workspace)

    def put(self, memory: Any, sums: Any, first: Any) -> None:
        """Write a warp's sums to shared memory.

        Parameters
        ----------
        memory
            Shared memory, uint32.
        sums
            Registers ``[row blocks, tiles of 8 tokens, 4]``.
        first
            Word of the lane's first sum: output feature g of token 2t of the warp's tile.
        """
        pitch, token_tiles = self.parameters.pitch, self.parameters.warp_tokens // 8
        for block in range(self.parameters.blocks_per_warp):
            for tile in range(token_tiles):
                for r in range(4):
                    offset = (8 * tile + r % 2) * pitch + ROWS * block + 8 * (r // 2)
                    value = sums[(block * token_tiles + tile) * 4 + r]
                    bits = value if self.dtype == "int32" else T.reinterpret("uint32", value)
                    store(memory, [first + offset], bits)

    def finish(self, memory: Any, thread: Any, blocks: Sequence[Any]) -> None:
        """Read the sums of a block from shared memory, where they all are, and store results.

        Parameters
        ----------
        memory
            Shared memory, uint32.
        thread
            Index of the thread.
        blocks
            Indices of the block along output features, tokens and, where K is split, shares of K.
        """
        parameters = self.parameters
        per_token = parameters.rows // VECTOR
        share = parameters.token_tile * parameters.pitch
        vectors, threads = parameters.token_tile * per_token, parameters.threads
        with rolled("turn", -(-vectors // threads)) as turn:
            index = turn * threads + thread
            token, local = index // per_token, index % per_token * VECTOR
            m = blocks[1] * parameters.token_tile + token
            n = blocks[0] * parameters.rows + local
            with when(self._inside(m, n, token if vectors % threads else None)):
                at = token * parameters.pitch + local
                sums = [memory[T.Ramp(at + k * share, 1, VECTOR)] for k in range(parameters.k_warps)]
                total = reduce(add, [T.reinterpret(f"{self.dtype}x{VECTOR}", words) for words in sums])
                if self.workspace is None:
                    self._store(m, n, total)
                else:
                    row = T.Cast("int64", blocks[2]) * self.arguments.M + m
                    to = self.workspace.access_ptr("w", offset=row * self.arguments.N + n)
                    store_vector(to, total, self.dtype)

    def combine(self) -> None:
        """Emit the kernel that adds the shares of thread blocks."""
        if self.workspace is None:
            return
        per_token = self.arguments.N // VECTOR
        count = self.arguments.M * per_token
        grid = (count + COMBINE_THREADS - 1) // COMBINE_THREADS
        if not isinstance(grid, int):
            grid = T.Cast("int32", grid)
        with launch([grid], COMBINE_THREADS) as ([block], thread):
            index = block * COMBINE_THREADS + thread
            m, n = index // per_token, index % per_token * VECTOR
            with when(m < T.Cast("int32", self.arguments.M)):
                splits = range(self.parameters.k_splits)
                self._store(m, n, reduce(add, [self.workspace[k, m, T.Ramp(n, 1, VECTOR)] for k in splits]))

    def _inside(self, m: Any, n: Any, token: Any) -> Any:
        """Whether there is such a result; whole tiles need no question. `token` is None where all are of the tile."""
        M, parameters = self.arguments.M, self.parameters
        checks = []
        if token is not None:
            checks.append(token < parameters.token_tile)
        if not isinstance(M, int) or M % parameters.token_tile:
            checks.append(m < T.Cast("int32", M))
        if self.arguments.N % parameters.rows:
            checks.append(n < self.arguments.N)
        return reduce(T.And, checks, T.bool(True))

    def _store(self, m: Any, n: Any, total: Any) -> None:
        """Apply the scales that are left, and store four results."""
        arguments = self.arguments
        value = total if self.dtype == "float32" else T.Cast(f"float32x{VECTOR}", total)
        scale = arguments.xs[m]
        if self.form.factor != 1:
            scale = scale * T.float32(self.form.factor)
        value = value * T.Broadcast(let("token_scale", scale), VECTOR)
        if arguments.scale is not None and arguments.group_size is None:
            value = value * arguments.scale[T.Ramp(n, 1, VECTOR)]
        to = arguments.out.access_ptr("w", offset=T.Cast("int64", m) * arguments.N + n)
        store_vector(to, value, "float32")
