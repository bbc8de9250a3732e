"""What is open. Bounded by what programs hold open; nothing here grows with the bucket."""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from lazyfs.core.changes import Change
from lazyfs.core.errors import BadHandleError, LazyfsError
from lazyfs.core.eviction import LRU
from lazyfs.index.base import Node
from lazyfs.vfs.listings import DirectoryListing
from lazyfs.vfs.reader import OpenObject
from lazyfs.vfs.tally import Account, Tally
from lazyfs.vfs.writer import Writer

MAX_OPENED = 65_536
"""Files of which it is remembered when they were opened last: some megabytes."""


@dataclass(slots=True)
class OpenFile:
    """An inode while anybody has it open: it survives here when its name goes away."""

    node: Node
    """As it was when it was opened, and since then as our own writes made it."""
    object: OpenObject | None = None
    """The version that readers read; None until there is one in the bucket."""
    writer: Writer | None = None
    turn: trio.Lock = field(default_factory=trio.Lock)
    """Held by whoever uses `writer` or changes what the object says: writes, truncation, commit, chmod, setxattr."""
    handles: int = 0
    writers: int = 0
    """How many of the handles may write."""
    holds: int = 0
    """How many need it here besides: see Handles.held."""
    deleted: bool = False
    """Whether it has no name any more: nothing of it goes up, and it ends with its last handle."""
    kept: Change | None = None
    """Of a deleted file: whose content write-back keeps for it."""
    knows: int = 0
    """The newest change in write-back's backlog when this file was last changed."""
    extra: Mapping[str, str] = field(default_factory=dict)
    """User metadata besides mode, owner and time that its next object gets."""
    ino: int = field(init=False)
    """As the kernel knows it. The name may have got another inode since, from whoever replaced the object meanwhile."""

    def __post_init__(self) -> None:
        self.ino = self.node.ino


@dataclass(slots=True)
class FileHandle:
    """One open(2)."""

    file: OpenFile
    pid: int
    """Of the thread that opened it, as the kernel calls it."""
    writable: bool
    passing: int = 0
    """Which time it is that this run opens the file; see `core.passes`."""
    tally: Tally = field(default_factory=Tally)
    account: Account | None = None
    """Of the program that opened it; None for what no program has opened."""
    read_bytes: int = 0
    """What has been settled of the tally; so is `written_bytes`."""
    written_bytes: int = 0
    refused: LazyfsError | None = None
    """Why a write was refused since the last flush. The kernel tells the program, unless the write came from a mapping
    that outlives every descriptor."""


@dataclass(slots=True)
class DirectoryHandle:
    """One opendir(3), with the batch of entries that it is reading from.

    An offset is the inode number of the entry told last. `positions` finds it in `batch`, or just before it (-1), so
    that a listing goes on where it was even if that entry has gone away meanwhile.
    """

    ino: int
    listing: DirectoryListing | None = None
    """What it may be told from; None when all entries were known."""
    above: Node | None = None
    """The directory's own row, as it was when the batch was read: it says for how long its entries may be believed."""
    version: tuple[int, str | None] = (-1, None)
    """Of the namespace, and how far the listing had come, when the batch was read."""
    before: str = ""
    """The entry told before the batch."""
    batch: list[Node] = field(default_factory=list)
    positions: dict[int, int] = field(default_factory=dict)

    def entry_at(self, offset: int) -> str | None:
        """The entry that has this offset; None if it is not of this batch."""
        if offset == 0:
            return ""
        position = self.positions.get(offset)
        if position is None:
            return None
        return self.before if position < 0 else self.batch[position].entry

    def refill(self, batch: list[Node], after: str, offset: int) -> None:
        """Go on with `batch`, which begins after the entry `after` at `offset`."""
        self.batch, self.before = batch, after
        self.positions = {offset: -1} | {node.ino: position for position, node in enumerate(batch)}


class Handles:
    """Numbers for open files and directories, and the files by inode."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._files: dict[int, FileHandle] = {}
        self._directories: dict[int, DirectoryHandle] = {}
        self._by_ino: dict[int, OpenFile] = {}
        self._opened: LRU[int, float] = LRU()

    def __len__(self) -> int:
        return len(self._files) + len(self._directories)

    def open_file(self, node: Node, *, pid: int, writable: bool) -> tuple[int, OpenFile]:
        """A new handle on `node`; its file is shared with the handles that are open already."""
        file = self._by_ino.get(node.ino)
        if file is None:
            file = self._by_ino[node.ino] = OpenFile(node)
        file.handles += 1
        file.writers += writable
        fh = next(self._numbers)
        self._files[fh] = FileHandle(file, pid, writable)
        self.note_opened(node.ino)
        return fh, file

    def note_opened(self, ino: int) -> None:
        """Inode `ino` is being opened, or read for the first time by who tells of no opens."""
        self._opened.put(ino, time.time(), 1)
        self._opened.trim(MAX_OPENED)

    def file(self, fh: int) -> FileHandle:
        """The open file with number `fh`. BadHandleError."""
        try:
            return self._files[fh]
        except KeyError:
            raise BadHandleError(f"no handle {fh}") from None

    def by_ino(self, ino: int) -> OpenFile | None:
        """The file of inode `ino`, if it is open."""
        return self._by_ino.get(ino)

    def opened_s(self, ino: int) -> float | None:
        """When inode `ino` was opened last, in seconds since the epoch; None if it was not, or others were since."""
        return self._opened.get(ino)

    def handles(self) -> list[FileHandle]:
        """All handles on files."""
        return list(self._files.values())

    def files(self) -> list[OpenFile]:
        """All open files."""
        return list(self._by_ino.values())

    def close_file(self, fh: int) -> None:
        """Forget handle `fh`."""
        handle = self._files.pop(fh)
        file = handle.file
        file.handles -= 1
        file.writers -= handle.writable
        self._forget_if_unused(file)

    @asynccontextmanager
    async def held(self, node: Node) -> AsyncIterator[OpenFile]:
        """The file of `node`, whoever opens or closes it meanwhile, and its turn, for the body of the ``with``."""
        file = self._by_ino.setdefault(node.ino, OpenFile(node))
        file.holds += 1
        try:
            async with file.turn:
                yield file
        finally:
            file.holds -= 1
            self._forget_if_unused(file)

    def _forget_if_unused(self, file: OpenFile) -> None:
        if not file.handles and not file.holds:
            del self._by_ino[file.ino]

    def open_directory(self, handle: DirectoryHandle) -> int:
        """A number for `handle`."""
        fh = next(self._numbers)
        self._directories[fh] = handle
        return fh

    def directory(self, fh: int) -> DirectoryHandle:
        """The open directory with number `fh`. BadHandleError."""
        try:
            return self._directories[fh]
        except KeyError:
            raise BadHandleError(f"no handle {fh}") from None

    def close_directory(self, fh: int) -> None:
        """Forget directory handle `fh`."""
        self._directories.pop(fh, None)
