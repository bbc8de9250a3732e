"""What lost a race: the directory of the mount that keeps it, and what `lazyfs status` tells of it."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable

LOST = ".lazyfs-lost+found"
"""The directory of the mount that takes what lost a race."""
MAX_LOST = 100
"""Of them that `lazyfs status` tells; the objects stay."""
_LOST_NAME_BYTES = 180


class LostAndFound:
    """Places below key prefix `root` for what lost a race for its key."""

    def __init__(self, root: str, clock_ns: Callable[[], int]) -> None:
        self._root = root
        self._clock_ns = clock_ns
        self._count = 0
        self.entries: deque[tuple[str, str]] = deque(maxlen=MAX_LOST)
        """Keys for which somebody else was faster, and where what was written is; the latest."""

    def place(self, key: str) -> str:
        """A key of its own for what was meant for `key`."""
        name = key.rpartition("/")[2].encode()[:_LOST_NAME_BYTES].decode(errors="ignore")
        self._count += 1
        when = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self._clock_ns() / 1e9))
        return f"{self._root}{LOST}/{when}-{os.getpid()}-{self._count}-{name}"
