"""What goes wrong with a real endpoint has the right class, comes at once, and is one line without secrets."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest
import trio

from lazyfs.core.errors import (
    AccessDeniedError,
    NoSuchBucketError,
    NotFoundError,
    PreconditionFailedError,
    StoreError,
    StoreTimeoutError,
    ThrottledError,
    TransientStoreError,
    TruncatedError,
    UnreachableError,
    UsageError,
)
from lazyfs.core.stats import Stats
from lazyfs.core.types import ObjectId, Range, Upload
from lazyfs.store.base import Store
from lazyfs.store.remote import S3Store, open_s3_store
from lazyfs.store.s3 import S3Settings
from tests.conftest import new_bucket_name
from tests.servers import Server, free_port

OID = ObjectId("dir/k", "0" * 32)
SPAN = Range(2, 5)
VERBS: dict[str, Callable[[Store], Awaitable[object]]] = {
    "list": lambda store: store.list_page("dir/"),
    "get": lambda store: store.get_range(OID, SPAN),
    "get by boto3": lambda store: store.get_range(ObjectId("dir//k", "0" * 32), SPAN),
    "head": lambda store: store.head("dir/k"),
    "put": lambda store: store.put("dir/k", b"body"),
    "create_upload": lambda store: store.create_upload("dir/k"),
    "upload_part": lambda store: store.upload_part(Upload("dir/k", "id"), 1, b"body"),
    "delete": lambda store: store.delete("dir/k"),
}
every_verb = pytest.mark.parametrize("verb", VERBS)


@contextlib.asynccontextmanager
async def opened(settings: S3Settings) -> AsyncIterator[S3Store]:
    store = open_s3_store(settings, stats=Stats())
    try:
        yield store
    finally:
        await store.aclose()


def check_text(error: pytest.ExceptionInfo[StoreError], *secrets: str) -> None:
    text = str(error.value)
    assert text
    assert "\n" not in text
    assert len(text) < 400
    for word in (*secrets, "Signature=", "X-Amz-Signature", "Credential"):
        assert word not in text


# -- real servers ---------------------------------------------------------------------------------------------


@every_verb
async def test_wrong_secret_key(gateway: Server, verb: str, aws_environment: pytest.MonkeyPatch) -> None:
    for name, value in gateway.environment().items():
        aws_environment.setenv(name, value)
    aws_environment.setenv("AWS_SECRET_ACCESS_KEY", "a-wrong-secret")
    async with opened(S3Settings(new_bucket_name(), endpoint_url=gateway.endpoint_url)) as store:
        with pytest.raises(AccessDeniedError) as error:
            await VERBS[verb](store)
    check_text(error, "a-wrong-secret")


async def test_unknown_access_key_says_which_variable(gateway: Server, aws_environment: pytest.MonkeyPatch) -> None:
    aws_environment.setenv("AWS_ACCESS_KEY_ID", "nobody")
    aws_environment.setenv("AWS_SECRET_ACCESS_KEY", "nobodys-secret")
    async with opened(S3Settings("some-bucket", endpoint_url=gateway.endpoint_url)) as store:
        with pytest.raises(AccessDeniedError, match=r"AWS_ACCESS_KEY_ID") as error:
            await store.list_page("")
    check_text(error, "nobodys-secret")


async def test_unsigned_request_to_a_private_bucket(gateway: Server, aws_environment: pytest.MonkeyPatch) -> None:
    settings = S3Settings(
        gateway.make_bucket(new_bucket_name()), endpoint_url=gateway.endpoint_url, no_sign_request=True
    )
    async with opened(settings) as store:
        for verb in ("list", "get", "head"):
            with pytest.raises(AccessDeniedError):
                await VERBS[verb](store)


async def test_unsigned_requests_read_what_is_public(moto: Server, aws_environment: pytest.MonkeyPatch) -> None:
    bucket = moto.make_bucket(new_bucket_name())
    moto.client().put_object(Bucket=bucket, Key="k", Body=b"0123456789", ACL="public-read")
    async with opened(S3Settings(bucket, endpoint_url=moto.endpoint_url, no_sign_request=True)) as store:
        (info,) = (await store.list_page("")).objects
        assert bytes(await store.get_range(info.oid, SPAN)) == b"234"


@pytest.mark.parametrize("verb", ["list", "get", "put", "create_upload", "delete"])
async def test_no_such_bucket(server: Server, verb: str, aws_environment: pytest.MonkeyPatch) -> None:
    async with opened(S3Settings(new_bucket_name(), endpoint_url=server.endpoint_url)) as store:
        with pytest.raises(NoSuchBucketError) as error:
            await VERBS[verb](store)
    check_text(error, server.secret_key)


async def test_no_credentials(aws_environment: pytest.MonkeyPatch) -> None:
    with pytest.raises(AccessDeniedError, match=r"AWS_ACCESS_KEY_ID.*--profile.*--no-sign-request") as error:
        open_s3_store(S3Settings("bucket", endpoint_url="http://127.0.0.1:1"), stats=Stats())
    check_text(error)


@pytest.mark.parametrize("failure", [AccessDeniedError("the session has expired"), StoreTimeoutError("no answer")])
async def test_credentials_that_fail_later_keep_their_error(
    settings: Callable[[int], S3Settings], monkeypatch: pytest.MonkeyPatch, failure: StoreError
) -> None:
    async with opened(settings(free_port())) as store:

        def fail() -> object:
            raise failure

        monkeypatch.setattr(store._bulk._provider, "_credentials", fail)
        with pytest.raises(type(failure)) as error:
            await store.get_range(OID, SPAN)
        assert error.value is failure


async def test_unknown_profile(aws_environment: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="nobody"):
        open_s3_store(S3Settings("bucket", profile="nobody"), stats=Stats())


# -- endpoints that misbehave ---------------------------------------------------------------------------------


@pytest.fixture
def settings(aws_environment: pytest.MonkeyPatch) -> Callable[[int], S3Settings]:
    aws_environment.setenv("AWS_ACCESS_KEY_ID", "key")
    aws_environment.setenv("AWS_SECRET_ACCESS_KEY", "the-secret")

    def make(port: int) -> S3Settings:
        return S3Settings("bucket", endpoint_url=f"http://127.0.0.1:{port}", connect_timeout_s=1, read_timeout_s=0.3)

    return make


@contextlib.asynccontextmanager
async def answering(answer: bytes, *, hang: bool = False) -> AsyncIterator[int]:
    """A server that gives every request the same answer and then closes, or waits; its port."""

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            with contextlib.suppress(trio.BrokenResourceError):
                await stream.receive_some(65536)
                if answer:
                    await stream.send_all(answer)
                if hang:
                    await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        (listener, *_) = await nursery.start(trio.serve_tcp, serve, 0)
        yield listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


def http(status: int, body: bytes = b"", *headers: str, length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body) if length is None else length}", *headers]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode() + body


def error_body(code: str) -> bytes:
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>so\nit is</Message></Error>".encode()


@every_verb
async def test_closed_port(settings: Callable[[int], S3Settings], verb: str) -> None:
    async with opened(settings(free_port())) as store:
        with pytest.raises(UnreachableError, match="refused") as error:
            await VERBS[verb](store)
    check_text(error, "the-secret")


@every_verb
async def test_silence(settings: Callable[[int], S3Settings], verb: str) -> None:
    async with answering(b"", hang=True) as port, opened(settings(port)) as store:
        with pytest.raises(StoreTimeoutError) as error:
            await VERBS[verb](store)
    check_text(error, "the-secret")


@every_verb
async def test_connection_closed_without_an_answer(settings: Callable[[int], S3Settings], verb: str) -> None:
    async with answering(b"") as port, opened(settings(port)) as store:
        with pytest.raises(TransientStoreError) as error:
            await VERBS[verb](store)
    check_text(error, "the-secret")


@every_verb
@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (503, "SlowDown", ThrottledError),
        (429, "TooManyRequests", ThrottledError),
        (500, "InternalError", TransientStoreError),
        (502, "", TransientStoreError),
        (403, "AccessDenied", AccessDeniedError),
        (400, "RequestTimeout", StoreTimeoutError),
        (400, "ExpiredToken", AccessDeniedError),
    ],
)
async def test_error_answer(
    settings: Callable[[int], S3Settings], verb: str, status: int, code: str, expected: type[StoreError]
) -> None:
    if verb == "head" and status == 400:
        expected = StoreError  # the answer to a HEAD has no body: nobody can know more
    body = b"" if verb == "head" or not code else error_body(code)
    async with answering(http(status, body)) as port, opened(settings(port)) as store:
        with pytest.raises(expected) as error:
            await VERBS[verb](store)
    check_text(error, "the-secret")


async def test_a_slow_connection_is_none_that_is_silent(settings: Callable[[int], S3Settings]) -> None:
    """The time limit is one of silence: a part may take many times longer, as it does where many share a slow link."""
    body = bytes(16 * 1024**2)

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            received = b""
            while b"\r\n\r\n" not in received:
                received += await stream.receive_some(65536)
            left = len(body) - len(received.partition(b"\r\n\r\n")[2])
            while left > 0:
                left -= len(await stream.receive_some(256 * 1024))
                await trio.sleep(0.01)
            await stream.send_all(http(200, b"", f'ETag: "{OID.etag}"'))

    limits = replace(settings(0), connect_timeout_s=0.3, read_timeout_s=0.3)
    async with trio.open_nursery() as nursery:
        (listener, *_) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 256 * 1024)  # or all of it fits on the way
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        port = listener.socket.getsockname()[1]
        async with opened(replace(limits, endpoint_url=f"http://127.0.0.1:{port}")) as store:
            began = trio.current_time()
            part = await store.upload_part(Upload("dir/k", "id"), 1, body)
            assert part.etag == OID.etag
            assert trio.current_time() - began > limits.connect_timeout_s, "the server was too fast to tell"
        nursery.cancel_scope.cancel()


GOOD = ('ETag: "' + OID.etag + '"', "Last-Modified: Wed, 21 Oct 2015 07:28:00 GMT", "Content-Range: bytes 2-4/10")
both_readers = pytest.mark.parametrize("key", ["dir/k", "dir//k"], ids=["obstore", "boto3"])


@both_readers
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (http(206, b"2", *GOOD, length=3), TruncatedError),
        (http(206, b"23", *GOOD), TruncatedError),
        (http(206, b"234", 'ETag: "another"', *GOOD[1:]), PreconditionFailedError),
        (http(206, b"234", *GOOD[1:]), TransientStoreError),
        (http(404, error_body("NoSuchKey")), NotFoundError),
        (http(416, error_body("InvalidRange")), PreconditionFailedError),
    ],
    ids=["cut", "short", "another etag", "no etag", "gone", "beyond the end"],
)
async def test_lying_range_answers(
    settings: Callable[[int], S3Settings], key: str, answer: bytes, expected: type[StoreError]
) -> None:
    async with answering(answer) as port, opened(settings(port)) as store:
        with pytest.raises(expected) as error:
            await store.get_range(ObjectId(key, OID.etag), SPAN)
    check_text(error, "the-secret")


@pytest.mark.expect_warnings
async def test_range_answered_with_200_is_read_through_boto3(
    settings: Callable[[int], S3Settings], caplog: pytest.LogCaptureFixture
) -> None:
    async with answering(http(200, b"234", *GOOD)) as port, opened(settings(port)) as store:
        for _ in range(2):
            assert bytes(await store.get_range(OID, SPAN)) == b"234"
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1


@pytest.mark.parametrize(
    "body", [b"<html>hotel wifi</html>", b"not xml", b"<ListBucketResult><Contents>", b"", error_body("InternalError")]
)
async def test_answer_to_list_that_is_no_listing(settings: Callable[[int], S3Settings], body: bytes) -> None:
    async with answering(http(200, body)) as port, opened(settings(port)) as store:
        with pytest.raises(TransientStoreError) as error:
            await store.list_page("")
    check_text(error, "the-secret")


async def test_wrong_region_says_the_right_one(settings: Callable[[int], S3Settings]) -> None:
    answer = http(301, error_body("PermanentRedirect"), "x-amz-bucket-region: eu-west-1")
    async with answering(answer) as port, opened(settings(port)) as store:
        with pytest.raises(StoreError, match="--region eu-west-1"):
            await store.list_page("")


@pytest.mark.parametrize("verb", ["list", "get", "head"])
async def test_cancel_returns_while_the_endpoint_is_silent(settings: Callable[[int], S3Settings], verb: str) -> None:
    async with answering(b"", hang=True) as port, opened(settings(port)) as store:
        with trio.move_on_after(0.05) as scope:
            await VERBS[verb](store)
        assert scope.cancelled_caught


async def test_a_body_that_goes_out_slowly_is_no_silence(aws_environment: pytest.MonkeyPatch) -> None:
    """The whole of it takes longer than any silence may last, and than a connection may take."""
    aws_environment.setenv("AWS_ACCESS_KEY_ID", "key")
    aws_environment.setenv("AWS_SECRET_ACCESS_KEY", "the-secret")
    body = bytes(16 * 1024**2)
    async with trio.open_nursery() as nursery:
        port = await nursery.start(_slow_receiver, len(body))
        settings = S3Settings(
            "bucket", endpoint_url=f"http://127.0.0.1:{port}", connect_timeout_s=0.5, read_timeout_s=0.5
        )
        async with opened(settings) as store:
            assert await store.put("k", body) == OID.etag
        nursery.cancel_scope.cancel()


async def _slow_receiver(size: int, *, task_status: trio.TaskStatus[int]) -> None:
    """Takes a PUT of `size` bytes in pieces, with pauses that add up to more than a second."""
    listener = trio.socket.socket()
    listener.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 64 * 1024)  # or the kernel takes it all at once
    await listener.bind(("127.0.0.1", 0))
    listener.listen()
    with listener:
        task_status.started(listener.getsockname()[1])
        connection, _ = await listener.accept()
        with connection:
            left, pauses = size, 0
            while left > 0 and (piece := await connection.recv(64 * 1024)):
                left -= len(piece)
                if (size - left) * 12 > size * pauses:
                    pauses += 1
                    await trio.sleep(0.1)
            await connection.send(http(200, b"", GOOD[0]))
            await trio.sleep_forever()


@every_verb
async def test_a_name_that_no_server_has(verb: str, aws_environment: pytest.MonkeyPatch) -> None:
    aws_environment.setenv("AWS_ACCESS_KEY_ID", "key")
    aws_environment.setenv("AWS_SECRET_ACCESS_KEY", "secret-key")
    async with opened(S3Settings("bucket", endpoint_url="http://no-such-host.invalid")) as store:
        with pytest.raises(UnreachableError) as error:
            await VERBS[verb](store)
    check_text(error, "secret-key")
