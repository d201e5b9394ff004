"""Whole models on the GPU: the logits of one text, held against those of the same model on the CPU."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hwpq_tvm.errors import HwpqError
from hwpq_tvm.runtime.artifact import read_manifest
from hwpq_tvm.runtime.session import Session
from tests.benchmarks.cuda.results import Entry, guarded

PROMPT = "The capital of France is"
# The text is the prompt and what the first artefact continues it by; its last tokens go in one by one.
NEW_TOKENS, DECODED = 32, 8
# Relative error of all logits, where the same weights are multiplied with activations of another format.
LOGITS_ERROR = 0.1


def artifacts(folders: Sequence[Path]) -> Iterator[Entry]:
    """Hold every artefact against the first one for a CPU, or the first one, and measure those for a GPU."""
    comparison = Comparison()
    for folder in sorted(folders, key=_on_gpu):
        yield guarded({"name": str(folder)}, partial(comparison.entry, folder))


class Comparison:
    """What the first artefact that ran says of one text."""

    def __init__(self) -> None:
        self._name: str | None = None

    def entry(self, folder: Path) -> Entry:
        """Run an artefact: its target, its text, the error of its logits, and its speed on a GPU."""
        import hwpq_tvm
        from hwpq_tvm.benchmark import compare

        model = hwpq_tvm.load(folder)
        target = model.manifest.target
        text = "".join(model.generate(PROMPT, max_new_tokens=NEW_TOKENS))
        if self._name is None:
            ids = model.tokenizer.encode(PROMPT + text)[: model.generation.max_seq_len]
            self._name, self._text, self._ids, self._logits = str(folder), text, ids, logits(model, ids)
            error = 0.0 if text and np.isfinite(self._logits).all() else float("nan")
        else:
            found = logits(model, self._ids)
            error = float(np.linalg.norm(found - self._logits) / np.linalg.norm(self._logits))
        entry = {
            "target": target,
            "text": text,
            "same_text": text == self._text,
            "compared_with": self._name,
            "logits_error": error,
            "right": error <= LOGITS_ERROR,
        }
        if target["kind"] == "cuda":
            speed = compare({"model": model}, prompt_lengths=(256,), contexts=(256,), progress=False)["model"]
            entry["speed"] = speed.to_json()
        return entry


def logits(model: Any, ids: Sequence[int]) -> np.ndarray:
    """Logits after each of some tokens in float64, the last ones of which are decoded one by one."""
    session, many = Session(model), max(1, len(ids) - DECODED)
    first = session.prefill(ids[:many], all_logits=True).astype(np.float64)
    return np.stack([*first, *(session.decode(token).astype(np.float64) for token in ids[many:])])


def _on_gpu(folder: Path) -> bool:
    try:
        return bool(read_manifest(folder).target["kind"] == "cuda")
    except HwpqError:
        return True  # what is wrong with it is told when it is loaded
