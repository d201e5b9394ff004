"""The report: figures that follow from the trials, as JSON, table and picture."""

import json
import sys

import pytest
from rich.console import Console

from hwpq_tvm.errors import ConfigError
from hwpq_tvm.tuning.picture import draw
from hwpq_tvm.tuning.report import TaskReport, TuningReport, load_of

from .databases import INFO


def task(label="sparse24_int8 4 x 8 x 64", **changes) -> TaskReport:
    fields = {
        "label": label,
        "weight_format": label.split()[0],
        "tokens": 4,
        "layers": ("a", "b", "c"),
        "calls": 0.25,
        "rival_of": None,
        "trials": 3,
        "space": 9,
        "default_us": 20.0,
        "best_us": 10.0,
        "gain": 2.0,
        "evidence": "confirmed",
        "spread": 0.03,
        "parameters": "GemvParameters(streams=1)",
        "failures": {"wrong": 1},
        "errors": {"wrong": "off by one"},
        "curve_us": (None, 20.0, 10.0),
    }
    return TaskReport(**{**fields, **changes})


def report(tmp_path, *tasks: TaskReport, **changes) -> TuningReport:
    fields = {
        "device": INFO,
        "folder": tmp_path / "db",
        "tasks": tasks,
        "trials": 6,
        "seconds": 12.0,
        "first_trial_seconds": 3.25,
        "load": load_of([0.1, 0.5, 0.2], [0.0, 0.25]),
        "devices": ("here",),
    }
    return TuningReport(**{**fields, **changes})


DENSE = task("dense_int8 4 x 8 x 64", rival_of="sparse24_int8 4 x 8 x 64", best_us=9.5, default_us=9.5, gain=1.0)


def test_the_gain_is_a_geometric_mean(tmp_path) -> None:
    found = report(tmp_path, task(gain=2.0), task(gain=0.5 * 9), task(gain=None))
    assert found.gain == pytest.approx(3.0)
    assert report(tmp_path, task(gain=None)).gain is None


def test_where_2_4_did_not_pay_is_told_with_both_times(tmp_path) -> None:
    (line,) = report(tmp_path, task(), DENSE).without_gain
    assert line == "sparse24_int8 4 x 8 x 64: 10.0 us, dense 9.5 us (a, and 2 more)"
    assert report(tmp_path, task(best_us=9.4), DENSE).without_gain == []
    assert report(tmp_path, task(best_us=None), DENSE).without_gain == []
    # The same where dense is planned and 2:4 is the rival.
    dense, sparse = task("dense_int8 4 x 8 x 64", best_us=9.5), task(rival_of="dense_int8 4 x 8 x 64")
    assert report(tmp_path, dense, sparse).without_gain == [line]


def test_lines_say_how_true_the_figures_are(tmp_path) -> None:
    unsure = task(evidence="measured", failures={"lost": 2}, errors={"lost": "it was\nunplugged"})
    notes = ("a line was torn",)
    lines = report(tmp_path, task(), DENSE, unsure, problem="no device answers", notes=notes).lines()
    text = "\n".join(lines)
    assert "trials: 6 in 12 s (0.50 a second), the first 3 s after the start" in text
    assert "gain over the defaults: 1.587x in geometric mean, 2 of 3 tasks confirmed" in text
    assert "load of the machine: median 0.20, most 0.50, median share of other programs 0.12" in text
    assert "failures: 2 wrong, the first in sparse24_int8 4 x 8 x 64: off by one" in text
    assert f"failures: 2 lost, the first in {unsure.label}: it was unplugged" in text
    assert "warning: other programs ran" in text
    assert "other programs ran" not in "\n".join(report(tmp_path, task(), load=load_of([0.1], [0.09])).lines())
    assert "warning: a line was torn" in text
    assert "warning: no device answers" in text
    assert f"--tuning-logs {tmp_path / 'db'}" in text


def test_predicted_figures_are_called_so(tmp_path) -> None:
    from dataclasses import replace

    found = report(tmp_path, task(evidence="predicted"), device=replace(INFO, measured=False), load={})
    assert "in geometric mean (predicted, not measured)" in "\n".join(found.lines())


def test_json_and_table_hold_every_task(tmp_path) -> None:
    found = report(tmp_path, task(), DENSE)
    assert found.write(tmp_path) == []
    value = json.loads((tmp_path / "report.json").read_text())
    assert [each["label"] for each in value["tasks"]] == [task().label, DENSE.label]
    assert value["tasks"][0]["errors"] == {"wrong": "off by one"}
    assert value["tasks"][0]["curve_us"] == [None, 20.0, 10.0]
    assert value["trials_per_second"] == 0.5
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(found.table())
    rows = {line.split("  ")[0]: line for line in console.export_text().splitlines()}
    assert "2.00x" in rows[task().label]
    assert "rival: a, and 2 more" in rows[DENSE.label]
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


def test_a_missing_matplotlib_is_told(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    (line,) = draw({"a": (1.0,)}, tmp_path / "x.png")
    assert "pip install 'hwpq-tvm[plots]'" in line
    monkeypatch.undo()
    assert "no task has a time" in draw({"a": (None,)}, tmp_path / "x.png")[0]
    assert not (tmp_path / "x.png").exists()


def test_a_folder_that_can_not_be_written_is_an_error_of_ours(tmp_path) -> None:
    with pytest.raises(ConfigError, match="the report can't be written"):
        report(tmp_path, task()).write(tmp_path / "absent")
