"""The picture of a job: the best latency over the trials of each task."""

from collections.abc import Mapping, Sequence
from pathlib import Path


def draw(curves: Mapping[str, Sequence[float | None]], path: Path) -> list[str]:
    """Draw the best time after each trial, by the first one, which is the default's.

    Parameters
    ----------
    curves
        Label of a task -> its best time after each trial; None before one succeeded.
    path
        File to write, in a format that its name says.

    Returns
    -------
    Why there is no picture, in a line; empty where there is one.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return ["no picture was drawn: matplotlib is missing; pip install 'hwpq-tvm[plots]'"]
    found = {
        label: (curve.index(times[0]), times)
        for label, curve in curves.items()
        if (times := [time for time in curve if time is not None])
    }
    if not found:
        return ["no picture was drawn: no task has a time"]
    figure = Figure(figsize=(11, max(5.0, 0.22 * len(found))), layout="constrained")
    axes = figure.subplots()
    for label, (first, times) in found.items():
        trials = range(first + 1, first + 1 + len(times))
        axes.step(trials, [time / times[0] for time in times], where="post", label=label, linewidth=1)
    axes.set_xscale("log")
    axes.set_xlabel("trials of the task")
    axes.set_ylabel("best time by the default's")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=6, ncols=1 + len(found) // 40, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, dpi=120)
    return []
