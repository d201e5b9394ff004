"""The two files of a database, line by line: appended to so that no line stays half written, and made whole again.

`schedules.record_file` says what stands in them.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..schedules.record_file import RECORDS_FILE, WORKLOADS_FILE, Lines, read_lines


def repair(folder: Path) -> tuple[Lines, list[str]]:
    """Take what is damaged out of the files of a database, and keep it beside them as `*.torn`.

    Returns
    -------
    What is left, and a note on each file that was changed.

    Raises
    ------
    OSError
        When the files can't be read or written.
    """
    lines, notes = read_lines(folder), []
    # Records go first: without their workload they are damaged, whenever this ends.
    for name, values in ((RECORDS_FILE, lines.records), (WORKLOADS_FILE, lines.workloads)):
        path, damaged = folder / name, lines.damaged[name]
        if damaged:
            kept = path.with_name(name + ".torn")
            with kept.open("ab") as file:
                file.write(b"\n".join(damaged) + b"\n")
            count = "1 line was" if len(damaged) == 1 else f"{len(damaged)} lines were"
            notes.append(f"{path}: {count} damaged, and went to {kept.name}; {len(values)} are whole")
        # The last line may lack its end only.
        if damaged or (path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size):
            replace(path, text(values))
    return lines, notes


def append(path: Path, value: Any) -> None:
    """Append a line that is on the disk when this returns; of one that can't be written whole, nothing stays.

    Raises
    ------
    OSError
        When it can't be written.
    """
    rest = memoryview(text([value]).encode())
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        try:
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        finally:
            if rest:
                os.ftruncate(descriptor, size)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(path: Path, content: str) -> None:
    """Write a file whole or not at all.

    Raises
    ------
    OSError
        When it can't be written.
    """
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # the name must not reach the disk before the contents
    temporary.replace(path)


def text(values: Sequence[Any]) -> str:
    """Write lines."""
    return "".join(json.dumps(value, separators=(",", ":")) + "\n" for value in values)
