"""Refuses installed packages that are known to crash, before anything of them is imported."""

from importlib.metadata import PackageNotFoundError, version

from .errors import DependencyError

# Version prefix of apache-tvm-ffi -> what happens with it.
_KNOWN_BAD_FFI = {"0.1.15.": "it crashes (segmentation fault) whenever TVM reads or writes structural JSON"}

_CURE = "Run: pip install 'apache-tvm==0.27.0.post1' 'apache-tvm-ffi==0.1.14.post1'"


def installed_version(distribution: str) -> str:
    """Version of an installed distribution, read from its metadata without importing it.

    Raises
    ------
    DependencyError
        When it is not installed.
    """
    try:
        return version(distribution)
    except PackageNotFoundError as error:
        raise DependencyError(f"{distribution} is not installed. {_CURE}") from error


def check_versions() -> None:
    """Raise DependencyError when TVM is missing, or comes with a tvm-ffi that is known to crash."""
    tvm, ffi = installed_version("apache-tvm"), installed_version("apache-tvm-ffi")
    for prefix, what in _KNOWN_BAD_FFI.items():
        if f"{ffi}.".startswith(prefix):
            raise DependencyError(f"apache-tvm-ffi {ffi} does not work with apache-tvm {tvm}: {what}. {_CURE}")
