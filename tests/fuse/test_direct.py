"""The direct session by itself: in this process, over a store in memory, so that requests can be counted and held."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio

from lazyfs.core.errors import StartupError
from lazyfs.core.types import ObjectId, ObjectInfo, Range
from lazyfs.fuse import choice, direct, mounting
from lazyfs.fuse import protocol as p
from lazyfs.fuse.direct import DirectSession
from lazyfs.fuse.interrupts import asked_to_end
from tests.fuse.golden import REQUESTS
from tests.fuse.mounts import FUSECTL, Watchdog, connection_of, drop_page_cache, is_mounted, until
from tests.vfs.building import Clock, Knobs, Mount, Portal, SmallPages, mounted

BLOCK = 4096
KNOBS = Knobs(block=BLOCK, extent=4 * BLOCK, whole_object=BLOCK, memory=2**22, part=2**16)
OPCODES = {int(opcode): opcode.name for opcode in p.Opcode}
OLD, NEW = b"o" * 40 * BLOCK, b"n" * 40 * BLOCK


class Held(SmallPages):
    """A server that is silent on HEAD and range GETs of the keys in `silent`, and says when it was asked."""

    def __init__(self) -> None:
        super().__init__(clock=Clock(), min_part_size=1)
        self.silent: set[str] = set()
        self.asked = threading.Event()

    async def _speak(self, key: str) -> None:
        if key in self.silent:
            self.asked.set()
            while key in self.silent:
                await trio.sleep(0.01)

    async def get_range(self, oid: ObjectId, span: Range) -> bytes | memoryview:
        await self._speak(oid.key)
        return await super().get_range(oid, span)

    async def head(self, key: str) -> ObjectInfo:
        await self._speak(key)
        return await super().head(key)


@dataclass
class Served:
    """A mount in the portal's loop."""

    path: Path
    mount: Mount
    session: DirectSession
    portal: Portal
    ended: threading.Event
    asked: Counter[str] = field(default_factory=Counter)

    def learn(self, key: str) -> None:
        """As if an event had told of it; returns when the kernel knows, too."""
        self.portal.call(lambda: self.mount.namespace.learn(key))
        until(lambda: not self.session._notifier._names and not self.session._notifier.is_telling, "told")


@pytest.fixture
def store() -> Held:
    store = Held()
    for number in range(3):
        store.put_now(f"d/f{number}", OLD)
    return store


