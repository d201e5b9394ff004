"""Progress bars on stderr, and none where stderr is no terminal."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Item = TypeVar("Item")


@contextmanager
def bar(label: str, total: int, enabled: bool) -> "Iterator[Progress]":
    """A progress bar of one task, with id 0, of `total` steps."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(
        *columns,
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        refresh_per_second=2,  # a redraw takes time from what is being timed
        disable=not (enabled and sys.stderr.isatty()),
    ) as progress:
        progress.add_task(label, total=total)
        yield progress


def track(items: Iterable[Item], label: str, enabled: bool) -> Iterator[Item]:
    """Yield `items` while a bar shows how many are done."""
    items = list(items)
    with bar(label, len(items), enabled) as progress:
        for item in items:
            yield item
            progress.advance(progress.task_ids[0])
