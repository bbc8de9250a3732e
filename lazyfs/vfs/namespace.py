"""Names: what a path means now, and how long that may be believed.

Promises that within a lease nothing here asks S3, that after it one revalidation answers everybody who waits for
it, and that a directory never listed is answered by asking for exactly that name or that directory. Knows nothing
of handles.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping

import trio

from lazyfs.core.errors import (
    BadNameError,
    ExistsError,
    LazyfsError,
    NameTooLongError,
    NoEntryError,
    NotDirectoryError,
    NotEmptyError,
    NotFoundError,
    StaleInodeError,
)
from lazyfs.core.eviction import LRU
from lazyfs.core.listing import (
    MAX_COMPONENT_BYTES,
    MAX_KEY_BYTES,
    Entry,
    component_problem,
    file_entry,
)
from lazyfs.core.posix import UNKNOWN, Posix
from lazyfs.core.stats import Stats
from lazyfs.core.types import ROOT_INO, Kind, ObjectId, ObjectInfo
from lazyfs.index.base import NOTHING_BELOW, Change, Node
from lazyfs.index.database import Index
from lazyfs.index.importer import PAGE, Importer
from lazyfs.store.base import Store
from lazyfs.vfs.flight import SingleFlight
from lazyfs.vfs.kernel import KernelCache, NoKernelCache
from lazyfs.vfs.leases import LONGEST_S, Leases
from lazyfs.vfs.listings import DirectoryListing, Listings
from lazyfs.vfs.together import each

log = logging.getLogger(__name__)

MAX_NEGATIVE = 65_536
"""Names known not to exist in directories that are not fully listed."""
_REPORTED_SKIPS = 10


class Namespace:
    """The tree below the mounted prefix `root` (a key prefix, empty or ending in `/`).

    `ttl_s` is the lease in seconds; infinity for data that does not change. `import_workers` is how many LIST requests
    an import makes at a time; `sorted_keys` is whether the server lists in key order.

    An index from an earlier mount is believed until the first refresh has caught up with it (`refreshed`): names and
    attributes are served at once, but a file is checked when it is opened.
    """

    def __init__(
        self,
        *,
        index: Index,
        store: Store,
        root: str,
        ttl_s: float,
        import_workers: int,
        sorted_keys: bool,
        clock_ns: Callable[[], int],
        nursery: trio.Nursery,
        stats: Stats,
    ) -> None:
        self._index = index
        self._store = store
        self.root = root
        self.leases = Leases(ttl_s, clock_ns)
        self._clock_ns = clock_ns
        self._stats = stats
        self._nursery = nursery
        self.kernel: KernelCache = NoKernelCache()
        self._negative: LRU[tuple[int, str], int] = LRU()
        self._checks: SingleFlight[tuple[int, str], list[Change]] = SingleFlight(nursery)
        self._listings = Listings(nursery)
        self.skipped_keys = 0
        self.importer = Importer(
            store=store,
            index=index,
            root=root,
            workers=import_workers,
            sorted_keys=sorted_keys,
            clock_ns=clock_ns,
            on_changes=self._tell_kernel,
            on_skipped=self._count_skipped,
        )
        self._refreshed = False
        self._refreshing = trio.Lock()
        self._missed = False

    async def refresh(self) -> None:
        """Make the index agree with the whole bucket. LazyfsError; what was learnt so far stays."""
        async with self._refreshing:
            self.skipped_keys = 0
            anew, self._missed = self._missed, False
            await self.importer.import_all(anew=anew)
            self._refreshed = True

    def missed(self) -> None:
        """Changes before now may not have been told: the next refresh builds on nothing that was listed before."""
        self._missed = True

    # -- questions ------------------------------------------------------------------------------------------------

    async def lookup(self, parent: int, name: str) -> Node:
        """What `name` in directory `parent` is. NoEntryError, StaleInodeError, StoreError."""
        node, fresh = self._known(parent, name)
        if not fresh:
            await self._renew(parent, name)
            node, _ = self._known(parent, name)
        if node is None:
            self._told_absent(parent, name)
            raise NoEntryError(name)
        return node

    async def check_absent(self, parent: int, name: str) -> None:
        """Return if there is no `name`. ExistsError."""
        try:
            await self.lookup(parent, name)
        except NoEntryError:
            return
        raise ExistsError(name)

    def node(self, ino: int) -> Node:
        """The row of `ino`, without asking whether it is still true. StaleInodeError."""
        node = self._index.node(ino)
        if node is None:
            raise StaleInodeError(f"inode {ino}")
        return node

    def has(self, ino: int) -> bool:
        """Whether some name still means this inode."""
        return self._index.node(ino) is not None

    async def current(self, ino: int) -> Node:
        """The row of `ino`, asked for anew if its lease has ended. StaleInodeError if it was replaced."""
        node = self.node(ino)
        if not (node.is_local or self._proven(node)):
            await self._checks.run((node.parent, node.name), lambda: self._check(node.parent, node.name))
            node = self.node(ino)
        return node

    def directory(self, ino: int) -> Node:
        """The row of `ino`, which is a directory. NotDirectoryError, StaleInodeError."""
        node = self.node(ino)
        if node.kind is not Kind.DIRECTORY:
            raise NotDirectoryError(node.name)
        return node

    async def ensure_listed(self, ino: int) -> None:
        """Return once all entries of directory `ino` are known and their lease runs."""
        listing = self.begin_listing(ino)
        if listing is not None:
            await listing.finish()

    def begin_listing(self, ino: int) -> DirectoryListing | None:
        """A listing of directory `ino` on its way; None if all its entries are known and their lease runs."""
        if self._is_listed(self.directory(ino)):
            return None
        return self._listings.begin(ino, lambda on_page: self._list(ino, on_page))

    def children(self, ino: int, *, after: str, upto: str | None = None, limit: int) -> list[Node]:
        """The entries of directory `ino` above entry name `after`, in order; directories above `upto` hide nothing."""
        return self._index.children(ino, after=after, upto=upto, limit=limit)

    def version(self) -> int:
        """Another number whenever anything may have changed."""
        return self._index.version()

    async def check_empty(self, node: Node) -> None:
        """Return if `node` is a directory without entries. NotDirectoryError, NotEmptyError, StoreError."""
        if node.kind is not Kind.DIRECTORY:
            raise NotDirectoryError(node.name)
        await self.ensure_listed(node.ino)
        if not self._index.is_empty(node.ino):
            raise NotEmptyError(node.name)

    def key(self, node: Node) -> str:
        """The object key of `node`; of a directory, its marker's. StaleInodeError."""
        path = self._index.path(node.ino)
        if path is None:
            raise StaleInodeError(node.name)
        return self.root + path

    def new_key(self, parent: int, name: str) -> str:
        """The key that a new file `name` in `parent` gets. BadNameError, NameTooLongError, StaleInodeError."""
        if len(name.encode(errors="surrogateescape")) > MAX_COMPONENT_BYTES:
            raise NameTooLongError(name)
        problem = component_problem(name)
        if problem is not None:
            raise BadNameError(f"{name!r}: {problem}")
        key = self.key(self.directory(parent)) + name
        if len(key.encode()) > MAX_KEY_BYTES:
            raise NameTooLongError(f"key over {MAX_KEY_BYTES} bytes")
        return key

    def lease_s(self, node: Node, above: Node | None = None) -> float:
        """For how many seconds from now `node` may be believed. Who has its directory's row at hand gives it."""
        if node.ino == ROOT_INO or node.is_local:
            return LONGEST_S
        return self.leases.remaining_s(self._proven_ns(node, above))

    def absence_lease_s(self, parent: int, name: str) -> float:
        """For how many seconds from now it may be believed that `name`, just looked up, does not exist."""
        return self.leases.remaining_s(self._negative.get((parent, name)) or 0)

    def totals(self) -> tuple[int, int]:
        """Files known, and their bytes."""
        return self._index.files, self._index.bytes

    # -- our own changes ------------------------------------------------------------------------------------------

    async def put_file(
        self, parent: int, name: str, *, size: int, mtime_ns: int, etag: str, posix: Posix = UNKNOWN
    ) -> Node:
        """A file is so now, by our own doing; its inode number stays if it had one, and what `posix` does not know."""
        return await self._put(parent, Entry(name, size, mtime_ns, etag), posix)

    async def put_directory(self, parent: int, name: str, posix: Posix = UNKNOWN) -> Node:
        """A directory that we made, known to be empty."""
        return await self._put(parent, Entry(name + "/"), posix)

    async def describe(self, ino: int, posix: Posix) -> Node | None:
        """Mode, owner and time are so, which is no news of the object; the row, None if it is gone."""
        return await self._index.describe(ino, posix)

    async def remove(self, node: Node) -> None:
        """The entry is gone, by our own doing."""
        await self._index.remove_entry(node.parent, node.entry)
        self._negative.put((node.parent, node.name), self._clock_ns(), 1)

    def renaming(self, *keys: str) -> contextlib.AbstractContextManager[None]:
        """While we give objects other names, what the bucket says of `keys`, and below them, is not believed."""
        return self._index.renaming(*(key[len(self.root) :] for key in keys))

    async def move(
        self, node: Node, parent: int, name: str, *, etag: str, below: Mapping[str, str] = NOTHING_BELOW
    ) -> Node:
        """A file or directory got another name, by our own doing; its inode number stays. `below`: see the index."""
        self._negative.pop((parent, name))
        self._negative.put((node.parent, node.name), self._clock_ns(), 1)
        entry = Entry(name + node.entry[len(node.name) :], node.size, node.mtime_ns, etag, node.storage_class)
        return await self._index.move_entry(node, parent, name, entry, now_ns=self._clock_ns(), below=below)

    async def _put(self, parent: int, entry: Entry, posix: Posix) -> Node:
        self._negative.pop((parent, entry.name.removesuffix("/")))
        return await self._index.put_entry(parent, entry, now_ns=self._clock_ns(), posix=posix)

    # -- revalidation ---------------------------------------------------------------------------------------------

    def expire(self, parent: int, name: str) -> None:
        """Somebody saw that `name` is no longer what it was: ask again, and tell the kernel."""
        self._nursery.start_soon(self._recheck, parent, name)

    def expire_key(self, oid: ObjectId) -> None:
        """A read found that the bucket no longer has this version."""
        above, _, name = oid.key[len(self.root) :].rpartition("/")
        parent = self._index.find_directory(above)
        if parent is not None:
            self.expire(parent, name)

    async def learn(self, key: str) -> None:
        """Object `key` was created, replaced or removed by somebody: ask for it, and for directories that come and go
        with it. What it says is as new as the call. LazyfsError."""
        path = key[len(self.root) :].removesuffix("/")
        names = path.split("/")
        if not key.startswith(self.root) or any(component_problem(name) for name in names):
            return
        while True:
            try:
                await self._learn(names)
            except StaleInodeError:  # a directory on the way went meanwhile: the way is another one now
                continue
            return

    async def _learn(self, names: list[str]) -> None:
        ino, changes = ROOT_INO, []
        for name in names[:-1]:
            node = self._index.child(ino, name)
            if node is None or node.kind is not Kind.DIRECTORY:
                changes = await self._check_anew(ino, name)
                node = self._index.child(ino, name)
            if node is None or node.kind is not Kind.DIRECTORY:
                break
            ino = node.ino
        else:
            changes = await self._check_anew(ino, names[-1])
        await self._settle_upwards(ino, changes)

    async def _settle_upwards(self, ino: int, changes: list[Change]) -> None:
        """Ask whether directory `ino`, and those above it, are still there after what was asked for in it is not.

        One that our own deletion emptied stays until its lease ends: whoever deleted may go on in it.
        """
        while ino != ROOT_INO and self._index.is_empty(ino):
            node = self.node(ino)
            if node.listed_ns is not None and not any(change.parent == ino and change.ino for change in changes):
                return
            changes = await self._check_anew(node.parent, node.name)
            ino = node.parent

    async def _check_anew(self, parent: int, name: str) -> list[Change]:
        """Check by requests that begin now: a check on its way may have asked too early, and so may a listing."""
        began = False

        async def check() -> list[Change]:
            nonlocal began
            began = True
            return await self._check(parent, name)

        while True:
            self._index.note_local(parent, name)
            try:
                changes = await self._checks.run((parent, name), check)
            except LazyfsError:
                if began:
                    raise
                continue
            if began:
                return changes

    async def _recheck(self, parent: int, name: str) -> None:
        await self._quietly(self._checks.run((parent, name), lambda: self._check(parent, name)))

    async def _quietly(self, work: Awaitable[object]) -> None:
        try:
            await work
        except LazyfsError as error:  # it runs for nobody: the next who asks gets the error
            log.debug("background check failed: %s", error)

    def _known(self, parent: int, name: str) -> tuple[Node | None, bool]:
        """What the index says of the name, and whether that may be told without asking S3."""
        above = self.directory(parent)
        node = self._index.child(parent, name)
        if self._is_listed(above) or (node is not None and (node.is_local or self.leases.runs(node.checked_ns))):
            return node, True
        denied_ns = self._negative.get((parent, name))
        return node, node is None and denied_ns is not None and self.leases.runs(denied_ns)

    def _is_listed(self, node: Node) -> bool:
        if node.listed_ns is None:
            return False
        return self.leases.runs(node.listed_ns) or not (self._refreshed or self.leases.ttl_s == 0)

    def _proven(self, node: Node) -> bool:
        return self.leases.runs(self._proven_ns(node))

    def _proven_ns(self, node: Node, above: Node | None = None) -> int:
        """When it was last seen that `node` is what its name means."""
        above = above or self._index.node(node.parent)
        return max(node.checked_ns, (above.listed_ns or 0) if above is not None else 0)

    async def _renew(self, parent: int, name: str) -> None:
        """Ask S3 what `name` is.

        A directory that was listed before and fits a page is listed again: that costs no more than asking for one name
        as file and as directory, and renews all its entries.
        """
        above = self.directory(parent)
        if above.listed_ns is not None and not self._index.has_more_than(parent, PAGE):
            await self.ensure_listed(parent)
        else:
            await self._checks.run((parent, name), lambda: self._check(parent, name))

    async def _check(self, parent: int, name: str) -> list[Change]:
        """Ask S3 for exactly this name, as a file and as a directory at the same time; what changed."""
        if component_problem(name):
            self._deny(parent, name, self._clock_ns())
            return []
        key = self.key(self.directory(parent)) + name
        now_ns = self._clock_ns()
        found: list[Entry] = []
        with self._index.listing() as listing:
            await self._ask(key, name, found)
            applied = await self._index.apply_names(parent, (name, name + "/"), found, listing, now_ns=now_ns)
        if not found:
            self._deny(parent, name, now_ns)
        self._tell_kernel(applied.changes)
        return applied.changes

    async def _ask(self, key: str, name: str, found: list[Entry]) -> None:
        async def as_file() -> None:
            info = await self._head(key)
            if info is not None:
                found.append(file_entry(name, info))

        async def as_directory() -> None:
            page = await self._store.list_page(key + "/", limit=1)
            if page.objects or page.prefixes:
                found.append(Entry(name + "/"))

        await each((as_file, as_directory), _call, at_once=2)

    async def _head(self, key: str) -> ObjectInfo | None:
        try:
            return await self._store.head(key)
        except NotFoundError:
            return None

    async def _list(self, ino: int, on_page: Callable[[str], None]) -> None:
        node = self.directory(ino)
        await self.importer.list_directory(self.key(node)[len(self.root) :], on_page=on_page)

    def _told_absent(self, parent: int, name: str) -> None:
        """Remember that the kernel may now believe `name` absent, since when that is proven."""
        listed_ns = self.directory(parent).listed_ns or 0
        self._deny(parent, name, max(listed_ns, self._negative.get((parent, name)) or 0))

    def _deny(self, parent: int, name: str, now_ns: int) -> None:
        self._negative.put((parent, name), now_ns, 1)
        self._negative.trim(MAX_NEGATIVE)

    # -- what the index learned -----------------------------------------------------------------------------------

    def _tell_kernel(self, changes: Iterable[Change]) -> None:
        """Make the kernel forget names that changed, and new ones that it may believe absent."""
        for parent, name, ino in changes:
            if ino or self._negative.pop((parent, name)) is not None:
                self.kernel.forget_entry(parent, name)

    def _count_skipped(self, keys: list[str]) -> None:
        for key in keys:
            self.skipped_keys += 1
            if self.skipped_keys <= _REPORTED_SKIPS:
                log.info("key %r cannot be a path and is not shown", key)
        self._stats.add("index.skipped_keys", len(keys))


async def _call(work: Callable[[], Awaitable[None]]) -> None:
    await work()
