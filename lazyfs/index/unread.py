"""Which directories nobody has read: a sum over the whole index, on a connection of its own, for a worker thread."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from lazyfs.core.types import ROOT_INO

log = logging.getLogger(__name__)

LOOKED_AT = 10_000
"""Directories, the largest: with more the rest is not looked at."""


class Unread(NamedTuple):
    """A directory, by its path without a slash at the end: the files that are directly in it, and their bytes."""

    path: str
    files: int
    size: int


def unread_directories(index: Path, read: Collection[str]) -> list[Unread] | None:
    """Those of the largest LOOKED_AT that have files and are not in `read`, largest first; None if the file cannot be
    read, as when somebody has deleted it. Some seconds for a million files."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{quote(str(index))}?mode=ro", uri=True)) as db:
            rows = db.execute(
                "SELECT parent, COUNT(*), SUM(size) FROM node WHERE entry != '' AND substr(entry, -1) != '/'"
                " GROUP BY parent ORDER BY SUM(size) DESC, parent LIMIT ?",
                (LOOKED_AT,),
            ).fetchall()
            found = (Unread(_path(db, parent), files, size) for parent, files, size in rows)
            return [one for one in found if one.path not in read]
    except sqlite3.Error as error:
        log.info("the index %s cannot be summed up: %s", index, error)
        return None


def _path(db: sqlite3.Connection, ino: int) -> str:
    names: list[str] = []
    while ino != ROOT_INO:
        row = db.execute("SELECT parent, entry FROM node WHERE ino = ?", (ino,)).fetchone()
        if row is None:  # it goes away just now
            break
        ino = row[0]
        names.append(row[1])
    return "".join(reversed(names)).removesuffix("/")
