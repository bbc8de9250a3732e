"""Asking a daemon, from a program that has no event loop. Standard library only: the command line starts fast."""

from __future__ import annotations

import contextlib
import socket
import time
from pathlib import Path
from typing import Any

from lazyfs.control.protocol import MAX_LINE, Request, decode_reply, encode_request
from lazyfs.core.errors import ControlError


def call(path: Path, verb: str, /, *, timeout_s: float = 10.0, **args: Any) -> dict[str, Any]:
    """The daemon's result for `verb`. Raises ControlError if it refuses, is not there, or takes longer."""
    deadline = time.monotonic() + timeout_s
    request = encode_request(Request(verb, args))
    try:
        with _connect(path, deadline) as connection:
            connection.sendall(request)
            return decode_reply(_read_line(connection, deadline))
    except TimeoutError as error:
        raise ControlError("the daemon does not answer in time") from error
    except OSError as error:
        raise ControlError(f"no daemon listens on {path}: {error.strerror or error}") from error


def wait_closed(path: Path, *, timeout_s: float) -> bool:
    """Whether the daemon at `path` stopped listening within `timeout_s`; at once if it does not listen now."""
    deadline = time.monotonic() + timeout_s
    try:
        while True:  # a connection also ends when the daemon is tired of a silent client
            with _connect(path, deadline) as connection:
                _wait_for_end(connection, deadline)
    except (FileNotFoundError, ConnectionRefusedError):
        return True
    except TimeoutError:
        return False
    except OSError as error:
        raise ControlError(f"cannot reach the daemon on {path}: {error.strerror or error}") from error


def _wait_for_end(connection: socket.socket, deadline: float) -> None:
    connection.settimeout(_left(deadline))
    with contextlib.suppress(ConnectionResetError):
        if connection.recv(1):
            raise ControlError("the daemon does not talk to this user")


def _connect(path: Path, deadline: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(_left(deadline))
        connection.connect(str(path))
    except OSError:
        connection.close()
        raise
    return connection


def _read_line(connection: socket.socket, deadline: float) -> bytes:
    line = bytearray()
    while not line.endswith(b"\n"):
        connection.settimeout(_left(deadline))
        received = connection.recv(64 * 1024)
        if not received:
            raise ControlError("the daemon closed the connection without an answer")
        line += received
        if len(line) > MAX_LINE:
            raise ControlError("the daemon's answer is too long")
    return bytes(line)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
