"""What a model without a KV cache is calibrated on: inputs of its entry functions, given or made of text."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from os import PathLike
from typing import Any

import numpy as np

from .calibration_text import (
    Calibration,
    check_tokenizer,
    check_tokens,
    load_tokenizer,
    read_text,
    spread,
    token_rows,
)
from .entry_specs import entry_spec
from .errors import CalibrationError
from .importers import ImportedModel
from .runtime.inputs import as_inputs, input_problems
from .runtime.manifest import EntrySpec

_IDS = "input_ids"
# Inputs that follow from the tokens of a text without padding.
_OF_TOKENS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    _IDS: lambda ids: ids,
    "attention_mask": np.ones_like,
    "token_type_ids": np.zeros_like,
    "position_ids": lambda ids: np.arange(ids.size),
}


@dataclass(frozen=True, slots=True, eq=False)
class CalibrationSamples:
    """Inputs that the float model sees before it is compressed.

    Attributes
    ----------
    inputs
        Entry function -> its inputs, for each sample.
    source
        A word on where they are from.
    count, unit
        How much it is: a number of "tokens" or "samples".
    """

    inputs: Mapping[str, tuple[tuple[np.ndarray, ...], ...]]
    source: str
    count: int
    unit: str

    @property
    def entries(self) -> tuple[str, ...]:
        """The entry functions that there are samples for."""
        return tuple(self.inputs)

    @property
    def content(self) -> Any:
        """What tells these data from others, as a JSON value."""
        return {
            entry: [[sha256(array.tobytes()).hexdigest() for array in sample] for sample in samples]
            for entry, samples in self.inputs.items()
        }


def text_entry(imported: ImportedModel) -> str | None:
    """Name the entry function whose inputs can be made of a text; None if there is none."""
    for entry in imported.entries:
        names = {each.name for each in entry_spec(imported.module[entry]).inputs}
        if _IDS in names and names <= _OF_TOKENS.keys():
            return entry
    return None


def samples_of_text(calibration: Calibration, imported: ImportedModel, entry: str) -> CalibrationSamples:
    """Make inputs of a text, or of token ids.

    Parameters
    ----------
    calibration
        The text or the ids, as for a causal language model.
    imported
        The model.
    entry
        As `text_entry` found it.

    Raises
    ------
    CalibrationError
        When the source can't be read or tokenized, has ids that the model does not know, or windows that it does not
        take.
    """
    spec = entry_spec(imported.module[entry])
    shape = next(each.shape for each in spec.inputs if each.name == _IDS)
    last = shape[-1]
    limit = last if isinstance(last, int) else spec.upper_bounds.get(last)
    length = calibration.length if limit is None else min(calibration.length, limit)
    rows, name = _rows(calibration, imported, length, spec.ids.get(_IDS))
    if isinstance(last, int):
        rows = [row for row in rows if len(row) == last]
        if not rows:
            raise CalibrationError(
                f"{name} holds no window of {last} tokens, which entry {entry} takes: give more text, or the inputs "
                "(calibration=[(input, ...), ...])."
            )
    inputs = [tuple(_filled(each.name, each.shape, each.dtype, row) for each in spec.inputs) for row in rows]
    return CalibrationSamples({entry: checked(inputs, entry, spec)}, name, sum(len(row) for row in rows), "tokens")


def _rows(
    calibration: Calibration, imported: ImportedModel, length: int, known: int | None
) -> tuple[list[np.ndarray], str]:
    """Token ids of each window, with the special tokens that the tokenizer puts around a text."""
    source = calibration.source
    if isinstance(source, str | PathLike):
        text, name = read_text(source)
        texts = [text]
    elif isinstance(source, Sequence) and len(source) and all(isinstance(text, str) for text in source):
        texts, name = list(source), f"{len(source)} texts given"
    else:
        rows, stream = token_rows(source)
        if known is not None:
            for row in rows:
                check_tokens(row, known)
        rows = list(spread(rows[0], calibration.samples, length)) if stream else rows
        return rows, f"{len(rows)} windows of token ids given"
    tokenizer = load_tokenizer(imported)
    tokenizer.enable_truncation(length)
    windows = []
    for encoding in tokenizer.encode_batch(texts):
        parts = [encoding, *encoding.overflowing] if len(texts) == 1 else [encoding]
        windows += [np.asarray(part.ids, np.int64) for part in parts if part.ids]
    if not windows:
        raise CalibrationError(f"calibration text {name}: the model's tokenizer makes no token of it.")
    if known is not None:
        for ids in windows:
            check_tokenizer(ids, known)
    if len(texts) == 1:
        chosen = np.linspace(0, len(windows) - 1, min(calibration.samples, len(windows))).round().astype(int)
        windows = [windows[i] for i in chosen]
    return windows, name


def _filled(name: str, shape: tuple[int | str, ...], dtype: str, ids: np.ndarray) -> np.ndarray:
    """One input for a window, repeated where it takes several sequences."""
    row = np.asarray(_OF_TOKENS[name](ids), dtype)
    sizes = [size if isinstance(size, int) else 1 for size in shape[:-1]]
    return np.ascontiguousarray(np.broadcast_to(row, (*sizes, row.size)))


def checked(samples: Iterable[Any], entry: str, spec: EntrySpec) -> tuple[tuple[np.ndarray, ...], ...]:
    """Bring samples of an entry into arrays.

    Parameters
    ----------
    samples
        Tuples of inputs, dictionaries of inputs by name, or, for an entry of one input, that input.
    entry, spec
        What takes them.

    Raises
    ------
    CalibrationError
        When there is none, or one is not what the entry takes.
    """
    found = []
    for number, sample in enumerate(samples):
        if isinstance(sample, Mapping):
            if sample.keys() != {each.name for each in spec.inputs}:
                raise CalibrationError(
                    f"calibration sample {number} (from 0) has {', '.join(map(str, sample))}: expected the inputs of "
                    f"{entry}: {', '.join(each.name for each in spec.inputs)}."
                )
            sample = [sample[each.name] for each in spec.inputs]
        given = list(sample) if isinstance(sample, tuple | list) else [sample]
        arrays = as_inputs(spec, given)
        if problems := input_problems(spec, arrays):
            raise CalibrationError(f"calibration sample {number} (from 0) of {entry}: {' '.join(problems)}")
        found.append(tuple(arrays))
    if not found:
        raise CalibrationError(f"there is no calibration sample for {entry}: give at least one, or calibration=None.")
    return tuple(found)
