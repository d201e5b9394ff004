import io
import json
import re
from dataclasses import replace

import pytest
from rich.console import Console
from tiny_model import V

from hwpq_tvm import bandwidth, benchmark
from hwpq_tvm.cli import main
from hwpq_tvm.errors import TargetError
from hwpq_tvm.runtime.profile import FunctionTime, Profile
from hwpq_tvm.speed_report import profile_table

SHORT = ["--prompt-length", "8,3", "--new-tokens", "4", "--repeat", "2"]


@pytest.fixture(autouse=True)
def stream(monkeypatch):
    """Threads that a bandwidth was asked for; it is 1 TB/s for each."""
    asked = []
    monkeypatch.setattr(
        bandwidth, "stream_bandwidth", lambda threads, progress: asked.append(threads) or 1e12 * threads
    )
    return asked


def rows(out):
    """Name, phase, length and tokens per second of each row of the table."""
    return re.findall(r"^(\S.*?) +(prefill|decode at) (\d+) +([\d.]+) ", out, re.MULTILINE)


def test_json_of_the_design_and_a_row_for_each_length(capsys, tiny_artifact, tmp_path, stream):
    path = tmp_path / "r.json"
    assert (
        main.main(["bench", str(tiny_artifact), *SHORT, "--context", "5", "--threads", "1", "--json", str(path)]) == 0
    )
    result = json.loads(path.read_text())
    fixed = {"weight_bytes": 8 * V * V, "threads": 1, "prompt_length": 8, "new_tokens": 4, "repeat": 2, "context": 5}
    assert {name: result[name] for name in fixed} == fixed
    assert [speed["prompt_length"] for speed in result["prefill"]] == [8, 3]
    assert [speed["context"] for speed in result["decode"]] == [5]
    assert result["prefill"][0]["tokens_per_second"] == result["prefill_tokens_per_second"] > 0
    assert result["decode"][0]["tokens_per_second"] == result["decode_tokens_per_second"] > 0
    assert (stream, result["stream_bytes_per_second"]) == ([1], 1e12)
    out = capsys.readouterr().out
    speeds = [("prefill", speed) for speed in result["prefill"]] + [("decode at", result["decode"][0])]
    assert rows(out) == [
        (str(tiny_artifact), phase, length, f"{speed['tokens_per_second']:.1f}")
        for length, (phase, speed) in zip("835", speeds, strict=True)
    ]
    assert "this machine reads 1000.0 GB/s with 1 threads" in out
    assert "peak memory of the process" in out


def test_several_artefacts_and_one_that_is_named_twice(capsys, tiny_artifact, tmp_path):
    path = tmp_path / "r.json"
    arguments = [tiny_artifact, tiny_artifact, *SHORT, "--no-bandwidth", "--json", path]
    assert main.main(["bench", *map(str, arguments)]) == 0
    models = json.loads(path.read_text())["models"]
    assert list(models) == [str(tiny_artifact), f"{tiny_artifact} (2)"]
    assert all(model["stream_bytes_per_second"] is None for model in models.values())
    assert len(rows(capsys.readouterr().out)) == 8


def test_a_gpu_is_not_compared_with_the_memory_of_the_cpu(capsys, tiny_artifact, tmp_path, monkeypatch, stream):
    def compare(*arguments, **options):
        first, second = measured(*arguments, **options).items()
        return dict([first, (second[0], replace(second[1], device="cuda:0"))])

    measured = benchmark.compare
    monkeypatch.setattr(benchmark, "compare", compare)
    path = tmp_path / "r.json"
    arguments = [tiny_artifact, tiny_artifact, *SHORT, "--threads", "1", "--json", path]
    assert main.main(["bench", *map(str, arguments)]) == 0
    models = json.loads(path.read_text())["models"].values()
    assert [model["stream_bytes_per_second"] for model in models] == [1e12, None]


def test_profile_shows_parts_and_functions(capsys, tiny_artifact, tmp_path):
    path = tmp_path / "r.json"
    arguments = [tiny_artifact, *SHORT, "--no-bandwidth", "--profile", "--json", path]
    assert main.main(["bench", *map(str, arguments)]) == 0
    out = capsys.readouterr().out
    for title in ("prefill of 8", "decode at 8"):
        assert f"{tiny_artifact}, {title}: " in out
    profile = json.loads(path.read_text())["profile"]
    for phase in ("prefill", "decode"):
        assert sum(profile[phase]["parts"].values()) == pytest.approx(profile[phase]["step_seconds"])
        calls = {function["name"]: function["calls"] for function in profile[phase]["functions"]}
        assert (calls["remember"], calls["score"]) == (1, 1)
    for part in ("linears", "attention", "other kernels", "virtual machine"):
        assert sum(line.startswith(part) for line in out.splitlines()) == 2


def test_a_share_below_nothing_is_shown_as_nothing_with_a_note():
    profile = Profile(
        1.0,
        (FunctionTime("product", "linears", 2, 1.5, 8), FunctionTime("vm.x", "virtual machine", 1, -1e-3, 0)),
        {},
        0.25,
        1e-7,
        3,
    )
    assert profile.to_json()["parts"]["virtual machine"] == -0.5
    console = Console(width=120, file=io.StringIO())
    console.print(profile_table(profile))
    out = console.file.getvalue()
    assert re.search(r"^virtual machine +0\.000 +0\.0% +1 +0\.0 *$", out, re.MULTILINE)
    assert "-" not in out
    assert "The virtual machine's share is shown as 0" in out


def test_a_compiler_that_is_missing_is_said(capsys, tiny_artifact, monkeypatch):
    def missing(threads, progress):
        raise ImportError("No module named 'tvm'")

    monkeypatch.setattr(bandwidth, "stream_bandwidth", missing)
    assert main.main(["bench", str(tiny_artifact), *SHORT]) == 0
    out, err = capsys.readouterr()
    assert len(rows(out)) == 4
    assert "memory bandwidth is not measured, because TVM's compiler can't be loaded" in err


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("no kernel"), "RuntimeError: no kernel"),
        (TargetError("no such CPU"), "TargetError: no such CPU"),
        (MemoryError("128 MB"), "MemoryError: 128 MB"),
    ],
)
def test_a_bandwidth_that_cannot_be_measured_costs_nothing_else(capsys, tiny_artifact, monkeypatch, error, reason):
    def fails(threads, progress):
        raise error

    monkeypatch.setattr(bandwidth, "stream_bandwidth", fails)
    assert main.main(["bench", str(tiny_artifact), *SHORT]) == 0
    out, err = capsys.readouterr()
    assert len(rows(out)) == 4
    assert f"memory bandwidth is not measured: {reason}" in err


@pytest.mark.parametrize("lengths", ["", "8,", "eight", "8;9"])
def test_lengths_that_are_no_numbers(capsys, tiny_artifact, lengths):
    with pytest.raises(SystemExit) as error:
        main.main(["bench", str(tiny_artifact), "--context", lengths])
    assert error.value.code == 2
    assert f"argument --context: found {lengths!r}, expected numbers with commas" in capsys.readouterr().err
