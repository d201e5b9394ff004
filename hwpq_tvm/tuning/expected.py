"""What a linear must give, by NumPy, and how far a kernel may be from that."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..schedules.layouts import packed as layouts
from .random_tensors import read_activations

# Largest relative error of rounding to float32.
_ROUNDING = 2.0**-24
# Roundings of a result on its way to memory (of the sum, of the product of the scales, of their product), and of the
# expected one that is kept.
_LAST_ROUNDINGS = 5
# Errors of sums in float32 are those of a random walk: this many times its length is far outside.
_WALK = 4
# Bytes of float64 weights that are read at a time.
_CHUNK = 1 << 25


@dataclass(frozen=True, slots=True)
class Expected:
    """The result of a linear, and the bounds of errors.

    Attributes
    ----------
    result
        ``[M, rows]`` float32, correctly rounded.
    tokens, features
        ``[M]`` and ``[rows]`` float32, whose products are how far sums may be off by roundings on the way.
    """

    result: np.ndarray
    tokens: np.ndarray
    features: np.ndarray

    def difference(self, found: np.ndarray) -> str | None:
        """Say how a kernel's result ``[M, rows]`` differs by more than the bound; None where it doesn't."""
        wrong, first = 0, None
        step = max(1, _CHUNK // (8 * self.result.shape[1]))
        for start in range(0, len(self.result), step):
            part = slice(start, start + step)
            bound = self.tokens[part, None] * self.features + _LAST_ROUNDINGS * _ROUNDING * np.abs(self.result[part])
            bad = ~(np.abs(found[part] - self.result[part]) <= bound)  # also what is no number
            if bad.any():
                wrong += int(bad.sum())
                if first is None:
                    m, n = (int(index[0]) for index in np.nonzero(bad))
                    first = (start + m, n)
        if first is None:
            return None
        return (
            f"{wrong} of {self.result.size} results are wrong, the first one for token {first[0]}, feature {first[1]}: "
            f"{found[first]:.9g} instead of {self.result[first]:.9g}"
        )


def expected_linear(
    layout: str,
    group_size: int | None,
    packed: Mapping[str, np.ndarray],
    activations: tuple[np.ndarray, ...],
    M: int,
    N: int,
    K: int,
) -> Expected:
    """Compute ``x @ weight.T`` exactly but for one rounding.

    Parameters
    ----------
    layout, group_size, packed
        The weight ``[N, K]``, N padded to whole blocks, as `layouts.packed.tensors` has it.
    activations
        Of M tokens, as `random_tensors.activations` makes them.

    Returns
    -------
    Expected
        With bounds for any order of the sums: sums of integers are exact; those of groups, and of floating-point
        numbers, are off by as many roundings as they have terms, each at most that of the product of both norms, whose
        sum grows with the square root of their number.
    """
    x, xs = read_activations(activations, M, K)
    rows = layouts.rows(layout, N)
    result, norms = np.empty((M, rows), np.float32), np.empty(rows)
    entries = len(packed["weight"])
    per_entry = rows // entries
    step = max(1, _CHUNK // (8 * K * per_entry))
    for start in range(0, entries, step):
        entry = slice(start, min(start + step, entries))
        row = slice(entry.start * per_entry, entry.stop * per_entry)
        # A scale for a row is set apart: its product with a code would be rounded.
        by_row = "scale" in packed and packed["scale"].ndim == 1
        parts = {name: part[row if by_row and name == "scale" else entry] for name, part in packed.items()}
        scale = parts["scale"].astype(np.float64) if by_row else np.ones(1)
        if by_row:
            parts["scale"] = np.ones_like(parts["scale"])
        weight = layouts.dequantize(layout, group_size, parts, row.stop - row.start, K).astype(np.float64)
        result[:, row] = (x @ weight.T) * (scale * xs[:, None])
        norms[row] = np.linalg.norm(weight, axis=1) * scale
    terms = _terms(layout, group_size, activations[0].dtype, K)
    tokens = _WALK * terms**0.5 * _ROUNDING * np.linalg.norm(x, axis=1) * xs
    return Expected(result, tokens.astype(np.float32), norms.astype(np.float32))


def _terms(layout: str, group_size: int | None, activations: np.dtype, K: int) -> int:
    """Terms that are added in float32."""
    if activations == np.int8:
        return 0 if group_size is None else -(-K // group_size)
    return K
