"""The daemon's ear: a Unix socket on which the command line asks.

Only the daemon's own user and root are answered. A client that sends rubbish gets an error reply; one that sends too
much, or nothing for a while, is dropped; neither disturbs the mount. At most MAX_CLIENTS are served at a time, the
next ones wait in the socket's backlog.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import trio

from lazyfs.control.private import make_private_directory
from lazyfs.control.protocol import MAX_LINE, Request, decode_request, encode_error, encode_result
from lazyfs.core.errors import ControlError, LazyfsError, StartupError

MAX_CLIENTS = 16
BACKLOG = 128
"""Clients that may wait for their turn; a further one is refused by the kernel."""
IDLE_S = 60.0
"""A silent client gives its place back after this long."""
LAST_WORD_S = 1.0

Handler: TypeAlias = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]

log = logging.getLogger(__name__)


async def serve(
    path: Path,
    handlers: Mapping[str, Handler],
    *,
    idle_s: float = IDLE_S,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer on the socket `path` until cancelled, then remove it; started once clients can connect.

    A handler gets the request's args and returns the result; a LazyfsError becomes an error reply with its message.
    Raises StartupError if the socket cannot be made.
    """
    listening = _listen(path)
    ours = _inode(path)
    places = trio.Semaphore(MAX_CLIENTS)
    try:
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
        async with listener, trio.open_nursery() as nursery:
            task_status.started()
            while True:
                await places.acquire()
                stream = await _accept(listener)
                nursery.start_soon(_serve_client, stream, handlers, idle_s, places)
    finally:
        if _inode(path) == ours:  # else the next daemon of this mount point listens there already
            path.unlink(missing_ok=True)  # noqa: ASYNC240 - one call, on tmpfs


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _listen(path: Path) -> socket.socket:
    """A listening socket with mode 0600 in a directory with mode 0700, in place of a dead one."""
    make_private_directory(path.parent)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        listening.bind(str(path))
        path.chmod(0o600)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise StartupError(f"cannot make the control socket {path}: {error}") from error
    return listening


async def _accept(listener: trio.SocketListener) -> trio.SocketStream:
    """The next client. Out of descriptors, it waits instead of failing the mount."""
    while True:
        try:
            return await listener.accept()
        except OSError as error:
            log.warning("cannot accept a control client: %s", error)
            await trio.sleep(1)


async def _serve_client(
    stream: trio.SocketStream, handlers: Mapping[str, Handler], idle_s: float, places: trio.Semaphore
) -> None:
    try:
        async with stream:
            if _is_allowed(stream):
                await _converse(stream, handlers, idle_s)
            else:
                await _hang_up(stream, "only the user who mounted, or root, may ask")
    except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
        pass  # the client went away, or to sleep
    finally:
        places.release()


def _is_allowed(stream: trio.SocketStream) -> bool:
    """Whether the kernel says that the other end is root or the daemon's own user."""
    credentials = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _pid, uid, _gid = struct.unpack("3i", credentials)
    return uid in (0, os.geteuid())


async def _hang_up(stream: trio.SocketStream, message: str) -> None:
    """Say why, and give the client a moment to read it: closing with its words unread would reset the connection."""
    with trio.move_on_after(LAST_WORD_S):
        await stream.send_all(encode_error(message))
        await stream.send_eof()
        while await stream.receive_some(64 * 1024):
            pass


async def _converse(stream: trio.SocketStream, handlers: Mapping[str, Handler], idle_s: float) -> None:
    buffer = bytearray()
    while True:
        end = buffer.find(b"\n")
        if end < 0:
            if len(buffer) > MAX_LINE:
                return await _hang_up(stream, f"a request may have {MAX_LINE} bytes")
            with trio.fail_after(idle_s):
                received = await stream.receive_some(64 * 1024)
            if not received:
                return None
            buffer += received
            continue
        line = bytes(buffer[:end])
        del buffer[: end + 1]
        reply = await _answer(line, handlers)
        with trio.fail_after(idle_s):
            await stream.send_all(reply)


async def _answer(line: bytes, handlers: Mapping[str, Handler]) -> bytes:
    """The reply to one line, whatever it holds and whatever its handler does."""
    try:
        request = decode_request(line)
        return encode_result(await _handle(request, handlers))
    except LazyfsError as error:
        return encode_error(str(error))
    except Exception:
        log.exception("a control request failed")
        return encode_error("internal error; the mount's log has it")


async def _handle(request: Request, handlers: Mapping[str, Handler]) -> dict[str, Any]:
    handler = handlers.get(request.verb)
    if handler is None:
        raise ControlError(f"this daemon does not know {request.verb!r}")
    return await handler(dict(request.args))
