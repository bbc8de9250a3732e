"""What the kernel is told unasked: names that it must forget.

Promises that the loop never waits for it: such a message takes locks of the kernel, which may be held by a program that
waits for an answer of ours. So a thread sends them, one batch at a time, and what is told twice meanwhile goes once.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterable

import trio

from lazyfs.fuse import answers

log = logging.getLogger(__name__)

_KNOWS_ALREADY = (errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ENOTCONN, errno.ECONNABORTED, errno.EBADF)
"""The kernel has not heard of the name, or does not hear of anything any more."""


class Notifier:
    """A KernelCache. What waits is bounded by the names that changed, each once."""

    def __init__(self) -> None:
        self._names: dict[tuple[int, str], None] = {}
        self._news = trio.Event()
        self.is_telling = False
        """Whether a thread is using the descriptor, perhaps for as long as a program does not get its answer."""

    def forget_entry(self, parent: int, name: str) -> None:
        """See vfs.kernel.KernelCache."""
        self._names[parent, name] = None
        self._news.set()

    async def run(self, fd: int) -> None:
        """Tell the kernel behind `fd`, until cancelled."""
        while True:
            await self._news.wait()
            self._news, names, self._names = trio.Event(), self._names, {}
            self.is_telling = True
            await trio.to_thread.run_sync(self._tell, fd, names, abandon_on_cancel=True)

    def _tell(self, fd: int, names: Iterable[tuple[int, str]]) -> None:
        try:
            for parent, name in names:
                _send(fd, answers.forget_entry(parent, name.encode()))
        finally:
            self.is_telling = False


def _send(fd: int, message: bytes) -> None:
    try:
        os.write(fd, message)
    except OSError as error:
        if error.errno not in _KNOWS_ALREADY:
            log.warning("the kernel was not told that a name has changed: %s", error)
