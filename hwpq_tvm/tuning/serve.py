"""A device server: offers this machine to the tuning jobs of a tracker, by TVM's RPC."""

import ipaddress
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from ..errors import ConfigError, DependencyError, HwpqError
from .conditions import write_measurements
from .measuring_process import MeasuringProcess
from .rpc_session import INFO, MEASURE, PREPARE
from .tracker import tracker_keys

# Ports that a server takes the first free one of.
FIRST_PORT, LAST_PORT = 9090, 9189
# Seconds between two looks whether a process is still there.
_GLANCE = 0.5


def serve(tracker_host: str, tracker_port: int, key: str, *, host: str = "127.0.0.1", public: bool = False) -> None:
    """Measure for the jobs of a tracker until Ctrl-C or SIGTERM; one session at a time.

    Parameters
    ----------
    tracker_host, tracker_port
        Of the tracker (`python -m tvm.exec.rpc_tracker`).
    key
        Name of this kind of device, which jobs ask for.
    host
        Address of this machine that the server listens at; jobs reach it there.
    public
        Whether the address may be another than this machine's own (loopback).

    Raises
    ------
    ConfigError
        When the address is not loopback and `public` is not set, this machine can't listen there, or no tracker
        answers.
    DependencyError
        When a package that TVM's RPC needs is missing.
    """
    check_address(host, public=public)
    if not key or any(character.isspace() or character in ":/" for character in key):
        raise ConfigError(f"key {key!r}: expected a name without spaces, colons and slashes.")
    try:
        import cloudpickle as cloudpickle
        import psutil as psutil
        from tvm import rpc as rpc
    except ImportError as error:
        raise DependencyError(f"{error.name} is not installed. Run: pip install 'hwpq-tvm[tune]'") from error
    tracker_keys(tracker_host, tracker_port)
    try:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        while True:
            _serve_once((tracker_host, tracker_port), key, host)
            print("the server has ended by itself, another one starts", file=sys.stderr)
    except KeyboardInterrupt:
        print("the server ends", file=sys.stderr)


def _serve_once(tracker: tuple[str, int], key: str, host: str) -> None:
    """Run a server as long as it lives."""
    from tvm import rpc

    everywhere = ipaddress.ip_address(_numeric(host)).is_unspecified
    # Its process must not find modules in the current folder, which may hold sources that lack what is installed.
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        server = rpc.Server(
            host,
            FIRST_PORT,
            LAST_PORT,
            tracker_addr=tracker,
            key=key,
            # Jobs are told where they reach this machine; where it listens everywhere, the tracker sees that itself.
            custom_addr=None if everywhere else host,
            silent=True,
            server_init_callback=register,
        )
    except (OSError, ValueError) as error:  # with the text of a traceback
        why = str(error).strip().rpartition("\n")[2]
        raise ConfigError(f"no server can listen at {host}: {why}. Give --host an address of this machine.") from error
    print(f"serving as {key!r} at {host}:{server.port} for the tracker {tracker[0]}:{tracker[1]}", file=sys.stderr)
    try:
        while server.proc.is_alive():
            time.sleep(_GLANCE)
    finally:
        server.terminate()


def check_address(host: str, *, public: bool) -> None:
    """Refuse to listen where others reach this machine, unless that was asked for.

    Raises
    ------
    ConfigError
        When the address is not loopback and `public` is not set, or is none.
    """
    try:
        loopback = ipaddress.ip_address(_numeric(host)).is_loopback
    except ValueError:
        raise ConfigError(f"host {host!r}: expected an IP address of this machine, such as 127.0.0.1.") from None
    if not loopback and not public:
        raise ConfigError(
            f"a server at {host} can be reached from other machines, and TVM's RPC asks nobody for a password: whoever "
            "connects may run any code and write any file here. Use --host 127.0.0.1 and an ssh tunnel, or, in a "
            "network where everybody is trusted, add --public."
        )


def register() -> None:
    """Register what jobs call (runs in the server's process, whose sessions are its forks)."""
    import tvm_ffi

    for name, function in ((INFO, _info), (PREPARE, _prepare), (MEASURE, _measure)):
        tvm_ffi.register_global_func(name, function, override=True)
    multiprocessing.set_start_method("fork", force=True)  # sessions have what is registered here
    _end_with_parent(_deaf)


def _deaf() -> bool:
    """Whether the thread that accepts sessions has ended, as it does when one crashes: TVM's process goes on then."""
    from tvm.rpc.server import PopenRPCServerState

    state = PopenRPCServerState.current  # None before it has started
    return state is not None and not state.thread.is_alive()


def _numeric(host: str) -> str:
    return "127.0.0.1" if host == "localhost" else host


# Of the session that this process serves.
_process: MeasuringProcess | None = None


def _session_process() -> MeasuringProcess:
    global _process
    if _process is None:
        _end_with_parent()
        _process = MeasuringProcess()
    return _process


def _end_with_parent(useless: Callable[[], bool] = lambda: False) -> None:
    """End this process when its parent has, or it is of no use: TVM's server goes on without who started it."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent and not useless():
            time.sleep(_GLANCE)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def _info(target: str) -> str:
    from tvm.target import Target

    from .device_info import this_device

    try:
        return json.dumps({"info": this_device(Target(json.loads(target))).to_json()})
    except HwpqError as error:
        return json.dumps({"error": str(error)})


def _prepare(workload: str, conditions: str) -> str:
    return _session_process().prepare(_here(workload), conditions)


def _measure(libraries: str, workload: str, conditions: str) -> str:
    paths = [os.path.abspath(name) for name in json.loads(libraries)]
    return write_measurements(_session_process().measure(paths, _here(workload), conditions))


def _here(workload: str) -> str:
    """A workload whose reference was sent: files lie in the folder of the session, where this process is."""
    fields: dict[str, Any] = json.loads(workload)
    if "reference" in fields:
        fields["reference"] = os.path.abspath(fields["reference"])
    return json.dumps(fields)
