"""Write-back against a plain model: whatever programs do, however the bucket fails, and wherever the daemon dies.

What is checked at every change of the bucket: a file that vouches for others (of one part, or renamed) is not there
before what the program had closed, in its directory and below, when it got its last byte. At the end: the bucket holds
exactly what the programs left. LAZYFS_MODEL_EXAMPLES sets how many histories are tried.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lazyfs.core.errors import UnreachableError
from lazyfs.core.types import Buffer, ObjectId, Part, Upload
from lazyfs.store.memory import MemoryStore
from tests.campaign import times
from tests.vfs import schedules
from tests.vfs.building import Mount, mounted

EXAMPLES = int(os.environ.get("LAZYFS_MODEL_EXAMPLES", times(60, 3000)))
PART = 16
DIRECTORIES = ["", "d/", "e/", "d/s/"]
PATHS = [directory + name for directory in DIRECTORIES for name in ("a", "b", "c")]
PATIENCE_S = 20
TURNS = 100
"""Of the loop, in which the bucket may do what it was allowed to."""

indexes = st.integers(0, 11)
steps = st.one_of(
    st.tuples(st.just("write"), indexes, st.sampled_from([0, 5, PART, 40])),
    st.tuples(st.just("patch"), indexes),
    st.tuples(st.just("unlink"), indexes),
    st.tuples(st.just("mkdir"), indexes),
    st.tuples(st.just("rmdir"), indexes),
    st.tuples(st.just("rename"), indexes, indexes),
    st.tuples(st.just("move"), indexes, indexes),
    st.tuples(st.just("look"), indexes),
    st.tuples(st.just("refresh")),
    st.tuples(st.just("progress"), st.integers(1, 6)),
    st.tuples(st.just("fail"), st.integers(1, 3)),
    st.tuples(st.just("lose")),
    st.tuples(st.just("crash"), st.booleans()),
)


@dataclass(eq=False)
class File:
    """What a program has closed. `vouched` are the files, and their contents, that its last byte may speak of."""

    path: str | None
    content: bytes
    places: set[str] = field(default_factory=set)
    vouched: list[tuple[File, bytes, int]] = field(default_factory=list)
    renames: int = 0
    """What a program renames after it was vouched for, it has moved away itself."""


class Gate(MemoryStore):
    """A bucket that changes only when told to; it may fail, or do what was asked and lose the answer."""

    def __init__(self, watch: Callable[[dict[str, bytes]], None]) -> None:
        super().__init__(min_part_size=1)
        self.permits = 0
        self.failures = 0
        self.losses = 0
        self.open = False
        self.waiting = 0
        self._turn = trio.Event()
        self._watch = watch

    def admit(self, count: int) -> None:
        self.permits += count
        self._turn.set()
        self._turn = trio.Event()

    def unlock(self) -> None:
        self.open = True
        self.admit(0)

    async def _through(self, work: Callable[[], Awaitable[Any]]) -> Any:
        self.waiting += 1
        try:
            while not (self.open or self.permits):
                await self._turn.wait()
        finally:
            self.waiting -= 1
        self.permits = max(0, self.permits - 1)
        if self.failures:
            self.failures -= 1
            raise UnreachableError("away")
        result = await work()
        self._watch(self.bodies())
        if self.losses:
            self.losses -= 1
            raise UnreachableError("the answer was lost")
        return result

    def bodies(self) -> dict[str, bytes]:
        return {key: bytes(found.body) for key, found in self._objects.items()}

    async def put(self, key: str, body: Buffer, **options: Any) -> str:
        return str(await self._through(lambda: super(Gate, self).put(key, body, **options)))

    async def copy(self, source: ObjectId, key: str) -> str:
        return str(await self._through(lambda: super(Gate, self).copy(source, key)))

    async def delete(self, key: str) -> None:
        await self._through(lambda: super(Gate, self).delete(key))

    async def complete_upload(self, upload: Upload, parts: list[Part], **options: Any) -> str:  # type: ignore[override]
        return str(await self._through(lambda: super(Gate, self).complete_upload(upload, parts, **options)))


class History:
    """One run: a mount, the model of what programs see, and what vouches for what."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.files: dict[str, File] = {}
        self.directories: set[str] = {""}
        self.store = Gate(self.check_order)
        self.count = 0
        self.m: Mount

    # -- what must hold ---------------------------------------------------------------------------------------------

    def check_order(self, bodies: dict[str, bytes]) -> None:
        for path, file in self.files.items():
            if not file.content or bodies.get(path) != file.content:  # one empty version looks like another
                continue
            for other, content, renames in file.vouched:
                if other.path is not None and (other.content, other.renames) == (content, renames):
                    there = [bodies.get(place) for place in (other.path, *other.places)]
                    assert content in there, f"{path} is in the bucket, and {other.path} is not"

    async def check_view(self, directory: str) -> None:
        names = {path[len(directory) :] for path in self.files if self.above(path) == directory}
        names |= {found[len(directory) : -1] for found in self.directories - {""} if self.above(found) == directory}
        assert set(await self.m.names(directory.removesuffix("/"))) == names
        for path, file in self.files.items():
            if self.above(path) == directory:
                assert await self.m.read(path) == file.content

    @staticmethod
    def above(path: str) -> str:
        return path[: path.rfind("/", 0, len(path) - 1) + 1]

    # -- what programs do -------------------------------------------------------------------------------------------

    def closed(self, file: File, *, renamed: bool = False) -> None:
        assert file.path is not None
        file.vouched = []
        if renamed or len(file.content) <= PART:
            below = self.above(file.path)
            file.vouched = [
                (other, other.content, other.renames)
                for path, other in self.files.items()
                if path.startswith(below) and other is not file
            ]

    async def write(self, where: int, size: int) -> None:
        path = PATHS[where]
        if self.above(path) not in self.directories or path + "/" in self.directories:
            return
        self.count += 1
        content = (b"%06d" % self.count * 10)[:size]
        if path in self.files:
            self.files[path].path = None
        await self.m.write(path, content)
        self.files[path] = file = File(path, content)
        self.closed(file)

    async def patch(self, where: int) -> None:
        if not self.files:
            return
        path, file = sorted(self.files.items())[where % len(self.files)]
        self.count += 1
        patch = b"%04d" % self.count
        ino, fh = await self.m.open(path, os.O_RDWR)
        await self.m.fs.write(ino, fh, 2, patch)
        await self.m.fs.flush(ino, fh)
        await self.m.fs.release(ino, fh)
        before = file.content.ljust(2, b"\0")
        file.content = before[:2] + patch + before[6:]
        self.closed(file)

    async def unlink(self, where: int) -> None:
        if self.files:
            path = sorted(self.files)[where % len(self.files)]
            self.files.pop(path).path = None
            await self.m.fs.unlink(*await self.m.parent_of(path))

    async def mkdir(self, where: int) -> None:
        path = DIRECTORIES[where % len(DIRECTORIES)]
        if path not in self.directories and self.above(path) in self.directories:
            self.directories.add(path)
            await self.m.fs.make_directory(*await self.m.parent_of(path[:-1]))

    async def rmdir(self, where: int) -> None:
        empty = [
            path
            for path in sorted(self.directories - {""})
            if not any(other.startswith(path) and other != path for other in (*self.files, *self.directories))
        ]
        if empty:
            path = empty[where % len(empty)]
            self.directories.discard(path)
            await self.m.fs.remove_directory(*await self.m.parent_of(path[:-1]))

    async def rename(self, where: int, to: int) -> None:
        new = PATHS[to]
        if not self.files or self.above(new) not in self.directories:
            return
        old = sorted(self.files)[where % len(self.files)]
        if old == new:
            return
        self.store.unlock()  # a rename may wait for a copy that is under way
        try:
            await self._rename(old, new)
        except UnreachableError:  # that copy failed
            return
        finally:
            self.store.open = False
        file = self.files.pop(old)
        file.renames += 1
        if new in self.files:
            self.files[new].path = None
        file.places.add(old)
        file.path = new
        self.files[new] = file
        self.closed(file, renamed=True)

    async def move(self, where: int, to: int) -> None:
        new = DIRECTORIES[to % len(DIRECTORIES)]
        known = sorted(self.directories - {""})
        if not known or new in self.directories or self.above(new) not in self.directories:
            return
        old = known[where % len(known)]
        if new.startswith(old):
            return
        self.store.unlock()
        try:
            await self._rename(old[:-1], new[:-1])
        except UnreachableError:
            return
        finally:
            self.store.open = False
        for path in [path for path in self.files if path.startswith(old)]:
            file = self.files.pop(path)
            file.places.add(path)
            file.path = new + path[len(old) :]
            self.files[file.path] = file
        moved = {path for path in self.directories if path.startswith(old)}
        self.directories = self.directories - moved | {new + path[len(old) :] for path in moved}

    async def _rename(self, old: str, new: str) -> None:
        parent, name = await self.m.parent_of(old)
        new_parent, new_name = await self.m.parent_of(new)
        await self.m.fs.rename(parent, name, new_parent, new_name, replace=True)

    async def look(self, where: int) -> None:
        known = sorted(self.directories)
        await self.check_view(known[where % len(known)])

    async def refresh(self) -> None:
        await self.m.namespace.refresh()

    # -- what the bucket does -----------------------------------------------------------------------------------------

    async def progress(self, count: int) -> None:
        self.store.admit(count)
        for _ in range(TURNS):
            await trio.lowlevel.checkpoint()

    async def fail(self, count: int) -> None:
        self.store.failures = count

    async def lose(self) -> None:
        self.store.losses = 1

    async def run(self, history: list[tuple[Any, ...]]) -> None:
        left = list(history)
        generation = 0
        while True:
            ended = False
            with trio.CancelScope() as scope:
                async with mounted(
                    self.store,
                    self.directory / f"index-{generation}.db",
                    ttl_s=60.0,
                    spool=self.directory / "spool",
                    write_back=self.directory / "back",
                ) as self.m:
                    while left:
                        name, *arguments = left.pop(0)
                        if name == "crash":
                            generation += arguments[0]  # with the index that was, or without
                            scope.cancel()
                            await trio.lowlevel.checkpoint()
                        with trio.fail_after(PATIENCE_S):
                            await getattr(self, name)(*arguments)
                    self.store.failures = self.store.losses = 0
                    self.store.unlock()
                    await self.m.settle()
                    for directory in sorted(self.directories):
                        await self.check_view(directory)
                    ended = True
            self.store.permits = 0
            if ended:
                break
        wanted = {path: file.content for path, file in self.files.items()}
        bodies = self.store.bodies()
        assert {key: body for key, body in bodies.items() if key[-1] != "/"} == wanted
        markers = {key for key in bodies if key[-1] == "/"}
        assert markers <= self.directories
        assert not self.store._uploads


@pytest.mark.campaign
@pytest.mark.expect_warnings
@given(st.lists(steps, max_size=25), st.integers(0, 2**16))
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_model(history: list[tuple[Any, ...]], seed: int) -> None:
    with tempfile.TemporaryDirectory() as directory, schedules.without_threads():
        schedules.follow(seed, 0)
        trio.run(History(Path(directory)).run, history, clock=trio.testing.MockClock(autojump_threshold=0))
