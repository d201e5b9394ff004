"""Which packages hwpq asks for, and whether those that are installed are of versions it is known to work with."""

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

_DISTRIBUTION = "hwpq-tvm"


@dataclass(frozen=True, slots=True)
class Package:
    """A package that hwpq asks for.

    Attributes
    ----------
    name
        Of the distribution.
    version
        What is installed; None where it is not.
    needed
        Versions that hwpq works with, such as ">=2.8"; empty for any.
    """

    name: str
    version: str | None
    needed: str

    @property
    def problem(self) -> str | None:
        """What is wrong with it and what to do; None where it fits."""
        requirement = Requirement(f"{self.name}{self.needed}")
        if self.version is not None and requirement.specifier.contains(self.version, prereleases=True):
            return None
        found = "is not installed" if self.version is None else f"{self.version} is installed"
        return f"{self.name} {found}, and {requirement} is needed. Run: pip install '{requirement}'"


def needed_packages(extra: str = "") -> tuple[Package, ...]:
    """List what hwpq asks for on this machine, itself first.

    Parameters
    ----------
    extra
        With the packages of this extra, such as "tune", instead of those that are always needed.
    """
    packages = [] if extra else [Package(_DISTRIBUTION, _installed(_DISTRIBUTION), "")]
    for requirement in map(Requirement, requires(_DISTRIBUTION) or ()):
        if _applies(requirement, extra) and not (extra and _applies(requirement, "")):
            packages.append(Package(requirement.name, _installed(requirement.name), str(requirement.specifier)))
    return tuple(packages)


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
