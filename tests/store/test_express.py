"""Directory buckets (S3 Express), whose server cannot be run here: what is sent is what the documentation asks for."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import pytest
import trio
from botocore.awsrequest import AWSPreparedRequest, AWSResponse

from lazyfs.core.errors import NotFoundError, PreconditionFailedError
from lazyfs.core.types import ObjectId
from lazyfs.store.s3 import ControlPlane
from lazyfs.store.settings import S3Settings

BUCKET = "data--use1-az4--x-s3"
SESSION = """<?xml version="1.0"?><CreateSessionResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Credentials>
<SessionToken>session</SessionToken><SecretAccessKey>secret</SecretAccessKey><AccessKeyId>id</AccessKeyId>
<Expiration>2099-01-01T00:00:00Z</Expiration></Credentials></CreateSessionResult>"""


class _Body:
    def __init__(self, body: bytes) -> None:
        self._body = body

    def stream(self, **_: Any) -> list[bytes]:
        return [self._body]


class Server:
    """Answers in place of the network; `rename` is the status of RenameObject."""

    def __init__(self, control: ControlPlane, *, rename: int = 200) -> None:
        self.requests: list[AWSPreparedRequest] = []
        self._rename = rename
        control._client.meta.events.register("before-send.s3", self._answer)

    def _answer(self, request: AWSPreparedRequest, **_: Any) -> AWSResponse:
        self.requests.append(request)
        status, body, headers = 200, b"", {}
        if "?session" in request.url:
            body = SESSION.encode()
        elif "?renameObject" in request.url:
            status = self._rename
        elif request.method == "HEAD":
            headers = {"ETag": '"after"', "Content-Length": "5", "Last-Modified": "Wed, 25 Nov 2026 00:00:00 GMT"}
        return AWSResponse(request.url, status, headers, _Body(body))


@pytest.fixture
def control(monkeypatch: pytest.MonkeyPatch) -> ControlPlane:
    for name, value in {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    return ControlPlane(S3Settings(BUCKET))


def test_a_rename_is_one_request_in_a_session(control: ControlPlane) -> None:
    server = Server(control)

    async def main() -> None:
        assert await control.rename(ObjectId("a b/é", "before"), "c d/ü", token="t1") == "after"

    trio.run(main)
    control.close()
    session, rename, head = server.requests
    host = f"https://{BUCKET}.s3express-use1-az4.us-east-1.amazonaws.com"
    assert session.url.startswith(f"{host}/?session")
    assert (rename.method, unquote(rename.url)) == ("PUT", f"{host}/c d/ü?renameObject")
    headers = {name.lower(): _text(value) for name, value in rename.headers.items()}
    assert headers["x-amz-rename-source"] == "a%20b/%C3%A9"
    assert headers["x-amz-rename-source-if-match"] == '"before"'
    assert headers["x-amz-client-token"] == "t1"
    assert headers["x-amz-s3session-token"] == "session"
    assert head.method == "HEAD"


@pytest.mark.parametrize(("status", "error"), [(404, NotFoundError), (412, PreconditionFailedError)])
def test_a_rename_that_is_refused(control: ControlPlane, status: int, error: type[Exception]) -> None:
    Server(control, rename=status)

    async def main() -> None:
        with pytest.raises(error):
            await control.rename(ObjectId("a", "before"), "b", token="t1")

    trio.run(main)
    control.close()


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
