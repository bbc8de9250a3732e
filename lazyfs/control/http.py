"""The page that Prometheus reads: HTTP, as much of it as a scrape needs, in the daemon's own loop.

Promises that a client which is silent, slow or talks nonsense costs a place among MAX_CLIENTS for DEADLINE_S and no
more, and that the port is free again when the block ends. Nothing can be changed through it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import trio

from lazyfs.core.errors import StartupError

MAX_CLIENTS = 8
"""Served at a time; more are hung up on, and come again at the next scrape."""
MAX_HEAD = 16 * 1024
DEADLINE_S = 10.0
"""For the whole conversation: Prometheus itself gives up after 10 s."""
_TEXT = "text/plain; charset=utf-8"

Tell: TypeAlias = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
"""`Mount.status`."""

log = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def served_metrics(address: str, port: int | None, status: Tell) -> AsyncIterator[str | None]:
    """Answer scrapes until the block ends; the URL of the page. Nothing at all, and None, where `port` is None.

    Raises StartupError if the port cannot be had.
    """
    if port is None:
        yield None
        return
    listeners = await _listen(address, port)
    host, number = listeners[0].socket.getsockname()[:2]
    url = f"http://[{host}]:{number}/metrics" if ":" in host else f"http://{host}:{number}/metrics"
    places = trio.CapacityLimiter(MAX_CLIENTS)

    async def serve(stream: trio.SocketStream) -> None:
        try:
            places.acquire_on_behalf_of_nowait(stream)
        except trio.WouldBlock:
            return await stream.aclose()
        try:
            await _converse(stream, status)
        finally:
            places.release_on_behalf_of(stream)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        log.info("metrics are at %s", url)
        yield url
        nursery.cancel_scope.cancel()


async def _listen(address: str, port: int) -> list[trio.SocketListener]:
    try:
        return await trio.open_tcp_listeners(port, host=address)
    except OSError as error:
        reason = error.strerror or str(error)
        raise StartupError(f"cannot serve metrics on {address} port {port}: {reason}") from error


async def _converse(stream: trio.SocketStream, status: Tell) -> None:
    try:
        with trio.move_on_after(DEADLINE_S):
            async with stream:
                head = await _read_head(stream)
                if head:
                    await stream.send_all(await _answer(head, status))
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # the client went away
    except Exception:
        log.exception("a scrape failed")  # whatever it was, the mount must not feel it


async def _read_head(stream: trio.SocketStream) -> bytes:
    """The request up to its empty line; empty if there is none."""
    head = bytearray()
    while b"\r\n\r\n" not in head:
        received = await stream.receive_some(4096)
        head += received
        if not received or len(head) > MAX_HEAD:
            return b""
    return bytes(head)


async def _answer(head: bytes, status: Tell) -> bytes:
    method, _, rest = head.partition(b"\r\n")[0].partition(b" ")
    path = rest.partition(b" ")[0].partition(b"?")[0]
    if method not in (b"GET", b"HEAD"):
        return _response("405 Method Not Allowed", _TEXT, b"only GET\n", method)
    if path == b"/":
        return _response("200 OK", _TEXT, b"lazyfs: see /metrics\n", method)
    if path != b"/metrics":
        return _response("404 Not Found", _TEXT, b"see /metrics\n", method)
    from lazyfs.control.metrics import CONTENT_TYPE, metrics_text  # noqa: PLC0415 - most mounts do without

    return _response("200 OK", CONTENT_TYPE, metrics_text(await status({})), method)


def _response(status: str, content_type: str, body: bytes, method: bytes) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode("ascii") + (b"" if method == b"HEAD" else body)
