"""A tracker and device servers on this machine, among them one that dies and one that hangs."""

import functools
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import cloudpickle
import tvm_ffi
from tvm import rpc
from tvm.rpc.tracker import Tracker

from hwpq_tvm.tuning.rpc_session import MEASURE, PREPARE
from hwpq_tvm.tuning.serve import register

HOST = "127.0.0.1"
# What a server does when it is to measure.
BEHAVIOURS = ("good", "dies", "hangs")

# Servers get what is in here rather than import it.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@contextmanager
def tracker() -> Iterator[int]:
    """A tracker on loopback; yields its port."""
    started = Tracker(HOST, 19190, 19290, silent=True)
    try:
        yield started.port
    finally:
        started.terminate()


@contextmanager
def servers(port: int, key: str, folder: Path) -> Iterator[None]:
    """One server of each behaviour; none of them prepares anything before each has been asked to."""

    def start(behaviour: str) -> rpc.Server:
        register_so = functools.partial(register_behaviour, behaviour, str(folder))
        tracker_address = (HOST, port)
        return rpc.Server(
            HOST,
            19300,
            19400,
            tracker_addr=tracker_address,
            key=key,
            custom_addr=HOST,
            silent=True,
            server_init_callback=register_so,
        )

    # Each takes seconds to import TVM.
    with mock.patch.dict(os.environ, PYTHONSAFEPATH="1"), ThreadPoolExecutor() as threads:
        started = list(threads.map(start, BEHAVIOURS))
    try:
        yield
    finally:
        for server in started:
            server.terminate()


def register_behaviour(behaviour: str, folder: str) -> None:
    """Register what a server has to have, and how it behaves."""
    register()
    for name, function in ((PREPARE, _prepare), (MEASURE, _measure)):
        so = functools.partial(function, behaviour, Path(folder), tvm_ffi.get_global_func(name))
        tvm_ffi.register_global_func(name, so, override=True)


def _prepare(behaviour: str, folder: Path, prepare: Callable[..., str], *arguments: str) -> str:
    (folder / behaviour).touch()
    deadline = time.monotonic() + 60
    while len(list(folder.iterdir())) < len(BEHAVIOURS) and time.monotonic() < deadline:
        time.sleep(0.02)
    return prepare(*arguments)


def _measure(behaviour: str, folder: Path, measure: Callable[..., str], *arguments: str) -> str:
    with (folder / behaviour).open("a") as file:
        file.write("asked\n")
    if behaviour == "dies":
        os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour == "hangs":
        time.sleep(1000)
    return measure(*arguments)


def asked(folder: Path, behaviour: str) -> int:
    """How often a server was asked to measure."""
    file = folder / behaviour
    return len(file.read_text().split()) if file.exists() else 0
