"""The text that choices are measured on, which the model is not calibrated on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import ConfigError
from ..evaluate import evaluation_text
from ..evaluation.windows import check_ids, cut
from ..importers import ImportedModel
from ..runtime.tokenizer import TextTokenizer

# Tokens of a window, and windows at most: the float model reads them for every choice that is looked at.
WINDOW, MOST_WINDOWS = 512, 8


@dataclass(frozen=True, slots=True)
class Texts:
    """Text as token ids.

    Attributes
    ----------
    sensitivity
        What units are measured on.
    check
        Windows that choices are checked on: others, where the text is long enough.
    """

    sensitivity: np.ndarray
    check: tuple[np.ndarray, ...]

    @property
    def tokens(self) -> int:
        """Tokens that are predicted in a check."""
        return sum(len(window) - 1 for window in self.check)


def read_texts(evaluation: "str | Path | Sequence[int] | np.ndarray", imported: ImportedModel) -> Texts:
    """Read the text that choices are measured on.

    Parameters
    ----------
    evaluation
        `"default"` for the text that ships with the package, the path of a UTF-8 text file, or token ids.
    imported
        The model, for its tokenizer, its vocabulary and its longest sequence.

    Raises
    ------
    ConfigError
        When the text can't be read, or is too short.
    GenerationError
        When token ids are none, or out of the vocabulary.
    """
    metadata = imported.metadata.causal_lm
    assert metadata is not None
    if isinstance(evaluation, str | Path):
        try:
            text = evaluation_text() if evaluation == "default" else Path(evaluation).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"evaluation text {evaluation}: can't be read ({error}); name a UTF-8 file.") from error
        evaluation = TextTokenizer(imported.tokenizer_files).encode(text)
    ids = check_ids(evaluation, metadata.vocab_size).astype(np.int64)
    if len(ids) < 2:
        raise ConfigError(f"the evaluation text has {ids.size} tokens; give one of some thousands.")
    length = min(WINDOW, metadata.max_seq_len)
    long = len(ids) >= 2 * MOST_WINDOWS * length
    first, second = (ids[: len(ids) // 2], ids[len(ids) // 2 :]) if long else (ids, ids)
    windows = [second[window.start : window.stop] for window in cut(len(second), length)]
    places = np.linspace(0, len(windows) - 1, min(len(windows), MOST_WINDOWS)).round().astype(int)
    # Whole windows only, where they are not all: they are read behind one another.
    return Texts(first, tuple(windows[place] for place in places if len(windows[place]) == length or not long))
