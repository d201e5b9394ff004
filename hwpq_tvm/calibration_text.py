"""What a model is calibrated on: text or token ids in the forms that users have them -> windows of token ids."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import CalibrationError
from .importers import ImportedModel

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SHIPPED = "the text that ships with hwpq_tvm"


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """Data that the float model sees before it is compressed.

    Attributes
    ----------
    source
        `"default"` for the text that ships with the package; the path of a UTF-8 text file; a list of strings, each of
        which is one window, cut to `length` tokens; or token ids: a flat list or array of them is read like a text, a
        two-dimensional array or a list of lists or arrays gives the windows as they are.
    samples
        How many windows are taken, at most, from one long text, evenly spread over it.
    length
        Tokens of a window, at most; never more than the model's `max_seq_len`.
    """

    source: Any = "default"
    samples: int = 32
    length: int = 512

    def __post_init__(self) -> None:
        for name in ("samples", "length"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise CalibrationError(f"calibration {name}={value!r}: expected a whole number of at least 1.")


@dataclass(frozen=True, slots=True, eq=False)
class CalibrationWindows:
    """Token windows of a calibration source.

    Attributes
    ----------
    ids
        Token ids of each window, int64 `[length]`; every window starts from an empty KV cache.
    source
        A word on where they are from.
    """

    ids: tuple[np.ndarray, ...]
    source: str

    @property
    def entries(self) -> tuple[str, ...]:
        """The entry functions that run on the windows."""
        return ("prefill",)

    @property
    def count(self) -> int:
        """Number of tokens in all windows."""
        return sum(len(window) for window in self.ids)

    @property
    def unit(self) -> str:
        """What is counted."""
        return "tokens"

    @property
    def content(self) -> Any:
        """What tells these data from others, as a JSON value."""
        return [ids.tolist() for ids in self.ids]


def calibration_windows(calibration: Any, imported: ImportedModel) -> CalibrationWindows:
    """Token windows of a calibration source.

    Parameters
    ----------
    calibration
        A `Calibration`, or what can be the source of one.
    imported
        The model, for its tokenizer, its vocabulary and its longest sequence.

    Returns
    -------
    CalibrationWindows
        At least one window of at least one token.

    Raises
    ------
    CalibrationError
        When a file is missing, no text, or empty; when text is given and the model has no tokenizer; when token ids
        are no integers, none at all, outside the vocabulary or longer than the model's sequences.
    """
    model = imported.metadata.causal_lm
    assert model is not None
    if not isinstance(calibration, Calibration):
        calibration = Calibration(calibration)
    source, length = calibration.source, min(calibration.length, model.max_seq_len)
    if isinstance(source, str | PathLike):
        text, name = read_text(source)
        ids = _tokenize([text], name, imported, model.vocab_size)[0]
        return CalibrationWindows(spread(ids, calibration.samples, length), name)
    if isinstance(source, Sequence) and len(source) and all(isinstance(text, str) for text in source):
        name = f"{len(source)} texts given"
        windows = [ids[:length] for ids in _tokenize(source, name, imported, model.vocab_size)]
        return CalibrationWindows(tuple(windows), name)
    rows, stream = token_rows(source)
    for row in rows:
        check_tokens(row, model.vocab_size)
    if stream:
        return CalibrationWindows(spread(rows[0], calibration.samples, length), f"{len(rows[0])} token ids given")
    longest = max(len(row) for row in rows)
    if longest > model.max_seq_len:
        raise CalibrationError(
            f"a calibration window of {longest} tokens is longer than the model's max_seq_len of "
            f"{model.max_seq_len}: give shorter windows, one flat array (it is cut into windows), or a larger "
            "max_seq_len."
        )
    return CalibrationWindows(tuple(rows), f"{len(rows)} windows of token ids given")


def read_text(source: "str | PathLike[str]") -> tuple[str, str]:
    """Read a text; it comes with its name."""
    if source == "default":
        return resources.files("hwpq_tvm").joinpath("data/calibration.txt").read_text(encoding="utf-8"), SHIPPED
    path = Path(source)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise CalibrationError(
            f"calibration file {path}: {error.strerror}; name a UTF-8 text file, or switch calibration off "
            "(calibration=None, --calibration none)."
        ) from error
    except UnicodeDecodeError as error:
        raise CalibrationError(f"calibration file {path}: not UTF-8 text ({error.reason}).") from error
    if not text.strip():
        raise CalibrationError(f"calibration file {path} is empty: expected UTF-8 text, a few 10 KB of it.")
    return text, str(path)


def load_tokenizer(imported: ImportedModel) -> "Tokenizer":
    """Make the tokenizer of a model, which neither cuts nor pads.

    Raises
    ------
    CalibrationError
        When the model has none.
    """
    if "tokenizer.json" not in imported.tokenizer_files:
        raise CalibrationError(
            "the model comes without tokenizer.json, so calibration text can't be tokenized: give a folder to which "
            "both model and tokenizer were written by save_pretrained, give token ids (calibration=array), or switch "
            "calibration off (calibration=None, --calibration none)."
        )
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(imported.tokenizer_files["tokenizer.json"].decode())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _tokenize(texts: Sequence[str], name: str, imported: ImportedModel, vocab_size: int) -> list[np.ndarray]:
    """Token ids of each text."""
    encoded = load_tokenizer(imported).encode_batch(list(texts), add_special_tokens=False)
    rows = [np.asarray(encoding.ids, dtype=np.int64) for encoding in encoded]
    for number, row in enumerate(rows):
        if row.size == 0:
            where = name if len(rows) == 1 else f"{number} (from 0) of {name}"
            raise CalibrationError(f"calibration text {where}: the model's tokenizer makes no token of it.")
        check_tokenizer(row, vocab_size)
    return rows


def check_tokenizer(ids: np.ndarray, vocab_size: int) -> None:
    """Raise CalibrationError when a tokenizer gives ids that its model does not know."""
    if ids.max() >= vocab_size:
        raise CalibrationError(
            f"the tokenizer gives token {ids.max()}, but the model knows {vocab_size} tokens: tokenizer and model do "
            "not belong together; give the model's own tokenizer files."
        )


def token_rows(source: Any) -> tuple[list[np.ndarray], bool]:
    """Make rows of token ids as they were given, and say whether they are one stream to be cut."""
    given = "expected a text file, a list of strings, or token ids (integers, in one or two dimensions)"
    try:
        nested = isinstance(source, Sequence) and len(source) > 0 and hasattr(source[0], "__len__")
        rows = [np.asarray(row) for row in source] if nested else [np.asarray(source)]
    except (TypeError, ValueError) as error:
        raise CalibrationError(f"calibration data of type {type(source).__name__}: {given} ({error}).") from error
    stream = not nested and rows[0].ndim == 1
    if not nested and rows[0].ndim == 2:
        rows = list(rows[0])
    if not rows or any(row.size == 0 for row in rows):
        raise CalibrationError(f"calibration data holds a window without tokens: {given}.")
    if odd := [row for row in rows if row.ndim != 1 or row.dtype.kind not in "iu"]:
        found = f"{odd[0].dtype} of {odd[0].ndim} dimensions"
        raise CalibrationError(f"calibration data of type {type(source).__name__} ({found}): {given}.")
    return [row.astype(np.int64) for row in rows], stream


def check_tokens(ids: np.ndarray, known: int) -> None:
    """Raise CalibrationError when token ids that were given are none of the model's, which are `known`."""
    if outside := ids[(ids < 0) | (ids >= known)].tolist():
        raise CalibrationError(
            f"calibration token {outside[0]} is none of the model's, which are 0 to {known - 1}: give the ids of the "
            "model's own tokenizer."
        )


def spread(ids: np.ndarray, count: int, length: int) -> tuple[np.ndarray, ...]:
    """Cut at most `count` windows out of a text, evenly spread."""
    starts = range(0, max(len(ids) - length, 0) + 1, length)
    chosen = np.linspace(0, len(starts) - 1, min(count, len(starts))).round().astype(int)
    return tuple(ids[starts[i] : starts[i] + length] for i in chosen)
