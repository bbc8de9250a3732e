"""What every test can count on: real servers, async tests under trio, no unexpected warning in the log."""

from __future__ import annotations

import functools
import inspect
import logging
import os
import uuid
from collections.abc import Iterator

import pytest
import trio
import trio.testing
from hypothesis import settings

from tests.servers import Server, foreign_endpoint, juicefs_gateway, moto_server

TEST_TIMEOUT_S = 60
settings.register_profile("lazyfs", deadline=None)  # no assertion is about time; the machine may be busy
settings.load_profile("lazyfs")

SERVERS = ["moto", "gateway", *(["endpoint"] if os.environ.get("LAZYFS_TEST_ENDPOINT") else [])]


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run `async def` tests in a trio loop of their own, with a deadline."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    call = functools.partial(pyfuncitem.obj, **{name: pyfuncitem.funcargs[name] for name in names})

    async def run() -> None:
        with trio.fail_after(TEST_TIMEOUT_S):
            await call()

    jump = pyfuncitem.get_closest_marker("autojump") is not None
    trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0) if jump else None)
    return True


class _Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture(autouse=True)
def _no_unexpected_warning(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test in which lazyfs logged at WARNING or above, unless it is marked `expect_warnings`."""
    handler = _Warnings()
    logger = logging.getLogger("lazyfs")
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)
    if handler.records and request.node.get_closest_marker("expect_warnings") is None:
        pytest.fail("unexpected in the log: " + "; ".join(record.getMessage() for record in handler.records))


@pytest.fixture(scope="session")
def moto() -> Iterator[Server]:
    """moto, one for the whole run."""
    with moto_server() as server:
        yield server


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The juicefs gateway, one for the whole run."""
    with juicefs_gateway(tmp_path_factory.mktemp("gateway")) as server:
        yield server


@pytest.fixture(scope="session")
def endpoint() -> Server:
    """The endpoint of LAZYFS_TEST_ENDPOINT."""
    server = foreign_endpoint()
    assert server is not None
    return server


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> Server:
    """Each real server in turn."""
    found: Server = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def bucket(server: Server) -> Iterator[str]:
    """A fresh bucket of `server`, emptied and deleted afterwards."""
    name = server.make_bucket(new_bucket_name())
    yield name
    server.drop_bucket(name)


@pytest.fixture
def aws_environment(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> pytest.MonkeyPatch:
    """No credentials, profiles or endpoints of the developer's reach the test; `server`'s do if the test has one."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent/config")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent/credentials")
    if "server" in request.fixturenames:
        server: Server = request.getfixturevalue("server")
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
    return monkeypatch


def new_bucket_name() -> str:
    """A bucket name that nobody else uses."""
    return f"lazyfs-test-{uuid.uuid4().hex[:16]}"
