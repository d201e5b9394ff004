"""Logits -> how well they predict a text, and how far they are from those of another model."""

from dataclasses import dataclass
from typing import Any

import numpy as np

_ROWS = 64  # positions that are computed at once: what is between two steps fits the caches


@dataclass(frozen=True, slots=True)
class Divergence:
    """How far a model is from the original one, over the positions whose tokens count for the perplexity.

    Parameters
    ----------
    greedy_agreement
        Share of the positions at which both think the same token the most likely one.
    mean, median, percentile_99, maximum
        Kullback-Leibler divergence KL(original || model) of the distributions of the next token, in nats: its mean over
        the positions, and its quantiles.
    """

    greedy_agreement: float
    mean: float
    median: float
    percentile_99: float
    maximum: float

    def to_json(self) -> dict[str, Any]:
        """`greedy_agreement`, and the divergences as `kl_divergence`."""
        kl = {"mean": self.mean, "median": self.median, "percentile_99": self.percentile_99, "maximum": self.maximum}
        return {"greedy_agreement": self.greedy_agreement, "kl_divergence": kl}


class Scores:
    """Gathers what the logits of a model are worth, position by position."""

    def __init__(self) -> None:
        self._losses: list[np.ndarray] = []
        self._divergences: list[np.ndarray] = []
        self._agreements: list[np.ndarray] = []

    def add(self, logits: np.ndarray, targets: np.ndarray, original: np.ndarray | None = None) -> None:
        """Add positions.

        Parameters
        ----------
        logits
            float32 `[n, vocab_size]`.
        targets
            The token that came after each of them, `[n]`.
        original
            float32 logits of the original model at the same positions.
        """
        for start in range(0, len(targets), _ROWS):
            block = slice(start, start + _ROWS)
            rows = logits[block]
            _, _, log_sums = _exponentials(rows)
            self._losses.append(log_sums - rows[np.arange(len(rows)), targets[block]])
            if original is not None:
                self._divergences.append(_divergences(original[block], rows, log_sums))
                self._agreements.append(original[block].argmax(axis=1) == rows.argmax(axis=1))

    @property
    def losses(self) -> np.ndarray:
        """Negative log-likelihood of each token, float64, in nats."""
        return np.concatenate(self._losses)

    @property
    def divergence(self) -> Divergence | None:
        """How far the model is from the original one; None when there were no logits of that."""
        if not self._divergences:
            return None
        found = np.concatenate(self._divergences)
        median, percentile_99 = np.quantile(found, (0.5, 0.99))
        return Divergence(
            greedy_agreement=float(np.concatenate(self._agreements).mean()),
            mean=float(found.mean()),
            median=float(median),
            percentile_99=float(percentile_99),
            maximum=float(found.max()),
        )


def log_likelihoods(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Log-probability of each target by its row: float32 `[n, V]` and `[n]` -> float64 `[n]`, in nats."""
    scores = Scores()
    scores.add(logits, targets)
    return -scores.losses


def _exponentials(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What softmax is made of: float32 `[n, V]` -> exp(row - its largest) `[n, V]`, their sums and their logarithms.

    The third is log(sum(exp(row))). Terms are float32 and sums float64 `[n]`: that takes half as long as float64 all
    over, and the error is that of the terms' own rounding, 1e-7.
    """
    largest = rows.max(axis=1)
    terms = np.exp(rows - largest[:, None])
    sums = terms.sum(axis=1, dtype=np.float64)
    return terms, sums, largest + np.log(sums)


def _divergences(original: np.ndarray, rows: np.ndarray, log_sums: np.ndarray) -> np.ndarray:
    """KL(original || rows) of each row, in nats: sum of p (log p - log q).

    With p = exp(a - A) and q = exp(b - B) that is sum of p (a - b), minus A, plus B.
    """
    terms, sums, original_log_sums = _exponentials(original)
    mean_difference = (terms * (original - rows)).sum(axis=1, dtype=np.float64) / sums
    return np.maximum(mean_difference - original_log_sums + log_sums, 0)  # rounding may leave what is 0 a little below