@pytest.fixture
def serve(store: Held, tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Mounts `store`: `serve(read_only=True)`."""
    path = tmp_path / "mnt"
    path.mkdir()
    watchdog = Watchdog(path, 40)
    with contextlib.ExitStack() as stack:
        portal = stack.enter_context(Portal())

        def make(mountpoint: Path = path, **policy: Any) -> Served:
            """`mountpoint` is where the session is told to mount."""
            ended = threading.Event()

            @contextlib.asynccontextmanager
            async def opened() -> AsyncIterator[Served]:
                async with mounted(store, tmp_path / "index.db", knobs=KNOBS, ttl_s=3600, **policy) as m:
                    await m.namespace.refresh()
                    session = DirectSession(m.fs, mountpoint=mountpoint, source="test", allow_other=False)
                    served = Served(path, m, session, portal, ended)
                    take = session._take

                    def counted(message: bytes, tasks: trio.Nursery) -> None:
                        served.asked[OPCODES.get(p.decode_header(message).opcode, "other")] += 1
                        take(message, tasks)

                    session._take = counted  # type: ignore[method-assign]

                    async def run(*, task_status: trio.TaskStatus[None]) -> None:
                        await session.run(task_status=task_status)
                        ended.set()

                    async with trio.open_nursery() as nursery:
                        await nursery.start(run)
                        yield served
                        session.stop()

            return stack.enter_context(portal.entered(opened))

        yield make
        store.silent.clear()
    watchdog.stop()
    assert not is_mounted(path)
    assert not watchdog.barked


def test_a_read_only_mount_is_told_of_no_open(serve: Callable[..., Served]) -> None:
    m = serve(read_only=True)
    for _ in range(3):
        assert [(m.path / f"d/f{number}").read_bytes() for number in range(3)] == [OLD] * 3
    assert (m.asked["OPEN"], m.asked["RELEASE"], m.asked["FLUSH"]) == (1, 0, 1), "each refused once"
    assert len(m.mount.fs.handles) == 0
    reads = m.asked["READ"]
    assert (m.path / "d/f0").read_bytes() == OLD
    assert m.asked["READ"] == reads, "from the kernel's page cache"


def test_while_an_earlier_index_is_believed_each_open_is_checked(serve: Callable[..., Served]) -> None:
    m = serve(read_only=True)
    m.mount.namespace.refreshed = False
    for _ in range(3):
        assert (m.path / "d/f0").read_bytes() == OLD
    assert m.asked["OPEN"] == 3
    m.mount.namespace.refreshed = True
    for _ in range(3):
        assert (m.path / "d/f0").read_bytes() == OLD
    assert m.asked["OPEN"] == 4


@pytest.mark.parametrize("read_only", [True, False])
def test_what_is_open_stays_one_version(serve: Callable[..., Served], store: Held, read_only: bool) -> None:
    m = serve(read_only=read_only)
    file = os.open(m.path / "d/f0", os.O_RDONLY)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
    assert os.pread(file, 10, 0) == OLD[:10]
    store.put_now("d/f0", NEW)
    m.learn("d/f0")
    assert (m.path / "d/f0").read_bytes() == NEW
    drop_page_cache()
    assert os.pread(file, 10, 0) == OLD[:10], "resident in memory"
    with pytest.raises(OSError, match="Stale") as raised:
        os.pread(file, 10, 39 * BLOCK)
    assert raised.value.errno == errno.ESTALE
    assert os.fstat(file).st_size == len(OLD)
    os.close(file)


def test_the_kernel_forgets_what_it_was_bound_to(serve: Callable[..., Served]) -> None:
    m = serve(read_only=True)
    assert (m.path / "d/f0").read_bytes() == OLD
    assert len(m.mount.fs.versions) == 1

    def forgotten() -> bool:
        drop_page_cache()
        return len(m.mount.fs.versions) == 0

    until(forgotten, "FORGET")


def test_closing_a_reader_asks_nothing_and_a_writer_is_asked(serve: Callable[..., Served], store: Held) -> None:
    m = serve(read_only=False)
    assert (m.path / "d/f0").read_bytes() == OLD
    assert m.asked["FLUSH"] == 0
    (m.path / "d/new").write_bytes(b"new")
    assert m.asked["FLUSH"] == 1
    assert store.body("d/new") == b"new"
    assert (m.path / "d/new").read_bytes() == b"new"
    until(lambda: len(m.mount.fs.handles) == 0, "released")


READER = """
import os, signal, sys
signal.signal(signal.SIGUSR1, lambda *_: print("signalled", flush=True))
print("reading", flush=True)
file = os.open(sys.argv[1], os.O_RDONLY)
sys.stdout.buffer.write(os.pread(file, 100, 0))
"""


@contextlib.contextmanager
def reader(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is about to read the first bytes of a file."""
    with subprocess.Popen([sys.executable, "-c", READER, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"reading\n"
        yield process


@pytest.mark.parametrize("waits_for", ["bytes", "name"])
def test_who_is_killed_does_not_wait_for_a_silent_server(
    serve: Callable[..., Served], store: Held, waits_for: str
) -> None:
    m = serve(read_only=True, asks_modes=waits_for == "name")
    store.silent.add("d/f1")
    with reader(m.path / "d/f1") as killed, reader(m.path / "d/f1") as other:
        assert store.asked.wait(10)
        killed.kill()
        assert killed.wait(20) == -signal.SIGKILL
        assert other.poll() is None, "the other waits"
        store.silent.clear()
        assert other.communicate(timeout=20)[0] == OLD[:100]


def test_a_signal_that_ends_nobody_ends_no_request(serve: Callable[..., Served], store: Held) -> None:
    m = serve(read_only=True, asks_modes=True)
    store.silent |= {"d/f1", "d/f2"}
    with reader(m.path / "d/f1") as reading, reader(m.path / "d/f2") as killed:
        until(lambda: len(m.session._waiting) == 2, "both wait")
        reading.send_signal(signal.SIGUSR1)
        killed.send_signal(signal.SIGUSR1)
        until(lambda: m.asked["INTERRUPT"] > 3, "the kernel is asked to say it again, as nothing has ended")
        assert len(m.session._waiting) == 2
        killed.kill()
        assert killed.wait(20) == -signal.SIGKILL
        store.silent.clear()
        assert reading.communicate(timeout=20)[0] == b"signalled\n" + OLD[:100]


def test_which_signals_end_a_request(tmp_path: Path) -> None:
    def pending(thread: int, process: int) -> bool:
        (tmp_path / "7").mkdir(exist_ok=True)
        text = f"Name:\tx\nSigQ:\t1/2\nSigPnd:\t{thread:016x}\nShdPnd:\t{process:016x}\nSigBlk:\t{2**32:016x}\n"
        (tmp_path / "7/status").write_text(text)
        return asked_to_end(7, tmp_path)

    for number in (signal.SIGALRM, signal.SIGPROF, signal.SIGCHLD, signal.SIGURG, signal.SIGUSR1, signal.SIGWINCH):
        assert not pending(1 << (number - 1), 0)
        assert not pending(0, 1 << (number - 1))
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        assert pending(1 << (number - 1), 0)
        assert pending(0, 1 << (number - 1) | 1 << (signal.SIGALRM - 1))
    assert asked_to_end(8, tmp_path), "gone"


@pytest.mark.parametrize("way", ["umount", "abort", "stop"])
def test_it_ends_whichever_way_the_mount_ends(serve: Callable[..., Served], way: str) -> None:
    m = serve(read_only=True)
    assert (m.path / "d/f0").read_bytes() == OLD
    if way == "umount":
        subprocess.run(["umount", m.path], check=True)
    elif way == "abort":
        (FUSECTL / str(connection_of(m.path)) / "abort").write_text("1")
    else:
        assert trio.from_thread.run_sync(m.session.stop, trio_token=m.portal._token)
    assert m.ended.wait(20)
    assert not is_mounted(m.path)
    assert not m.session.stop()


def test_fusermount_mounts_for_who_may_not(serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> int:
        raise PermissionError(errno.EPERM, "no")

    monkeypatch.setattr(mounting, "_by_syscall", refuse)
    m = serve(read_only=True)
    assert (m.path / "d/f0").read_bytes() == OLD
    line = next(line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(m.path) in line)
    assert " fuse.lazyfs test ro," in line
    assert "default_permissions" in line


def test_a_mount_that_somebody_else_made_is_served(serve: Callable[..., Served], tmp_path: Path) -> None:
    device = mounting.mount(tmp_path / "mnt", source="test", read_only=True, allow_other=False)
    m = serve(Path(f"/dev/fd/{device.fd}"), read_only=True)
    assert (m.path / "d/f0").read_bytes() == OLD
    mounting.unmount(m.path)
    assert m.ended.wait(20)


def test_a_mount_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="No such file"):
        mounting.mount(tmp_path / "nowhere", source="test", read_only=True, allow_other=False)


def test_auto_is_direct_where_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choice.why_not_direct() is None
    assert choice.chosen("auto") == "direct"
    monkeypatch.setattr("platform.release", lambda: "5.3.0-old")
    assert choice.chosen("auto") == "pyfuse3"
    assert "older than 5.4" in (choice.why_not_direct() or "")
    assert choice.chosen("direct") == "direct"


# -- a kernel that says anything --------------------------------------------------------------------------------------


class Kernel:
    """The other end of a session's descriptor: what it is told, and what it answers."""

    def __init__(self, session: DirectSession, nursery: trio.Nursery) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.setblocking(False)
        theirs.setblocking(False)
        self._theirs = theirs
        session._fd = theirs.fileno()
        self._session = session
        self._nursery = nursery

    def says(self, message: bytes) -> None:
        self._session._take(message, self._nursery)

    async def hears(self) -> list[tuple[int, int, bytes]]:
        """(unique, errno, body) of all answers to what was said."""
        with trio.fail_after(20):
            while self._session._waiting:
                await trio.lowlevel.checkpoint()
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                answer = self._ours.recv(2**21)
                length, error, unique = struct.unpack_from("=IiQ", answer)
                assert length == len(answer)
                found.append((unique, -error, answer[16:]))
        return found

    def close(self) -> None:
        self._ours.close()
        self._theirs.close()


@contextlib.asynccontextmanager
async def talking(store: Held, tmp_path: Path, **policy: Any) -> AsyncIterator[Kernel]:
    async with mounted(store, tmp_path / "index.db", knobs=KNOBS, **policy) as m, trio.open_nursery() as nursery:
        await m.namespace.refresh()
        session = DirectSession(m.fs, mountpoint=tmp_path, source="test", allow_other=False)
        with contextlib.closing(Kernel(session, nursery)) as kernel:
            yield kernel
            nursery.cancel_scope.cancel()


def request(opcode: int, body: bytes = b"", *, nodeid: int = 1, unique: int = 5) -> bytes:
    return p.HEADER.pack(p.HEADER.size + len(body), opcode, unique, nodeid, 0, 0, os.getpid(), 0, 0) + body


@pytest.mark.expect_warnings
async def test_what_is_no_request_is_answered(store: Held, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with talking(store, tmp_path) as kernel:
        kernel.says(request(47))
        kernel.says(request(9999))
        assert await kernel.hears() == [(5, errno.ENOSYS, b"")] * 2
        with caplog.at_level(logging.ERROR, "lazyfs"):
            kernel.says(request(p.Opcode.READ, b"short"))
        assert await kernel.hears() == [(5, errno.EIO, b"")]
        assert "what is no request" in caplog.text
        kernel.says(b"x" * 10)
        assert await kernel.hears() == []
        kernel.says(request(p.Opcode.FORGET, struct.pack("=Q", 1)))
        kernel.says(request(p.Opcode.INTERRUPT, struct.pack("=Q", 77)))
        assert await kernel.hears() == [], "these have no answer"
        kernel.says(request(p.Opcode.GETATTR, bytes(16)))
        ((_, error, body),) = await kernel.hears()
        assert (error, len(body)) == (0, 104), "and it goes on"


async def test_an_old_kernel_is_refused(store: Held, tmp_path: Path) -> None:
    async with talking(store, tmp_path) as kernel:
        kernel.says(request(p.Opcode.INIT, struct.pack("=IIII", 7, 30, 131072, 0)))
        assert await kernel.hears() == [(5, errno.EPROTO, b"")]
        assert "7.30" in (kernel._session._refused or "")


@pytest.mark.parametrize("offered", [0, 0x73FFFFFB, p.InitFlag.MAX_PAGES | p.InitFlag.ASYNC_READ])
async def test_only_what_the_kernel_offers_is_agreed_on(store: Held, tmp_path: Path, offered: int) -> None:
    async with talking(store, tmp_path) as kernel:
        kernel.says(request(p.Opcode.INIT, struct.pack("=IIII", 7, 31, 131072, offered)))
        ((_, error, body),) = await kernel.hears()
        major, minor, readahead, flags, background, threshold = struct.unpack_from("=IIIIHH", body)
        assert (error, major, minor, readahead, background, threshold) == (0, 7, 31, 131072, 256, 192)
        assert flags & ~offered == 0
        assert bool(flags & p.InitFlag.MAX_PAGES) == bool(offered & p.InitFlag.MAX_PAGES)


@pytest.mark.expect_warnings
@pytest.mark.parametrize("read_only", [True, False])
async def test_each_request_gets_one_answer_whatever_it_asks(store: Held, tmp_path: Path, read_only: bool) -> None:
    """Requests of every kind, about inodes, handles and names that may exist or not."""
    random = Random(11)
    messages = [bytes.fromhex(text) for text in REQUESTS.values()]
    async with talking(store, tmp_path, read_only=read_only) as kernel:
        expected = []
        for unique in range(1000, 1600):
            message = bytearray(random.choice(messages))
            opcode = struct.unpack_from("=I", message, 4)[0]
            struct.pack_into("=QQ", message, 8, unique, random.choice([1, 2, 3, 4, 5, 999, 2**64 - 1]))
            if random.random() < 0.5 and len(message) > 48:
                struct.pack_into("=Q", message, 40, random.choice([0, 1, 2, 3, 2**64 - 1]))
            if random.random() < 0.3:
                message[random.randrange(40, len(message)) if len(message) > 40 else 39] ^= 1 << random.randrange(8)
            kernel.says(bytes(message))
            if opcode not in p.UNANSWERED:
                expected.append(unique)
            if unique % 50 == 0:
                answered = [one for one, _, _ in await kernel.hears()]
                assert sorted(answered) == expected
                expected = []


async def test_who_was_waiting_when_the_session_gives_up_is_told(store: Held, tmp_path: Path) -> None:
    store.silent.add("d/f0")
    async with talking(store, tmp_path, read_only=True) as kernel:
        fs = kernel._session._filesystem
        ino = (await fs.lookup((await fs.lookup(1, "d")).ino, "f0")).ino
        kernel.says(request(p.Opcode.READ, struct.pack("=QQIIQII", 0, 0, 100, 0, 0, 0, 0), nodeid=ino))
        while not store.asked.is_set():
            await trio.lowlevel.checkpoint()
        kernel._nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            assert await kernel.hears() == [(5, errno.ENOTCONN, b"")]
        store.silent.clear()


async def test_a_busy_kernel_leaves_the_daemon_its_turns(store: Held, tmp_path: Path) -> None:
    async with talking(store, tmp_path, read_only=True) as kernel:
        for unique in range(3 * direct.BATCH):
            kernel._ours.send(request(p.Opcode.GETATTR, bytes(16), unique=unique))
        kernel._nursery.start_soon(kernel._session._read_requests, kernel._nursery)
        answered, turns = 0, 0
        with trio.fail_after(20):
            while answered < 3 * direct.BATCH:
                await trio.lowlevel.checkpoint()
                told = len(await kernel.hears())
                assert told <= 2 * direct.BATCH, "whose turn is first, chance decides"
                answered += told
                turns += 1
        assert turns >= 2


def test_when_too_many_wait_the_rest_waits_in_the_kernel(
    serve: Callable[..., Served], store: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct, "MAX_WAITING", 2)
    m = serve(read_only=True, asks_modes=True)
    paths = [m.path / f"d/f{number}" for number in range(3)]
    store.silent |= {f"d/f{number}" for number in range(3)}
    sizes: list[int] = []
    threads = [threading.Thread(target=lambda path=path: sizes.append(path.stat().st_size)) for path in paths]
    for thread in threads:
        thread.start()
    until(lambda: len(m.session._waiting) == 2, "two wait")
    assert store.asked.wait(10)
    assert len(m.session._waiting) == 2
    store.silent.clear()
    for thread in threads:
        thread.join(20)
    assert sizes == [len(OLD)] * 3


async def test_requests_begin_in_the_order_in_which_they_came(store: Held, tmp_path: Path) -> None:
    """What the kernel sends in an order, like RELEASE and then SETATTR, is meant so; tasks have none."""
    order: list[int] = []
    async with talking(store, tmp_path) as kernel:
        verbs = kernel._session._verbs

        async def later(header: p.Header, request: p.Request) -> bytes:
            order.append(header.unique)
            return b""

        def now(header: p.Header, request: p.Request) -> bytes | None:
            if header.unique % 5:
                return None
            order.append(header.unique)
            return b""

        verbs.later, verbs.now = later, now  # type: ignore[method-assign]
        for unique in range(60):
            kernel._ours.send(request(p.Opcode.GETATTR, bytes(16), unique=unique))
        kernel._nursery.start_soon(kernel._session._read_requests, kernel._nursery)
        with trio.fail_after(20):
            while len(order) < 60:
                await trio.lowlevel.checkpoint()
        assert order == list(range(60))
