"""What the bucket's server tells of changes by itself: keys, nothing else.

Promises that after `listen` has begun every change is told at least once, or the stream says that it is lost. Of an
event only the key is believed, and only as a hint of what to ask for: it may come late, twice, or in any order.
The only file that says minio, but for the demo's witness.

Hard points: the SDK's own iterator opens a new stream in silence when one ends, so the response is read here
(`MinioEvents._connect`); a thread blocked in a read ends when the socket under it is shut down (`_LineStream.close`).
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import unquote_plus, urlsplit

import minio
import trio
import urllib3
from minio.credentials.credentials import Credentials
from minio.credentials.providers import Provider
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError

from lazyfs.core.errors import StoreError, TransientStoreError, TruncatedError, UsageError
from lazyfs.core.stats import Stats
from lazyfs.store.answers import one_line, store_error
from lazyfs.store.s3 import ControlPlane, translate
from lazyfs.store.settings import S3Settings

log = logging.getLogger("lazyfs.store")

MAX_WAITING = 20_000
"""Changed keys that may wait to be asked about: 20 MB of the longest keys. Beyond that, listing is cheaper."""
MAX_LINE_BYTES = 4 * 1024**2
"""A line of the stream that is longer holds no event: the longest key has 1,024 bytes."""
_READ_BYTES = 64 * 1024
_POLL_S = 20
"""The longest that SQS lets a request wait for messages."""
_RECEIVE = 10
"""The most messages that SQS hands out at a time."""
_KINDS = ("s3:ObjectCreated:*", "s3:ObjectRemoved:*")


@dataclass(frozen=True, slots=True)
class Batch:
    """Keys that changed, each once, and what it takes to acknowledge them."""

    keys: tuple[str, ...]
    receipts: tuple[str, ...] = ()


class EventStream(Protocol):
    """Changes since the stream began."""

    async def next(self) -> Batch:
        """What changed next; waits for it. StoreError: the stream is lost, and something may have been missed."""
        ...

    async def applied(self, batch: Batch) -> None:
        """The batch need not be told again. StoreError: it may be."""
        ...


class EventSource(Protocol):
    """Where changes of a bucket are told."""

    def listen(self) -> AbstractAsyncContextManager[EventStream]:
        """A stream; once it is entered, no change is missed. StoreError."""
        ...


def open_events(
    spec: str, *, settings: S3Settings, control: ControlPlane, prefix: str, stats: Stats
) -> MinioEvents | SqsEvents:
    """The source that `--events` names: `minio` or `sqs:URL`. Makes no request. UsageError."""
    if spec == "minio":
        return MinioEvents(_minio_client(settings, control), bucket=settings.bucket, prefix=prefix, stats=stats)
    return SqsEvents(control, spec.removeprefix("sqs:"), bucket=settings.bucket, prefix=prefix, stats=stats)


# -- the words of an event --------------------------------------------------------------------------------------------


class _Parser:
    """Keys of one bucket and prefix out of messages; counts what it cannot read as `events.malformed`."""

    def __init__(self, bucket: str, prefix: str, stats: Stats) -> None:
        self._bucket = bucket
        self._prefix = prefix
        self._stats = stats
        self._complained = False

    def keys(self, text: str | bytes) -> list[str]:
        """The keys that a message names, as both things that a server may mean by one."""
        try:
            found = list(_keys_of(json.loads(text), self._bucket))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            self._stats.add("events.malformed")
            if not self._complained:
                self._complained = True
                log.info("an event could not be read, and is ignored as all like it: %r", error)
            return []
        self._stats.add("events.received", len(found))
        return [key for key in found if key.startswith(self._prefix)]


def _keys_of(message: Any, bucket: str) -> Iterator[str]:
    if message.get("Event") == "s3:TestEvent":
        return
    if "Records" not in message and isinstance(message.get("Message"), str):  # wrapped by SNS
        yield from _keys_of(json.loads(message["Message"]), bucket)
        return
    for record in message["Records"] or ():
        told = record["s3"]
        if told["bucket"]["name"] != bucket:
            continue
        key: str = told["object"]["key"]
        # AWS encodes keys as forms do, the stream of the gateway does not: asking for both is right with either.
        yield from dict.fromkeys((unquote_plus(key), key))


# -- ListenBucketNotification -----------------------------------------------------------------------------------------


class MinioEvents:
    """The endless stream of MinIO and of servers made from it."""

    def __init__(self, client: minio.Minio, *, bucket: str, prefix: str, stats: Stats) -> None:
        self._client = client
        self._bucket = bucket
        self._prefix = prefix
        self._stats = stats

    @contextlib.asynccontextmanager
    async def listen(self) -> AsyncIterator[EventStream]:
        """See EventSource. The server answers when it listens, or with its first sign of life after that."""
        parser = _Parser(self._bucket, self._prefix, self._stats)
        lines = _LineStream()
        limiter = trio.CapacityLimiter(1)
        try:
            await trio.to_thread.run_sync(lambda: lines.open(self._connect), abandon_on_cancel=True, limiter=limiter)
            stream = _Waiting()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_read_on, lines, parser, stream, limiter)
                yield stream
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(lines.close)

    def _connect(self) -> Any:
        with _minio_translated(f"listen for events of {self._bucket!r}"):
            events = self._client.listen_bucket_notification(self._bucket, prefix=self._prefix, events=_KINDS)
            # Iterating would open another stream when this one ends, and hide what was missed in between.
            return events._func()  # noqa: SLF001


class _LineStream:
    """A response that is read in one thread and may be closed from another at any time, even before it is there."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._closed = False
        self._response: Any = None
        self._rest = b""

    def open(self, connect: Any) -> None:
        """Take the response that `connect` returns."""
        response = connect()
        with self._lock:
            if not self._closed:
                self._response = response
                return
        response.close()  # nobody waits for it any more

    def close(self) -> None:
        """Let go of the connection; a thread that waits for its next bytes wakes up first."""
        with self._lock:
            self._closed = True
            response, self._response = self._response, None
        if response is not None:
            with contextlib.suppress(ValueError, RuntimeError, OSError):
                response.shutdown()
            with contextlib.suppress(urllib3.exceptions.HTTPError, OSError):
                response.close()

    def read(self) -> list[bytes]:
        """The next whole lines that say something. TruncatedError at the end of the stream, StoreError."""
        response = self._response
        while response is not None:
            with _minio_translated("read events"):
                data = response.read1(_READ_BYTES)
            if not data:
                break
            *lines, self._rest = (self._rest + data).split(b"\n")
            if len(self._rest) > MAX_LINE_BYTES:
                raise StoreError("read events: a line without end")
            self._rest = self._rest.lstrip()  # servers send blanks to show that they live
            said = [line for line in lines if line.strip()]
            if said:
                return said
        raise TruncatedError("read events: the server ended the stream")


