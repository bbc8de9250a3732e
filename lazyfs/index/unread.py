"""Which directories nobody has read: a sum over the whole index, on a connection of its own, for a worker thread."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from lazyfs.core.types import ROOT_INO
from lazyfs.index.transactions import connect

LOOKED_AT = 10_000
"""Directories, the largest: with more the rest is not looked at."""


class Unread(NamedTuple):
    """A directory, by its path without a slash at the end: the files that are directly in it, and their bytes."""

    path: str
    files: int
    size: int


def unread_directories(index: Path, read: Collection[str]) -> list[Unread]:
    """Those of the largest LOOKED_AT that have files and are not in `read`, largest first. Some seconds for a million
    files."""
    with contextlib.closing(connect(index)) as db:
        db.execute("PRAGMA query_only = 1")
        rows = db.execute(
            "SELECT parent, COUNT(*), SUM(size) FROM node WHERE entry != '' AND substr(entry, -1) != '/'"
            " GROUP BY parent ORDER BY SUM(size) DESC, parent LIMIT ?",
            (LOOKED_AT,),
        ).fetchall()
        found = (Unread(_path(db, parent), files, size) for parent, files, size in rows)
        return [one for one in found if one.path not in read]


def _path(db: sqlite3.Connection, ino: int) -> str:
    names: list[str] = []
    while ino != ROOT_INO:
        row = db.execute("SELECT parent, entry FROM node WHERE ino = ?", (ino,)).fetchone()
        if row is None:  # it goes away just now
            break
        ino = row[0]
        names.append(row[1])
    return "".join(reversed(names)).removesuffix("/")
