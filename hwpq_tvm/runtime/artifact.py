"""The artefact folder: written so that it is either whole or not there, and checked before anything of it runs."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..cpu import architecture, library_architecture, missing_features
from ..errors import ArtifactError, TargetError
from ..versions import installed_version
from .compiled_model import CompiledModel
from .device import Device
from .device_check import check_device, default_device, other_target
from .manifest import Manifest
from .tensor_file import read_tensors, write_tensors

LIBRARY, PARAMS, MANIFEST, REPORT = "model.so", "params.safetensors", "manifest.json", "report.json"

_OWN_FILES = {LIBRARY, PARAMS, MANIFEST, REPORT}
_TOKENIZER_FILES = {"tokenizer.json", "tokenizer_config.json"}


def save(model: CompiledModel, path: Path) -> None:
    """Write `model` as an artefact folder at `path`; see `CompiledModel.save`."""
    path = Path(os.path.abspath(path))
    check_destination(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        _write(model, temporary)
        _put_in_place(temporary, path)
    except OSError as error:
        cure = "Free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "Choose another folder"
        raise ArtifactError(
            f"{path}: can't be written ({error.strerror or error}). {cure} and try again; nothing was left behind."
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def check_destination(path: Path) -> None:
    """Raise ArtifactError when an artefact may not be written at `path`, because something else stands there."""
    if not os.path.lexists(path):
        return
    if not path.is_dir() or path.is_symlink():
        raise ArtifactError(f"{path}: is not a folder; choose another name for the artefact.")
    found = set(os.listdir(path))
    if not found:
        return
    try:
        own = {*Manifest.from_json((path / MANIFEST).read_text()).files, MANIFEST}
    except (ArtifactError, OSError, UnicodeDecodeError):
        # What is left of a damaged artefact may be replaced too, a folder of other things not.
        own = _OWN_FILES | _TOKENIZER_FILES if MANIFEST in found else set()
    if others := sorted(found - own):
        raise ArtifactError(
            f"{path}: holds files that belong to no artefact ({', '.join(others[:3])}), so it is not replaced. Choose "
            "another folder, or remove it first."
        )


def _write(model: CompiledModel, folder: Path) -> None:
    folder.chmod(0o755)
    files = {PARAMS: write_tensors(folder / PARAMS, model.params)}
    shutil.copyfile(model.library, folder / LIBRARY)
    files[LIBRARY] = _sha256(folder / LIBRARY)
    texts = {REPORT: (json.dumps(model.report, indent=2, allow_nan=False) + "\n").encode(), **model.tokenizer_files}
    for name, content in texts.items():
        (folder / name).write_bytes(content)
        files[name] = hashlib.sha256(content).hexdigest()
    (folder / MANIFEST).write_text(replace(model.manifest, files=dict(sorted(files.items()))).to_json())
    for file in folder.iterdir():  # the names must not reach the disk before the contents
        with file.open("rb") as opened:
            os.fsync(opened.fileno())


def _put_in_place(temporary: Path, path: Path) -> None:
    if not path.exists():
        temporary.rename(path)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
    try:
        path.rename(old)  # an empty folder is replaced
    except OSError:
        old.rmdir()
        raise
    try:
        temporary.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Manifest of the artefact folder `path`; nothing else of it is read.

    Raises
    ------
    ArtifactError
        When there is none, or it is damaged or of another version.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ArtifactError(f"{folder}: no such folder. Name one that `hwpq build --out` or CompiledModel.save wrote.")
    file = folder / MANIFEST
    if not file.is_file():
        raise ArtifactError(f"{folder}: has no {MANIFEST}, so it is not an artefact. Name one that `hwpq build` wrote.")
    with _told_of(file):
        try:
            return Manifest.from_json(file.read_text())
        except UnicodeDecodeError as error:
            raise ArtifactError("is not text") from error


def read_report(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Checked report.json of the artefact folder `path`."""
    folder, manifest = Path(path), read_manifest(path)
    return json.loads(_read_checked(folder, REPORT, manifest))


