"""What hwpq asks for, against what is installed."""

import pytest

from hwpq_tvm.doctor import packages
from hwpq_tvm.doctor.packages import Package, needed_packages


def test_what_is_needed_here_is_installed_and_fits():
    packages = needed_packages()
    assert packages[0].name == "hwpq-tvm"
    assert {"apache-tvm", "apache-tvm-ffi", "numpy", "torch", "transformers"} <= {each.name for each in packages}
    assert [each.problem for each in packages] == [None] * len(packages)


def test_extras_and_other_systems_packages_are_apart(monkeypatch):
    asked = [
        "numpy>=2.1",
        "hurd-only>=1; sys_platform == 'hurd'",
        'psutil>=5; extra == "tune"',
        'xgboost>=2; sys_platform == "hurd" and extra == "tune"',
        'pytest; extra == "test"',
    ]
    monkeypatch.setattr(packages, "requires", lambda _: asked)
    assert [each.name for each in needed_packages()] == ["hwpq-tvm", "numpy"]
    assert [(each.name, each.needed) for each in needed_packages("tune")] == [("psutil", ">=5")]
    assert needed_packages("plots") == ()


@pytest.mark.parametrize(
    ("installed", "needed", "problem"),
    [
        ("2.8.0+cpu", ">=2.8", None),
        ("2.9.0rc1", ">=2.8", None),
        ("1.0", "", None),
        ("2.7.1", ">=2.8", "torch 2.7.1 is installed, and torch>=2.8 is needed. Run: pip install 'torch>=2.8'"),
        ("0.1.15", "<0.1.15,>=0.1.14", "torch 0.1.15 is installed, and torch<0.1.15,>=0.1.14 is needed."),
        (None, ">=2.8", "torch is not installed, and torch>=2.8 is needed. Run: pip install 'torch>=2.8'"),
    ],
)
def test_a_version_fits_or_the_cure_is_named(installed, needed, problem):
    found = Package("torch", installed, needed).problem
    assert found is None if problem is None else found.startswith(problem)
