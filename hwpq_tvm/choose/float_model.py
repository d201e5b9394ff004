"""The float model on this machine, whatever is built: its logits with any weights put in the place of its own."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tvm

from ..evaluation.scores import log_likelihoods
from ..importers import ImportedModel, ParameterSource
from ..lazy_weights import LazyWeights
from ..relax_passes.float_linears import FloatLinears
from ..relax_passes.pipeline import compile_module
from ..runtime.tvm_runtime import VirtualMachine, as_array, as_tensor, use_threads
from ..targets import host_target
from ..vm_callbacks import own_errors

_ENTRY = "prefill"
# Positions whose logits are looked at together.
_ROWS = 64

# (index, name) -> tensor of a weight, as a module with lazy weights asks for it.
Weights = Callable[[int, str], Any]


class Swapped:
    """Weights of which a few are replaced.

    Parameters
    ----------
    weights
        Has all of them.
    replaced
        Name -> array that is used instead.
    """

    def __init__(self, weights: Weights, replaced: Mapping[str, np.ndarray]) -> None:
        self._weights = weights
        self._replaced = {name: as_tensor(array) for name, array in replaced.items()}

    def __call__(self, index: int, name: str) -> Any:
        """Give a weight by its name, as a TVM tensor."""
        return self._replaced[name] if name in self._replaced else self._weights(index, name)


class FloatModel:
    """A causal language model, compiled once with its weights as parameters.

    Parameters
    ----------
    imported
        The model, for one sequence.
    threads
        Threads to run on.
    memory_budget
        Bytes that weights may take: those that don't fit are read again for each window.

    Attributes
    ----------
    weights
        The model's own weights.
    max_seq_len
        Tokens that a window may have.
    """

    def __init__(self, imported: ImportedModel, *, threads: int, memory_budget: int) -> None:
        self._budget, self._threads = memory_budget, threads
        assert imported.metadata.causal_lm is not None
        self.max_seq_len = imported.metadata.causal_lm.max_seq_len
        self.weights: Weights = self.reading(imported.parameters)
        mod = tvm.transform.Sequential([FloatLinears(_ENTRY)])(imported.module)
        function = mod[_ENTRY]
        past, cache = function.params[2:4]
        self._state = [
            as_tensor(np.zeros([int(size) for size in type_.ty.shape.values], str(type_.ty.dtype)))
            for type_ in (past, cache)
        ]
        with tempfile.TemporaryDirectory(prefix="hwpq-choose-") as folder:
            library = Path(folder) / "float.so"
            compile_module(mod, host_target(threads=threads), library, lazy_weights=True)
            self._run = VirtualMachine(library).entry(_ENTRY)

    def reading(self, parameters: ParameterSource) -> LazyWeights:
        """Weights of a source, kept as far as memory allows."""
        return LazyWeights(parameters, self._budget)

    def logits(self, ids: np.ndarray, weights: Weights) -> np.ndarray:
        """Logits `[len(ids), vocab_size]` of a window that is read from an empty cache, in float32."""
        use_threads(self._threads)
        tensors = [as_tensor(array) for array in (ids[None], np.arange(len(ids)))]
        with own_errors() as noting:
            logits, _ = self._run(*tensors, *self._state, noting(weights))
        found: np.ndarray = as_array(logits)[0]
        return found

    def loss(self, windows: Sequence[np.ndarray], weights: Weights) -> float:
        """Mean negative log-likelihood, in nats, of all tokens of the windows but the first of each."""
        total, count = 0.0, 0
        for ids in windows:
            total -= float(log_likelihoods(self.logits(ids, weights)[:-1], ids[1:]).sum())
            count += len(ids) - 1
        return total / count


class Reference:
    """What the float model predicts on some windows, to compare others with.

    Parameters
    ----------
    model
        The model.
    windows
        Token ids of each window.
    """

    def __init__(self, model: FloatModel, windows: Sequence[np.ndarray]) -> None:
        self._model, self._windows = model, windows
        self._logits = [model.logits(ids, model.weights).copy() for ids in windows]
        self._probabilities = [_softmax(logits) for logits in self._logits]

    def divergence(self, weights: Weights) -> float:
        """Mean over the tokens of KL(float model || model with these weights), in nats."""
        total = 0.0
        for ids, logits, probabilities in zip(self._windows, self._logits, self._probabilities, strict=True):
            found = self._model.logits(ids, weights)
            for start in range(0, len(ids), _ROWS):
                rows = slice(start, start + _ROWS)
                # With d = found - logits, KL = log(sum p exp(d)) - sum p d: no difference of large numbers.
                difference = found[rows] - logits[rows]
                difference -= np.einsum("tv,tv->t", probabilities[rows], difference)[:, None]
                total += float(np.log(np.einsum("tv,tv->t", probabilities[rows], np.exp(difference))).sum())
        return max(total / sum(map(len, self._windows)), 0.0)


def _softmax(logits: np.ndarray) -> np.ndarray:
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return probabilities
