"""A tiny S3 server whose objects are larger than any disk: their bytes are computed from their offset.

Answers ListObjectsV2, HEAD and range GET with If-Match, and ignores signatures. It remembers every GET.
"""

from __future__ import annotations

import contextlib
import re
import threading
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from xml.sax.saxutils import escape

from tests.servers import Server

ETAG = "00112233445566778899aabbccddeeff"
_WORD = 8


def content(start: int, stop: int) -> bytes:
    """The bytes [start, stop) of every object: each word of eight bytes is a mix of its own index."""
    first = start // _WORD
    words = (((index * 0x9E3779B97F4A7C15) % 2**64).to_bytes(_WORD, "big") for index in range(first, -(-stop // _WORD)))
    return b"".join(words)[start - first * _WORD : stop - first * _WORD]


@dataclass
class Sparse:
    """A running server. `gets` holds the byte range [start, stop) of every GET of an object, in order."""

    server: Server
    bucket: str
    objects: dict[str, int]
    gets: list[tuple[int, int]] = field(default_factory=list)


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    sparse: Sparse


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Listener

    def do_GET(self) -> None:
        key, query = self._address()
        if not key:
            self._list(query)
        elif key not in self._objects:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        elif (match := self.headers.get("If-Match")) and match.strip('"') != ETAG:
            self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
        else:
            self._range(self._objects[key])

    def do_HEAD(self) -> None:
        key, _ = self._address()
        if key in self._objects:
            self._answer(200, b"", self._facts(self._objects[key]))
        elif key:
            self._answer(404, b"")
        else:
            self._answer(200, b"")

    def _range(self, size: int) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        assert asked is not None, f"a GET of the whole object: {self.headers.get('Range')}"
        start, stop = int(asked[1]), min(int(asked[2]) + 1, size)
        self.server.sparse.gets.append((start, stop))
        facts = self._facts(stop - start) | {"Content-Range": f"bytes {start}-{stop - 1}/{size}"}
        self._answer(206, content(start, stop), facts)

    def _list(self, query: dict[str, str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        after = query.get("continuation-token") or query.get("start-after", "")
        rows: dict[str, str] = {}
        for key, size in self._objects.items():
            if not key.startswith(prefix):
                continue
            head, slash, _ = key[len(prefix) :].partition("/")
            if delimiter and slash:
                folder = prefix + head + "/"
                rows[folder] = f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>"
                continue
            rows[key] = (
                f"<Contents><Key>{escape(key)}</Key><LastModified>2024-01-02T03:04:05.000Z</LastModified>"
                f"<ETag>&quot;{ETAG}&quot;</ETag><Size>{size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            )
        names = sorted(name for name in rows if name > after)
        page = names[: min(int(query.get("max-keys", 1000)), 1000)]
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if len(page) < len(names) else ""
        body = (
            f'<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>{self.server.sparse.bucket}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(page)}</KeyCount>"
            f"<MaxKeys>1000</MaxKeys><IsTruncated>{'true' if token else 'false'}</IsTruncated>{token}"
            f"{''.join(rows[name] for name in page)}</ListBucketResult>"
        )
        self._answer(200, body.encode(), {"Content-Type": "application/xml"})

    def _address(self) -> tuple[str, dict[str, str]]:
        address = urllib.parse.urlsplit(self.path)
        key = urllib.parse.unquote(address.path).removeprefix(f"/{self.server.sparse.bucket}").lstrip("/")
        return key, dict(urllib.parse.parse_qsl(address.query, keep_blank_values=True))

    def _facts(self, length: int) -> dict[str, str]:
        return {
            "Content-Length": str(length),
            "ETag": f'"{ETAG}"',
            "Last-Modified": "Tue, 02 Jan 2024 03:04:05 GMT",
            "Accept-Ranges": "bytes",
        }

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response_only(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            super().handle()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        pass

    @property
    def _objects(self) -> dict[str, int]:
        return self.server.sparse.objects


@contextlib.contextmanager
def sparse_server(objects: dict[str, int], bucket: str = "sparse-bucket") -> Iterator[Sparse]:
    """One bucket with `objects` (size by key, without odd characters), until the block ends."""
    with _Listener(("127.0.0.1", 0), _Handler) as listener:
        url = f"http://127.0.0.1:{listener.server_address[1]}"
        sparse = Sparse(Server(url, "anybody", "anything", "sparse"), bucket, objects)
        listener.sparse = sparse
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield sparse
        finally:
            listener.shutdown()
            thread.join()
