"""The file of a run: whole after each entry, so that a kernel that breaks the GPU's context costs only the rest."""

import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

# How TVM and torch tell what the CUDA runtime or the driver returned. From then on nothing runs in this process.
CUDA_ERROR = re.compile(r"CUDA(_| |Launch | Runtime )?error", re.IGNORECASE)

Entry = dict[str, Any]


def guarded(entry: Entry, work: Callable[[], Entry]) -> Entry:
    """Do the work for an entry; a kernel that fails is one that is wrong."""
    try:
        entry = {**entry, **work()}
    except Exception as error:  # the others are worth a result, too
        entry = {**entry, "right": False, "failed": f"{type(error).__name__}: {error}"[:2000]}
    print(f"{entry['name']}: {'right' if entry['right'] else 'WRONG'}", file=sys.stderr)
    return entry


def collect(result: dict[str, Any], parts: Mapping[str, Iterable[Entry]], path: Path) -> None:
    """Add the entries of each part to a result and write it after each of them; stop at an error of CUDA.

    ``wrong`` has the names of what isn't right, ``stopped_by`` is the one after which nothing could run, or None.
    """
    result |= {**{part: [] for part in parts}, "wrong": [], "stopped_by": None}
    for part, entries in parts.items():
        for entry in entries:
            result[part].append(entry)
            if not entry["right"]:
                result["wrong"].append(entry["name"])
            if CUDA_ERROR.search(entry.get("failed", "")):
                result["stopped_by"] = entry["name"]
            write_whole(path, result)
            if result["stopped_by"] is not None:
                return


def write_whole(path: Path, value: Any) -> None:
    """Write a JSON file that is whole as soon as it is there; numbers that JSON lacks become "nan" and "inf"."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        text = json.dumps(_finite(value), indent=1, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
