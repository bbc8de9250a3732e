"""What `lazyfs status`, `find` and `release` are told of files: JSON in, JSON out, in pages.

Promises that an answer is short however large the bucket is, and ends soon.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lazyfs.control.protocol import MAX_LINE
from lazyfs.core.errors import ControlError
from lazyfs.core.selection import Selection
from lazyfs.core.types import Kind, Range
from lazyfs.index.base import Node
from lazyfs.index.database import Index
from lazyfs.vfs.facts import Facts, FactsOf
from lazyfs.vfs.namespace import Namespace
from lazyfs.vfs.walking import Entry, Walk

PAGE = 256
"""Entries of an answer at the most."""
PAGE_BYTES = MAX_LINE * 3 // 4
"""Of an answer at the most."""
PAGE_BLOCKS = 1_000_000
"""Of the files of an answer, if they are several: two seconds to look them up on the disk."""
PAGE_RANGES = 8_384
"""Ranges of an answer at the most: some 24 bytes each."""
FILE_RANGES = 1024
"""Of one file and tier that are told; of what lies in more pieces the rest is only counted."""


class Entries:
    """Files and directories by their paths, with what is known of them."""

    def __init__(self, *, namespace: Namespace, index: Index, facts: FactsOf) -> None:
        self._namespace = namespace
        self._index = index
        self._facts = facts

    def verbs(self) -> dict[str, Any]:
        """What the control socket offers."""
        return {"entries": self.entries}

    async def entries(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """A page of what `path` means, with its facts: `recursive`, or one level. `after` is where the page before
        ended. `asks` lists what was never listed; `selection` says which are told."""
        wanted = arguments.get("selection") or {}
        if not isinstance(wanted, dict):
            raise ControlError("selection must be an object")
        selection = Selection.load(wanted)
        walk = Walk(
            self._namespace,
            self._index,
            text(arguments, "path"),
            depth=None if arguments.get("recursive") else 1,
            asks=bool(arguments.get("asks", True)),
        )

        def fits(entry: Entry) -> bool:
            return selection.fits_entry(entry.node.name, entry.node.size, is_file=_is_file(entry.node))

        page = await walk.page(text(arguments, "after"), limit=PAGE, fits=fits)
        told = await self._told(affordable(page.entries, self._facts))
        after = page.after if len(told) == len(page.entries) else told[-1]["path"]
        return {"entries": [one for one in told if selection.fits_state(one.get("state", ""))], "after": after}

    async def _told(self, entries: Sequence[Entry]) -> list[dict[str, Any]]:
        files = [(node, self._namespace.root + path) for node, path in entries if _is_file(node)]
        facts = {one.node.ino: one for one in await self._facts.files(files)}
        left, room = PAGE_RANGES, PAGE_BYTES
        told: list[dict[str, Any]] = []
        for node, path in entries:
            one = facts.get(node.ino)
            document = directory(path) if one is None else file(path, one, ranges=min(left, FILE_RANGES))
            left -= sum(len(ranges) for ranges in document.get("ranges", {}).values())
            room -= _length(document)
            if told and room < 0:
                break  # names full of what JSON writes in six letters each
            told.append(document)
        return told


def affordable(entries: Sequence[Entry], facts: FactsOf) -> Sequence[Entry]:
    """As many of the first as can be looked up soon, at least one."""
    blocks = 0
    for count, entry in enumerate(entries):
        blocks += facts.count_blocks(entry.node)
        if count and blocks > PAGE_BLOCKS:
            return entries[:count]
    return entries


def directory(path: str) -> dict[str, Any]:
    """What is told of a directory."""
    return {"path": path, "kind": "directory"}


def file(path: str, facts: Facts, *, ranges: int) -> dict[str, Any]:
    """What is told of a file, with at most so many ranges a tier."""
    return {
        "path": path,
        "kind": "link" if facts.node.kind is Kind.SYMLINK else "file",
        "state": facts.state.value,
        "size": facts.size,
        "resident": facts.resident,
        "ranges": {tier: spans[: max(0, ranges)] for tier, spans in facts.tiers.items()},
        "ranges_left_off": _left_off(facts.tiers, max(0, ranges)),
        "etag": None if facts.node.is_local else facts.node.etag,
        "key": facts.key,
        "stored_s": facts.stored_s,
        "opened_s": facts.opened_s,
        "pinned": facts.pinned,
        "parts": facts.parts,
        "error": facts.error or None,
        "ino": facts.node.ino,
    }


def text(arguments: Mapping[str, Any], name: str) -> str:
    """An argument that is a text, empty if it is not given. ControlError."""
    value = arguments.get(name) or ""
    if not isinstance(value, str):
        raise ControlError(f"{name} must be a text")
    return value


def _left_off(tiers: Mapping[str, Sequence[Range]], told: int) -> int:
    return sum(max(0, len(spans) - told) for spans in tiers.values())


def _length(document: Mapping[str, Any]) -> int:
    """How many bytes a document has as JSON, at the most: a letter may take six, a range 42."""
    letters = sum(len(document.get(name) or "") for name in ("path", "key", "etag", "error"))
    return 512 + 6 * letters + 42 * sum(len(ranges) for ranges in document.get("ranges", {}).values())


def _is_file(node: Node) -> bool:
    return node.kind is not Kind.DIRECTORY
