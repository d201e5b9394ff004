"""How a diagnosis looks: what a test of the command line does not come across on this machine."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from hwpq_tvm.doctor import diagnosis
from hwpq_tvm.doctor.machine import Cores
from hwpq_tvm.doctor.packages import Package
from hwpq_tvm.doctor.target_state import TargetState
from hwpq_tvm.doctor.view import diagnosis_view, targets_view


@pytest.fixture(scope="module")
def found():
    return diagnosis.diagnose(bandwidth=False)


def text(view, width=200):
    console = Console(file=io.StringIO(), width=width)
    console.print(view)
    return "".join(f"{line.rstrip()}\n" for line in console.file.getvalue().splitlines())


def test_packages_that_do_not_fit_stand_out(found):
    packages = (Package("torch", "2.7", ">=2.8"), Package("gguf", None, ""), Package("numpy", "2.4", ">=2.1"))
    out = text(diagnosis_view(replace(found, packages=packages, notes=("torch 2.7 is installed",))))
    assert "torch 2.7 (>=2.8 is needed), gguf not installed, numpy 2.4\n" in out
    assert "note: torch 2.7 is installed\n" in out


def test_what_the_system_does_not_tell_is_left_out(found):
    known = text(diagnosis_view(found))
    assert "\nmemory  " in known
    cpu = replace(found.cpu, cache_bytes=None, features=())
    out = text(diagnosis_view(replace(found, memory=None, cpu=cpu, cores=Cores(None, 4, 2, 1.5), records={"cpu": 0})))
    assert "\nmemory  " not in out
    assert "last-level cache" not in out
    assert "4 logical, 2 for this process, with the time of 1.5" in out
    assert "none that kernels use" in out
    assert "none for this machine" in out


def test_paths_are_no_markup(found):
    disk = replace(found.disk, folder="/tmp/[red]x[/red]")
    assert "/tmp/[red]x[/red]: " in text(diagnosis_view(replace(found, disk=disk)))


def test_targets_with_one_answer_are_told_it_once():
    states = [
        TargetState("cpu", True, True, "any", ()),
        TargetState("cuda:sm_80", True, False, "sm_80", ("no driver", "no GPU")),
        TargetState("cuda:sm_86", True, False, "sm_86", ("no driver", "no GPU")),
        TargetState("cuda", False, False, None, ("no GPU",)),
    ]
    rows = [line.split() for line in text(targets_view(states)).splitlines()]
    assert rows[1:] == [
        ["cpu", "yes", "yes", "any", "(slow)"],
        ["cuda:sm_80", "yes", "no", "sm_80", "no", "driver"],
        ["cuda:sm_86", "yes", "no", "sm_86", "no", "GPU"],
        ["cuda", "no", "no", "no", "GPU"],
    ]
