"""Errors that a user can cause: each says what was found, what was expected and what to do."""


class HwpqError(Exception):
    """Base of every error that this package raises on purpose; the message is meant for the user."""


class ConfigError(HwpqError):
    """A configuration value is out of range, contradicts another one, or matches nothing."""


class TargetError(HwpqError):
    """A target is unknown, or lacks what was asked of it."""


class ImportModelError(HwpqError):
    """A model could not be found, read or turned into Relax."""


class UnsupportedSchemeError(HwpqError):
    """No kernel exists for the combination of sparsity, dtype, group size and target that was asked for."""


class PlanError(HwpqError):
    """Layers of the model do not fit the schemes that the configuration gives them; names all of them at once."""


class CalibrationError(HwpqError):
    """Calibration data is missing, empty or does not fit the model."""


class ArtifactError(HwpqError):
    """An artefact folder is missing, damaged, of another version, or built for another machine."""


class GenerationError(HwpqError):
    """A prompt or a sampling option can't be used with this model."""


class DependencyError(HwpqError):
    """An installed package is missing, or of a version that is known to fail."""
