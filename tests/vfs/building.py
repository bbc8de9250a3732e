"""A mount without a kernel: what the daemon composes, over any store, with knobs small enough to reach every edge.

`mounted` is for async tests; `Portal` keeps a trio loop, and what is mounted in it, alive under a synchronous one.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import trio

from lazyfs.cache.disk import DiskTier
from lazyfs.cache.memory import MemoryTier
from lazyfs.cache.spool import Spool
from lazyfs.cache.tiered import TieredCache
from lazyfs.core.backoff import Backoff
from lazyfs.core.concurrency import Concurrency
from lazyfs.core.errors import ExistsError
from lazyfs.core.parts import PartSizes
from lazyfs.core.readahead import ReadAheadPolicy
from lazyfs.core.stats import Stats
from lazyfs.core.types import ROOT_INO, Attributes, Buffer, Condition, ListPage, Range
from lazyfs.index.changes import ChangeJournal
from lazyfs.index.database import Index, open_index
from lazyfs.store.base import DEFAULT_PUT, Store
from lazyfs.store.memory import MemoryStore
from lazyfs.vfs.backlog import Backlog
from lazyfs.vfs.copying import Copier
from lazyfs.vfs.fetcher import Fetcher
from lazyfs.vfs.filesystem import FileSystem, Policy
from lazyfs.vfs.namespace import Namespace
from lazyfs.vfs.reader import Reader
from lazyfs.vfs.renaming import Journal
from lazyfs.vfs.slots import Slots
from lazyfs.vfs.uploader import Uploader
from lazyfs.vfs.uploads import Uploads
from lazyfs.vfs.writer import Writer
from tests.vfs import schedules

T = TypeVar("T")
IDENTITY = {"endpoint": "", "bucket": "test", "prefix": ""}
SETTLE_S = 20
POLICY = Policy(
    read_only=False,
    no_overwrite=False,
    no_delete=False,
    conditional_put=True,
    uid=1000,
    gid=1000,
    file_mode=0o644,
    dir_mode=0o755,
)


class Clock:
    """Time that passes only when told to. Starts at a whole second."""

    def __init__(self, start_s: int = 1_700_000_000) -> None:
        self.now_ns = start_s * 1_000_000_000

    def __call__(self) -> int:
        return self.now_ns

    def advance(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)


class SmallPages(MemoryStore):
    """A MemoryStore whose listings come in pages of `page_limit` entries, as those of a large bucket do."""

    page_limit = 1000

    async def list_page(
        self,
        prefix: str,
        *,
        delimiter: str = "",
        start_after: str = "",
        token: str | None = None,
        limit: int = 1000,
    ) -> ListPage:
        limit = min(limit, self.page_limit)
        return await super().list_page(prefix, delimiter=delimiter, start_after=start_after, token=token, limit=limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Knobs:
    """Sizes in bytes. A part is two blocks, so that a few dozen bytes reach every path."""

    block: int = 8
    extent: int = 32
    whole_object: int = 24
    part: int = 16
    memory: int = 512
    readahead: ReadAheadPolicy = field(
        default_factory=lambda: ReadAheadPolicy(first_window=16, max_window=64, bridge=8)
    )
    slots: int = 4
    spool: int = 1_000_000


@dataclass(slots=True)
class Mount:
    """The parts of a mount, and the short ways to use it that tests share."""

    fs: FileSystem
    namespace: Namespace
    index: Index
    store: Store
    cache: TieredCache
    spool: Spool | None
    fetcher: Fetcher
    slots: Slots
    stats: Stats
    nursery: trio.Nursery
    permanent: frozenset[Any] = field(default_factory=frozenset)
    backlog: Backlog | None = None

    async def settle(self) -> None:
        """Return once nothing goes on in the background: uploads, flights, checks, aborts, writes to disk."""
        with trio.fail_after(SETTLE_S):
            disk = self.cache.disk
            if self.backlog is not None:
                await self.backlog.drained()
            while self.nursery.child_tasks - self.permanent or (disk is not None and disk.pending_bytes):
                await trio.lowlevel.checkpoint()

    def gauges(self) -> dict[str, int]:
        """What must be zero when nobody has anything open and the mount has settled."""
        return {
            "reserved": self.cache.memory.reserved_bytes,
            "flights": self.fetcher.in_flight,
            "slots": self.slots.taken,
            "handles": len(self.fs.handles),
            "files": len(self.fs.handles.files()),
            "spool": 0 if self.spool is None else self.spool.used_bytes,
        }

    async def lookup(self, path: str) -> Attributes:
        """Walk as the kernel does, a component at a time. NoEntryError."""
        attributes = await self.fs.getattr(ROOT_INO)
        for name in path.split("/") if path else ():
            attributes = await self.fs.lookup(attributes.ino, name)
        return attributes

    async def parent_of(self, path: str) -> tuple[int, str]:
        """The inode of the directory above `path`, and the last component."""
        above, _, name = path.rpartition("/")
        return (await self.lookup(above)).ino, name

    async def open(self, path: str, flags: int = os.O_RDONLY) -> tuple[int, int]:
        """(inode, handle) of an existing file."""
        ino = (await self.lookup(path)).ino
        return ino, await self.fs.open(ino, flags, 1)

    async def create(self, path: str) -> tuple[int, int]:
        """(inode, handle) of a new file."""
        parent, name = await self.parent_of(path)
        fh, attributes = await self.fs.create(parent, name, 1)
        return attributes.ino, fh

    async def read(self, path: str) -> bytes:
        """The whole file, through a handle of its own."""
        ino, fh = await self.open(path)
        try:
            return bytes(await self.fs.read(ino, fh, Range(0, 2**40)))
        finally:
            await self.fs.release(ino, fh)

    async def write(self, path: str, data: bytes) -> int:
        """Create or overwrite, in one write, and close; the inode."""
        try:
            ino, fh = await self.create(path)
        except ExistsError:
            ino, fh = await self.open(path, os.O_WRONLY | os.O_TRUNC)
        try:
            if data:
                await self.fs.write(ino, fh, 0, data)
            await self.fs.flush(ino, fh)
        finally:
            await self.fs.release(ino, fh)
        return ino

    async def entries(self, fh: int, offset: int = 0) -> list[tuple[str, Attributes, int]]:
        """All that readdir tells of an open directory from `offset` on."""
        found: list[tuple[str, Attributes, int]] = []
        while piece := list(await self.fs.read_directory(fh, found[-1][2] if found else offset)):
            found += piece
        return found

    async def names(self, path: str = "") -> list[str]:
        """What readdir tells of a directory, in its order."""
        fh = await self.fs.open_directory((await self.lookup(path)).ino)
        try:
            return [name for name, _, _ in await self.entries(fh)]
        finally:
            self.fs.close_directory(fh)


@contextlib.asynccontextmanager
async def mounted(
    store: Store,
    index_path: Path,
    *,
    ttl_s: float = 60.0,
    clock: Callable[[], int] | None = None,
    root: str = "",
    knobs: Knobs | None = None,
    still_open: Callable[[int, int, str], bool] = lambda *_: False,
    disk: Path | None = None,
    spool: Path | None = None,
    write_back: Path | None = None,
    fsync_to_bucket: bool = False,
    warn: Callable[[str], None] | None = None,
    **policy: Any,
) -> AsyncIterator[Mount]:
    """A mount of `store`; keywords that are not named here go to the Policy. `disk`, `spool` and `write_back` are
    directories; the last one needs the second."""
    knobs, clock, stats = knobs or Knobs(), clock or Clock(), Stats()
    async with contextlib.AsyncExitStack() as stack:
        index = open_index(index_path, IDENTITY, warn or _no_warning)
        stack.callback(index.close)
        await index.remove_local()
        journal, uploads = Journal(index), Uploads(store=store, index=index)
        copier = Copier(store=store, uploads=uploads, renames=isinstance(store, MemoryStore) and store.renames)
        await journal.finish(store, copier)
        changes = None
        if write_back is not None:
            write_back.mkdir(exist_ok=True)
            changes = stack.enter_context(contextlib.closing(ChangeJournal(write_back / "journal.db")))
        nursery = await stack.enter_async_context(trio.open_nursery())
        tier = None
        if disk is not None:
            tier = DiskTier(directory=disk, limit_bytes=2**30, scope="test", stats=stats)
            await stack.enter_async_context(tier)
        memory = MemoryTier(budget_bytes=knobs.memory)
        room = None if spool is None else Spool(spool, limit_bytes=knobs.spool)
        cache = TieredCache(memory=memory, disk=tier)
        slots = Slots(Concurrency.fixed(knobs.slots))
        namespace = Namespace(
            index=index,
            store=store,
            root=root,
            ttl_s=ttl_s,
            import_workers=4,
            sorted_keys=True,
            clock_ns=clock,
            nursery=nursery,
            stats=stats,
        )
        backlog = None
        if changes is not None:
            assert write_back is not None
            assert room is not None
            backlog = Backlog(
                journal=changes, spool=room, directory=write_back, index=index, root=root, first_part=knobs.part
            )
        fetcher = Fetcher(
            store=store,
            cache=cache,
            nursery=nursery,
            slots=slots,
            block_size=knobs.block,
            extent_size=knobs.extent,
            on_stale=namespace.expire_key,
            stats=stats,
            **({} if backlog is None else {"waiting": backlog.read}),
        )

        def new_writer(key: str, content: Buffer, condition: Condition) -> Writer:
            return Writer(
                store=uploads,
                memory=memory,
                nursery=nursery,
                key=key,
                content=content,
                condition=condition,
                options=DEFAULT_PUT,
                part_sizes=PartSizes(knobs.part),
                spool=room,
                streaming=backlog is None,
            )

        reader = Reader(fetcher=fetcher, whole_object_bytes=knobs.whole_object, stats=stats)
        fs = FileSystem(
            namespace=namespace,
            store=store,
            reader=reader,
            new_writer=new_writer,
            readahead=knobs.readahead,
            part_sizes=PartSizes(knobs.part),
            policy=replace(POLICY, **policy),
            journal=journal,
            copier=copier,
            clock_ns=clock,
            still_open=still_open,
            backlog=backlog,
            fsync_to_bucket=fsync_to_bucket,
        )
        if fs.write_back is not None:
            await fs.write_back.recover()
            uploader = Uploader(
                backlog=fs.write_back.backlog,
                store=store,
                uploads=uploads,
                copier=copier,
                memory=memory,
                part_sizes=PartSizes(knobs.part),
                options=DEFAULT_PUT,
                conditional=policy.get("conditional_put", True),
                backoff=Backoff(base_s=0.001, cap_s=0.01),
                metadata=fs.write_back.metadata,
                landed=fs.write_back.landed,
                restate=fs.write_back.restate,
                keep=fs.write_back.keep,
                lost=fs.write_back.lost,
            )
            nursery.start_soon(uploader.run)
        permanent = frozenset(nursery.child_tasks)
        mount = Mount(fs, namespace, index, store, cache, room, fetcher, slots, stats, nursery, permanent, backlog)
        yield mount
        await mount.settle()
        nursery.cancel_scope.cancel()


Mounting: TypeAlias = Callable[..., contextlib.AbstractAsyncContextManager[Mount]]


def mounting(store: SmallPages, clock: Clock, directory: Path, **defaults: Any) -> Mounting:
    """What mounts `store`, refreshed and with its requests forgotten; when a mount ends its gauges are zero, and the
    bucket has no upload left."""

    @contextlib.asynccontextmanager
    async def opened(**options: Any) -> AsyncIterator[Mount]:
        async with mounted(store, directory / "index.db", clock=clock, **{**defaults, **options}) as m:
            await m.namespace.refresh()
            store.requests.clear()
            yield m
            await m.settle()
            assert not any(m.gauges().values()), m.gauges()
            assert store._uploads == {}

    return opened


def _no_warning(message: str) -> None:
    raise AssertionError(f"unexpected warning: {message}")


class Portal:
    """A trio loop in a thread of its own: what is entered here stays alive from one call to the next.

    `seed` decides in what order it does what it could do first (see `schedules`).
    """

    def __init__(self) -> None:
        self.seed = 0
        self._calls = 0
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="portal", daemon=True)

    def __enter__(self) -> Portal:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        trio.from_thread.run_sync(self._end.set, trio_token=self._token)
        self._thread.join(30)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        trio.run(self._main)

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._end = trio.Event()
        async with trio.open_nursery() as self._nursery:
            self._ready.set()
            await self._end.wait()

    def call(self, work: Callable[[], Awaitable[T]]) -> T:
        """The result of `work`, run in the loop."""

        async def guarded() -> T:
            self._calls += 1
            schedules.follow(self.seed, self._calls)
            with trio.fail_after(SETTLE_S):
                return await work()

        return trio.from_thread.run(guarded, trio_token=self._token)

    @contextlib.contextmanager
    def entered(self, context: Callable[[], contextlib.AbstractAsyncContextManager[T]]) -> Iterator[T]:
        """Enter and leave an async context in one task of the loop, for the body of the ``with``."""
        leave, left = trio.Event(), trio.Event()
        failed: list[BaseException] = []
        started: list[T] = []

        async def hold(*, task_status: trio.TaskStatus[T]) -> None:
            try:
                async with context() as value:
                    started.append(value)
                    task_status.started(value)
                    await leave.wait()
            except Exception as error:
                if not started:
                    raise
                failed.append(error)
            finally:
                left.set()

        value = self.call(lambda: self._nursery.start(hold))
        try:
            yield value
        finally:

            async def end() -> None:
                leave.set()
                await left.wait()

            self.call(end)
        if failed:
            raise failed[0]
