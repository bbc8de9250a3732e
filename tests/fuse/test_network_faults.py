"""Real mounts over a network that fails: programs get right bytes or the right errno in time, and nothing stays behind.

One mount goes through many faults, one after the other, so that what one leaves behind the next one finds. A thorough
run (LAZYFS_THOROUGH=1) has more of the faults with more of the verbs; which, LAZYFS_SEED chooses.
`tests/store/test_network_faults.py` has the same without a mount.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from minio import Minio

from tests.campaign import THOROUGH
from tests.faults import FAULTS, FOR_EVER, Injector, Kind, sample
from tests.fuse.conftest import Mounter
from tests.fuse.mounts import Mount, until
from tests.fuse.test_write_errors import uploads
from tests.fuse.trees import get, keys, put, random_bytes
from tests.proxy import Proxy, proxied
from tests.servers import Server

SMALL = random_bytes(300_000, 1)
LARGE = random_bytes(11 * 1024**2, 2)
KNOBS = ["--read-timeout", "500ms", "--part-size", "5MiB", "--metadata-ttl", "0"]
TROUBLE = (
    "upload of|was not uploaded|failed, and will be tried again|reading through boto3|listing the bucket|not aborted"
)
TIME_LIMIT_S = 1500 if THOROUGH else 100


@pytest.fixture
def server(moto: Server) -> Server:
    """One server: what is shown here does not depend on its manners."""
    return moto


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with proxied(server) as proxy:
        yield proxy


@dataclass
class Scene:
    """Where one fault befalls one verb: a directory of the mount that holds `old` and `gone`."""

    mount: Mount
    client: Minio
    bucket: str
    name: str
    told: list[int] = field(default_factory=list)
    """What the program was told, if it was refused."""

    def __truediv__(self, name: str) -> str:
        return str(self.mount.path / self.name / name)

    def stored(self) -> dict[str, bytes]:
        prefix = f"{self.name}/"
        return {
            key.removeprefix(prefix): get(self.client, self.bucket, key)
            for key in keys(self.client, self.bucket, prefix)
        }


def read(s: Scene) -> None:
    with open(s / "old", "rb") as file:
        assert file.read() == SMALL


def looked(s: Scene) -> None:
    assert os.stat(s / "old").st_size == len(SMALL)
    with pytest.raises(FileNotFoundError):
        os.stat(s / "never there")


def listed(s: Scene) -> None:
    assert {"old", "gone"} <= set(os.listdir(s / ""))


def write(name: str, data: bytes) -> Callable[[Scene], None]:
    def act(s: Scene) -> None:
        with open(s / name, "wb") as file:
            file.write(data)

    return act


def unlinked(s: Scene) -> None:
    os.unlink(s / "gone")


def renamed(s: Scene) -> None:
    os.rename(s / "gone", s / "renamed")


ACTS: dict[str, tuple[Callable[[Scene], None], dict[str, bytes]]] = {
    "get": (read, {"old": SMALL, "gone": b"x"}),
    "head": (looked, {"old": SMALL, "gone": b"x"}),
    "list": (listed, {"old": SMALL, "gone": b"x"}),
    "put": (write("small", SMALL), {"old": SMALL, "gone": b"x", "small": SMALL}),
    "create_upload": (write("large", LARGE), {"old": SMALL, "gone": b"x", "large": LARGE}),
    "upload_part": (write("large", LARGE), {"old": SMALL, "gone": b"x", "large": LARGE}),
    "complete_upload": (write("large", LARGE), {"old": SMALL, "gone": b"x", "large": LARGE}),
    "delete": (unlinked, {"old": SMALL}),
    "copy": (renamed, {"old": SMALL, "renamed": b"x"}),
}
"""By the verb that the fault befalls: what a program does, and what the bucket holds when that has succeeded."""


READS = {"get", "head", "list"}


def choice(names: list[str], usually: int, thorough: int, salt: int) -> list[tuple[str, str]]:
    seen = [name for name in names if THOROUGH or "drip" not in name]  # each lasts until the request's deadline
    pairs = [f"{verb}|{fault}" for verb in ACTS for fault in seen if verb != "head" or not FAULTS[fault].needs_body]
    return [
        (verb, fault) for verb, _, fault in (pair.partition("|") for pair in sample(pairs, usually, thorough, salt))
    ]


def befall(s: Scene, proxy: Proxy, verb: str, kind: Kind, times: int) -> int:
    """Let the program do what it does while the fault lasts; how often it struck. What it is told is in `s.told`."""
    s.mount.wait_closed()
    proxy.fault = injector = Injector(verb, kind.strike, times)
    try:
        ACTS[verb][0](s)
    except OSError as error:
        s.told.append(error.errno or 0)
    else:
        if s.mount.status()["policy"]["write_back"] and verb not in READS:  # the bucket is asked later
            until(lambda: injector.struck, f"{verb} meets its fault")
    finally:
        proxy.fault = lambda _seen: None
    return injector.struck


def fresh(m: Mount, client: Minio, bucket: str, number: int) -> Scene:
    name = f"case-{number}"
    put(client, bucket, f"{name}/old", SMALL)
    put(client, bucket, f"{name}/gone", b"x")
    return Scene(m, client, bucket, name)


def nothing_under_way(m: Mount) -> None:
    m.wait_closed()
    m.wait_uploaded()
    until(lambda: m.status()["connections"]["in_flight"] == 0, "no request is under way")


@pytest.mark.campaign
@pytest.mark.parametrize("mode", ["--write-through", "--write-back"])
def test_programs_do_not_notice_what_passes(
    mount: Mounter, proxy: Proxy, client: Minio, server: Server, bucket: str, mode: str
) -> None:
    m = mount(*KNOBS, "--retry-for", "120s", mode, on=proxy.server, expect_log=[TROUBLE], time_limit_s=TIME_LIMIT_S)
    m.wait_imported()
    names = [name for name, kind in FAULTS.items() if kind.transient]
    for number, (verb, fault) in enumerate(choice(names, 10, 60, len(mode))):
        s = fresh(m, client, bucket, number)
        befall(s, proxy, verb, FAULTS[fault], 1)
        assert s.told == [], (verb, fault)
        nothing_under_way(m)
        assert s.stored() == ACTS[verb][1], (verb, fault)
        print(f"passed: {mode} {verb}: {fault}")  # noqa: T201 - the campaign's record, shown by -rP
    assert uploads(server, bucket) == []


@pytest.mark.campaign
@pytest.mark.parametrize("mode", ["--write-through", "--write-back"])
def test_programs_are_told_what_stays_and_the_mount_goes_on(
    mount: Mounter, proxy: Proxy, client: Minio, server: Server, bucket: str, mode: str
) -> None:
    """Who was told an error may find what was asked for done, or not at all, and can do it again afterwards."""
    m = mount(*KNOBS, "--retry-for", "1500ms", mode, on=proxy.server, expect_log=[TROUBLE], time_limit_s=TIME_LIMIT_S)
    m.wait_imported()
    for number, (verb, fault) in enumerate(choice(list(FAULTS), 4, 60, 2 + len(mode))):
        s, kind = fresh(m, client, bucket, number), FAULTS[fault]
        struck = befall(s, proxy, verb, kind, FOR_EVER)
        wanted, case = ACTS[verb][1], (verb, fault, s.told)
        allowed = kind.numbers | {errno.EIO}
        assert set(s.told) <= allowed, case
        if mode == "--write-back" and verb not in READS:
            assert s.told == [], case
        elif struck and not kind.executed:
            assert s.told, case
        nothing_under_way(m)
        for name, data in s.stored().items():
            assert data in {SMALL, LARGE, b"x"}, (*case, name)
        if s.told:
            with contextlib.suppress(FileNotFoundError):  # it was done, though nobody could say so
                ACTS[verb][0](s)
            nothing_under_way(m)
        assert s.stored() == wanted, case
        assert sorted(os.listdir(s / "")) == sorted(wanted), case
        print(f"passed: {mode} {verb}: {fault}, {struck} times, told {s.told}")  # noqa: T201 - see above
    assert m.umount().returncode == 0
    again = mount(on=proxy.server)
    assert uploads(server, bucket) == [], "what could not be aborted then is aborted by the next mount"
    assert again.umount().returncode == 0
