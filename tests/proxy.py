"""An HTTP proxy in front of a real S3 server: it counts what passes, and refuses, delays or breaks what a test names.

It is the independent witness of how many requests lazyfs sends. Requests go on unchanged, so signatures stay right.
How a request can be broken is in `tests.faults`; `Proxy.outage` is a server that is gone for a while.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import ssl
import struct
import threading
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol

from tests.servers import Server

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}
_TIMEOUT_S = 60
_SIGNED = re.compile(r"(?:.*Credential=)?([^/]+)/")


@dataclass(frozen=True)
class Seen:
    """One request as it passed."""

    method: str
    path: str
    query: dict[str, str]
    range: str | None
    copies: bool = False
    access_key: str = ""
    """Whose signature it bears."""
    owner: str = ""
    """Of the bucket, as it expects."""
    source_owner: str = ""
    """The same of the bucket that it copies from."""

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

    @property
    def verb(self) -> str:
        """As `kind`, with copies, aborts and lists of uploads told apart from what they look like."""
        if self.copies:
            return "copy_part" if "partNumber" in self.query else "copy"
        if self.method == "DELETE" and "uploadId" in self.query:
            return "abort_upload"
        return "list_uploads" if self.method == "GET" and "uploads" in self.query else self.kind


@dataclass(frozen=True)
class Answer:
    """What a server says."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Exchange(Protocol):
    """One request that a fault may do with as it likes."""

    seen: Seen

    def ask(self, *, without: str = "", body: bytes | None = None) -> Answer:
        """What the server answers to the request, without one header, or with another body."""

    def tell(self, answer: Answer, *, length: int | None = None, upto: int | None = None) -> None:
        """Pass `answer` on; claim `length`, send `upto` bytes of its body."""

    def send(self, data: bytes) -> None:
        """Send more, as it is. OSError when the client has gone."""

    def end(self) -> None:
        """Close the connection in good order."""

    def reset(self) -> None:
        """Break the connection."""

    def wait_gone(self) -> None:
        """Return when the client has given up, or the proxy ends."""


Fault = Callable[[Exchange], None]


@dataclass
class Proxy:
    """`refuse` answers status and S3 code instead of asking the server; `hold` is waited for before asking it; `fault`
    names what shall happen to the request instead."""

    server: Server
    seen: list[Seen] = field(default_factory=list)
    refuse: Callable[[Seen], tuple[int, str] | None] = lambda _seen: None
    hold: Callable[[Seen], threading.Event | None] = lambda _seen: None
    fault: Callable[[Seen], Fault | None] = lambda _seen: None
    listening: _Listening | None = field(default=None, repr=False)

    @contextlib.contextmanager
    def outage(self) -> Iterator[None]:
        """Nobody listens at the address until the block ends, and who was connected is not any more."""
        assert self.listening is not None
        self.listening.stop()
        try:
            yield
        finally:
            self.listening.start()

    def count(self, *kinds: str) -> int:
        """Requests of these kinds, or all."""
        return sum(not kinds or one.kind in kinds for one in list(self.seen))


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    proxy: Proxy
    target: str
    tls: ssl.SSLContext | None = None

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.connections: set[socket.socket] = set()
        self.over = threading.Event()

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        if self.tls is not None:  # whose handshake is part of the first read, in the connection's own thread
            connection = self.tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _TIMEOUT_S
    server: _Listener
    seen: Seen
    _body: bytes

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self) -> None:
        self.server.connections.discard(self.connection)
        super().finish()

    def _pass(self) -> None:
        address = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(address.query, keep_blank_values=True))
        copies = "x-amz-copy-source" in self.headers
        path, span = urllib.parse.unquote(address.path), self.headers.get("Range")
        signed = _SIGNED.match(self.headers.get("Authorization", "") + query.get("X-Amz-Credential", ""))
        self.seen = seen = Seen(self.command, path, query, span, copies, signed[1] if signed else "", *self._owners())
        self._body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        proxy = self.server.proxy
        proxy.seen.append(seen)
        event = proxy.hold(seen)
        if event is not None:
            event.wait(_TIMEOUT_S)
        refused, fault = proxy.refuse(seen), proxy.fault(seen)
        if refused is not None:
            self.tell(error(*refused))
        elif fault is not None:
            fault(self)
        else:
            self.tell(self.ask())

    def _owners(self) -> tuple[str, str]:
        words = ("x-amz-expected-bucket-owner", "x-amz-source-expected-bucket-owner")
        return self.headers.get(words[0], ""), self.headers.get(words[1], "")

    def ask(self, *, without: str = "", body: bytes | None = None) -> Answer:
        onward = http.client.HTTPConnection(self.server.target, timeout=_TIMEOUT_S)
        with contextlib.closing(onward):
            onward.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in {"expect", without}:
                    onward.putheader(name, value)
            onward.endheaders((self._body if body is None else body) or None)
            answer = onward.getresponse()
            return Answer(answer.status, dict(answer.getheaders()), answer.read())

    def tell(self, answer: Answer, *, length: int | None = None, upto: int | None = None) -> None:
        told = len(answer.body)
        self.send_response_only(answer.status)
        for name, value in answer.headers.items():
            if name.lower() == "content-length":
                told = int(value) if self.command == "HEAD" else told  # of a HEAD: the object's
            elif name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", str(told if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[:upto])

    def send(self, data: bytes) -> None:
        self.wfile.write(data)

    def end(self) -> None:
        self.close_connection = True

    def reset(self) -> None:
        # Closing a socket that lingers for no time sends RST instead of FIN.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.rfile.close()
        self.wfile.close()
        self.connection.close()

    def wait_gone(self) -> None:
        self.connection.settimeout(0.05)
        while not self.server.over.is_set():
            try:
                if not self.connection.recv(1):
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        self.close_connection = True

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass  # noqa: N815 - http.server's names

    def handle(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # ValueError: of a file that `reset` has closed
            super().handle()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        pass


def error(status: int, code: str, **headers: str) -> Answer:
    """An error as S3 tells it."""
    body = f"<Error><Code>{code}</Code><Message>refused</Message></Error>".encode()
    return Answer(status, {name.replace("_", "-"): value for name, value in headers.items()}, body)


class _Listening:
    """The proxy's port, on which somebody listens between `start` and `stop`."""

    def __init__(self, server: Server, tls: Path | None) -> None:
        self._target = server.endpoint_url.removeprefix("http://")
        self._port = 0
        self._tls = tls
        self.start()
        address = f"{'https' if tls else 'http'}://127.0.0.1:{self._port}"
        self.proxy = self._listener.proxy = Proxy(replace(server, endpoint_url=address), listening=self)

    def start(self) -> None:
        self._listener = _Listener(self._port)
        if self._tls is not None:
            self._listener.tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            self._listener.tls.load_cert_chain(self._tls)
        self._port = self._listener.server_address[1]
        self._listener.target = self._target
        if hasattr(self, "proxy"):
            self._listener.proxy = self.proxy
        self._thread = threading.Thread(
            target=self._listener.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        self._listener.over.set()
        self._listener.shutdown()
        self._thread.join()
        self._listener.server_close()
        for connection in list(self._listener.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def proxied(server: Server, *, tls: Path | None = None) -> Iterator[Proxy]:
    """A proxy in front of `server`; `Proxy.server` is the server to use through it. It speaks TLS with the
    certificate and key in `tls`, a file."""
    listening = _Listening(server, tls)
    try:
        yield listening.proxy
    finally:
        listening.stop()
