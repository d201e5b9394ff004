"""One session with a device server, in a process that can be killed when a call hangs."""

import json
from pathlib import Path
from typing import Any

from .tracker import request_session

# What `serve` registers.
INFO, PREPARE, MEASURE = (f"hwpq.tuning.{name}" for name in ("info", "prepare", "measure"))
# What every server of TVM's has.
_UPLOAD = "tvm.rpc.server.upload"

_session: Any = None
# Names there of files that were sent, by their paths here.
_sent: dict[str, str] = {}


def open_session(host: str, port: int, key: str, seconds: float, target: str) -> str:
    """Wait for a device of a tracker.

    Parameters
    ----------
    host, port, key
        Of the tracker, and what the device is registered under.
    seconds
        After which its server ends the session, whatever has become of this process.
    target
        JSON of the target that kernels are built for.

    Returns
    -------
    JSON: the device's `DeviceInfo` under "info", or under "error" why it doesn't run what is built for the target.
    """
    global _session
    _sent.clear()
    _session = request_session(host, port, key, seconds)
    return str(_session[INFO](target))


def close_session() -> None:
    """Let go of the device."""
    global _session
    _session = None


def prepare(workload: str, conditions: str) -> str:
    """Let the device make the inputs of a workload; why it can't, or nothing."""
    return str(_session[PREPARE](_workload_there(workload), conditions))


def measure(libraries: str, workload: str, conditions: str) -> str:
    """Let the device measure libraries of this machine, as `measure.measure` does."""
    there = json.dumps([_send(library) for library in json.loads(libraries)])
    return str(_session[MEASURE](there, _workload_there(workload), conditions))


def _workload_there(workload: str) -> str:
    fields = json.loads(workload)
    if "reference" in fields:
        fields["reference"] = _send(fields["reference"])
    return json.dumps(fields)


def _send(path: str) -> str:
    """Send a file, unless the device has it; its name there."""
    if path not in _sent:
        name = f"{len(_sent)}-{Path(path).name}"
        _session[_UPLOAD](name, Path(path).read_bytes())
        _sent[path] = name
    return _sent[path]
