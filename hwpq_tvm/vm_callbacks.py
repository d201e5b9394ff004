"""Python functions that a running virtual machine calls, and what they raise."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Function = Callable[..., Any]


@contextmanager
def own_errors() -> Iterator[Callable[[Function], Function]]:
    """Let what a callback raises reach the caller as what it is.

    The virtual machine hands every exception of a callback on as a RuntimeError, an interruption by the user too.

    Yields
    ------
    What to wrap a callback in. Inside the ``with`` block a RuntimeError becomes the first exception of a wrapped one.
    """
    failures: list[BaseException] = []

    def noting(function: Function) -> Function:
        def call(*args: Any) -> Any:
            try:
                return function(*args)
            except BaseException as error:
                failures.append(error)
                raise

        return call

    try:
        yield noting
    except RuntimeError as error:
        raise (failures[0] if failures else error) from None
