"""`hwpq tune`: options become one call of the job, the server or the merge."""

import inspect
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.table import Table

from hwpq_tvm.cli import main
from hwpq_tvm.config import HWPQConfig, LayerScheme
from hwpq_tvm.errors import TargetError
from hwpq_tvm.tuning.merge import Merged
from hwpq_tvm.tuning.report import TuningError

REPORT = SimpleNamespace(table=lambda: Table("task"), lines=lambda: ["gain over the defaults: 1.2x"], to_json=dict)


@pytest.fixture
def calls(monkeypatch):
    """Calls of `tune`, `serve` and `merge`, which do nothing."""
    found = []

    def record(name, result=None):
        def call(*arguments, **options):
            found.append((name, arguments, options))
            return result

        return call

    stubs = {
        "autotune": SimpleNamespace(tune=record("tune", REPORT)),
        "serve": SimpleNamespace(serve=record("serve")),
        "merge": SimpleNamespace(merge=record("merge", [Merged(Path("x86"), 2, 5, 30, 4, 1, 0)])),
    }
    for name, stub in stubs.items():
        monkeypatch.setitem(sys.modules, f"hwpq_tvm.tuning.{name}", stub)
    return found


def run(*arguments) -> int:
    return main.main(["tune", *map(str, arguments)])


def test_a_model_with_what_is_left_out_as_in_python(calls, capsys, tmp_path) -> None:
    assert run("model", "--work-dir", tmp_path) == 0
    ((name, arguments, options),) = calls
    assert (name, arguments) == ("tune", ("model", "cpu"))
    assert 0 <= time.monotonic() - options.pop("started") < 60
    assert options == {
        "config": HWPQConfig(),
        "trials": 256,
        "device": "local",
        "work_dir": tmp_path,
        "resume": False,
        "minutes": None,
        "predict": False,
        "shapes": None,
        "rivals": True,
        "threads": None,
        "max_seq_len": 2048,
        "progress": True,
    }
    assert "gain over the defaults: 1.2x" in capsys.readouterr().out


def test_every_option_has_its_place(calls, tmp_path) -> None:
    words = (
        "--target cpu:aarch64 --trials 9 --minutes 2.5 --resume --shape 576x1536 --shape 8x64 --no-rivals --threads 3"
    )
    words += " --rpc 10.0.0.7:9190 --key pi5 --max-seq-len 64 --sparsity auto --dtype int4 --quiet"
    assert run("--work-dir", tmp_path, "--json", tmp_path / "r.json", *words.split()) == 0
    ((_, arguments, options),) = calls
    assert arguments == (None, "cpu:aarch64")
    assert options["shapes"] == [(576, 1536), (8, 64)]
    assert options["device"] == "rpc://10.0.0.7:9190/pi5"
    assert options["config"].default == LayerScheme(sparsity="auto", dtype="int4")
    assert (options["trials"], options["minutes"], options["threads"], options["max_seq_len"]) == (9, 2.5, 3, 64)
    assert options["resume"] and not options["rivals"] and not options["progress"]
    assert json.loads((tmp_path / "r.json").read_text()) == {}


def test_a_job_that_ended_early_shows_what_it_did(calls, capsys, monkeypatch, tmp_path) -> None:
    def tune(*arguments, **options):
        raise TuningError("no device answers.", REPORT) from TargetError("no device answers.")

    monkeypatch.setattr(sys.modules["hwpq_tvm.tuning.autotune"], "tune", tune)
    assert run("model", "--work-dir", tmp_path, "--json", tmp_path / "r.json") == main.USER_ERROR
    shown = capsys.readouterr()
    assert "gain over the defaults: 1.2x" in shown.out
    assert shown.err == "hwpq: error: no device answers.\n"
    assert json.loads((tmp_path / "r.json").read_text()) == {}


def test_a_server(calls) -> None:
    assert run("--serve", "--rpc", "127.0.0.1:9190", "--key", "pi5", "--host", "10.0.0.8", "--public") == 0
    assert calls == [("serve", ("127.0.0.1", 9190, "pi5"), {"host": "10.0.0.8", "public": True})]


def test_merging(calls, capsys, tmp_path) -> None:
    assert run("--merge", "a", "b", "--out", tmp_path, "--best-only", "--json", tmp_path / "r.json") == 0
    (database,) = json.loads((tmp_path / "r.json").read_text())["databases"]
    assert (database["folder"], database["records"], database["dropped"]) == ("x86", 30, 1)
    assert calls == [("merge", ([Path("a"), Path("b")], tmp_path), {"best_only": True})]
    assert capsys.readouterr().out == (
        "x86: 30 records of 5 kernels out of 2 databases; "
        "left out: 4 duplicates, 1 that are not the best, 0 damaged lines\n"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("model", "--work-dir is missing"),
        ("model --work-dir w --rpc 1.2.3.4:9190", "--rpc HOST:PORT and --key KEY go together"),
        ("model --work-dir w --key pi", "--rpc HOST:PORT and --key KEY go together"),
        ("model --work-dir w --key pi --rpc host", "expected HOST:PORT"),
        ("--work-dir w --shape 3", "--shape 3: expected NxK"),
        ("--work-dir w --shape 0x8", "expected NxK"),
        ("model --work-dir w --key pi --rpc host:99999", "expected HOST:PORT"),
        ("model --work-dir w --out x", "--out can't be given with a job"),
        ("model --work-dir w --public --host 10.0.0.8", "--host, --public can't be given with a job"),
        ("--merge a", "--out is missing"),
        ("model --merge a --out b --rpc 1.2.3.4:9190", "MODEL, --rpc can't be given with --merge"),
        ("model --serve --work-dir w --rpc 1.2.3.4:9190 --key k", "MODEL, --work-dir can't be given with --serve"),
        ("--serve --rpc 1.2.3.4:9190 --key k --json r.json", "--json can't be given with --serve"),
        ("--serve", "--rpc HOST:PORT and --key KEY go together"),
        ("model --work-dir w --config c.json --dtype int8", "--config and --preset exclude --dtype"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(calls, capsys, words, message) -> None:
    assert run(*words.split()) == main.USER_ERROR
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert calls == []


def test_the_job_the_server_and_the_merge_take_what_they_are_given(calls, tmp_path) -> None:
    run("model", "--work-dir", tmp_path)
    run("--serve", "--rpc", "127.0.0.1:9190", "--key", "pi5")
    run("--merge", "a", "--out", tmp_path)
    for name in ("autotune", "serve", "merge"):
        del sys.modules[f"hwpq_tvm.tuning.{name}"]
    from hwpq_tvm.tuning.autotune import tune
    from hwpq_tvm.tuning.merge import merge
    from hwpq_tvm.tuning.serve import serve

    for (_, arguments, options), function in zip(calls, (tune, serve, merge), strict=True):
        inspect.signature(function).bind(*arguments, **options)
