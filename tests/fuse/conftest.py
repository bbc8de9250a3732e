"""Fixtures of real mounts."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from minio import Minio

from tests.campaign import THOROUGH
from tests.conftest import SERVERS, new_bucket_name
from tests.fuse.mounts import FUSECTL, SESSIONS, Mount, mounted, witness
from tests.servers import Server

Mounter = Callable[..., Mount]


@pytest.fixture(scope="session", autouse=True)
def _fuse() -> None:
    """These tests need root and /dev/fuse; fusectl is how the watchdog frees a hung call."""
    if os.geteuid() != 0 or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("real mounts are tested as root with /dev/fuse")
    if not FUSECTL.is_mount():
        subprocess.run(["mount", "-t", "fusectl", "fusectl", str(FUSECTL)], check=False, capture_output=True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What the direct session is not always tried with is a campaign's, unless LAZYFS_TEST_SESSIONS says otherwise."""
    if "LAZYFS_TEST_SESSIONS" in os.environ:
        return
    rare = [item for item in items if _is_direct(item) and not _is_always_tried(item)]
    for item in rare:
        item.add_marker("campaign")
    if rare and not THOROUGH:
        config.hook.pytest_deselected(items=rare)
        left_out = set(map(id, rare))
        items[:] = [item for item in items if id(item) not in left_out]


def _is_direct(item: pytest.Item) -> bool:
    values = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return any("direct" in (value, *value[:1]) for value in values if isinstance(value, str | tuple))


def _is_always_tried(item: pytest.Item) -> bool:
    """With one server: they do not differ in what the kernel sees."""
    return item.get_closest_marker("both_sessions") is not None and "gateway" not in item.name


@pytest.fixture(params=SESSIONS)
def session(request: pytest.FixtureRequest) -> str:
    """Each kernel session in turn."""
    name: str = request.param
    return name


@pytest.fixture
def mount(bucket: str, server: Server, session: str, tmp_path: Path) -> Iterator[Mounter]:
    """Mounts the test's bucket: `mount(*options)`; `on` names another server, `directory` another user's home."""
    with ExitStack() as stack:

        def make(*options: str, on: Server | None = None, directory: str = "home", **knobs: object) -> Mount:
            place = tmp_path / directory
            return stack.enter_context(
                mounted(bucket, on or server, *options, directory=place, session=session, **knobs)  # type: ignore[arg-type]
            )

        yield make


@pytest.fixture
def client(server: Server) -> Minio:
    """The independent client."""
    return witness(server)


@pytest.fixture(scope="module", params=SERVERS)
def shared_server(request: pytest.FixtureRequest) -> Server:
    """Each server in turn, for a whole module."""
    found: Server = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module", params=SESSIONS)
def shared_mount(
    request: pytest.FixtureRequest, shared_server: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mount]:
    """One mount of a fresh bucket for all tests of a module that only need a directory of their own."""
    bucket = shared_server.make_bucket(new_bucket_name())
    place = tmp_path_factory.mktemp("shared")
    with mounted(bucket, shared_server, directory=place, session=request.param, time_limit_s=240) as mount:
        yield mount
        mount.expect_log(".")  # each room has looked at its own part of the log
    shared_server.drop_bucket(bucket)


@pytest.fixture
def room(shared_mount: Mount, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A directory of the shared mount that only this test uses; the daemon must have no trouble meanwhile."""
    place = shared_mount.path / f"room-{abs(hash(request.node.nodeid)):x}"
    place.mkdir()
    before = len(shared_mount.trouble())
    yield place
    assert not shared_mount.trouble()[before:]
