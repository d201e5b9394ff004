"""What goes wrong in writing to a work folder, as the user is told."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import ConfigError


@contextmanager
def writing_to(folder: Path, kept: str) -> Iterator[None]:
    """Turn an OSError into a ConfigError that says what to do; `kept` says what is not lost."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"work folder {folder}: can't be written ({error.strerror or error}). Free some space or name "
            f"another one; {kept}."
        ) from error
