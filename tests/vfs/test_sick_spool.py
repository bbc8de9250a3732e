"""The disk of the spool fails at random calls: what a program was told is done is whole, the rest is told.

LAZYFS_SEED chooses which calls fail.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from random import Random
from typing import Any

import pytest

from lazyfs.cache import spool
from lazyfs.core.errors import LazyfsError
from lazyfs.store.memory import MemoryStore
from tests.campaign import SEED, times
from tests.vfs.building import Mount, mounted

FAILING = {"pread", "pwrite", "ftruncate", "fsync", "link", "open"}
TOLD = {errno.EIO, errno.ENOSPC}


class SickOs:
    """The module `os`, of which some calls fail and some writes are short."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self.rate = 0.0
        self.failed = 0

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in FAILING:
            return real

        def call(*args: Any, **named: Any) -> Any:
            if self._random.random() < self.rate:
                self.failed += 1
                code = self._random.choice([errno.EIO, errno.ENOSPC, errno.EROFS, errno.EDQUOT])
                raise OSError(code, os.strerror(code))
            if name == "pwrite" and self.rate and self._random.random() < 0.2:
                return real(args[0], args[1][: max(1, len(args[1]) // 2)], args[2])
            return real(*args, **named)

        return call


async def _rewrite(m: Mount, path: str, random: Random) -> bytes:
    """Write a file anew in pieces at any place, and close; what it then holds. LazyfsError."""
    content = bytearray()
    try:
        ino, fh = await m.open(path, os.O_WRONLY | os.O_TRUNC)
    except LazyfsError as error:
        if error.errno != errno.ENOENT:
            raise
        ino, fh = await m.create(path)
    try:
        for _ in range(random.randrange(1, 6)):
            at, data = random.choice([len(content), random.randrange(60)]), random.randbytes(random.randrange(1, 50))
            await m.fs.write(ino, fh, at, data)
            content.extend(bytes(max(0, at - len(content))))
            content[at : at + len(data)] = data
        await m.fs.flush(ino, fh)
    finally:
        await m.fs.release(ino, fh)
    return bytes(content)


async def _read(m: Mount, path: str) -> bytes | None:
    try:
        return await m.read(path)
    except LazyfsError as error:
        if error.errno != errno.ENOENT:
            raise
        return None


@pytest.mark.expect_warnings
@pytest.mark.campaign
@pytest.mark.parametrize("back", [False, True], ids=["through", "back"])
async def test_what_was_told_is_done_is_whole_and_the_rest_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, back: bool
) -> None:
    told = refused = 0
    for turn in range(times(8, 250)):
        random = Random(f"{SEED}-{turn}")
        sick, store, place = SickOs(random), MemoryStore(min_part_size=1), tmp_path / f"{turn}"
        place.mkdir()
        monkeypatch.setattr(spool, "os", sick)
        may_hold: dict[str, set[bytes | None]] = {path: {None} for path in "abc"}
        where = {"write_back": place / "back"} if back else {}
        async with mounted(store, place / "index.db", spool=place / "spool", **where) as m:
            for _ in range(12):
                sick.rate = random.choice([0.0, 0.05, 0.3, 1.0])
                path = random.choice("abc")
                try:
                    may_hold[path] = {await _rewrite(m, path, random)}
                    told += 1
                except LazyfsError as error:
                    if error.errno not in TOLD:
                        raise
                    refused += 1
                    sick.rate = 0.0
                    await m.settle()
                    found = await _read(m, path)
                    assert found in may_hold[path] | {b""}, "neither what was there nor empty"  # O_TRUNC was done
                    may_hold[path] = {found}
                for other, allowed in may_hold.items():
                    try:
                        assert await _read(m, other) in allowed
                    except LazyfsError as error:
                        if not (back and sick.rate):  # what waits for its upload is nowhere else
                            raise AssertionError("a reader felt it") from error
            sick.rate = 0.0
            await m.settle()
            for path, allowed in may_hold.items():
                assert await _read(m, path) in allowed
                assert (store.body(path) if path in store._objects else None) in allowed
            assert m.spool is not None
            assert m.spool.used_bytes == 0
    assert told
    assert refused
