"""kill -9 of write-back, hundreds of times: `python -m tests.vfs.kills DIRECTORY SEED KILLS`.

Each life is a forked process that runs the whole of write-back but the kernel (journal, spool, backlog, uploader,
index) over a bucket that is a directory. It tells what it begins and what it was told is done; the parent kills it at a
random moment. The next life first tells all that it shows: that must be exactly what was acknowledged, or that and the
one change that was under way. The last one is let finish: the bucket must hold what the mount showed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import quote, unquote

import trio

from lazyfs.core.types import ROOT_INO, Buffer, Kind
from lazyfs.store.base import PutOptions
from lazyfs.store.memory import MemoryStore
from tests.vfs.building import Mount, mounted

View = dict[str, str]
"""Checksums of files by path; directories, whose path ends in `/`, have none."""
LIFE_S = 0.1
"""The longest."""
DIRECTORIES = ["", "d/", "e/", "d/s/"]
PATHS = [directory + name for directory in DIRECTORIES for name in ("a", "b")]


class DirectoryStore(MemoryStore):
    """A bucket that outlives its process: each object is a file, replaced by rename. Slow now and then."""

    def __init__(self, directory: Path, random: Random) -> None:
        super().__init__(min_part_size=1)
        self._directory = directory
        self._random = random
        directory.mkdir(exist_ok=True)
        for path in directory.glob("*.object"):
            head, _, body = path.read_bytes().partition(b"\n")
            super()._write(unquote(path.stem), body, json.loads(head)["etag"], _options(json.loads(head)["metadata"]))

    def _write(self, key: str, body: bytes, etag: str, options: PutOptions) -> None:
        super()._write(key, body, etag, options)
        draft = self._path(key).with_suffix(f".{os.getpid()}")
        draft.write_bytes(json.dumps({"etag": etag, "metadata": dict(options.metadata)}).encode() + b"\n" + body)
        draft.rename(self._path(key))

    async def delete(self, key: str) -> None:
        await self._wait()
        await super().delete(key)
        self._path(key).unlink(missing_ok=True)

    async def put(self, key: str, body: Buffer, **options: Any) -> str:
        await self._wait()
        etag = await super().put(key, body, **options)
        await self._wait()
        return etag

    async def _wait(self) -> None:
        await trio.sleep(self._random.random() ** 4 * 0.05)

    def _path(self, key: str) -> Path:
        return self._directory / f"{quote(key, safe='')}.object"


def _options(metadata: Mapping[str, str]) -> PutOptions:
    return PutOptions(metadata=metadata)


# -- a life: in the child ---------------------------------------------------------------------------------------------


async def _life(directory: Path, index: str, seed: str, out: int, *, finish: bool) -> None:
    random = Random(seed)
    store = DirectoryStore(directory / "bucket", random)
    async with mounted(
        store, directory / index, spool=directory / "spool", write_back=directory / "back", disk=directory / "blocks"
    ) as m:
        _tell(out, ["view", await _view(m)])
        number = 0
        while not finish:
            number += 1
            change = _change(random, f"{seed}-{number}")
            _tell(out, ["begin", change])
            with contextlib.suppress(Exception):  # what cannot be done changes nothing, as the next view shows
                await _do(m, change)
            _tell(out, ["end", change])
        await m.settle()
        _tell(out, ["view", await _view(m)])


def _tell(out: int, word: object) -> None:
    os.write(out, json.dumps(word).encode() + b"\n")


async def _view(m: Mount, path: str = "") -> View:
    view: View = {}
    fh = await m.fs.open_directory((await m.lookup(path)).ino if path else ROOT_INO)
    entries = await m.entries(fh)
    m.fs.close_directory(fh)
    for name, attributes, _ in entries:
        below = f"{path}/{name}" if path else name
        if attributes.kind is Kind.DIRECTORY:
            view |= {below + "/": "", **await _view(m, below)}
        else:
            view[below] = hashlib.sha256(await m.read(below)).hexdigest()[:12]
    return view


def _change(random: Random, name: str) -> list[Any]:
    kind = random.choice(["write"] * 5 + ["rename", "rename", "unlink", "mkdir", "mkdir", "rmdir", "move"])
    if kind == "write":
        return [kind, random.choice(PATHS), name, random.choice([0, 10, 16, 100, 5000])]
    if kind in {"rename", "unlink"}:
        return [kind, random.choice(PATHS), random.choice(PATHS)]
    return [kind, random.choice(DIRECTORIES[1:]), random.choice(DIRECTORIES[1:])]


def _body(name: str, size: int) -> bytes:
    return (name.encode() * (size // len(name) + 1))[:size]


async def _do(m: Mount, change: list[Any]) -> None:
    kind, path, *more = change
    parent, name = await m.parent_of(path.removesuffix("/"))
    if kind == "write":
        await m.write(path, _body(*more))
    elif kind == "unlink":
        await m.fs.unlink(parent, name)
    elif kind == "mkdir":
        await m.fs.make_directory(parent, name)
    elif kind == "rmdir":
        await m.fs.remove_directory(parent, name)
    else:
        new_parent, new_name = await m.parent_of(more[0].removesuffix("/"))
        await m.fs.rename(parent, name, new_parent, new_name, replace=True)


# -- what must be: in the parent --------------------------------------------------------------------------------------


def after(view: View, change: list[Any]) -> View:
    """What the mount shows once `change` is done; the same where it cannot be."""
    kind, path, *more = change
    above = _above(path)
    if above and above not in view:
        return view
    new = dict(view)
    if kind == "write":
        if path + "/" not in view:
            new[path] = hashlib.sha256(_body(*more)).hexdigest()[:12]
    elif kind == "unlink":
        new.pop(path, None)
    elif kind == "mkdir":
        if path.removesuffix("/") not in view:
            new[path] = ""
    elif kind == "rmdir":
        if not any(other.startswith(path) and other != path for other in view):
            new.pop(path, None)
    elif path in view and path != more[0] and (not _above(more[0]) or _above(more[0]) in view):
        return _moved(view, path, more[0])
    return new


def _moved(view: View, old: str, new: str) -> View:
    if new.startswith(old) and old.endswith("/"):
        return view
    if any(other.startswith(new) and other != new for other in view) and new.endswith("/"):
        return view
    moved = {path for path in view if path == old or (old.endswith("/") and path.startswith(old))}
    there = {path: what for path, what in view.items() if path not in moved}
    return {**there, **{new + path[len(old) :]: view[path] for path in moved}}


def _above(path: str) -> str:
    return path[: path.rfind("/", 0, len(path) - 1) + 1]


def campaign(directory: Path, seed: int, kills: int) -> None:
    """Raises AssertionError with what was expected."""
    random = Random(seed)
    expected: list[View] = [{}]
    words: list[Any] = []
    index = "index.db"
    for life in range(kills + 1):
        if random.random() < 0.2:
            index = f"index-{life}.db"  # it is a cache, and may be lost
        before, words = (
            words,
            _lived(directory, index, f"{seed}-{life}", random.random() * LIFE_S, finish=life == kills),
        )
        if not words:
            continue  # killed before it could tell anything
        assert words[0][1] in expected, f"life {life} shows {words[0][1]}, not {expected}; before: {before}"
        view = words[0][1]
        expected = [view]
        for word, change in words[1:]:
            if word == "begin":
                expected = [view, after(view, change)]
            elif word == "end":
                view = expected[-1]
                expected = [view]
    bucket = DirectoryStore(directory / "bucket", random)
    held = {key: hashlib.sha256(found.body).hexdigest()[:12] for key, found in bucket._objects.items()}
    files = {path: what for path, what in view.items() if not path.endswith("/")}
    assert {key: what for key, what in held.items() if not key.endswith("/")} == files
    assert not list((directory / "back").glob("*.data"))
    sys.stdout.write(f"{kills} kills, {len(files)} files at the end\n")


def _lived(directory: Path, index: str, seed: str, life_s: float, *, finish: bool) -> list[Any]:
    """What a life told until it was killed, or had finished."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        code = 1
        try:
            trio.run(lambda: _life(directory, index, seed, writing, finish=finish))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        if not finish:
            first = pipe.readline()
            time.sleep(life_s)
            os.kill(child, signal.SIGKILL)
            lines = [first, *pipe.read().split(b"\n")]
        else:
            lines = pipe.read().split(b"\n")
    assert os.waitpid(child, 0)[1] == (0 if finish else signal.SIGKILL), "it died by itself"
    return [json.loads(line) for line in lines if line.strip()]


if __name__ == "__main__":
    campaign(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
