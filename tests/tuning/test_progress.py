"""What a job shows while it runs."""

import io
from types import SimpleNamespace

from rich.console import Console

from hwpq_tvm.tuning.budget import Budget
from hwpq_tvm.tuning.progress import LiveDisplay, picture


def state(label: str, seconds: float | None, gain: float | None):
    task = SimpleNamespace(workload=SimpleNamespace(label=label))
    return SimpleNamespace(task=task, trials=7, seconds=seconds, gain=gain)


def text(shown) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(shown)
    return console.file.getvalue()


def test_the_picture_names_phase_trials_time_and_tasks() -> None:
    budget = Budget(64)
    budget.spent = 16
    shown = text(picture("search", [state("sparse 4 x 8 x 64", 12.34e-6, 1.5), state("other", None, None)], budget))
    assert "search: 16 of 64 trials" in shown
    assert "left" in shown
    (line,) = (line for line in shown.splitlines() if line.startswith("sparse"))
    assert line.split()[-3:] == ["7", "12.3", "1.50x"]
    assert "Ctrl-C" not in shown
    budget.interrupted = True
    assert "ending after the trials under way" in text(picture("search", [], budget))


def test_nothing_is_shown_where_there_is_no_terminal(capfd) -> None:
    with LiveDisplay(True) as display:
        display.show("search", state("a", 1e-6, 1.0), Budget(4))
    assert capfd.readouterr() == ("", "")


def test_a_terminal_sees_the_latest_tasks_first(monkeypatch, capfd) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr("hwpq_tvm.tuning.progress._PERIOD", 0.0)
    with LiveDisplay(True) as display:
        for label in ("first", "second"):
            display.show("search", state(label, 1e-6, 1.0), Budget(4))
    shown = capfd.readouterr().err
    assert shown.rindex("second") < shown.rindex("first")
    with LiveDisplay(False) as display:
        display.show("search", state("a", 1e-6, 1.0), Budget(4))
    assert capfd.readouterr().err == ""
