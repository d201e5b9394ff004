"""What a job asks TVM's RPC tracker: which devices there are, and for one of them.

TVM's own client does this too, but comes with the compiler, which takes seconds to import; the processes that drive
devices need only the runtime library. The protocol is that of `tvm/rpc/tracker.py`.
"""

import json
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import ConfigError
from ..runtime.tvm_runtime import runtime

_MAGIC = 0x2F271
_SUCCESS, _REQUEST, _SUMMARY = 0, 4, 6
# Seconds until a tracker that is there answers what it can answer at once.
_ANSWER_SECONDS = 5.0


def tracker_keys(host: str, port: int) -> list[str]:
    """List the keys that servers have registered under at a tracker, one for each server.

    Raises
    ------
    ConfigError
        When no tracker answers there.
    """
    try:
        with _tracker(host, port) as tracker:
            code, summary = _asked(tracker, [_SUMMARY])
            servers = [str(server["key"]) for server in summary["server_info"]]
            if code != _SUCCESS:
                raise ValueError(f"it answers with the code {code}")
    except (OSError, OverflowError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"no tracker answers at {host}:{port} ({error}). Start one there: python -m tvm.exec.rpc_tracker "
            f"--host {host} --port {port}"
        ) from error
    return [key.removeprefix("server:") for key in servers]


def request_session(host: str, port: int, key: str, seconds: float) -> Any:
    """Wait for a device and connect to it.

    Parameters
    ----------
    host, port
        Of the tracker.
    key
        What the device is registered under.
    seconds
        After which its server ends the session.

    Returns
    -------
    A module of TVM's that holds the functions of the server; the session ends when it is deleted.

    Raises
    ------
    OSError, ValueError, RuntimeError
        When the tracker or the device does not answer as it should.
    """
    with _tracker(host, port) as tracker:
        tracker.settimeout(None)
        code, found = _asked(tracker, [_REQUEST, key, "", 1])
    if code != _SUCCESS:
        raise ValueError(f"the tracker answers with the code {code}")
    address, device_port, match_key = found
    connect = runtime().get_global_func("rpc.Connect")
    return connect(address, device_port, f"{match_key} -timeout={seconds}", False)


@contextmanager
def _tracker(host: str, port: int) -> Iterator[socket.socket]:
    """Open a connection to a tracker."""
    with socket.create_connection((host, port), _ANSWER_SECONDS) as connection:
        connection.sendall(struct.pack("<i", _MAGIC))
        if struct.unpack("<i", _received(connection, 4))[0] != _MAGIC:
            raise ValueError("something else than a tracker")
        yield connection


def _asked(connection: socket.socket, question: list[Any]) -> Any:
    content = json.dumps(question).encode()
    connection.sendall(struct.pack("<i", len(content)) + content)
    (size,) = struct.unpack("<i", _received(connection, 4))
    return json.loads(_received(connection, size))


def _received(connection: socket.socket, size: int) -> bytes:
    content = b""
    while len(content) < size:
        piece = connection.recv(size - len(content))
        if not piece:
            raise OSError("it has closed the connection")
        content += piece
    return content
