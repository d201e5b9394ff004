"""The folder of a job: what was asked for, one database for the device, and the report."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .database import locked
from .record_files import replace

JOB_VERSION = 1
_JOB = "job.json"


@contextmanager
def work_folder(folder: Path) -> Iterator[Path]:
    """Make a work folder, and keep other jobs out of it.

    Returns
    -------
    A folder in it for libraries: empty, whatever a job that was killed has left, and gone at the end.

    Raises
    ------
    ConfigError
        When the folder can't be written, or another job works in it.
    """
    libraries = folder / "build"
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(folder))
            shutil.rmtree(libraries, ignore_errors=True)
            libraries.mkdir()
        except OSError as error:
            raise _unwritable(folder, error) from error
        stack.callback(shutil.rmtree, libraries, ignore_errors=True)
        yield libraries


def keep_job(folder: Path, asked: Mapping[str, Any], *, resume: bool) -> None:
    """Note what a job is about; going on with one, check that it is the same.

    Parameters
    ----------
    folder
        Work folder; made where it is missing.
    asked
        What makes two jobs the same, as JSON values: model, configuration, target, device.
    resume
        Whether to go on with what is there.

    Raises
    ------
    ConfigError
        When the folder holds another job and `resume` asks to go on with it, or when it can't be written.
    """
    path, value = folder / _JOB, {"version": JOB_VERSION, **asked}
    if resume and path.exists():
        known = _read(path)
        if different := [name for name in value if known.get(name) != value[name]]:
            found = "; ".join(f"{name} was {_short(known.get(name))}, is {_short(value[name])}" for name in different)
            raise ConfigError(
                f"{folder} holds another job ({found}): ask for the same to go on with it, or name another work folder."
            )
        return
    try:
        replace(path, json.dumps(value, indent=2) + "\n")
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(f"work_dir={folder}: can't be written ({error.strerror}); name another one.")


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} can't be read ({error}): remove it to go on with the records beside it.") from error
    return value if isinstance(value, dict) else {}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else text[:97] + "..."
