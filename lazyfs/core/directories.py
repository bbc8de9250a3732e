"""What was read of each directory, in a bounded table.

Pure. Promises that nothing that is added is lost: when the table is full, a directory that is not in it counts for the
nearest one above that is. The root is always there.
"""

from __future__ import annotations

from dataclasses import dataclass

LIMIT = 10_000


@dataclass(slots=True)
class Read:
    """Of one directory: how many files were opened in it, how often, and the bytes that were read of them."""

    files: int = 0
    opens: int = 0
    bytes: int = 0
    is_sum: bool = False
    """Whether directories below it count for it, too."""


class Directories:
    """Directories by their paths, without a slash at the end; the root's is empty."""

    def __init__(self, *, limit: int = LIMIT) -> None:
        self._limit = limit
        self._rows: dict[str, Read] = {"": Read()}

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, path: str, *, files: int = 0, opens: int = 0, size: int = 0) -> None:
        """So much more happened in the directory `path`."""
        row = self._rows.get(path)
        if row is None:
            row = self._new(path)
        row.files += files
        row.opens += opens
        row.bytes += size

    def _new(self, path: str) -> Read:
        if len(self._rows) < self._limit:
            row = self._rows[path] = Read()
            return row
        while path not in self._rows:
            path = path.rpartition("/")[0]
        row = self._rows[path]
        row.is_sum = True
        return row

    def opened(self) -> frozenset[str] | None:
        """Those of which anything was opened; None if the table was full, and that is not known any more."""
        if any(row.is_sum for row in self._rows.values()):
            return None
        return frozenset(path for path, row in self._rows.items() if row.opens or row.bytes)

    def hottest(self, count: int) -> list[tuple[str, Read]]:
        """Those of which most bytes were read, then those that were opened most; none of which nothing is told."""
        used = (item for item in self._rows.items() if item[1].opens or item[1].bytes)
        return sorted(used, key=lambda item: (-item[1].bytes, -item[1].opens, item[0]))[:count]
