"""Which time it is that a file is opened: a pass over the data, as a training's epochs are.

Pure. Promises one byte a file, whatever is opened in whatever order, and at most PAGES pages of them: inode numbers are
rows of the index, which lie close together. What lies beyond is not followed.
"""

from __future__ import annotations

PAGE = 4096
PAGES = 4096
"""Sixteen million files in as many bytes."""
LATEST = 64
"""Later passes count as this one."""


class Passes:
    """How often each file has been opened."""

    def __init__(self, *, pages: int = PAGES) -> None:
        self._limit = pages
        self._pages: dict[int, bytearray] = {}
        self.files = 0
        """That have been opened at all, of those that are followed."""

    def begin(self, ino: int) -> int:
        """The file is opened once more: for which time, from 1 to LATEST; 0 if it is not followed."""
        number, place = divmod(ino, PAGE)
        page = self._pages.get(number)
        if page is None:
            if len(self._pages) >= self._limit:
                return 0
            page = self._pages[number] = bytearray(PAGE)
        so_far = page[place]
        if so_far == 0:
            self.files += 1
        if so_far < LATEST:
            page[place] = so_far + 1
        return page[place]
