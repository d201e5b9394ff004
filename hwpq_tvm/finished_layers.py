"""Layers that are compressed: kept in memory, and in a folder from which a killed build goes on."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from .calibration_source import CalibrationData
from .errors import ConfigError
from .importers import ImportedModel
from .relax_passes.packing import compressed_types, packed_name
from .relax_passes.plan import LinearGroup
from .runtime.tensor_file import write_tensors
from .work_folder import writing_to

_FOLDER, _FINGERPRINT = "layers", "fingerprint.json"


class FinishedLayers:
    """What compression made so far, group by group.

    Parameters
    ----------
    work_dir
        Folder that keeps each group as soon as it is whole; None keeps nothing on disk.
    fingerprint
        What the layers depend on, see `fingerprint`: a build goes on only where all of it is the same. Not looked at
        without a folder.
    resume
        Whether to take up what `work_dir` holds; otherwise that is removed.

    Raises
    ------
    ConfigError
        When `resume` is asked for without a folder, or the folder holds layers of another build.
    """

    def __init__(self, work_dir: Path | None, fingerprint: Mapping[str, Any], *, resume: bool) -> None:
        self._groups: dict[str, dict[str, np.ndarray]] = {}
        self._folder = None if work_dir is None else work_dir / _FOLDER
        if self._folder is None:
            if resume:
                raise ConfigError("resume=True without work_dir: name the work folder of the build that was stopped.")
            return
        digests = {name: _digest(value) for name, value in fingerprint.items()}
        if resume and any(self._folder.glob("*.safetensors")):
            _check_same_build(self._folder, digests)
            return
        with self._writing():
            if self._folder.exists():
                shutil.rmtree(self._folder)
            self._folder.mkdir(parents=True)
            (self._folder / _FINGERPRINT).write_text(json.dumps(digests), encoding="utf-8")

    def take_up(self, groups: Sequence[LinearGroup]) -> list[LinearGroup]:
        """Read what the folder holds of `groups`; return those that are still to be compressed."""
        missing = []
        for group in groups:
            arrays = self._read(group)
            if arrays is None:
                missing.append(group)
            else:
                self._groups[packed_name(group)] = arrays
        return missing

    def add(self, group: LinearGroup, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep the packed parameters and statistics of a group."""
        self._groups[packed_name(group)] = dict(arrays)
        if self._folder is not None:
            file = self._file(group)
            temporary = file.with_suffix(".tmp")
            with self._writing():
                write_tensors(temporary, arrays)
                with temporary.open("rb") as written:  # the name must not reach the disk before the contents
                    os.fsync(written.fileno())
                temporary.rename(file)

    def of(self, group: LinearGroup) -> Mapping[str, np.ndarray] | None:
        """What is kept of a group; None where it is not finished."""
        return self._groups.get(packed_name(group))

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything by name: packed parameters and statistics."""
        return {name: array for arrays in self._groups.values() for name, array in arrays.items()}

    def _writing(self) -> AbstractContextManager[None]:
        assert self._folder is not None
        return writing_to(self._folder, "what is finished stays there for resume")

    def _file(self, group: LinearGroup) -> Path:
        assert self._folder is not None
        return self._folder / (hashlib.sha256(packed_name(group).encode()).hexdigest()[:32] + ".safetensors")

    def _read(self, group: LinearGroup) -> dict[str, np.ndarray] | None:
        if self._folder is None or not self._file(group).exists():
            return None
        try:
            arrays = load_file(self._file(group))
        except (SafetensorError, OSError):
            return None  # damaged on disk: compressed again
        expected = {name: tuple(int(size) for size in type_.shape) for name, type_ in compressed_types(group).items()}
        return arrays if all(n in arrays and arrays[n].shape == shape for n, shape in expected.items()) else None


def fingerprint(imported: ImportedModel, groups: Sequence[LinearGroup], data: CalibrationData | None) -> dict[str, Any]:
    """What the compressed layers of a model depend on, by name.

    Parameters
    ----------
    imported
        The float model.
    groups
        Its packed groups, with their schemes.
    data
        What it is calibrated on; None where nothing is.
    """
    metadata = imported.metadata
    layers = [linear for group in groups for linear in group.members]
    source = Path(metadata.source)
    files = sorted(source.iterdir()) if source.is_dir() else [source] if source.is_file() else []
    # A live model has no files: a sample of its weights has to do.
    sample = min(layers, key=lambda linear: linear.N * linear.K).weight if layers else None
    content = imported.parameters.load(sample).tobytes() if sample else b""
    return {
        "model": [
            metadata.architecture,
            metadata.source,
            [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files],
            hashlib.sha256(content).hexdigest(),
        ],
        "configuration": [(linear.weight, asdict(linear.scheme), linear.format.source.label) for linear in layers],
        "calibration": None if data is None else data.content,
        "version of hwpq_tvm": version("hwpq-tvm"),
    }


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()


def _check_same_build(folder: Path, digests: Mapping[str, str]) -> None:
    try:
        found = json.loads((folder / _FINGERPRINT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = {}
    if different := sorted(name for name, digest in digests.items() if found.get(name) != digest):
        raise ConfigError(
            f"{folder}: holds layers of a build with another {', '.join(different)}, so it can't be resumed; give the "
            "same as then, or build without resuming, which removes them."
        )
