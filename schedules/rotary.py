"""Rotary positions of queries and keys, and the update of the KV cache, in one kernel as plain TensorIR.

It reads what the projections of queries, keys and values gave, in the layout in which they gave it, so that nothing is
sliced, transposed or copied in between.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.kernel_attr import describe
from hwpq_tvm.schedules.kv_cache import KVCacheDtype, quantize_row, row_elements
from hwpq_tvm.schedules.tir_builder import argument, let, loop, loops, prim_func, store, symbol, when

# The three projections, as the fields below list them.
QUERY, KEY, VALUE = range(3)


def rotary_update(
    *,
    layers: int,
    batch: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    rotary_dim: int,
    max_len: int,
    seq_len: int | None,
    table_batch: int,
    columns: Sequence[int],
    inputs: Sequence[int],
    first: Sequence[int],
    biases: Sequence[bool] = (False, False, False),
    epsilons: Sequence[float | None] = (None, None),
    cache_dtype: KVCacheDtype = "float32",
) -> PrimFunc:
    """Describe the kernel that rotates new queries and keys, and writes keys and values into the cache.

    A head x of a query or key becomes (Su et al., arXiv 2104.09864, in the half-split order of transformers)
    ``y[d] = x[d] cos[d] - x[d + R/2] sin[d]`` and ``y[d + R/2] = x[d + R/2] cos[d + R/2] + x[d] sin[d + R/2]`` for d
    below R/2, R being `rotary_dim`; features from R on stay.

    Parameters
    ----------
    layers, batch, kv_heads, head_dim, max_len, cache_dtype
        Dimensions and element type of the cache.
    heads
        Number of query heads.
    rotary_dim
        Features of a head that are rotated.
    seq_len
        Number of new tokens; None makes it a symbolic dimension of that name.
    table_batch
        Rows of the tables of cosines and sines: 1 for all sequences, or `batch`.
    columns
        Columns of each input.
    inputs, first
        For queries, keys and values: the number of the input that holds them, and their first column there.
    biases
        For queries, keys and values: whether there is a bias to add.
    epsilons
        For queries and keys: the epsilon of a normalisation of each head before it is rotated
        (``x / sqrt(sum(x^2) / head_dim + epsilon) * weight``), None for no normalisation.

    Returns
    -------
    A function of ``(inputs [batch, seq_len, columns] ..., (biases [heads * head_dim] ...,) (weights [head_dim] ...,)
    cos [table_batch, seq_len, rotary_dim], sin (the same), past_lengths [batch] int32, kv_cache, layer int64, query
    [batch, heads, seq_len, head_dim])``, float32 where nothing else is said. Row ``past + i`` of the layer becomes the
    new token ``i``; rows at or beyond ``max_len`` are not written. `query` are the rotated queries.
    """
    return _rotary_update(
        layers=layers,
        batch=batch,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        rotary_dim=rotary_dim,
        max_len=max_len,
        seq_len=-1 if seq_len is None else seq_len,
        table_batch=table_batch,
        columns=tuple(columns),
        inputs=tuple(inputs),
        first=tuple(first),
        biases=tuple(map(int, biases)),
        # A description holds numbers only: no epsilon is a negative one.
        query_epsilon=-1.0 if epsilons[QUERY] is None else epsilons[QUERY],
        key_epsilon=-1.0 if epsilons[KEY] is None else epsilons[KEY],
        cache_dtype=cache_dtype,
    )


@functools.cache
def _rotary_update(**fields: Any) -> PrimFunc:
    with prim_func("rotary_update") as result:
        args = RotaryArguments(fields)
        with loops(["b", "i"], [args.batch, args.length]) as (b, i):
            position = let("position", T.Cast("int64", args.past_lengths[b]) + i)
            row = T.alloc_buffer((args.head_dim,), "float32", layout=None)
            with loop("h", args.heads) as h:
                _rotate(args, QUERY, [b, i], h, row)
                with loop("d", args.head_dim) as d:
                    store(args.query, [b, h, i, d], row[d])
            with when(position < args.max_len), loop("h", args.kv_heads) as h:
                for half, part in enumerate((KEY, VALUE)):
                    if part == KEY:
                        _rotate(args, KEY, [b, i], h, row)
                    else:
                        with loop("d", args.head_dim) as d:
                            store(row, [d], args.value(VALUE, [b, i], h, d))
                    place = [args.layer, half, b, h, position]
                    if fields["cache_dtype"] == "float32":
                        with loop("d", args.head_dim) as d:
                            store(args.cache, [*place, d], row[d])
                    else:
                        quantize_row(row, [], args.cache, place)
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}
    return describe(result[0], op="rotary_update", **plain)


def _rotate(args: "RotaryArguments", part: int, token: list[Any], h: Any, row: Any) -> None:
    """Write head h of the queries or keys of a token, rotated, to a row."""
    head_dim, half = args.head_dim, args.rotary_dim // 2
    cos, sin = args.table(token)
    factor = None
    if args.epsilons[part] is not None:
        square = T.alloc_buffer((1,), "float32", layout=None)
        store(square, [0], T.float32(0))
        with loop("d", head_dim) as d:
            x = args.value(part, token, h, d)
            store(square, [0], square[0] + x * x)
        mean = square[0] / T.float32(head_dim)
        factor = let("factor", T.float32(1) / T.sqrt(mean + T.float32(args.epsilons[part])))

    def value(d: Any) -> Any:
        x = args.value(part, token, h, d)
        return x if factor is None else x * factor * args.weights[part][d]

    with loop("d", half) as d:
        low, high = value(d), value(d + half)
        store(row, [d], low * cos(d) - high * sin(d))
        store(row, [d + half], high * cos(d + half) + low * sin(d + half))
    with loop("d", head_dim - args.rotary_dim, start=args.rotary_dim) as d:
        store(row, [d], value(d))


class RotaryArguments:
    """The arguments, declared in the function that is being built from the fields of a description."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self.batch, self.heads, self.kv_heads = fields["batch"], fields["heads"], fields["kv_heads"]
        self.head_dim, self.rotary_dim, self.max_len = fields["head_dim"], fields["rotary_dim"], fields["max_len"]
        self.length = symbol("seq_len") if fields["seq_len"] == -1 else fields["seq_len"]
        epsilons = (fields["query_epsilon"], fields["key_epsilon"])
        self.epsilons = [None if epsilon < 0 else epsilon for epsilon in epsilons]
        rows = [self.heads, self.kv_heads, self.kv_heads]
        tensors = [
            argument(f"x{i}", (self.batch, self.length, size), "float32") for i, size in enumerate(fields["columns"])
        ]
        self._inputs = [(tensors[i], first) for i, first in zip(fields["inputs"], fields["first"], strict=True)]
        self._biases = [
            argument(f"bias{part}", (rows[part] * self.head_dim,), "float32") if wanted else None
            for part, wanted in enumerate(fields["biases"])
        ]
        self.weights: list[Any] = [
            None if epsilon is None else argument(f"weight{part}", (self.head_dim,), "float32")
            for part, epsilon in enumerate(self.epsilons)
        ]
        self._one_table = fields["table_batch"] == 1
        table_shape = (fields["table_batch"], self.length, self.rotary_dim)
        self.cos, self.sin = argument("cos", table_shape, "float32"), argument("sin", table_shape, "float32")
        self.past_lengths = argument("past_lengths", (self.batch,), "int32")
        row = row_elements(self.head_dim, fields["cache_dtype"])
        cache_shape = (fields["layers"], 2, self.batch, self.kv_heads, self.max_len, row)
        self.cache = argument("kv_cache", cache_shape, fields["cache_dtype"])
        self.layer = T.arg("layer", T.int64())
        self.query = argument("query", (self.batch, self.heads, self.length, self.head_dim), "float32")

    def value(self, part: int, token: Sequence[Any], h: Any, d: Any) -> Any:
        """Feature d, or several, of head h of the queries, keys or values of a token; with its bias."""
        tensor, first = self._inputs[part]
        bias = self._biases[part]
        x = tensor[(*token, first + h * self.head_dim + d)]
        return x if bias is None else x + bias[h * self.head_dim + d]

    def table(self, token: Sequence[Any]) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
        """Functions that give the cosine and the sine of a token for feature d, or several."""
        b, i = token
        row = [0 if self._one_table else b, i]
        return lambda d: self.cos[(*row, d)], lambda d: self.sin[(*row, d)]
