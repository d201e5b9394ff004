"""Which records a build may use: those that ship with the package, and those of a folder that the user names."""

from pathlib import Path

from tvm.target import Target

from .. import tuning_logs as _shipped
from ..errors import ConfigError
from ..schedules.records import RECORDS_FILE, TuningRecords
from .device_file import DEVICE, read_device
from .device_info import applies, other_device

SHIPPED = Path(_shipped.__file__).parent


def databases_in(folder: Path) -> list[Path]:
    """Databases that a folder is or holds, in order of their names."""
    candidates = [folder, *sorted(folder.iterdir())] if folder.is_dir() else []
    found = [each for each in candidates if any((each / name).is_file() for name in (RECORDS_FILE, DEVICE))]
    return [folder] if folder in found else found


def find_records(target: Target, tuning_logs: Path | None = None) -> TuningRecords:
    """Find the records that kernels for a target may be chosen by.

    Parameters
    ----------
    target
        What is built for.
    tuning_logs
        A database, or a folder of databases, to use beside the ones that ship. For each linear the database with the
        most evidence decides; of several those of `tuning_logs` come first.

    Returns
    -------
    TuningRecords
        With notes on what `tuning_logs` has that was not used, on shipped records for this device that were not, and
        where records of several devices fit the target.

    Raises
    ------
    ConfigError
        When nothing in `tuning_logs` may be used; the message says what it holds.
    """
    given = [] if tuning_logs is None else databases_in(tuning_logs)
    if tuning_logs is not None and not given:
        raise ConfigError(
            f"tuning logs {tuning_logs}: no database is there ({RECORDS_FILE} beside {DEVICE}), nor in its folders. "
            "Name a work folder of `hwpq tune`, or what `hwpq tune --merge` made."
        )
    parts: dict[Path, TuningRecords] = {}
    refused: dict[Path, str] = {}
    devices: dict[str, None] = {}
    for folder in dict.fromkeys([*given, *databases_in(SHIPPED)]):
        try:
            info, _ = read_device(folder)
        except ConfigError as error:
            refused[folder] = str(error)
            continue
        if (reason := applies(info, target)) is None:
            parts[folder] = TuningRecords.load(folder, target)
            if info.measured and parts[folder]:
                devices[info.slug] = None
        elif folder in given or other_device(info, target) is None:
            refused[folder] = reason
    if given and not any(parts.get(folder) for folder in given):
        reasons = [f"{each.name}: {refused[each]}" for each in given if each in refused]
        reasons += [note for each in given if each in parts for note in parts[each].notes]
        raise ConfigError(
            f"tuning logs {tuning_logs}: nothing there fits the target "
            f"({'; '.join(reasons) or 'every kernel that was tried has failed'}). Tune for it, build for the target "
            "that was tuned, or leave the logs out."
        )
    records = TuningRecords.union(list(parts.values()))
    records.notes += [f"{folder} was ignored: {reason}" for folder, reason in refused.items()]
    if len(devices) > 1:
        records.notes.append(f"records of several devices fit ({', '.join(devices)}): the first one decides")
    return records
