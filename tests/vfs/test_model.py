"""A state machine over the verbs, beside a model: what the mount says, while others change the bucket under it.

Each step is one call, or one deed of somebody else; deeds and failures can also be armed to happen between two
requests of the next call. After each step the bucket must hold exactly what it should, and nothing may be left behind.

LAZYFS_MODEL_EXAMPLES sets how many runs each variant makes (default: a fixed few, the same every time).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lazyfs.core.errors import (
    ExistsError,
    IsDirectoryError,
    LazyfsError,
    NoEntryError,
    NoRoomError,
    NotDirectoryError,
    NotEmptyError,
    NotFoundError,
    NotSupportedError,
    OutOfOrderError,
    PreconditionFailedError,
    StaleError,
    StaleInodeError,
    TransientStoreError,
)
from lazyfs.core.types import ROOT_INO, Kind, Range
from lazyfs.vfs.filesystem import Changes
from lazyfs.vfs.lost import LOST
from tests.campaign import times
from tests.vfs.building import Clock, Knobs, Mount, Portal, SmallPages, mounted
from tests.vfs.oracle import LOCAL, NOTHING, Oracle, Told
from tests.vfs.schedules import without_threads

PART = Knobs().part
NAMES = ["a", "b", "a-"]
PATHS = ["a", "b", "a-", "a/a", "a/b", "b/a", "a/a/b", "a-/b"]
ODD_KEYS = ["a//b", "/a", "a/./b", "b/../a", "a/", "b/", "a/a/", "a/b//"]

paths = st.sampled_from(PATHS)
sizes = st.sampled_from([0, 1, 5, PART - 1, PART, PART + 1, 2 * PART, 2 * PART + 1, 3 * PART + 5, 90])
picks = st.integers(0, 9)
ENDLESS = Knobs().spool
places = paths | st.integers(0, 30)
"""A path, or the number of one that is open or in the bucket."""


@dataclass(eq=False)
class File:
    """What one inode is while it is open. `content` is the writer's, once there is one."""

    path: str
    ino: int
    etag: str
    body: bytes
    content: bytearray | None = None
    dirty: bool = False
    broken: bool = False
    deleted: bool = False
    unlinked: bool = False
    """Deleted by us: it lives on here, without a name."""
    handles: int = 0
    writers: int = 0


@dataclass(eq=False)
class Handle:
    fh: int
    file: File
    writable: bool


@dataclass
class Armed:
    """What happens at the next requests."""

    deeds: list[tuple[int, Callable[[], None]]] = field(default_factory=list)
    failure: tuple[str, str] | None = None
    fired: bool = False
    ever_failed: bool = False


