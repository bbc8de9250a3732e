"""Who reads and writes what, and what a run was like so far: counted per open, not per read.

Promises bounded memory, whatever is opened: a byte a file, `core.directories.LIMIT` directories, MAX_PROGRAMS programs.
Each handle carries its own sums (`Tally`), which are settled here when it is released, or when somebody asks; a read
that finds its data in memory costs one addition. Not seen: what the kernel answers out of its page cache; of that only
the open is known.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import trio

from lazyfs.core.beginning import Beginning
from lazyfs.core.directories import Directories
from lazyfs.core.errors import StaleInodeError
from lazyfs.core.eviction import LRU
from lazyfs.core.passes import Passes
from lazyfs.index.base import Node
from lazyfs.vfs.handles import FileHandle, Handles
from lazyfs.vfs.procfs import Program, program_of
from lazyfs.vfs.tally import Account

MAX_PROGRAMS = 1024
MAX_THREADS = 4096
"""Of which it is remembered whose they are."""
BELIEVED_S = 10.0
"""That a thread is still the same program's: numbers are used again."""


@dataclass(slots=True)
class Pass:
    """Of one pass: how many files were opened, their sizes, and the bytes that were read of them, by tier."""

    opens: int = 0
    file_bytes: int = 0
    tiers: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Run:
    """Since the mount, or since somebody asked to begin anew."""

    began_s: float
    is_whole: bool
    """Whether it began with the mount."""
    beginning: Beginning = field(default_factory=Beginning)
    passes: Passes = field(default_factory=Passes)
    by_pass: dict[int, Pass] = field(default_factory=dict)
    """Pass 0 is what is not followed: files that are open for writing too."""
    directories: Directories = field(default_factory=Directories)


class Accounting:
    """Of one mount. `key_of` gives the key of a file that is only here, `root` is the mounted prefix, and `whose` tells
    the program of a thread; times are trio's."""

    def __init__(
        self,
        handles: Handles,
        *,
        root: str,
        key_of: Callable[[Node], str],
        whose: Callable[[int], Program] = program_of,
    ) -> None:
        self._handles = handles
        self._root = root
        self._key_of = key_of
        self._whose = whose
        self._threads: LRU[int, tuple[float, Program]] = LRU()
        self._accounts: OrderedDict[tuple[int, int], Account] = OrderedDict()
        self.run = Run(trio.current_time(), is_whole=True)
        """What goes on now."""
        self._beginning: Beginning | None = self.run.beginning
        """The run's, as long as it is not over."""

    def opened(self, handle: FileHandle) -> None:
        """A program has opened a file."""
        program = self._program(handle.pid)
        account = self._accounts.get(program.identity) or Account(program, trio.current_time())
        account.program = program  # it may call itself otherwise by now
        account.opens += 1
        handle.account = account
        self._active(account)
        self._begin(handle)

    def read(self, handle: FileHandle, size: int) -> None:
        """A program has got `size` bytes."""
        handle.tally.read_bytes += size
        if self._beginning is not None:
            self._beginning.read(size, trio.current_time())
            self._look_at_beginning()

    def took(self, handle: FileHandle, size: int) -> None:
        """A program has got `size` bytes through a handle of which nobody else knows."""
        self.read(handle, size)
        self._settle(handle)

    def closed(self, handle: FileHandle) -> None:
        """Nobody has the handle any more."""
        self._settle(handle)
        if self._beginning is not None and handle.tally.has_read:
            self._beginning.closed(trio.current_time())
            self._look_at_beginning()

    def restart(self) -> None:
        """Begin a new run, in which what is open now is opened for the first time."""
        self._settle_all()
        self.run = Run(trio.current_time(), is_whole=False)
        self._beginning = self.run.beginning
        for handle in self._handles.handles():
            handle.tally.has_read = False
            self._begin(handle)

    def settled(self) -> Run:
        """The run with all that open handles have been given until now."""
        self._settle_all()
        return self.run

    def programs(self) -> list[Account]:
        """What each program has done; at most MAX_PROGRAMS, that which did something last comes first."""
        self._settle_all()
        return list(reversed(self._accounts.values()))

    def opened_by(self) -> Mapping[Account, Sequence[FileHandle]]:
        """What each program has open now."""
        found: dict[Account, list[FileHandle]] = {}
        for handle in self._handles.handles():
            if handle.account is not None:
                found.setdefault(handle.account, []).append(handle)
        return found

    def _begin(self, handle: FileHandle) -> None:
        if handle.writable:
            return
        run, file = self.run, handle.file
        if run.beginning.first_open_s is None:
            run.beginning.opened(trio.current_time())
        handle.passing = run.passes.begin(file.ino)
        passing = run.by_pass.setdefault(handle.passing, Pass())
        passing.opens += 1
        passing.file_bytes += file.node.size
        run.directories.add(self._directory(handle), files=handle.passing == 1, opens=1)

    def _look_at_beginning(self) -> None:
        if self.run.beginning.is_over:
            self._beginning = None

    def _settle_all(self) -> None:
        for handle in self._handles.handles():
            self._settle(handle)

    def _settle(self, handle: FileHandle) -> None:
        """Count what the handle has been given and has given since it was last looked at."""
        tally, run = handle.tally, self.run
        if not tally.is_used:
            return
        if handle.account is not None:
            handle.account.read_bytes += tally.read_bytes
            handle.account.written_bytes += tally.written_bytes
            handle.account.waited_ns += tally.waited_ns
            self._active(handle.account)
        handle.read_bytes += tally.read_bytes
        handle.written_bytes += tally.written_bytes
        if tally.read_bytes:
            tiers, rest = run.by_pass.setdefault(handle.passing, Pass()).tiers, tally.read_bytes
            for tier, size in tally.by_tier.items():
                tiers[tier] = tiers.get(tier, 0) + size
                rest -= size
            if rest:
                tiers["memory"] = tiers.get("memory", 0) + rest
            run.directories.add(self._directory(handle), size=tally.read_bytes)
        tally.clear()

    def _active(self, account: Account) -> None:
        """Its program does something; that which has done nothing for longest is forgotten."""
        identity = account.program.identity
        self._accounts[identity] = account
        self._accounts.move_to_end(identity)
        if len(self._accounts) > MAX_PROGRAMS:
            self._accounts.popitem(last=False)

    def _program(self, thread: int) -> Program:
        now_s, known = trio.current_time(), self._threads.get(thread)
        if known is not None and now_s - known[0] <= BELIEVED_S:
            return known[1]
        program = self._whose(thread)
        self._threads.put(thread, (now_s, program), 1)
        self._threads.trim(MAX_THREADS)
        return program

    def path(self, handle: FileHandle) -> str:
        """Of its file, below the mounted prefix."""
        read = handle.file.object
        if read is not None and read.oid.key:
            return read.oid.key[len(self._root) :]
        try:
            return self._key_of(handle.file.node)[len(self._root) :]
        except StaleInodeError:
            return handle.file.node.name  # all that is left of it

    def _directory(self, handle: FileHandle) -> str:
        return self.path(handle).rpartition("/")[0]
