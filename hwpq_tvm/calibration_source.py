"""Which data calibrates a model: what was asked for, or what comes closest to the default."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

from .calibration_samples import CalibrationSamples, checked, samples_of_text, text_entry
from .calibration_text import Calibration, CalibrationWindows, calibration_windows
from .entry_specs import entry_spec
from .errors import CalibrationError
from .importers import ImportedModel

CalibrationData = CalibrationWindows | CalibrationSamples


@dataclass(frozen=True, slots=True)
class CalibrationSource:
    """Where calibration data comes from.

    Attributes
    ----------
    entries
        The entry functions whose linears will be seen with inputs; none if nothing is calibrated.
    notes
        What to tell the user about it.
    read
        Reads the data; only where there are entries.
    """

    entries: tuple[str, ...]
    notes: tuple[str, ...]
    read: Callable[[], CalibrationData]


def calibration_source(calibration: Any, imported: ImportedModel) -> CalibrationSource:
    """Find the data that a model is calibrated on; nothing is read yet.

    Parameters
    ----------
    calibration
        As `build` takes it; None calibrates nothing.
    imported
        The model.

    Raises
    ------
    CalibrationError
        When what was asked for is nothing that the model can be calibrated on.
    """
    if calibration is None:
        return _nothing()
    if imported.metadata.causal_lm is not None:
        return CalibrationSource(imported.entries, (), lambda: calibration_windows(calibration, imported))
    settings = calibration if isinstance(calibration, Calibration) else Calibration(calibration)
    source = settings.source
    entry = text_entry(imported)
    if isinstance(source, Mapping):
        return _given(source, imported)
    if isinstance(source, str) and source == "default" and (entry is None or not imported.tokenizer_files):
        return _instead_of_text(imported, "no tokenizer" if entry else "inputs that can't be made of a text")
    if _is_text(source) and entry is None:
        raise CalibrationError(
            "calibration is a text, but the model takes inputs that can't be made of one: give its inputs "
            "(calibration=[(input, ...), ...]), or calibration=None."
        )
    if entry is not None and (_is_text(source) or not _is_samples(source)):
        return CalibrationSource(
            (entry,), _others(imported, {entry}), lambda: samples_of_text(settings, imported, entry)
        )
    if len(imported.entries) > 1:
        raise CalibrationError(
            f"the model has the entries {', '.join(imported.entries)}: give calibration inputs by entry "
            "(calibration={entry: [(input, ...), ...]})."
        )
    return _given({imported.entries[0]: source}, imported)


def _nothing(*notes: str) -> CalibrationSource:
    def read() -> CalibrationData:
        raise AssertionError("there is nothing to read")

    return CalibrationSource((), notes, read)


def _given(samples: Mapping[str, Any], imported: ImportedModel) -> CalibrationSource:
    """Inputs of some entries."""
    if unknown := [name for name in samples if name not in imported.entries]:
        raise CalibrationError(
            f"calibration has inputs for {', '.join(map(repr, unknown))}: the model has the entries "
            f"{', '.join(imported.entries)}."
        )

    def read() -> CalibrationData:
        inputs = {entry: checked(each, entry, entry_spec(imported.module[entry])) for entry, each in samples.items()}
        count = sum(map(len, inputs.values()))
        return CalibrationSamples(inputs, f"{count} samples given", count, "samples")

    return CalibrationSource(tuple(samples), _others(imported, set(samples)), read)


def _instead_of_text(imported: ImportedModel, lacks: str) -> CalibrationSource:
    """What there is for a model that the text that ships with the package is of no use for."""
    cure = "give inputs that are like those to come (calibration=[(input, ...), ...])"
    if imported.example_inputs is None or len(imported.entries) > 1:
        return _nothing(f"nothing was calibrated, since the model has {lacks}: {cure}, or say calibration=None")
    entry, example = imported.entries[0], imported.example_inputs

    def read() -> CalibrationData:
        samples = checked([example], entry, entry_spec(imported.module[entry]))
        return CalibrationSamples({entry: samples}, "the example inputs", 1, "samples")

    return CalibrationSource(
        (entry,), (f"calibrated on the example inputs alone, since the model has {lacks}: {cure}",), read
    )


def _others(imported: ImportedModel, seen: set[str]) -> tuple[str, ...]:
    """Say which entries are not calibrated."""
    missing = [entry for entry in imported.entries if entry not in seen]
    if not missing:
        return ()
    return (
        f"linears of {', '.join(missing)} were not calibrated, for which there are no inputs: give them "
        "(calibration={entry: [(input, ...), ...]})",
    )


def _is_text(source: Any) -> bool:
    if isinstance(source, str | PathLike):
        return True
    return isinstance(source, Sequence) and len(source) > 0 and all(isinstance(each, str) for each in source)


def _is_samples(source: Any) -> bool:
    """Whether inputs are given as they are, and not token ids."""
    return isinstance(source, Sequence) and len(source) > 0 and isinstance(source[0], tuple | Mapping)
