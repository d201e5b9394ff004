"""Dense attention on CUDA: a warp for each query of a head, its lanes along the keys for scores and along the values.

A plain kernel, right on every architecture: keys and values come from the caches of the GPU as often as there are
queries, and nothing runs on tensor cores.
"""

from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.target import Target
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.cuda.attention_shape import LOG2_E, weight_of
from hwpq_tvm.schedules.cuda.rows import hold, vector_width
from hwpq_tvm.schedules.cuda.threads import WARP, barrier, launch, registers, shared, warp_reduce
from hwpq_tvm.schedules.dense_attention import LOWEST, UNSEEN, DenseAttentionArguments, DenseAttentionFields
from hwpq_tvm.schedules.kernel_attr import describe, description
from hwpq_tvm.schedules.tir_builder import let, loop, prim_func, store, when

# Warps of a block, each with a query of its own.
WARPS = 4


def schedule(func: PrimFunc, target: Target) -> PrimFunc:
    """Make the CUDA kernel of a dense attention description, which is the same for every architecture.

    Parameters
    ----------
    func
        A function of `hwpq_tvm.schedules.dense_attention`.
    target
        A CUDA target.

    Returns
    -------
    A function with the same arguments and the same description.
    """
    del target
    fields = description(func)
    assert fields is not None
    op = fields.pop("op")
    shape = DenseAttentionFields(**fields)
    with prim_func("dense_attention") as result:
        args = shape.arguments()
        tiles = (args.q_len + (WARPS - 1)) // WARPS
        with launch((tiles, shape.heads, args.batch), WARPS * WARP) as ((tile, head, b), thread):
            _Warp(shape, args, b, head, tile, thread).attend()
    return describe(result[0], op=op, **fields)


class _Warp:
    """A warp with one query."""

    def __init__(
        self, shape: DenseAttentionFields, args: DenseAttentionArguments, b: Any, head: Any, tile: Any, thread: Any
    ) -> None:
        self.shape, self.args, self.b, self.head = shape, args, b, head
        self.group = head // shape.shared
        self.warp, self.lane = thread // WARP, thread % WARP
        self.number = let("number", tile * WARPS + self.warp)
        # Warps behind the last query repeat it, and write nothing.
        self.i = hold("i", T.min(self.number, T.Cast("int32", args.q_len) - 1))
        self.query = shared("queries", (WARPS, shape.head_dim), "float32")
        self.slots = -(-shape.value_dim // WARP)
        self.sums = registers("sums", self.slots, "float32")
        self.top = registers("top", 1, "float32")
        self.total = registers("total", 1, "float32")

    def attend(self) -> None:
        """Walk over the keys with an online softmax, and write the result."""
        shape, args = self.shape, self.args
        with loop("turn", -(-shape.head_dim // WARP)) as turn:
            d = let("d", T.Cast("int32", turn) * WARP + self.lane)
            with when(d < shape.head_dim):
                query = args.query_at(self.b, self.head, self.i, d)
                store(self.query, [self.warp, d], query * T.float32(shape.scale))
        barrier()
        store(self.top, [0], T.float32(LOWEST))
        store(self.total, [0], T.float32(0))
        for slot in range(self.slots):
            store(self.sums, [slot], T.float32(0))
        keys = T.Cast("int32", args.kv_len)
        keys = hold("keys", T.min(self.i + 1, keys) if shape.causal else keys)
        with loop("key_tile", (keys + (WARP - 1)) // WARP) as key_tile:
            self._add_keys(let("start", T.Cast("int32", key_tile) * WARP), keys)
        # A query that has seen no key gets zeros.
        inverse = hold("inverse", T.if_then_else(self.total[0] > 0, T.float32(1) / self.total[0], T.float32(0)))
        for slot in range(self.slots):
            d = slot * WARP + self.lane
            with when(T.And(self.number == self.i, d < shape.value_dim)):
                store(args.out, [self.b, self.i, self.head, d], self.sums[slot] * inverse)

    def _add_keys(self, start: Any, keys: Any) -> None:
        """Take in a key for each lane from `start` on."""
        score = registers("score", 1, "float32")
        store(score, [0], T.float32(UNSEEN))
        with when(start + self.lane < keys):
            store(score, [0], self._score(start + self.lane))
        best = warp_reduce(score[0], "max")
        # A query that has seen no key has a top far above UNSEEN, so that its weights are 0.
        after = hold("after", T.max(self.top[0], best))
        factor = hold("factor", weight_of(self.top[0], after))
        weight = hold("weight", weight_of(score[0], after))
        store(self.top, [0], after)
        store(self.total, [0], self.total[0] * factor + warp_reduce(weight, "sum"))
        for slot in range(self.slots):
            store(self.sums, [slot], self.sums[slot] * factor)
        with loop("n", T.min(keys - start, T.int32(WARP))) as n:
            lane = T.Cast("int32", n)
            share = hold("share", getattr(T.cuda, "__shfl_sync")(T.uint32(0xFFFFFFFF), weight, lane, WARP))
            for slot in range(self.slots):
                d = slot * WARP + self.lane
                with when(d < self.shape.value_dim):
                    value = self.args.value_at(self.b, self.group, start + lane, d)
                    store(self.sums, [slot], self.sums[slot] + share * value)

    def _score(self, j: Any) -> Any:
        """Compute the score of a key."""
        shape, width = self.shape, vector_width(self.shape.head_dim)
        product, key = registers("product", 1, "float32"), registers("key", width, "float32")
        store(product, [0], T.float32(0))
        with loop("part", shape.head_dim // width) as part:
            d = let("d", T.Cast("int32", part) * width)
            whole, first = (d, 0) if width == 1 else (T.Ramp(d, 1, width), T.Ramp(0, 1, width))
            store(key, [first], self.args.key_at(self.b, self.group, j, whole))
            for n in range(width):
                store(product, [0], product[0] + self.query[self.warp, d + n] * key[n])
        score = product[0]
        if shape.softcap is not None:
            # tanh(x) = 1 - 2 / (exp(2x) + 1), right in both limits.
            power = T.exp2(score * T.float32(2 * LOG2_E / shape.softcap))
            score = T.float32(shape.softcap) - T.float32(2 * shape.softcap) / (power + T.float32(1))
        return score + self.args.addend(self.b, self.head, self.i, j)
