"""A mount that never asks by itself sees what others do to the bucket, because the server tells it."""

from __future__ import annotations

import errno
import io
import json
import os
from typing import Any

import boto3
import pytest
from minio import Minio

from tests.conftest import new_bucket_name
from tests.fuse.conftest import Mounter
from tests.fuse.mounts import Mount, environment, is_mounted, lazyfs, until, witness
from tests.fuse.mounts import mounted as mounting
from tests.servers import REGION, Server

DEADLINE_S = 10
FOREVER = ("--metadata-ttl", "indefinite")


@pytest.fixture
def server(gateway: Server) -> Server:
    return gateway


def put(client: Minio, bucket: str, key: str, body: bytes) -> None:
    client.put_object(bucket, key, io.BytesIO(body), len(body))


def followed(mount: Mounter, *options: str, **knobs: Any) -> Mount:
    found = mount("--events", "minio", *FOREVER, *options, **knobs)
    found.wait_imported()
    return found


def read(mount: Mount, name: str) -> bytes | None:
    try:
        return (mount / name).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:  # a version that went while it was read is never mixed with the next (P4)
        if error.errno != errno.ESTALE:
            raise
        return b"stale"


def soon(mount: Mount, name: str, content: bytes | None) -> None:
    until(lambda: read(mount, name) == content, f"{name} is {content!r}", DEADLINE_S)


def test_put_replace_and_delete_by_another_client_are_seen(mount: Mounter, client: Minio, bucket: str) -> None:
    put(client, bucket, "there", b"first")
    mounted = followed(mount)
    assert read(mounted, "there") == b"first"
    assert read(mounted, "there") == b"first"
    put(client, bucket, "there", b"second version")
    soon(mounted, "there", b"second version")
    client.remove_object(bucket, "there")
    soon(mounted, "there", None)
    assert os.listdir(mounted.path) == []
    put(client, bucket, "there", b"back")
    soon(mounted, "there", b"back")


def test_a_name_that_the_kernel_was_told_is_absent_appears(mount: Mounter, client: Minio, bucket: str) -> None:
    put(client, bucket, "other", b"x")
    mounted = followed(mount)
    for _ in range(3):
        assert read(mounted, "späte r") is None
    put(client, bucket, "späte r", b"now")
    soon(mounted, "späte r", b"now")


def test_new_files_in_new_directories_appear_and_go(mount: Mounter, client: Minio, bucket: str) -> None:
    mounted = followed(mount)
    assert not (mounted / "new").exists()
    assert os.listdir(mounted.path) == []
    for number in range(20):
        put(client, bucket, f"new/deep/{number}", b"%d" % number)
    soon(mounted, "new/deep/19", b"19")
    assert sorted(os.listdir(mounted / "new/deep"), key=int) == [str(number) for number in range(20)]
    for number in range(20):
        client.remove_object(bucket, f"new/deep/{number}")
    until(lambda: not (mounted / "new").exists(), "the directory is gone", DEADLINE_S)
    assert os.listdir(mounted.path) == []


def test_below_a_prefix_only_its_own_changes_cost_requests(
    mount: Mounter, client: Minio, bucket: str, server: Server, session: str, tmp_path: Any
) -> None:
    put(client, bucket, "in/there", b"1")
    options = ("--events", "minio", *FOREVER)
    with mounting(f"{bucket}/in", server, *options, directory=tmp_path / "below", session=session) as below:
        below.wait_imported()
        put(client, bucket, "out", b"1")
        put(client, bucket, "in/there", b"22")
        soon(below, "there", b"22")
        assert below.stat_of("events.received") == 1


def test_our_own_work_is_not_disturbed_by_hearing_of_it(mount: Mounter, client: Minio, bucket: str) -> None:
    put(client, bucket, "foreign/file", b"x")
    mounted = followed(mount)
    (mounted / "made").mkdir()
    for number in range(30):
        path = mounted / f"made/{number}"
        path.write_bytes(b"a")
        path.write_bytes(b"bb")
        assert path.stat().st_size == 2
        path.rename(mounted / f"made/moved-{number}")
    (mounted / "foreign/file").unlink()
    (mounted / "foreign/next").write_bytes(b"y")
    until(lambda: mounted.stat_of("events.applied") >= 90, "the events arrived", DEADLINE_S)
    assert len(os.listdir(mounted / "made")) == 30
    assert {(mounted / f"made/moved-{number}").read_bytes() for number in range(30)} == {b"bb"}
    assert os.listdir(mounted / "foreign") == ["next"]


def test_unmounting_does_not_wait_for_events(mount: Mounter, client: Minio, bucket: str) -> None:
    mounted = followed(mount)
    done = mounted.umount()
    assert done.returncode == 0


def test_an_endpoint_without_a_stream_fails_the_mount_in_one_line(moto: Server, tmp_path: Any) -> None:
    bucket = moto.make_bucket(new_bucket_name())
    path = tmp_path / "mnt"
    path.mkdir()
    url = f"sqs:{moto.endpoint_url}/123456789012/no-such-queue"
    done = lazyfs(
        "mount", bucket, path, "--endpoint-url", moto.endpoint_url, "--cache-dir", "none", "--events", url,
        env=environment(moto, tmp_path),
    )  # fmt: skip
    assert done.returncode == 1
    assert "--events sqs:" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not is_mounted(path)
    moto.drop_bucket(bucket)


@pytest.mark.usefixtures("aws_environment")
def test_a_queue_works_as_well(moto: Server, session: str, tmp_path: Any) -> None:
    user = {"aws_access_key_id": moto.access_key, "aws_secret_access_key": moto.secret_key}
    sqs = boto3.client("sqs", endpoint_url=moto.endpoint_url, region_name=REGION, **user)
    bucket, client = moto.make_bucket(new_bucket_name()), witness(moto)
    url = sqs.create_queue(QueueName=bucket)["QueueUrl"]
    put(client, bucket, "there", b"1")
    with mounting(bucket, moto, "--events", f"sqs:{url}", *FOREVER, directory=tmp_path, session=session) as mounted:
        mounted.wait_imported()
        assert read(mounted, "there") == b"1"
        assert read(mounted, "new") is None
        put(client, bucket, "there", b"22")
        put(client, bucket, "new", b"333")
        records = [{"s3": {"bucket": {"name": bucket}, "object": {"key": key}}} for key in ("there", "new")]
        sqs.send_message(QueueUrl=url, MessageBody=json.dumps({"Records": records}))
        soon(mounted, "there", b"22")
        soon(mounted, "new", b"333")
    sqs.close()
    moto.drop_bucket(bucket)