class _Waiting:
    """An EventStream of keys that wait in memory."""

    def __init__(self) -> None:
        self._keys: dict[str, None] = {}
        self._moved = trio.Event()
        self._lost: StoreError | None = None

    def add(self, keys: list[str]) -> None:
        """These changed. More than may wait are as good as lost."""
        self._keys.update(dict.fromkeys(keys))
        if len(self._keys) > MAX_WAITING:
            self.lose(TransientStoreError(f"more than {MAX_WAITING} changes at a time"))
        self._moved.set()

    def lose(self, error: StoreError) -> None:
        """Nothing more will come."""
        self._lost = self._lost or error
        self._keys.clear()
        self._moved.set()

    async def next(self) -> Batch:
        """See EventStream."""
        await self._moved.wait()
        if self._lost is not None:
            raise self._lost
        batch, self._keys, self._moved = Batch(tuple(self._keys)), {}, trio.Event()
        return batch

    async def applied(self, batch: Batch) -> None:
        """See EventStream; this stream tells nothing twice anyway."""


async def _read_on(lines: _LineStream, parser: _Parser, stream: _Waiting, limiter: trio.CapacityLimiter) -> None:
    """Read for ever, never waiting for who applies: a server drops what is not read in time."""
    try:
        while True:
            for line in await trio.to_thread.run_sync(lines.read, abandon_on_cancel=True, limiter=limiter):
                stream.add(parser.keys(line))
    except StoreError as error:
        stream.lose(error)


class _CurrentKeys(Provider):
    """The keys that everything else signs with, refreshed with them."""

    def __init__(self, control: ControlPlane) -> None:
        self._control = control

    def retrieve(self) -> Credentials:
        """See Provider."""
        found = self._control.credentials()
        return Credentials(found.access_key, found.secret_key, found.token)


