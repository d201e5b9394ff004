"""Layers that are compressed: kept in memory, and in a folder from which a killed build goes on."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from .errors import ConfigError
from .importers import ParameterSource
from .relax_passes.packing import packed_name, packed_types
from .relax_passes.plan import LinearGroup
from .runtime.tensor_file import write_tensors

_FOLDER, _FINGERPRINT = "layers", "fingerprint.json"


class FinishedLayers:
    """What compression made so far, group by group.

    Parameters
    ----------
    work_dir
        Folder that keeps each group as soon as it is whole; None keeps nothing on disk.
    fingerprint
        What the layers depend on (model, configuration, calibration), by name: a build goes on only where all of it is
        the same.
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
        with self._told():
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
            with self._told():
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

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ConfigError(
                f"work folder {self._folder}: can't be written ({error.strerror or error}). Free some space or name "
                "another one; what is finished stays there for resume."
            ) from error

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
        expected = {name: tuple(int(size) for size in type_.shape) for name, type_ in packed_types(group).items()}
        return arrays if all(n in arrays and arrays[n].shape == shape for n, shape in expected.items()) else None


class CompressedSource:
    """Weights of a model with the layers that are finished replaced by what their packed form stands for.

    Parameters
    ----------
    source
        The float model's weights.
    groups
        The groups to replace.
    finished
        Has all of them.
    """

    def __init__(self, source: ParameterSource, groups: Sequence[LinearGroup], finished: FinishedLayers) -> None:
        self._source, self._finished = source, finished
        self._groups = {linear.weight: group for group in groups for linear in group.members}

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a weight."""
        return self._source.shape(name)

    def load(self, name: str) -> np.ndarray:
        """Read one weight as float32."""
        group = self._groups.get(name)
        arrays = self._finished.of(group) if group else None
        if group is None or arrays is None:
            return self._source.load(name)
        first: dict[str, int] = {}
        for linear in group.members:
            parts = linear.format.packed(linear.N, linear.K)
            found = {}
            for part, (shape, _) in parts.items():
                start = first.get(part, 0)
                first[part] = start + shape[0]
                found[part] = arrays[f"{packed_name(group)}.{part}"][start : start + shape[0]]
            if linear.weight == name:
                return linear.format.dequantize(found, linear.N, linear.K)
        raise AssertionError(name)


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
