"""How long a job waits for its first data: the first open, the first byte, the first batch.

Pure. What a batch is, a file system cannot know. The first one is taken to be there when FIRST_FILES files have been
read and closed, or FIRST_BYTES bytes have been read, whatever comes first: a batch of 32 images in files of their own,
or the first records of a few shards.
"""

from __future__ import annotations

FIRST_FILES = 32
FIRST_BYTES = 8 * 1024**2


class Beginning:
    """The times of these three, by the caller's clock; None as long as they have not come."""

    __slots__ = ("_bytes", "_files", "first_batch_s", "first_byte_s", "first_open_s")

    def __init__(self) -> None:
        self.first_open_s: float | None = None
        self.first_byte_s: float | None = None
        self.first_batch_s: float | None = None
        self._files = 0
        self._bytes = 0

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to be told."""
        return self.first_batch_s is not None

    def opened(self, now_s: float) -> None:
        """A file is opened to be read."""
        if self.first_open_s is None:
            self.first_open_s = now_s

    def read(self, size: int, now_s: float) -> None:
        """A program has got `size` bytes."""
        if size and self.first_byte_s is None:
            self.first_byte_s = now_s
        self._bytes += size
        self._judge(now_s)

    def closed(self, now_s: float) -> None:
        """A file of which something was read is closed."""
        self._files += 1
        self._judge(now_s)

    def _judge(self, now_s: float) -> None:
        if self.first_batch_s is None and (self._files >= FIRST_FILES or self._bytes >= FIRST_BYTES):
            self.first_batch_s = now_s