def load(
    path: str | os.PathLike[str], device: str | None = None, *, progress: Callable[[int, int], None] | None = None
) -> CompiledModel:
    """Load an artefact folder; torch and the compiler are not needed.

    Versions, checksums, the CPU's features, the GPU and its driver are checked before anything of it runs.

    Parameters
    ----------
    path
        Folder that `CompiledModel.save` or `hwpq build` wrote.
    device
        `"cpu"`, `"cuda"` or `"cuda:1"`; by default what the model was built for.
    progress
        Called with bytes read and bytes in all while the weights are read.

    Returns
    -------
    CompiledModel

    Raises
    ------
    ArtifactError
        When the folder is missing or damaged, or built for another machine or version.
    TargetError
        When the device is unknown or not there, or the model was built for another kind.
    DependencyError
        When a library that drives the device is missing.
    """
    where = None if device is None else Device.parse(device)
    folder, manifest = Path(path), read_manifest(path)
    where = where or default_device(manifest)
    _check_versions(folder, manifest)
    for name in manifest.files:
        if not (folder / name).is_file():
            raise ArtifactError(f"{folder}: {name} is missing. Copy or build the artefact again.")
    for name in (LIBRARY, PARAMS, REPORT):
        if name not in manifest.files:
            raise ArtifactError(f"{folder}: {MANIFEST} does not list {name}. Build the artefact again.")
    library = folder / LIBRARY
    with _told_of(library):
        if _sha256(library) != manifest.files[LIBRARY]:
            raise ArtifactError(f"is damaged: its sha256 is not the one in {MANIFEST}")
    _check_cpu(folder, manifest)
    try:
        check_device(manifest, where)
    except (ArtifactError, TargetError) as error:
        raise type(error)(f"{folder}: {error}") from error
    report = json.loads(_read_checked(folder, REPORT, manifest))
    tokenizer_files = {name: _read_checked(folder, name, manifest) for name in manifest.files if name not in _OWN_FILES}
    total, done = (folder / PARAMS).stat().st_size, 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(done, total)

    with _told_of(folder / PARAMS):
        params = read_tensors(folder / PARAMS, manifest.files[PARAMS], progress=advance)
    model = CompiledModel(library.resolve(), params, manifest, report, tokenizer_files, device=where)
    model.prepare()
    return model


def _check_versions(folder: Path, manifest: Manifest) -> None:
    for package, built_with in (
        ("apache-tvm", manifest.tvm_version),
        ("apache-tvm-ffi", manifest.tvm_ffi_version),
    ):
        here = installed_version(package)
        # The interface between generated code and the runtime may change between minor versions.
        if here.split(".")[:2] != built_with.split(".")[:2]:
            raise ArtifactError(
                f"{folder}: built with {package} {built_with}, installed is {here}. Install {package}=={built_with}, "
                "or build the model again."
            )


def _check_cpu(folder: Path, manifest: Manifest) -> None:
    built_for = library_architecture(folder / LIBRARY)
    on_gpu = manifest.target.get("kind") == "cuda"
    if built_for is not None and built_for != architecture():
        level = f'for "cpu:{architecture().replace("_", "-")}" or, on this machine, for "cpu"'
        where = f"on a machine with {architecture()}" if on_gpu else level
        raise ArtifactError(
            f"{folder}: built for {built_for}, this machine is {architecture()}. Build the model again {where}."
        )
    if missing := missing_features(manifest.required_features):
        lower = "" if on_gpu else ', or for a lower level such as "cpu:x86-64-v3"'
        raise ArtifactError(
            f"{folder}: built for a CPU with {', '.join(missing)}, which this one lacks. Build the model again "
            f"{other_target(manifest)}{lower}."
        )


@contextmanager
def _told_of(file: Path) -> Iterator[None]:
    """Put the file's name before an error and what to do behind it."""
    try:
        yield
    except OSError as error:
        raise ArtifactError(f"{file}: can't be read ({error.strerror}).") from error
    except ArtifactError as error:
        raise ArtifactError(f"{file}: {error}. Copy or build the artefact again.") from error


def _read_checked(folder: Path, name: str, manifest: Manifest) -> bytes:
    with _told_of(folder / name):
        content = (folder / name).read_bytes()
        if hashlib.sha256(content).hexdigest() != manifest.files[name]:
            raise ArtifactError(f"is damaged: its sha256 is not the one in {MANIFEST}")
    return content


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
