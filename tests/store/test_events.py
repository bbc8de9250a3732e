"""Real event streams: MinIO's on the gateway, S3's through SQS on moto; and messages that nobody should send."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
import trio

from lazyfs.core.errors import StoreError, TransientStoreError, TruncatedError, UsageError
from lazyfs.core.stats import Stats
from lazyfs.store import events as module
from lazyfs.store.events import Batch, EventStream, MinioEvents, SqsEvents, _LineStream, _Parser, _Waiting, open_events
from lazyfs.store.s3 import ControlPlane, S3Settings
from tests.conftest import new_bucket_name
from tests.servers import REGION, Server, juicefs_gateway

ODD = ["plain", "a b/ü+%.txt", "c+d/%2B", "dir/"]


def opened(spec: str, server: Server, bucket: str, *, prefix: str = "", stats: Stats | None = None) -> Any:
    settings = S3Settings(bucket, endpoint_url=server.endpoint_url)
    return open_events(spec, settings=settings, control=ControlPlane(settings), prefix=prefix, stats=stats or Stats())


async def collect(stream: EventStream, wanted: set[str]) -> list[Batch]:
    """Batches until all of `wanted` were told."""
    batches: list[Batch] = []
    with trio.fail_after(20):
        while not wanted <= {key for batch in batches for key in batch.keys}:
            batches.append(await stream.next())
            await stream.applied(batches[-1])
    return batches


# -- messages ---------------------------------------------------------------------------------------------------------


def record(key: str, bucket: str = "b") -> dict[str, Any]:
    return {"eventName": "ObjectCreated:Put", "s3": {"bucket": {"name": bucket}, "object": {"key": key}}}


def message(*keys: str) -> str:
    return json.dumps({"Records": [record(key) for key in keys]})


def parser(stats: Stats | None = None, prefix: str = "") -> _Parser:
    return _Parser("b", prefix, stats or Stats())


def test_encoded_keys_are_told_both_ways() -> None:
    assert parser().keys(message("a+b%2Fc", "plain")) == ["a b/c", "a+b%2Fc", "plain"]


def test_what_sns_wraps_is_unwrapped() -> None:
    assert parser().keys(json.dumps({"Type": "Notification", "Message": message("a")})) == ["a"]


def test_other_buckets_and_prefixes_are_left_out() -> None:
    text = json.dumps({"Records": [record("x/a"), record("x/b", bucket="other"), record("y/c")]})
    assert parser(prefix="x/").keys(text) == ["x/a"]


def test_the_first_message_of_every_queue_says_nothing() -> None:
    stats = Stats()
    assert parser(stats).keys('{"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "b"}') == []
    assert parser(stats).keys('{"Records": null}') == []
    assert "events.malformed" not in stats.snapshot()


@pytest.mark.parametrize(
    "text",
    ["", "no json", "[]", "7", "null", "{}", '{"Records": [1]}', '{"Records": [{"s3": {}}]}', '{"Message": "x"}',
     "\xff", b"\xff", "[" * 100_000, json.dumps({"Records": [record(key=7)]})],  # type: ignore[arg-type]
    ids=lambda text: repr(text)[:20],
)  # fmt: skip
def test_malformed_messages_are_counted_and_harmless(text: str | bytes) -> None:
    stats = Stats()
    assert parser(stats).keys(text) == []
    assert stats.snapshot()["events.malformed"] == 1


def test_malformed_messages_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "lazyfs.store")
    told = parser()
    for _ in range(3):
        told.keys("no json")
    assert len(caplog.records) == 1


async def test_more_than_may_wait_is_as_good_as_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 3)
    waiting = _Waiting()
    waiting.add(["a", "b", "a", "b", "c"])
    assert await waiting.next() == Batch(("a", "b", "c"))
    waiting.add(["a", "b", "c", "d"])
    with pytest.raises(TransientStoreError, match="more than 3"):
        await waiting.next()


# -- a stream of lines ------------------------------------------------------------------------------------------------


class Response:
    def __init__(self, *pieces: bytes) -> None:
        self.pieces = list(pieces)
        self.closed = False

    def read1(self, amount: int) -> bytes:
        return self.pieces.pop(0) if self.pieces else b""

    def shutdown(self) -> None:
        raise ValueError("no socket")

    def close(self) -> None:
        self.closed = True


def test_lines_come_whole_however_they_are_cut_and_blanks_are_signs_of_life() -> None:
    lines = _LineStream()
    lines.open(lambda: Response(b"  ", b" {a", b"b}\n{c}\n  ", b"\n{d}", b"\n"))
    assert [lines.read(), lines.read()] == [[b"{ab}", b"{c}"], [b"{d}"]]
    with pytest.raises(TruncatedError):
        lines.read()


def test_a_line_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LINE_BYTES", 10)
    lines = _LineStream()
    lines.open(lambda: Response(b"x" * 8, b"x" * 8))
    with pytest.raises(StoreError, match="without end"):
        lines.read()


def test_a_response_that_comes_too_late_is_closed() -> None:
    lines, response = _LineStream(), Response()
    lines.close()
    lines.open(lambda: response)
    assert response.closed
    with pytest.raises(TruncatedError):
        lines.read()


# -- MinIO's stream, from the gateway ---------------------------------------------------------------------------------


@pytest.fixture
def server(gateway: Server) -> Server:
    return gateway


async def test_the_gateway_tells_what_is_put_copied_and_deleted(
    server: Server, bucket: str, aws_environment: pytest.MonkeyPatch
) -> None:
    client = server.client()
    source = opened("minio", server, bucket)
    assert isinstance(source, MinioEvents)
    async with source.listen() as stream:
        for key in ODD:
            client.put_object(Bucket=bucket, Key=key, Body=b"" if key.endswith("/") else b"x")
        await collect(stream, set(ODD))
        client.copy_object(Bucket=bucket, Key="copy", CopySource={"Bucket": bucket, "Key": "plain"})
        await collect(stream, {"copy"})
        client.delete_object(Bucket=bucket, Key=ODD[1])
        await collect(stream, {ODD[1]})
    client.close()


async def test_only_what_lies_below_the_prefix_is_told(
    server: Server, bucket: str, aws_environment: pytest.MonkeyPatch
) -> None:
    client = server.client()
    async with opened("minio", server, bucket, prefix="in/").listen() as stream:
        for key in ("out", "in/a", "other/b", "in/b"):
            client.put_object(Bucket=bucket, Key=key, Body=b"x")
        told = {key for batch in await collect(stream, {"in/a", "in/b"}) for key in batch.keys}
        assert told == {"in/a", "in/b"}
    client.close()


async def test_leaving_ends_the_thread_that_reads(
    server: Server, bucket: str, aws_environment: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = threading.Semaphore(0)
    ended: list[BaseException] = []
    read = _LineStream.read

    def watched(self: _LineStream) -> list[bytes]:
        reading.release()
        try:
            return read(self)
        except BaseException as error:
            ended.append(error)
            raise

    monkeypatch.setattr(_LineStream, "read", watched)
    async with opened("minio", server, bucket).listen():
        await trio.to_thread.run_sync(reading.acquire)
    with trio.fail_after(5):
        while not ended:
            await trio.sleep(0.01)
    assert isinstance(ended[0], TruncatedError)


async def test_a_server_that_dies_ends_the_stream(
    aws_environment: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with juicefs_gateway(tmp_path_factory.mktemp("dying")) as dying:
        bucket = dying.make_bucket(new_bucket_name())
        for name, value in dying.environment().items():
            aws_environment.setenv(name, value)
        source = opened("minio", dying, bucket)
        async with trio.open_nursery() as nursery, source.listen() as stream:
            nursery.start_soon(lambda: trio.to_thread.run_sync(_stop(dying)))
            with trio.fail_after(20), pytest.raises(TransientStoreError):
                await stream.next()
    with pytest.raises(TransientStoreError):
        async with source.listen():
            pass


def _stop(server: Server) -> Any:
    port = server.endpoint_url.rpartition(":")[2]

    def stop() -> None:
        listing = subprocess.run(["ss", "-ltnpH", f"sport = :{port}"], capture_output=True, text=True, check=True)
        match = re.search(r"pid=(\d+)", listing.stdout)
        assert match is not None
        os.kill(int(match[1]), signal.SIGKILL)

    return stop


async def test_a_missing_bucket_and_a_wrong_key_are_errors_of_ours(
    server: Server, aws_environment: pytest.MonkeyPatch
) -> None:
    aws_environment.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StoreError):
        async with opened("minio", server, "no-such-bucket").listen():
            pass


def test_aws_has_no_such_stream(aws_environment: pytest.MonkeyPatch) -> None:
    settings = S3Settings("bucket", region="eu-central-1")
    with pytest.raises(UsageError, match="--events minio"):
        open_events("minio", settings=settings, control=ControlPlane(settings), prefix="", stats=Stats())


# -- SQS, from moto ---------------------------------------------------------------------------------------------------


@pytest.fixture
def queue(moto: Server, aws_environment: pytest.MonkeyPatch) -> Iterator[tuple[str, Any, str]]:
    """A bucket, a client of SQS, and the URL of a queue that the bucket tells its changes."""
    for name, value in moto.environment().items():
        aws_environment.setenv(name, value)
    client = boto3.client("sqs", endpoint_url=moto.endpoint_url, region_name=REGION)
    bucket = moto.make_bucket(new_bucket_name())
    url = client.create_queue(QueueName=bucket)["QueueUrl"]
    arn = client.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    s3 = moto.client()
    events = ["s3:ObjectCreated:*", "s3:ObjectRemoved:*"]
    configuration = {"QueueConfigurations": [{"QueueArn": arn, "Events": events}]}
    s3.put_bucket_notification_configuration(Bucket=bucket, NotificationConfiguration=configuration)
    s3.close()
    yield bucket, client, url
    client.delete_queue(QueueUrl=url)
    client.close()
    moto.drop_bucket(bucket)


async def test_a_queue_tells_what_is_put_and_deleted_and_forgets_what_was_applied(
    moto: Server, queue: tuple[str, Any, str]
) -> None:
    bucket, client, url = queue
    s3 = moto.client()
    source = opened(f"sqs:{url}", moto, bucket)
    assert isinstance(source, SqsEvents)
    async with source.listen() as stream:
        for key in ODD:
            s3.put_object(Bucket=bucket, Key=key, Body=b"x")
        await collect(stream, set(ODD))
        s3.delete_object(Bucket=bucket, Key=ODD[1])
        await collect(stream, {ODD[1]})
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    left = client.get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"]
    assert {left[name] for name in names} == {"0"}
    s3.close()


async def test_what_was_not_applied_is_told_again(moto: Server, queue: tuple[str, Any, str]) -> None:
    bucket, client, url = queue
    client.set_queue_attributes(QueueUrl=url, Attributes={"VisibilityTimeout": "1"})
    source = opened(f"sqs:{url}", moto, bucket)
    client.send_message(QueueUrl=url, MessageBody=json.dumps({"Records": [record("again", bucket)]}))
    for _ in range(2):
        async with source.listen() as stream:
            with trio.fail_after(10):
                while "again" not in (await stream.next()).keys:
                    pass


async def test_messages_that_cannot_be_read_are_removed_from_the_queue(
    moto: Server, queue: tuple[str, Any, str]
) -> None:
    bucket, client, url = queue
    stats = Stats()
    async with opened(f"sqs:{url}", moto, bucket, stats=stats).listen() as stream:
        client.send_message(QueueUrl=url, MessageBody="no json")
        client.send_message(QueueUrl=url, MessageBody=json.dumps({"Records": [record("good", bucket)]}))
        await collect(stream, {"good"})
        assert stats.snapshot()["events.malformed"] == 1


async def test_a_missing_queue_is_found_out_at_once(moto: Server, queue: tuple[str, Any, str]) -> None:
    bucket, _, url = queue
    with pytest.raises(StoreError, match="event queue"):
        async with opened(f"sqs:{url}-not", moto, bucket).listen():
            pass


def test_the_region_of_a_queue_is_in_its_name(aws_environment: pytest.MonkeyPatch) -> None:
    control = ControlPlane(S3Settings("bucket", region="us-east-1"))
    client = control.sqs_client("https://sqs.eu-central-1.amazonaws.com/123456789012/mine")
    assert client.meta.region_name == "eu-central-1"
    assert client.meta.endpoint_url == "https://sqs.eu-central-1.amazonaws.com"
    client.close()
