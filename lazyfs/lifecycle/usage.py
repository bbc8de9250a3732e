"""`lazyfs du`, as the daemon answers it: sums per directory, page by page.

Promises that an answer is short however many files there are, and that asking is no request of the bucket.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lazyfs.core.errors import ControlError
from lazyfs.core.residency import total
from lazyfs.core.types import Kind
from lazyfs.index.database import Index
from lazyfs.lifecycle.entries import affordable, text
from lazyfs.vfs.facts import Facts, FactsOf
from lazyfs.vfs.namespace import Namespace
from lazyfs.vfs.walking import Walk

PAGE = 1024
"""Entries that are summed up for an answer: so many directories it has at the most."""
MAX_DEPTH = 100


@dataclass(slots=True)
class Sums:
    """Of some files: how many, their bytes, and how many of those are in which tier, pinned, or not in the bucket."""

    files: int = 0
    size: int = 0
    memory: int = 0
    disk: int = 0
    spool: int = 0
    pinned: int = 0
    dirty: int = 0

    def add(self, facts: Facts) -> None:
        """One more file."""
        self.files += 1
        self.size += facts.size
        self.pinned += facts.pinned
        self.dirty += facts.size if facts.state.is_here_only else 0
        for tier, ranges in facts.tiers.items():
            setattr(self, tier, getattr(self, tier) + total(ranges))


class Usage:
    """How much of what lies where."""

    def __init__(self, *, namespace: Namespace, index: Index, facts: FactsOf) -> None:
        self._namespace = namespace
        self._index = index
        self._facts = facts

    def verbs(self) -> dict[str, Any]:
        """What the control socket offers."""
        return {"usage": self.usage}

    async def usage(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Sums of some of the files below `path`, as far as they are listed, by directories up to `depth` below it;
        what lies deeper counts there. `after` is where the page before ended. ControlError, NoEntryError."""
        path, depth = text(arguments, "path"), arguments.get("depth", 0)
        if not isinstance(depth, int) or not 0 <= depth <= MAX_DEPTH:
            raise ControlError(f"depth must be a number up to {MAX_DEPTH}")
        walk = Walk(self._namespace, self._index, path, depth=None, asks=False)
        page = await walk.page(
            text(arguments, "after"), limit=PAGE, fits=lambda entry: entry.node.kind is not Kind.DIRECTORY
        )
        entries = affordable(page.entries, self._facts)
        named = len(path.split("/")) if path else 0
        sums: dict[str, Sums] = {}
        files = [(node, self._namespace.root + full) for node, full in entries]
        for (_, full), one in zip(entries, await self._facts.files(files), strict=True):
            sums.setdefault(_directory(full, named, depth), Sums()).add(one)
        return {
            "entries": [{"path": directory, **asdict(one)} for directory, one in sums.items()],
            "after": page.after if len(entries) == len(page.entries) else entries[-1].path,
        }


def _directory(path: str, named: int, depth: int) -> str:
    """Where a file counts: what was named itself, which has `named` components, or a directory not too far below."""
    *above, _ = path.split("/")
    return path if len(above) < named else "/".join(above[: named + depth])