def _minio_client(settings: S3Settings, control: ControlPlane) -> minio.Minio:
    url = urlsplit(control.endpoint_url)
    # A server that lives sends a blank now and then, so silence for the timeout means a dead connection.
    timeout = urllib3.Timeout(connect=settings.connect_timeout_s, read=settings.read_timeout_s)
    trust: dict[str, Any] = {"ca_certs": control.ca_bundle} if control.ca_bundle else {}
    try:
        client = minio.Minio(
            url.netloc + url.path.rstrip("/"),
            credentials=None if settings.no_sign_request else _CurrentKeys(control),
            secure=url.scheme == "https",
            region=control.region,
            http_client=urllib3.PoolManager(timeout=timeout, retries=False, **trust),
        )
        client.listen_bucket_notification(settings.bucket)  # no request yet, but it refuses AWS
    except ValueError as error:
        raise UsageError(f"--events minio: {one_line(str(error))}") from None
    return client


@contextlib.contextmanager
def _minio_translated(what: str) -> Iterator[None]:
    """Whatever the SDK raises inside leaves as one of `core.errors`."""
    try:
        yield
    except S3Error as error:
        raise store_error(error.response.status, error.code or "", error.message or "", what) from None
    except ServerError as error:
        raise store_error(error.status_code, "", str(error), what) from None
    except InvalidResponseError as error:
        raise StoreError(f"{what}: {one_line(str(error))}") from None
    except (MinioException, urllib3.exceptions.HTTPError, OSError) as error:
        raise translate(error, what) or StoreError(f"{what}: {one_line(str(error))}") from None
    except (ValueError, AttributeError) as error:  # what urllib3 raises of a response that is closed meanwhile
        raise TruncatedError(f"{what}: {one_line(str(error))}") from None


# -- SQS --------------------------------------------------------------------------------------------------------------


class SqsEvents:
    """A queue that the bucket, or an SNS topic, sends its events to. It must be this mount's own."""

    def __init__(self, control: ControlPlane, url: str, *, bucket: str, prefix: str, stats: Stats) -> None:
        self._control = control
        self._url = url
        self._parser = _Parser(bucket, prefix, stats)

    @contextlib.asynccontextmanager
    async def listen(self) -> AsyncIterator[EventStream]:
        """See EventSource. Asks the queue once, so that one that is not there is found out here."""
        client = self._control.sqs_client(self._url)
        try:
            stream = _Queue(client, self._url, self._parser)
            await stream.greet()
            yield stream
        finally:
            client.close()


class _Queue:
    """An EventStream of messages, which the queue keeps until they were applied."""

    def __init__(self, client: Any, url: str, parser: _Parser) -> None:
        self._client = client
        self._url = url
        self._parser = parser
        self._limiter = trio.CapacityLimiter(2)
        self._first: Batch | None = None

    async def greet(self) -> None:
        """Take what is there now. StoreError."""
        self._first = await self._receive(0)

    async def next(self) -> Batch:
        """See EventStream."""
        batch, self._first = self._first, None
        while batch is None or not batch.receipts:
            batch = await self._receive(_POLL_S)
        return batch

    async def applied(self, batch: Batch) -> None:
        """See EventStream. What cannot be deleted is told again, which does no harm."""
        entries = [{"Id": str(at), "ReceiptHandle": receipt} for at, receipt in enumerate(batch.receipts)]
        if entries:
            await self._call("delete_message_batch", Entries=entries)

    async def _receive(self, wait_s: int) -> Batch:
        answer = await self._call("receive_message", MaxNumberOfMessages=_RECEIVE, WaitTimeSeconds=wait_s)
        messages = answer.get("Messages", ())
        keys = [key for message in messages for key in self._parser.keys(message["Body"])]
        return Batch(tuple(dict.fromkeys(keys)), tuple(message["ReceiptHandle"] for message in messages))

    async def _call(self, operation: str, **params: Any) -> Any:
        def call() -> Any:
            what = f"{operation} of the event queue"
            try:
                return getattr(self._client, operation)(QueueUrl=self._url, **params)
            except Exception as error:  # noqa: BLE001 - `translate` knows the SDK's, the rest leaves as it came
                raise translate(error, what) or error from None

        return await trio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=self._limiter)
