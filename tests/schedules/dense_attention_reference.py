"""Dense attention in NumPy, in float64, and the inputs of a call."""

from dataclasses import dataclass

import numpy as np
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.dense_attention import dense_attention

# Which dimensions (batch, heads, q_len, kv_len) a mask or a bias has.
PADDING = (True, False, False, True)
POSITIONS = (False, True, True, True)
ALL = (True, True, True, True)


@dataclass(frozen=True)
class Case:
    """One shape of attention; symbolic sizes are those of one call."""

    batch: int
    heads: int
    kv_heads: int
    q_len: int
    kv_len: int
    head_dim: int
    value_dim: int
    symbolic: bool = True
    causal: bool = False
    softcap: float | None = None
    mask: str | None = None
    mask_dims: tuple[bool, ...] | None = None
    bias_dims: tuple[bool, ...] | None = None
    heads_first: tuple[bool, ...] = (False, False, False)

    @property
    def scale(self) -> float:
        return self.head_dim**-0.5

    def function(self) -> PrimFunc:
        return dense_attention(
            batch=None if self.symbolic else self.batch,
            heads=self.heads,
            kv_heads=self.kv_heads,
            q_len=None if self.symbolic else self.q_len,
            kv_len=None if self.symbolic else self.kv_len,
            head_dim=self.head_dim,
            value_dim=self.value_dim,
            scale=self.scale,
            causal=self.causal,
            softcap=self.softcap,
            mask=self.mask,
            mask_dims=self.mask_dims,
            bias_dims=self.bias_dims,
            heads_first=self.heads_first,
        )

    def inputs(self, rng: np.random.Generator) -> list[np.ndarray]:
        """Random arguments. A mask hides all keys from the first query, a float one by the lowest float32."""

        def rows(number: int, length: int, heads: int, features: int) -> np.ndarray:
            dims = (heads, length) if self.heads_first[number] else (length, heads)
            return rng.standard_normal((self.batch, *dims, features)).astype("float32")

        def scores(dims: tuple[bool, ...]) -> np.ndarray:
            sizes = (self.batch, self.heads, self.q_len, self.kv_len)
            return rng.standard_normal([size if has else 1 for size, has in zip(sizes, dims, strict=True)])

        args = [
            2 * rows(0, self.q_len, self.heads, self.head_dim),
            rows(1, self.kv_len, self.kv_heads, self.head_dim),
            rows(2, self.kv_len, self.kv_heads, self.value_dim),
        ]
        if self.mask is not None:
            seen = scores(self.mask_dims) > -0.7
            seen[0, 0, 0] = False
            args.append(seen if self.mask == "bool" else np.where(seen, 0.3, np.finfo("float32").min).astype("float32"))
        if self.bias_dims is not None:
            args.append(scores(self.bias_dims).astype("float32"))
        return args

    def expected(self, args: list[np.ndarray]) -> np.ndarray:
        """The attention's output [batch, q_len, heads, value_dim] in float64."""
        rows = [x if first else x.swapaxes(1, 2) for x, first in zip(args[:3], self.heads_first, strict=True)]
        shared = self.heads // self.kv_heads
        query, key, value = rows[0].astype("float64"), *(x.repeat(shared, axis=1).astype("float64") for x in rows[1:])
        score = query @ key.swapaxes(2, 3) * self.scale
        if self.softcap is not None:
            score = self.softcap * np.tanh(score / self.softcap)
        if self.bias_dims is not None:
            score = score + args[-1]
        seen = np.ones_like(score, bool)
        if self.mask == "bool":
            seen &= args[3]
        elif self.mask is not None:
            score = score + np.maximum(args[3], -1e30)
            seen &= args[3] > -1e30
        if self.causal:
            seen &= np.arange(self.kv_len) <= np.arange(self.q_len)[:, None]
        score = np.where(seen, score, -np.inf)
        weight = np.exp(score - np.maximum(score.max(axis=3, keepdims=True, initial=-np.inf), -1e30))
        total = weight.sum(axis=3, keepdims=True)
        return (weight / np.where(total > 0, total, 1) @ value).swapaxes(1, 2)


CASES = [
    # No mask, sizes that are known, vectors that fill nothing.
    Case(2, 4, 4, 5, 7, 12, 12, symbolic=False),
    Case(1, 3, 3, 1, 70, 64, 64, symbolic=False, heads_first=(True, True, True)),
    # Text with padding: several tiles of queries and keys.
    Case(3, 3, 3, 101, 101, 20, 20, mask="bool", mask_dims=PADDING),
    # A decoder: what is behind is not seen, values are narrower than keys, heads share keys.
    Case(2, 6, 2, 60, 60, 33, 13, causal=True, softcap=3.0),
    # Relative positions of each head, besides padding.
    Case(2, 2, 2, 49, 97, 8, 8, mask="bool", mask_dims=PADDING, bias_dims=POSITIONS),
    Case(2, 4, 1, 9, 50, 3, 40, mask="float32", mask_dims=ALL, heads_first=(True, False, True)),
    Case(2, 2, 2, 53, 3, 16, 17, mask="bool", mask_dims=(True, False, True, True)),
]