class Bucket(RuleBasedStateMachine):
    """A mount, what it was told and told us, and the bucket as it must be."""

    ttl_s: ClassVar[float] = 60.0
    root: ClassVar[str] = ""
    page_limit: ClassVar[int] = 2
    disk: ClassVar[bool] = False
    spool_bytes: ClassVar[int] = 0
    """Room in the spool; 0 is none, and ENDLESS means that no write may ever be refused for its order or its place."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.directory = Path(tempfile.mkdtemp(prefix="lazyfs-model-"))
        self.stack.callback(shutil.rmtree, self.directory)
        self.clock = Clock()
        self.store = SmallPages(clock=self.clock, min_part_size=1, hook=self._hook)
        self.store.page_limit = self.page_limit
        self.oracle = Oracle(self.root, self.ttl_s, self.clock)
        self.bucket: dict[str, bytes] = {}
        """The bucket as it must be."""
        self.bodies: dict[str, bytes] = {}
        """Every version that was ever in the bucket, by ETag."""
        self.armed = Armed()
        self.serial = 0
        self.files: dict[int, File] = {}
        self.handles: list[Handle] = []
        self.inos: dict[int, tuple[str, str]] = {}
        """What each inode number ever stood for: path and ETag; of a directory, an empty one."""
        self.last: dict[str, tuple[Told, int, int]] = {}
        """The last answer about each path, its inode number, and when it was told."""
        self.portal = self.stack.enter_context(Portal())
        self.mounting = self.stack.enter_context(ExitStack())
        self.mount = self._mount()
        self._observe()

    def _mount(self) -> Mount:
        self.oracle.believing = self.ttl_s > 0
        return self.mounting.enter_context(
            self.portal.entered(
                lambda: mounted(
                    self.store,
                    self.directory / "index.db",
                    ttl_s=self.ttl_s,
                    clock=self.clock,
                    root=self.root,
                    disk=self.directory / "blocks" if self.disk else None,
                    spool=self.directory / "spool" if self.spool_bytes else None,
                    knobs=Knobs(spool=self.spool_bytes),
                )
            )
        )

    def teardown(self) -> None:
        try:
            self.armed.failure, self.armed.deeds = None, []
            self._close_all()
            self.mounting.close()
            assert not any(self.mount.gauges().values()), self.mount.gauges()
        finally:
            self.stack.close()

    # -- the bucket and its history -----------------------------------------------------------------

    def _hook(self, when: str, verb: str, key: str) -> None:
        """Called by the store around each request: others act, and the endpoint fails, between requests."""
        armed = self.armed
        self._observe()
        if when == "before":
            due = [deed for left, deed in armed.deeds if left == 0]
            armed.deeds = [(left - 1, deed) for left, deed in armed.deeds if left > 0]
            for deed in due:
                armed.fired = True
                deed()
        if armed.failure == (when, verb):
            armed.failure, armed.fired, armed.ever_failed = None, True, True
            raise TransientStoreError(f"{verb} failed {when}")

    @property
    def _objects(self) -> dict[str, Any]:
        """What the bucket holds but for what lost a race and was kept, which has tests of its own."""
        return {key: stored for key, stored in self.store._objects.items() if not key.startswith(self.root + LOST)}

    def _observe(self) -> None:
        self.bodies |= {stored.etag: stored.body for stored in self.store._objects.values()}
        objects = {key: stored.etag for key, stored in self._objects.items()}
        local = [file.path for file in self.files.values() if file.etag == LOCAL and not file.deleted]
        self.oracle.observe(objects, local)

    def _fresh(self, size: int) -> bytes:
        """Bytes that no other version has, none of which could be taken for another's."""
        self.serial += 1
        return bytes([self.serial % 256]) * size

    def _put_remote(self, key: str, body: bytes) -> None:
        self.store.put_now(key, body)
        self.bucket[key] = body
        self._observe()

    def _delete_remote(self, *keys: str) -> None:
        for key in keys:
            self.store.delete_now(key)
            self.bucket.pop(key, None)
        self._observe()

    def _etag(self, path: str) -> str | None:
        stored = self.store._objects.get(self.root + path)
        return None if stored is None else stored.etag

    # -- asking -----------------------------------------------------------------

    def _do(self, work: Callable[[], Any]) -> Any:
        """Run a call and what it set off in the background; what it returns or the LazyfsError that it raises."""

        async def call() -> Any:
            try:
                return await work()
            except LazyfsError as error:
                return error
            finally:
                await self.mount.settle()

        outcome = self.portal.call(call)
        if isinstance(outcome, TransientStoreError):
            assert self.armed.ever_failed, outcome
        return outcome

    def _tell(self, path: str) -> tuple[Told, int] | LazyfsError:
        """Ask for a path as the kernel does, hold every answer on the way against the oracle; the last answer."""
        parent, at = ROOT_INO, ""
        names = path.split("/") if path else []
        for depth, name in enumerate(names):
            at = f"{at}/{name}" if at else name
            answer = self._tell_one(parent, at, name)
            if isinstance(answer, LazyfsError):
                return answer
            told, parent = answer
            if told.kind != "directory" and depth < len(names) - 1:
                return NOTHING, 0
        return (Told("directory"), ROOT_INO) if not names else (told, parent)

    def _tell_one(self, parent: int, path: str, name: str) -> tuple[Told, int] | LazyfsError:
        since = self.oracle.now

        async def look() -> tuple[Told, int]:
            try:
                attributes = await self.mount.fs.lookup(parent, name)
            except NoEntryError:
                return NOTHING, 0
            node = self.mount.namespace.node(attributes.ino)
            assert (await self.mount.fs.getattr(attributes.ino)).size == attributes.size
            told = Told("directory") if attributes.kind is Kind.DIRECTORY else Told("file", node.etag)
            self._check_size(told, attributes.ino, attributes.size)
            return told, attributes.ino

        outcome = self._do(look)
        if isinstance(outcome, LazyfsError):
            # Between two requests of this walk the directory may have gone; else only an endpoint's failure excuses.
            assert self.armed.fired or isinstance(outcome, StaleInodeError), outcome
            return outcome
        self._hear(path, *outcome, since=since)
        return outcome

    def _check_size(self, told: Told, ino: int, size: int) -> None:
        file = self.files.get(ino)
        if file is not None and file.dirty and not file.broken and file.content is not None:
            assert size == len(file.content), "our own writes are visible at once"
        elif told.kind == "file" and told.etag != LOCAL:
            assert size == len(self.bodies[told.etag])

    def _hear(self, path: str, told: Told, ino: int, *, since: int, forget_floor: bool = False) -> None:
        """An answer was told by a call that began in state `since`."""
        self.oracle.check(path, told, since=since, forget_floor=forget_floor)
        if told.kind == "nothing":
            self.last.pop(path, None)
            return
        meaning = self.inos.setdefault(ino, (path, told.etag))
        assert meaning == (path, told.etag), f"inode {ino} was {meaning} and is now {path!r} {told}"
        before = self.last.get(path)
        if before is not None and before[0] == told and self.oracle.unchanged_since(path, told, before[2]):
            assert before[1] == ino, f"{path!r} did not change, but its inode number did"
        self.last[path] = (told, ino, self.oracle.now)

    def _ours(self, path: str, *sides: str, removed: str = "") -> None:
        self._observe()
        self.oracle.own_change(path, *sides, removed=removed)

    # -- others -----------------------------------------------------------------

    def _deed(self, kind: str, path: str, size: int) -> Callable[[], None]:
        key = self.root + path
        if kind == "put":
            return lambda: self._put_remote(key, self._fresh(size))
        if kind == "same":
            return lambda: self._put_remote(key, b"same")
        if kind == "delete":
            return lambda: self._delete_remote(key)
        below = [known for known in self.bucket if known.startswith(key + "/")]
        if kind == "delete below":
            return lambda: self._delete_remote(*below)
        return lambda: (self._delete_remote(key, *below), self._put_remote(key + "/x", self._fresh(size)))[0]

    deeds = st.tuples(st.sampled_from(["put", "put", "same", "delete", "delete below", "flip"]), paths, sizes)

    @initialize(
        keys=st.lists(paths, max_size=6, unique=True),
        size=sizes,
        refreshed=st.booleans(),
        schedule=st.integers(0, 1_000_000),
    )
    def begin(self, keys: list[str], size: int, refreshed: bool, schedule: int) -> None:
        self.portal.seed = schedule
        if self.root:
            self._put_remote("outside", b"o")
            self._put_remote(self.root[:-1], b"o")
            self._put_remote(self.root[:-1] + "0", b"o")
        for path in keys:
            self._put_remote(self.root + path, self._fresh(size))
        if refreshed:
            self.refresh()

    @rule(deed=deeds)
    def others_change(self, deed: tuple[str, str, int]) -> None:
        self._deed(*deed)()

    @rule(key=st.sampled_from(ODD_KEYS), gone=st.booleans())
    def others_do_odd_things(self, key: str, gone: bool) -> None:
        self._delete_remote(self.root + key) if gone else self._put_remote(self.root + key, b"")

    @rule(deed=deeds, left=st.integers(0, 4))
    def others_will_interfere(self, deed: tuple[str, str, int], left: int) -> None:
        self.armed.deeds.append((left, self._deed(*deed)))

    @rule(
        when=st.sampled_from(["before", "after"]),
        verb=st.sampled_from(
            ["put", "get", "head", "list", "create_upload", "upload_part", "complete_upload", "copy", "set_metadata"]
        ),
    )
    def endpoint_will_fail(self, when: str, verb: str) -> None:
        self.armed.failure = (when, verb)

    @rule(seconds=st.sampled_from([1.0, 59.0, 60.0, 61.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    # -- asking, in all ways -----------------------------------------------------------------

    @rule(path=paths)
    def look_up(self, path: str) -> None:
        self._tell(path)

    @rule(path=st.sampled_from(["", "a", "b", "a-", "a/a"]), piece=st.sampled_from([1, 2, 100]), deed=st.none() | deeds)
    def list_directory(self, path: str, piece: int, deed: tuple[str, str, int] | None) -> None:
        answer = self._tell(path)
        if isinstance(answer, LazyfsError) or answer[0].kind != "directory":
            return
        since = self.oracle.now
        fh = self._do(lambda: self.mount.fs.open_directory(answer[1]))
        if isinstance(fh, LazyfsError):
            assert self.armed.fired or isinstance(fh, StaleInodeError), fh
            return
        found: dict[str, int] = {}
        offset: int | None = 0
        try:
            while offset is not None:
                offset = self._read_piece(path, fh, offset, piece, found, since)
                if deed is not None:
                    self._deed(*deed)()
                    deed = None
        except LazyfsError:
            return
        finally:
            self.mount.fs.close_directory(fh)
        for name in {known.rpartition("/")[2] for known in self._known_below(path)} - set(found):
            self._hear(f"{path}/{name}" if path else name, NOTHING, 0, since=since, forget_floor=True)

    def _known_below(self, path: str) -> set[str]:
        depth = path.count("/") + 1 if path else 0
        return {
            "/".join(known.split("/")[: depth + 1])
            for known in {*PATHS, *self.oracle.states[-1].etags}
            if known.startswith(f"{path}/" if path else "") and not {"", ".", ".."} & set(known.split("/"))
        }

    def _read_piece(self, path: str, fh: int, offset: int, piece: int, found: dict[str, int], since: int) -> int | None:
        async def read() -> list[tuple[str, Any, int, Told]]:
            told = []
            for name, attributes, after in await self.mount.fs.read_directory(fh, offset):
                is_dir = attributes.kind is Kind.DIRECTORY
                etag = "" if is_dir else self.mount.namespace.node(attributes.ino).etag
                told.append((name, attributes, after, Told("directory" if is_dir else "file", etag)))
                if len(told) > piece:  # the kernel had no room for this one
                    return told[:-1]
            return told

        entries = self._do(read)
        if isinstance(entries, LazyfsError):
            assert self.armed.fired or isinstance(entries, StaleInodeError), entries
            raise entries
        for name, attributes, _, told in entries:
            if name == LOST:
                continue
            assert name not in found, f"{name!r} told twice"
            found[name] = attributes.ino
            self._check_size(told, attributes.ino, attributes.size)
            self._hear(f"{path}/{name}" if path else name, told, attributes.ino, since=since)
        return entries[-1][2] if entries else None

    @precondition(lambda self: self.ttl_s > 0 and self.armed.failure is None and not self.armed.deeds)
    @rule(path=st.sampled_from(["", "a", "b"]))
    def nothing_is_asked_within_the_lease(self, path: str) -> None:
        answer = self._tell(path)
        if isinstance(answer, LazyfsError) or answer[0].kind != "directory":
            return
        fh = self._do(lambda: self.mount.fs.open_directory(answer[1]))
        self._do(lambda: self.mount.entries(fh))
        asked = len(self.store.requests)
        for name in [*NAMES, "never"]:
            self._tell_one(answer[1], f"{path}/{name}" if path else name, name)
        fh = self._do(lambda: self.mount.fs.open_directory(answer[1]))
        self._do(lambda: self.mount.entries(fh))
        assert self.store.requests[asked:] == []
        for directory in list(self.mount.fs.handles._directories):
            self.mount.fs.close_directory(directory)

    @rule()
    def refresh(self) -> None:
        outcome = self._do(self.mount.namespace.refresh)
        assert outcome is None or self.armed.fired, outcome
        self.oracle.believing &= outcome is not None

    # -- files -----------------------------------------------------------------

    def _remember_open(self, path: str, ino: int, etag: str, fh: int, *, writable: bool) -> Handle:
        file = self.files.get(ino)
        if file is None:
            body = b"" if etag == LOCAL else self.bodies[etag]
            file = self.files[ino] = File(path, ino, etag, body)
        file.handles += 1
        file.writers += writable
        handle = Handle(fh, file, writable)
        self.handles.append(handle)
        return handle

    @precondition(lambda self: len(self.handles) < 6)
    @rule(place=places, mode=st.sampled_from([os.O_RDONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC]))
    def open_file(self, place: str | int, mode: int) -> None:
        path = self._place(place)
        answer = self._tell(path)
        if isinstance(answer, LazyfsError) or answer[0].kind == "nothing":
            return
        told, ino = answer
        fh = self._do(lambda: self.mount.fs.open(ino, mode, 1))
        file = self.files.get(ino)
        if isinstance(fh, LazyfsError) and self.armed.fired:
            return
        if told.kind == "directory":
            assert isinstance(fh, IsDirectoryError | StaleInodeError)
            return
        if isinstance(fh, StaleInodeError):
            assert self._etag(path) != told.etag
            return
        if isinstance(fh, LazyfsError):
            assert file is not None
            assert mode & os.O_TRUNC
            assert file.broken or self._may_be_settled(file), fh
            file.broken |= file.content is not None
            return
        file = self._remember_open(path, ino, told.etag, fh, writable=mode != os.O_RDONLY).file
        if mode & os.O_TRUNC:
            assert not file.broken
            file.dirty = file.dirty or file.content is None or len(file.content) > 0
            file.content = bytearray()

    def _may_be_settled(self, file: File) -> bool:
        """Whether parts of the file were sent, so that a writer may refuse to touch them."""
        return file.content is not None and self._may_refuse(len(file.content))

    def _may_refuse(self, length: int) -> bool:
        """Whether a change may be refused because the file is, or becomes, this long."""
        return length > PART and self.spool_bytes < ENDLESS

    @precondition(lambda self: len(self.handles) < 6)
    @rule(path=paths)
    def create_file(self, path: str) -> None:
        above, _, name = path.rpartition("/")
        answer, parent = self._tell(path), self._tell(above)
        if isinstance(answer, LazyfsError) or isinstance(parent, LazyfsError) or parent[0].kind != "directory":
            return
        outcome = self._do(lambda: self.mount.fs.create(parent[1], name, 1))
        if isinstance(outcome, LazyfsError):
            assert self.armed.fired or (isinstance(outcome, ExistsError) and answer[0].kind != "nothing"), outcome
            return
        assert self.armed.fired or answer[0].kind == "nothing"
        fh, attributes = outcome
        file = self._remember_open(path, attributes.ino, LOCAL, fh, writable=True).file
        file.content, file.dirty = bytearray(), True
        self.inos[file.ino] = (path, LOCAL)
        self._ours(path, "file")

    def _place(self, place: str | int) -> str:
        if isinstance(place, str):
            return place
        there = [file.path for file in self.files.values()] + [p for p in PATHS if self.root + p in self.bucket]
        return there[place % len(there)] if there else PATHS[place % len(PATHS)]

    def _pick(self, pick: int) -> Handle | None:
        return self.handles[pick % len(self.handles)] if self.handles else None

    @rule(pick=picks, size=sizes, at=st.none() | st.integers(0, 100))
    def write_some(self, pick: int, size: int, at: int | None) -> None:
        handle = self._pick(pick)
        if handle is None or not handle.writable or size == 0:
            return
        file = handle.file
        base = file.content if file.content is not None else file.body
        offset = len(base) if at is None else at
        data = self._fresh(size)
        fs = self.mount.fs
        outcome = self._do(lambda: fs.write(file.ino, handle.fh, offset, data))
        content = bytearray(base) + bytes(max(0, offset - len(base)))
        content[offset : offset + size] = data
        if isinstance(outcome, LazyfsError):
            self._refused(file, outcome, len(content))
        else:
            assert outcome == size
            assert not file.broken or file.deleted
            file.content, file.dirty = content, True

    def _refused(self, file: File, error: LazyfsError, length: int) -> None:
        """A write was refused: only for a reason, and never forgotten by a writer that has lost something."""
        if file.unlinked and file.content is not None:
            assert file.broken or self._may_refuse(max(length, len(file.content))), error
            file.broken = True
        elif file.deleted:
            return
        elif file.content is None:  # it could not begin
            if isinstance(error, StaleError):
                assert self._etag(file.path) != file.etag or self.armed.fired
            else:
                assert isinstance(error, TransientStoreError | NotSupportedError | NoRoomError), error
                assert isinstance(error, TransientStoreError) or self._may_refuse(len(file.body)), error
            opened = self.mount.fs.handles.by_ino(file.ino)
            if opened is not None and opened.writer is not None:  # it began, and ended at once
                file.content, file.broken = bytearray(file.body), True
        else:
            reasons = file.broken or isinstance(error, TransientStoreError)
            refused = isinstance(error, OutOfOrderError | NoRoomError)
            assert reasons or (refused and self._may_refuse(max(length, len(file.content)))), error
            file.broken = True

    @rule(pick=picks, size=sizes)
    def truncate_file(self, pick: int, size: int) -> None:
        handle = self._pick(pick)
        if handle is None or not handle.writable or handle.file.content is None:
            return
        file = handle.file
        outcome = self._do(lambda: self.mount.fs.setattr(file.ino, Changes(size=size)))
        if isinstance(outcome, LazyfsError):
            self._refused(file, outcome, size)
        elif len(file.content) != size:
            file.content = (file.content + bytes(max(0, size - len(file.content))))[:size]
            file.dirty = True

    @rule(place=places, size=sizes)
    def truncate_by_name(self, place: str | int, size: int) -> None:
        path = self._place(place)
        asked = self._ask_both(path)
        if asked is None or asked[0].kind != "file":
            return
        told, ino, _, _ = asked
        file, states = self.files.get(ino), self.oracle.now
        if file is not None and file.content is not None:
            return  # truncate_file does that
        outcome = self._do(lambda: self.mount.fs.setattr(ino, Changes(size=size)))
        body = self.bodies[told.etag]
        if not isinstance(outcome, LazyfsError):
            assert outcome.size == size
            changed = file or File(path, ino, told.etag, body)
            if size != len(body):
                self._committed(changed, (body + bytes(max(0, size - len(body))))[:size], since=states)
                if changed.writers:
                    changed.content = bytearray(changed.body)  # its writer stays
        elif isinstance(outcome, NotSupportedError | NoRoomError):
            assert size
            assert self._may_refuse(max(len(body), size))
        else:
            stale = isinstance(outcome, PreconditionFailedError | StaleError | StaleInodeError)
            assert self.armed.fired or (stale and self._etag(path) != told.etag), outcome
            stored = self.store._objects.get(self.root + path)
            if self.armed.fired and stored is not None and stored.etag != told.etag:
                self.bucket[self.root + path] = stored.body  # only the answer was lost
            self._observe()
            self.last.pop(path, None)
            opened = self.mount.fs.handles.by_ino(ino)
            if file is not None and opened is not None and opened.writer is not None:  # others who write it learn of it
                file.content, file.broken = bytearray(size), True

    @rule(place=places)
    def set_time(self, place: str | int) -> None:
        asked = self._ask_both(self._place(place))
        if asked is not None and asked[0].kind == "file":
            outcome = self._do(lambda: self.mount.fs.setattr(asked[1], Changes(mtime_ns=self.serial)))
            assert not isinstance(outcome, LazyfsError), outcome
            assert outcome.mtime_ns == self.serial

    @rule(place=places, bits=st.sampled_from([0o600, 0o755]))
    def change_mode(self, place: str | int, bits: int) -> None:
        """Of what is stored it is a copy onto itself, after which an object of several parts has another ETag."""
        path = self._place(place)
        asked = self._ask_both(path)
        if asked is None or asked[0].kind != "file":
            return
        told, ino, _, _ = asked
        outcome = self._do(lambda: self.mount.fs.setattr(ino, Changes(mode=bits)))
        self._observe()
        if isinstance(outcome, LazyfsError):
            stale = isinstance(outcome, StaleError | StaleInodeError)
            assert self.armed.fired or (stale and self._etag(path) != told.etag), outcome
            self.last.pop(path, None)
            return
        assert outcome.mode & 0o7777 == bits
        node = self.mount.index.node(ino)
        if node is not None and node.etag != told.etag:
            assert self.bodies[node.etag] == self.bodies[told.etag]
            self.inos[ino] = (path, node.etag)
            if ino in self.files:
                self.files[ino].etag = node.etag
            self._ours(path, "file")
            self.last.pop(path, None)

    @rule(pick=picks, sync=st.booleans())
    def flush_file(self, pick: int, sync: bool) -> None:
        handle = self._pick(pick)
        if handle is None:
            return
        file, fs = handle.file, self.mount.fs
        verb = fs.fsync if sync else fs.flush
        commits = handle.writable and file.content is not None and not file.deleted and (file.dirty or file.broken)
        self._commit(file, lambda: verb(file.ino, handle.fh), commits=commits, told=True)

    @rule(pick=picks, read=st.booleans())
    def release_file(self, pick: int, read: bool) -> None:
        handle = self._pick(pick)
        if handle is not None:
            self._release(handle, read=read)

    def _release(self, handle: Handle, *, read: bool = True) -> None:
        """Release a handle and, if it was the last writer's, perhaps read the file before what that has set off comes
        far: where there is a spool, that is what serves."""
        file, fs = handle.file, self.mount.fs
        commits = handle.writable and file.writers == 1 and file.dirty and not file.broken and not file.deleted
        gone = file.deleted or file.broken
        read &= handle.writable and file.writers == 1 and not file.unlinked
        seen: list[tuple[str, bytes]] = []

        async def release() -> None:
            await fs.release(file.ino, handle.fh)
            if read:
                with contextlib.suppress(LazyfsError):
                    seen.append(await self._read_version(file.ino))

        self._commit(file, release, commits=commits, told=False)
        for etag, data in seen:
            assert gone or data == self.bodies[etag]
        self.handles.remove(handle)
        file.handles -= 1
        file.writers -= handle.writable
        if not file.writers and not file.unlinked:
            file.deleted |= file.etag == LOCAL  # broken, and never flushed
            file.content, file.dirty, file.broken = None, False, False
        if not file.handles:
            del self.files[file.ino]
        self._observe()

    async def _read_version(self, ino: int) -> tuple[str, bytes]:
        """The ETag and the content of what is read by a handle that is opened now."""
        fs = self.mount.fs
        fh = await fs.open(ino, os.O_RDONLY, 1)
        opened = fs.handles.by_ino(ino)
        assert opened is not None
        assert opened.object is not None
        try:
            return opened.object.oid.etag, bytes(await fs.read(ino, fh, Range(0, 10_000)))
        finally:
            await fs.release(ino, fh)

    def _commit(self, file: File, work: Callable[[], Any], *, commits: bool, told: bool) -> None:
        """A call that commits, if there is anything to commit: then the bucket has all of it, or we are told."""
        key = self.root + file.path
        expected = None if file.etag == LOCAL else file.etag
        at_start, states = self._etag(file.path), self.oracle.now
        self.armed.fired = False
        opened = self.mount.fs.handles.by_ino(file.ino)
        writer = None if opened is None else opened.writer
        error = self._do(work)
        if not commits:
            assert error is None or file.broken, error
            return
        assert file.content is not None
        assert writer is not None
        content, stored = bytes(file.content), self.store._objects.get(key)
        arrived = stored is not None and stored.body == content and not file.broken
        assert not told or (error is None) == (writer.error is None)
        if writer.error is None:
            assert not writer.is_dirty
            assert not file.broken, "acknowledged what was lost"
            held = {state.bucket.get(file.path) for state in self.oracle.states[states:]} | {at_start}
            assert expected in held, "overwrote a version that was not opened"
            if not self.armed.fired:
                assert arrived, "acknowledged, and not in the bucket"
            self._committed(file, content, since=states)
        else:
            refused = at_start != expected
            assert file.broken or refused or self.armed.fired or self.armed.ever_failed, error
            self._lost(file, arrived=arrived and self.armed.fired)

    def _committed(self, file: File, content: bytes, *, since: int) -> None:
        """A call that began in state `since` has put `content` in the bucket; others may have changed it after that."""
        etags = [state.bucket.get(file.path, "") for state in self.oracle.states[since:]]
        ours = [number for number, etag in enumerate(etags) if etag and self.bodies[etag] == content]
        assert ours, "acknowledged, and never in the bucket"
        if ours[-1] == len(etags) - 1:
            self.bucket[self.root + file.path] = content
        etag = etags[ours[-1]]
        file.etag, file.body, file.dirty = etag, content, False
        self.inos[file.ino] = (file.path, etag)
        self.oracle.own_commit(file.path, since + ours[-1])
        self._observe()
        self.last.pop(file.path, None)

    def _lost(self, file: File, *, arrived: bool) -> None:
        """A commit failed; where only its answer was lost the bucket may have it all the same."""
        if arrived:
            assert file.content is not None
            self.bucket[self.root + file.path] = bytes(file.content)
        file.broken, file.dirty = True, False
        if file.etag == LOCAL:
            file.deleted = True  # the name is free again
        self._observe()
        if self.armed.fired:  # the check of who won may have failed too; then the lease must end first
            self.oracle.own_change(file.path, removed="file")
        self.last.pop(file.path, None)

    @rule(pick=picks, start=st.integers(0, 60), size=sizes)
    def read_some(self, pick: int, start: int, size: int) -> None:
        handle = self._pick(pick)
        if handle is None:
            return
        file = handle.file
        self.armed.fired = False
        data = self._do(lambda: self.mount.fs.read(file.ino, handle.fh, Range(start, start + size)))
        written = file.content is not None and (file.dirty or file.broken)
        truth = bytes(file.content) if written and file.content is not None else file.body
        if not isinstance(data, LazyfsError):
            assert not (file.broken and not file.deleted and file.etag == LOCAL), "read of what is lost"
            assert (file.deleted and not file.unlinked) or bytes(data) == truth[start : start + size]
        elif isinstance(data, StaleError):
            assert self._etag(file.path) != file.etag or self.armed.fired or file.deleted, "told stale without reason"
        else:
            sent = written and self._may_refuse(len(truth)) and isinstance(data, OutOfOrderError | NoRoomError)
            gone = file.deleted and not (file.unlinked and written)
            assert sent or file.broken or gone or self.armed.fired, data

    @rule(place=places)
    def read_whole(self, place: str | int) -> None:
        path = self._place(place)
        answer = self._tell(path)
        if isinstance(answer, LazyfsError) or answer[0].kind != "file" or answer[1] in self.files:
            return
        told, ino = answer
        self.armed.fired = False
        fs = self.mount.fs
        fh = self._do(lambda: fs.open(ino, os.O_RDONLY, 1))
        if isinstance(fh, LazyfsError):
            assert self.armed.fired or (isinstance(fh, StaleInodeError) and self._etag(path) != told.etag), fh
            return
        data = self._do(lambda: fs.read(ino, fh, Range(0, 10_000)))
        assert self._do(lambda: fs.release(ino, fh)) is None
        if isinstance(data, StaleError):
            assert self._etag(path) != told.etag or self.armed.fired
        elif isinstance(data, LazyfsError):
            assert self.armed.fired, data
        else:
            assert bytes(data) == self.bodies[told.etag]

    # -- names -----------------------------------------------------------------

    def _ask_both(self, path: str) -> tuple[Told, int, int, str] | None:
        """What `path` is, its inode, its parent's and its name; None if there is no such directory."""
        above, _, name = path.rpartition("/")
        answer, parent = self._tell(path), self._tell(above)
        if isinstance(answer, LazyfsError) or isinstance(parent, LazyfsError) or parent[0].kind != "directory":
            return None
        if self.armed.fired or self.armed.deeds:  # what was told may be true no more
            return None
        return (*answer, parent[1], name)

    @rule(place=places)
    def unlink_file(self, place: str | int) -> None:
        path = self._place(place)
        asked = self._ask_both(path)
        if asked is None:
            return
        told, ino, parent, name = asked
        outcome = self._do(lambda: self.mount.fs.unlink(parent, name))
        if isinstance(outcome, LazyfsError):
            expected = {"nothing": NoEntryError, "directory": IsDirectoryError, "file": TransientStoreError}[told.kind]
            assert isinstance(outcome, expected) or self.armed.fired, outcome
            return
        assert told.kind == "file"
        if told.etag != LOCAL:
            self.bucket.pop(self.root + path, None)
        self._loses_name(ino)
        self._ours(path, "file", removed="file" if told.etag == LOCAL else "")

    def _loses_name(self, ino: int) -> None:
        """Who has the file open can go on: only what is nowhere else than in its upload is lost."""
        file, opened = self.files.get(ino), self.mount.fs.handles.by_ino(ino)
        if file is None:
            return
        assert opened is not None
        file.deleted = file.unlinked = True
        if opened.writer is not None and opened.writer.error is not None:
            assert file.broken or self._may_be_settled(file), opened.writer.error
            file.broken = True

    @rule(path=paths)
    def make_directory(self, path: str) -> None:
        asked = self._ask_both(path)
        if asked is None:
            return
        told, _, parent, name = asked
        outcome = self._do(lambda: self.mount.fs.make_directory(parent, name))
        if isinstance(outcome, LazyfsError):
            assert isinstance(outcome, ExistsError) == (told.kind != "nothing") or self.armed.fired, outcome
            marker = self.root + path + "/"
            if marker in self.store._objects:  # the answer was lost
                self.bucket[marker] = b""
            self._observe()
            return
        assert told.kind == "nothing"
        self.bucket[self.root + path + "/"] = b""
        self._ours(path, "directory")

    @rule(path=paths)
    def remove_directory(self, path: str) -> None:
        asked = self._ask_both(path)
        if asked is None:
            return
        told, _, parent, name = asked
        outcome = self._do(lambda: self.mount.fs.remove_directory(parent, name))
        if isinstance(outcome, LazyfsError):
            if not self.armed.fired:
                expected = {"nothing": NoEntryError, "directory": NotEmptyError, "file": NotDirectoryError}[told.kind]
                assert isinstance(outcome, expected), outcome
            return
        assert told.kind == "directory"
        self.bucket.pop(self.root + path + "/", None)
        self._ours(path, "directory", removed="directory")
        for known in [known for known in self.last if known == path or known.startswith(path + "/")]:
            del self.last[known]  # where odd keys keep it in the bucket it comes back, as a new one

    @rule(place=places, new_place=places)
    def rename_file(self, place: str | int, new_place: str | int) -> None:
        path, new = self._place(place), self._place(new_place)
        asked, target = self._ask_both(path), self._ask_both(new)
        if asked is None or target is None or path == new:
            return
        if self._ask_both(path) != asked:  # looking for the one found out that others have replaced the other
            return
        told, ino, parent, name = asked
        if told.kind == "directory":  # see test_renaming.py
            return
        file = self.files.get(ino)
        opened = self.mount.fs.handles.by_ino(ino)
        unsent = file is not None and file.dirty and not file.broken and not file.deleted
        writer, states = opened.writer if opened is not None and unsent else None, self.oracle.now
        outcome = self._do(lambda: self.mount.fs.rename(parent, name, target[2], target[3], replace=True))
        if writer is not None and file is not None and writer.error is not None:
            assert isinstance(outcome, LazyfsError), "a rename acknowledged what was lost"
            stored = self.store._objects.get(self.root + path)
            arrived = stored is not None and file.content is not None and stored.body == bytes(file.content)
            self._lost(file, arrived=arrived and self.armed.fired)
            return
        if writer is not None and file is not None and file.content is not None and not writer.is_dirty:
            file.body = bytes(file.content)  # finished first
            if isinstance(outcome, LazyfsError):
                self._committed(file, file.body, since=states)
            else:
                file.dirty = False
                self.bucket[self.root + path] = file.body
        if isinstance(outcome, LazyfsError):
            stale = isinstance(outcome, PreconditionFailedError | NotFoundError | StaleError)
            reasons = (
                (told.kind == "nothing" and isinstance(outcome, NoEntryError))
                or (target[0].kind == "directory" and isinstance(outcome, IsDirectoryError))
                or (file is not None and (file.dirty or file.broken))
                or (stale and self._etag(path) != told.etag)
                or self.armed.fired
            )
            assert reasons, outcome
            copied = self.store._objects.get(self.root + new)
            if self.armed.fired and copied is not None and copied.etag != target[0].etag:
                self.bucket[self.root + new] = copied.body
            self._observe()
            return
        assert told.kind == "file"
        body = self.bucket.pop(self.root + path)
        self.bucket[self.root + new] = body
        self._loses_name(target[1])
        etag = self._etag(new)
        assert etag is not None
        if file is not None:
            file.path, file.etag, file.content = new, etag, None
        self.inos[ino] = (new, etag)
        self._ours(path, "file")
        self._ours(new, "file")
        self.last.pop(new, None)

    # -- the mount -----------------------------------------------------------------

    def _close_all(self) -> None:
        while self.handles:
            self._release(self.handles[-1])

    @rule(refreshed=st.booleans())
    def remount(self, refreshed: bool) -> None:
        self._close_all()
        self.mounting.close()
        assert not any(self.mount.gauges().values()), self.mount.gauges()
        self.mount = self._mount()
        if refreshed:
            self.refresh()

    @invariant()
    def all_is_well(self) -> None:
        self.armed.fired = False
        assert {key: stored.body for key, stored in self._objects.items()} == self.bucket
        named = [file for file in self.files.values() if not file.unlinked]
        writing = {self.root + file.path for file in named if file.dirty and not file.broken}
        # An upload of which the endpoint never told us has no parts, and costs nobody anything.
        pending = [pending for pending in self.store._uploads.values() if pending.parts or not self.armed.ever_failed]
        left = {pending.upload.key for pending in pending}
        assert left <= writing, f"uploads left behind: {left - writing}"
        gauges = self.mount.gauges()
        assert (gauges["reserved"], gauges["flights"], gauges["slots"]) == (0, 0, 0)
        assert gauges["files"] == len(self.files)
        assert not gauges["spool"] or any(file.content is not None for file in self.files.values())


class AlwaysFresh(Bucket):
    ttl_s = 0.0


class Indefinite(Bucket):
    ttl_s = float("inf")
    page_limit = 1000


class BelowPrefix(Bucket):
    root = "data/"
    page_limit = 1
    disk = True


class Spooled(Bucket):
    disk = True
    spool_bytes = ENDLESS


class SpooledWithoutLease(Spooled):
    ttl_s = 0.0
    root = "data/"


class LittleSpool(Bucket):
    disk = True
    spool_bytes = 3 * PART


pytestmark = pytest.mark.campaign
EXAMPLES = int(os.environ.get("LAZYFS_MODEL_EXAMPLES", times(0, 500)))
PROFILE = settings(
    max_examples=EXAMPLES or 80,
    stateful_step_count=int(os.environ.get("LAZYFS_MODEL_STEPS", "40")),
    derandomize=not EXAMPLES,
    deadline=None,
    database=None,
    print_blob=False,
    report_multiple_bugs=False,
    phases=[Phase.generate, *([] if os.environ.get("LAZYFS_MODEL_NO_SHRINK") else [Phase.shrink])],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(autouse=True)
def _one_schedule() -> Iterator[None]:
    with without_threads():
        yield


@pytest.mark.expect_warnings
@pytest.mark.slow
@pytest.mark.parametrize(
    "machine", [Bucket, AlwaysFresh, Indefinite, BelowPrefix, Spooled, SpooledWithoutLease, LittleSpool]
)
def test_model(machine: type[Bucket]) -> None:
    """Whatever programs and others do, in whatever order."""
    case = machine.TestCase
    case.settings = PROFILE
    case().runTest()


# Runs that were found once, told step by step.


@contextlib.contextmanager
def begun(kind: type[Bucket], *keys: str, size: int = 5) -> Iterator[Bucket]:
    steps = kind()
    try:
        steps.begin(keys=list(keys), size=size, refreshed=False, schedule=0)
        yield steps
        steps.all_is_well()
    finally:
        steps.teardown()


def test_a_removed_directory_stays_away_when_the_file_behind_it_is_renamed() -> None:
    """Only a key that cannot be a path keeps the directory, so the removal holds for a lease: nothing is asked."""
    with begun(LittleSpool, "b") as steps:
        steps.others_do_odd_things(key="b/../a", gone=False)
        steps.remove_directory("b")
        steps.rename_file("b", "a")
        steps.look_up("b")
        assert "b" not in steps.last
        steps.time_passes(60.0)
        steps.look_up("b")
        assert steps.last["b"][0] == Told("directory")


def test_others_replace_a_file_while_what_we_wrote_is_read() -> None:
    """Requests: the PUT, then the HEAD of who opens the file, at which others replace what is in the bucket by now."""
    with begun(SpooledWithoutLease) as steps:
        steps.create_file("b")
        steps.others_will_interfere(("put", "b", 1), left=1)
        steps.release_file(pick=0, read=True)
        assert steps.armed.fired
        steps.look_up("b")
        assert steps.last["b"][0] == Told("file", str(steps._etag("b")))


@pytest.mark.expect_warnings
def test_that_others_replaced_a_file_is_not_told_within_the_lease() -> None:
    """Requests: the last part, the completion, and the GET that finds out; but the check of what is there fails."""
    with begun(Bucket) as steps:
        steps.create_file("b")
        steps.write_some(pick=0, size=3 * PART + 5, at=None)
        steps.others_will_interfere(("put", "b", 1), left=2)
        steps.endpoint_will_fail("before", "head")
        steps.release_file(pick=0, read=True)
        assert steps.armed.ever_failed
        steps.look_up("b")
        assert steps.last["b"][0].etag != steps._etag("b")
        steps.time_passes(60.0)
        steps.look_up("b")
        assert steps.last["b"][0].etag == steps._etag("b")


def test_what_a_small_spool_did_not_take_cannot_be_read_back() -> None:
    """The stream goes on without it, and the program is told why."""
    with begun(LittleSpool) as steps:
        steps.create_file("a")
        steps.write_some(pick=0, size=90, at=None)
        steps.read_some(pick=0, start=0, size=1)
        steps.release_file(pick=0, read=True)
        assert len(steps.bucket["a"]) == 90


@pytest.mark.expect_warnings
def test_a_file_that_was_changed_and_grew_beyond_a_small_spool_is_refused_before_its_close() -> None:
    with begun(LittleSpool) as steps:
        steps.create_file("a")
        steps.write_some(pick=0, size=PART + 1, at=None)
        steps.write_some(pick=0, size=1, at=0)
        steps.truncate_file(pick=0, size=90)
        steps.flush_file(pick=0, sync=False)


def test_a_file_that_was_unlinked_is_written_and_read_on() -> None:
    with begun(Spooled) as steps:
        steps.create_file("a")
        steps.write_some(pick=0, size=90, at=None)
        steps.unlink_file("a")
        steps.all_is_well()
        steps.write_some(pick=0, size=30, at=80)
        steps.truncate_file(pick=0, size=40)
        steps.read_some(pick=0, start=0, size=60)
        steps.flush_file(pick=0, sync=True)
        steps.create_file("a")
        steps.read_some(pick=0, start=0, size=60)
        steps.release_file(pick=0, read=True)
