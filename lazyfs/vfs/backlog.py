"""Write-back's backlog: what programs were told is done and the bucket does not have yet.

Promises that what a method here returned from survives kill -9 and a power cut: the bytes are in synced files of the
spool, the changes in a synced journal. What follows from what is decided in `core.pending`, `vfs.uploader` talks to the
bucket; this remembers, and lets both wait for each other.

Whatever changes the index because of a change does so as its `apply`: between its being recorded and its being true, or
between its being done and its being over, under the one lock. So the index never says less than the backlog.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import trio

from lazyfs.cache.spool import Spool, SpoolFile
from lazyfs.core.changes import Change
from lazyfs.core.errors import LazyfsError, NoRoomError
from lazyfs.core.pending import Pending, Plan
from lazyfs.core.posix import from_metadata
from lazyfs.core.types import Buffer, ObjectId, ObjectInfo, Range
from lazyfs.index.changes import ChangeJournal
from lazyfs.index.database import Index
from lazyfs.store.metadata import changed

log = logging.getLogger(__name__)

Apply: TypeAlias = Callable[[], Awaitable[None]]
"""Makes true for the mount what was just recorded."""
MAX_CHANGES = 100_000
"""In the backlog at a time: some 100 MB of memory. Then a program waits until one is done."""


class Backlog:
    """The changes of the bucket below key prefix `root`, in `journal`; their bytes are files in `directory`.

    `first_part`: see core.pending.
    """

    def __init__(
        self,
        *,
        journal: ChangeJournal,
        spool: Spool,
        directory: Path,
        index: Index,
        root: str,
        first_part: int,
    ) -> None:
        self.pending = Pending(newest=journal.newest(), first_part=first_part)
        self._journal = journal
        self._spool = spool
        self._directory = directory
        self.index = index
        self._root = root
        self._turn = trio.Lock()
        """Held from deciding what to record until it is recorded and true here."""
        self._moved = trio.Event()
        """Set, and made anew, whenever something is added, done or has failed."""
        self._tokens: Counter[str] = Counter()
        self._bytes = 0
        self._finishing = 0
        self._watches: list[tuple[str, dict[str, ObjectInfo | None]]] = []
        self._since_s: dict[int, float] = {}
        self.failures: dict[int, LazyfsError] = {}
        """Why changes could not be carried out when that was last tried, by number."""
        self._landed: dict[str, tuple[Change, str]] = {}
        """Of contents that others still need: the change that brought them to the bucket, and its version there."""
        self.keep: Callable[[Change, str, SpoolFile | None], None] = _close
        """Takes a content, that the bucket has, from the last who needed it."""
        self.parts: dict[int, tuple[int, int]] = {}
        """Of uploads of several parts that are under way: how many have arrived, and of how many; by number."""
        spool.room_will_come = lambda: len(self.pending) > 0 and not self.failures

    # -- what there is ------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.pending)

    @property
    def bytes(self) -> int:
        """Of the contents that wait here."""
        return self._bytes

    @property
    def oldest_s(self) -> float:
        """For how many seconds the oldest change has been waiting; of a former mount's, since this one began."""
        since_s = next(iter(self._since_s.values()), None)  # they are added in the order of time
        return 0.0 if since_s is None else trio.current_time() - since_s

    def failing(self) -> list[tuple[str, str]]:
        """The keys of changes that are wanted and could not be carried out when that was last tried, and why."""
        found = [(self.pending.find(number), str(error)) for number, error in self.failures.items()]
        return [(change.key, error) for change, error in found if change and self.pending.is_wanted(change)]

    async def read(self, content: ObjectId, span: Range) -> Buffer | None:
        """These bytes of what waits here, None if it does not. SpoolError."""
        token = content.etag[1:-1]
        if content.key or token not in self._tokens:
            return None
        return await self._spool.read_kept(self._path(token), *span)

    async def body(self, change: Change, span: Range) -> Buffer:
        """Bytes of the content of a PUT. SpoolError."""
        return await self._spool.read_kept(self._path(change.token), *span) if span.size else b""

    # -- what programs do ---------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def planned(self, apply: Callable[[Plan], Awaitable[None]]) -> AsyncIterator[Plan]:
        """What the body plans, by `pending`, is recorded durably; then `apply` makes it true for the mount, and then it
        may be carried out. NoRoomError, SpoolError: none of it."""
        while len(self.pending) >= MAX_CHANGES:
            if self.failures:
                raise NoRoomError(f"{MAX_CHANGES:,} changes wait for the bucket: {next(iter(self.failures.values()))}")
            await self._moved.wait()
        async with self._turn:
            plan = self.pending.plan()
            yield plan
            await self._journal.record(plan.added, [change.number for change in plan.dropped])
            for change in plan.added:  # what the bucket says of these keys does not count any more
                self._hold(change)
            try:
                await apply(plan)
            finally:
                for change in self.pending.make_true(plan):
                    await self._forget(change)
                self._tell()

    async def put(
        self, file: SpoolFile, change: Callable[[], Change], apply: Callable[[Plan], Awaitable[None]]
    ) -> None:
        """The key of what `change` tells, when its turn has come, shall hold what `file` has, which is closed. Errors
        as of `planned`."""
        token = secrets.token_hex(8)
        try:
            await file.keep_as(self._path(token))
        finally:
            file.close()
        try:
            async with self.planned(apply) as plan:
                self.pending.put(plan, replace(change(), token=token))
        except BaseException:
            if token not in self._tokens:
                with trio.CancelScope(shield=True):
                    await self._spool.drop(self._path(token), file.size)
            raise

    async def amend(self, key: str, changes: Mapping[str, str | None]) -> bool:
        """Change metadata of what `key` shall become, durably; False if nothing is pending for it. SpoolError."""
        if self.pending.made(key) is None:
            return False
        async with self._turn:
            made = self.pending.made(key)
            if made is None:
                return False
            metadata = changed(made.metadata, changes)
            mtime_ns = from_metadata(metadata).mtime_ns
            amended = replace(made, metadata=metadata, mtime_ns=made.mtime_ns if mtime_ns is None else mtime_ns)
            await self._journal.record([amended])
            self.pending.change(amended)
            return True

    async def spooled(self, content: Buffer) -> SpoolFile:
        """`content` as a file for `put`. NoRoomError, SpoolError."""
        file = await self._spool.open()
        try:
            await file.write(0, content)
        except BaseException:
            file.close()
            raise
        return file

    @contextlib.contextmanager
    def landing(self, prefix: str) -> Iterator[dict[str, ObjectInfo | None]]:
        """What we make of keys below `prefix` in the bucket during the ``with``; None of those that go."""
        found: dict[str, ObjectInfo | None] = {}
        watch = (prefix, found)
        self._watches.append(watch)
        try:
            yield found
        finally:
            self._watches.remove(watch)

    async def carried_out(self, awaited: Callable[[], Iterable[Change]]) -> None:
        """Return when none of the changes is pending any more that `awaited` tells, which is asked again and again.
        LazyfsError if one of them, or one that it may wait for, fails meanwhile; it is tried again all the same."""
        while newest := max((change.number for change in awaited()), default=0):
            for number, error in self.failures.items():
                if number <= newest:
                    raise type(error)(*error.args)
            await self._moved.wait()

    async def drained(self) -> None:
        """Return when nothing is pending, and what is done is finished."""
        while len(self.pending) or self._finishing:
            await self._moved.wait()

    def still(self) -> AbstractAsyncContextManager[object]:
        """For the body of the ``with`` nothing is added, taken or over."""
        return self._turn

    @contextlib.contextmanager
    def finishing(self) -> Iterator[None]:
        """Something about a change is still to be done when it is over."""
        self._finishing += 1
        try:
            yield
        finally:
            self._finishing -= 1
            self._tell()

    # -- carrying out -------------------------------------------------------------------------------------------------

    async def next(self) -> Change:
        """The next change that may begin; it is taken. Waits for one."""
        while True:
            async with self._turn:  # what a plan counts on as not taken must stay so until it is true
                change = self.pending.take()
            if change is not None:
                return change
            await self._moved.wait()

    async def until_withdrawn(self, change: Change, *, timeout_s: float) -> None:
        """Return when a taken change ceases to be wanted, or after `timeout_s`."""
        was_wanted = self.pending.is_wanted(change)
        with trio.move_on_after(timeout_s):
            while self.pending.is_wanted(change) == was_wanted:
                await self._moved.wait()

    def failed(self, change: Change, error: LazyfsError) -> None:
        """It could not be carried out, and will be tried again."""
        self.failures[change.number] = error
        self._tell()

    async def done(self, change: Change, etag: str, apply: Apply) -> SpoolFile | None:
        """The bucket has it, of a PUT or COPY as version `etag`; if it is the latest of its key, `apply` makes that
        true for the mount. Its content, if nobody else needs it: the caller closes that. SpoolError: it is not over."""
        async with self._turn:
            followers = self.pending.followers(change, etag)
            await self._journal.record(followers, [change.number])
            for later in followers:
                self.pending.change(later)
            if self.pending.is_latest(change):
                for prefix, found in self._watches:
                    if change.key.startswith(prefix):
                        info = ObjectInfo(change.key, etag, change.size, change.mtime_ns)
                        found[change.key] = info if change.makes else None
                await apply()
            content = await self._adopted(change) if self._is_last(change) else None
            self._settle(change)
            self._landed.pop(change.token, None)
            if change.token in self._tokens:
                self._landed[change.token] = (change, etag)
            return content

    async def give_up(self, change: Change) -> None:
        """Nothing will come of a taken change: it was withdrawn, or what it was a copy of is gone."""
        async with self._turn:
            await self._journal.record((), [change.number])
            await self._forget(change)

    # -- for who has open what is not wanted any more ----------------------------------------------------------------

    def retain(self, change: Change) -> None:
        """The content of a PUT, which is pending, is to stay here until `let_go`, whatever becomes of it."""
        self._tokens[change.token] += 1

    async def let_go(self, change: Change) -> None:
        """Nobody has it open any more."""
        async with self._turn:
            await self._leave(change)
            self._need_no_more(change)

    # -- after a crash ------------------------------------------------------------------------------------------------

    async def recover(self) -> None:
        """Take up what a former mount has left, and sweep files that belong to nothing. StartupError if the journal
        cannot be read."""
        changes = self._journal.load()
        present = await trio.to_thread.run_sync(self._files)
        for change in changes:
            if change.token and present.get(change.token, -1) < change.size:
                log.error("what was written to %r is lost: %s is gone", change.key, self._path(change.token))
                await self._journal.record((), [change.number])
                continue
            if change.token and change.token not in self._tokens:
                self._spool.hold(change.size)
            self._hold(change)
            self.pending.admit(change, tried=True)
        for token in present:
            if token not in self._tokens:
                self._path(token).unlink(missing_ok=True)

    def _files(self) -> dict[str, int]:
        """The contents that are there, and their sizes in bytes."""
        return {path.stem: path.stat().st_size for path in self._directory.glob("*.data")}

    # -- inside -------------------------------------------------------------------------------------------------------

    def _hold(self, change: Change) -> None:
        self.index.hold(change.key[len(self._root) :])
        self._since_s[change.number] = trio.current_time()
        if change.token:
            self._bytes += change.size if change.token not in self._tokens else 0
            self._tokens[change.token] += 1

    def _is_last(self, change: Change) -> bool:
        """Whether it has a content that no other change has."""
        return bool(change.token) and self._tokens[change.token] == 1

    async def _forget(self, change: Change) -> None:
        """`change` is over; its content goes if no other has it."""
        await self._leave(change)
        self._settle(change)

    async def _leave(self, change: Change) -> None:
        """It needs its content no more: if nobody does, and the bucket has it, it is kept as if it had been read."""
        if not self._is_last(change):
            return
        landed = self._landed.pop(change.token, None)
        if landed is None:
            await self._spool.drop(self._path(change.token), change.size)
        else:
            self.keep(*landed, await self._adopted(change))

    async def _adopted(self, change: Change) -> SpoolFile | None:
        """Its content, which nobody else has, as a file of the spool; whoever waits for room may have that now."""
        try:
            content = await self._spool.adopt(self._path(change.token), change.size)
            content.spare()
            return content
        except LazyfsError as error:
            log.warning("%r is in the bucket and not kept here: %s", change.key, error)
            await self._spool.drop(self._path(change.token), change.size)
            return None

    def _settle(self, change: Change) -> None:
        """`change` is over, and what waited for it may begin."""
        self.pending.settle(change)
        self.index.let_go(change.key[len(self._root) :])
        self.failures.pop(change.number, None)
        del self._since_s[change.number]
        if change.token:
            self._need_no_more(change)
        self._tell()

    def _need_no_more(self, change: Change) -> None:
        self._tokens[change.token] -= 1
        if not self._tokens[change.token]:
            del self._tokens[change.token]
            self._bytes -= change.size

    def _tell(self) -> None:
        self._moved.set()
        self._moved = trio.Event()
        self._spool.look_again()

    def _path(self, token: str) -> Path:
        return self._directory / f"{token}.data"


def _close(_change: Change, _etag: str, content: SpoolFile | None) -> None:
    if content is not None:
        content.close()
