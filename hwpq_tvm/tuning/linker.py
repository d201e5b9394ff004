"""Objects that were compiled for this machine elsewhere -> a shared library, by the C compiler here."""

import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from ..errors import DependencyError

_COMPILERS = ("cc", "gcc", "clang", "c++", "g++", "clang++")


def link_objects(archive: Path) -> Path:
    """Link the objects of a `.tar`; the library lies beside it and is made only once.

    Raises
    ------
    DependencyError
        When there is no C compiler here, it refuses, or there is no room for what it makes.
    """
    library = archive.with_suffix(".so")
    if library.exists():
        return library
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        raise DependencyError(
            f"no C compiler here ({', '.join(_COMPILERS)}), which kernels that come as objects need to be linked: "
            "install one, or a cross compiler for this machine where the kernels are built."
        )
    try:
        with tempfile.TemporaryDirectory() as folder:
            with tarfile.open(archive) as file:
                file.extractall(folder, filter="data")
            objects = sorted(str(path) for path in Path(folder).rglob("*.o"))
            command = [compiler, "-shared", "-o", str(library), *objects]
            done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise DependencyError(f"{archive.name} can't be unpacked and linked: {error}") from error
    if done.returncode:
        library.unlink(missing_ok=True)
        raise DependencyError(f"{compiler} can't link {archive.name}: {done.stderr.strip()[-400:]}")
    return library
