"""An HTTP proxy in front of a real S3 server: it counts what passes, and refuses, delays or breaks what a test names.

It is the independent witness of how many requests lazyfs sends. Requests go on unchanged, so signatures stay right.
"""

from __future__ import annotations

import contextlib
import http.client
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.servers import Server

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}
_TIMEOUT_S = 60


@dataclass(frozen=True)
class Seen:
    """One request as it passed."""

    method: str
    path: str
    query: dict[str, str]
    range: str | None

    @property
    def kind(self) -> str:
        """In lazyfs's own words: list, get, head, put, create_upload, upload_part, complete_upload …"""
        if self.method == "GET":
            return "list" if "list-type" in self.query else "get"
        if self.method == "PUT":
            return "upload_part" if "partNumber" in self.query else "put"
        if self.method == "POST":
            return "create_upload" if "uploads" in self.query else "complete_upload"
        return self.method.lower()


@dataclass
class Proxy:
    """`refuse` answers status and S3 code instead of asking the server; `hold` is waited for before asking it."""

    server: Server
    seen: list[Seen] = field(default_factory=list)
    refuse: Callable[[Seen], tuple[int, str] | None] = lambda _seen: None
    hold: Callable[[Seen], threading.Event | None] = lambda _seen: None

    def count(self, *kinds: str) -> int:
        """Requests of these kinds, or all."""
        return sum(not kinds or one.kind in kinds for one in list(self.seen))


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    proxy: Proxy
    target: str


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _TIMEOUT_S
    server: _Listener

    def _pass(self) -> None:
        address = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(address.query, keep_blank_values=True))
        seen = Seen(self.command, urllib.parse.unquote(address.path), query, self.headers.get("Range"))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        proxy = self.server.proxy
        proxy.seen.append(seen)
        event = proxy.hold(seen)
        if event is not None:
            event.wait(_TIMEOUT_S)
        refused = proxy.refuse(seen)
        if refused is not None:
            status, code = refused
            self._answer(status, {}, f"<Error><Code>{code}</Code><Message>refused</Message></Error>".encode())
        else:
            self._forward(body)

    def _forward(self, body: bytes) -> None:
        onward = http.client.HTTPConnection(self.server.target, timeout=_TIMEOUT_S)
        with contextlib.closing(onward):
            onward.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() != "expect":
                    onward.putheader(name, value)
            onward.endheaders(body or None)
            answer = onward.getresponse()
            self._answer(answer.status, dict(answer.getheaders()), answer.read())

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        length = str(len(body))
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() == "content-length":
                length = value  # of a HEAD: the object's
            elif name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", length if self.command == "HEAD" else str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass  # noqa: N815 - http.server's names

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            super().handle()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        pass


@contextlib.contextmanager
def proxied(server: Server) -> Iterator[Proxy]:
    """A proxy in front of `server`; `Proxy.server` is the server to use through it."""
    with _Listener(("127.0.0.1", 0), _Handler) as listener:
        proxy = Proxy(replace(server, endpoint_url=f"http://127.0.0.1:{listener.server_address[1]}"))
        listener.proxy, listener.target = proxy, server.endpoint_url.removeprefix("http://")
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            listener.shutdown()
            thread.join()
