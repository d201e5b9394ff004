"""A process of its own that calls functions one after the other, and may crash or be killed.

It is started from a fresh interpreter rather than forked: TVM's threads don't survive a fork, and what a user's script
does at its top must not run again. It finds modules where this process does, and not in the folder that it is started
in, which may hold sources that lack what is installed.
"""

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from ..errors import HwpqError

# Of what a process that died had written to stderr, this much is told.
_LAST_WORDS = 400
# Seconds for an idle process to end by itself.
_GRACE = 2.0
# Takes a file descriptor and the entries of `sys.path`.
_PROGRAM = f"import sys; sys.path[:] = sys.argv[2:]; from {__name__} import serve; serve(int(sys.argv[1]))"


class WorkerError(HwpqError):
    """A call in another process failed."""


class WorkerRaisedError(WorkerError):
    """The function raised an exception."""


class WorkerDiedError(WorkerError):
    """The process ended in the middle of a call."""


class WorkerKilledError(WorkerDiedError):
    """The process was killed by somebody else: the system does so when memory is short."""


class WorkerTimeoutError(WorkerError):
    """The call took too long; the process was killed."""


class Worker:
    """A process that calls functions; started by the first call, and again by the first after its end.

    Parameters
    ----------
    environment
        Variables for it beside this process's own.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._words: Any = None
        self._deadline = 0.0

    def call(self, function: Callable[..., Any], *arguments: Any, timeout_s: float) -> Any:
        """Call a function there and wait for it.

        Parameters
        ----------
        function
            Of a module that the process can import; arguments and result can be pickled.
        timeout_s
            Seconds after which the process is killed.

        Raises
        ------
        WorkerError
            Of the kind that says what happened.
        """
        self.start(function, *arguments, timeout_s=timeout_s)
        return self.result()

    def start(self, function: Callable[..., Any], *arguments: Any, timeout_s: float) -> None:
        """Start a call; `result` waits for it."""
        if self._process is None:
            self._open()
        assert self._connection is not None
        self._deadline = time.monotonic() + timeout_s
        # A process that has died since then is found by `result`.
        with contextlib.suppress(OSError):
            self._connection.send((function, arguments))

    def result(self) -> Any:
        """Wait for the call that was started, as `call` does."""
        assert self._connection is not None
        try:
            if not self._connection.poll(max(self.seconds_left, 0.0)):
                self.kill()
                raise WorkerTimeoutError("it took too long and was stopped")
            try:
                good, value = self._connection.recv()
            except (EOFError, OSError) as error:
                raise self._death() from error
        except BaseException:  # an interrupted call leaves a process that nobody waits for
            self.kill()
            raise
        if not good:
            raise WorkerRaisedError(value)
        return value

    @property
    def seconds_left(self) -> float:
        """Seconds that the call that was started may still take."""
        return self._deadline - time.monotonic()

    @property
    def connection(self) -> Connection:
        """What becomes readable when the call that was started ends (`multiprocessing.connection.wait`)."""
        assert self._connection is not None
        return self._connection

    def kill(self) -> None:
        """End the process, whatever it does."""
        self._end(0.0)

    def close(self) -> None:
        """End the process, which is idle."""
        self._end(_GRACE)

    def _open(self) -> None:
        ours, theirs = Pipe()
        self._words = tempfile.TemporaryFile()  # noqa: SIM115 (`_end` closes it)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM, str(theirs.fileno()), *sys.path],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._words,
                env=self._environment,
                start_new_session=True,  # Ctrl-C is for this process, which ends the others when it has to
            )
        self._connection = ours

    def _end(self, grace: float) -> None:
        if self._process is None:
            return
        assert self._connection is not None
        self._connection.close()
        if grace:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(grace)
        self._process.kill()
        self._process.wait()
        self._words.close()
        self._process = self._connection = None

    def _death(self) -> WorkerDiedError:
        """How the process ended."""
        assert self._process is not None
        code = self._process.wait()
        self._words.seek(0)
        words = self._words.read().decode(errors="replace").strip()[-_LAST_WORDS:]
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        kind = WorkerKilledError if code == -signal.SIGKILL else WorkerDiedError
        return kind(f"the process ended with {how}" + (f": {words}" if words else ""))


def serve(descriptor: int) -> None:
    """Do what is asked over a pipe, until the other side closes or dies: then at once, even in the middle of a call."""
    connection = Connection(descriptor)
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def receive() -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                requests.put(connection.recv_bytes())
        os._exit(0)

    threading.Thread(target=receive, daemon=True).start()
    while True:
        connection.send(_answer(requests.get()))


def _answer(request: bytes) -> tuple[bool, Any]:
    try:
        function, arguments = pickle.loads(request)
        return True, function(*arguments)
    except Exception as error:
        return False, f"{type(error).__name__}: {error}"
