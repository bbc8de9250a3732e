"""A mount, from mount(2) to unmount, on pyfuse3.

Promises that `started` means the mount answers, and that leaving `run` by any way leaves nothing mounted. Never
touches the mount from the loop that serves it: what looks at it from outside runs in a thread.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pyfuse3
import trio

from lazyfs.core.errors import StartupError
from lazyfs.fuse.adapter import Adapter
from lazyfs.fuse.session import ANSWER_TIMEOUT_S, DRAIN_S
from lazyfs.fuse.tuning import tune_kernel
from lazyfs.vfs.filesystem import FileSystem

log = logging.getLogger(__name__)
T = TypeVar("T")

MAX_TASKS = 512
"""Requests in progress; well above the kernel's own limit, so that blocked ones hold up nobody."""


class Pyfuse3KernelCache:
    """Makes the kernel forget, from pyfuse3's own thread: within a handler it could deadlock."""

    def forget_entry(self, parent: int, name: str) -> None:
        """See vfs.kernel.KernelCache."""
        pyfuse3.invalidate_entry_async(parent, name.encode(), ignore_enoent=True)


class Pyfuse3Session:
    """One mount point."""

    name = "pyfuse3"

    def __init__(self, filesystem: FileSystem, *, mountpoint: Path, source: str, allow_other: bool) -> None:
        self._filesystem = filesystem
        self._mountpoint = mountpoint
        self._options = {"default_permissions", "subtype=lazyfs", f"fsname={source}"}
        if allow_other:
            self._options.add("allow_other")
        if filesystem.policy.read_only:
            self._options.add("ro")
        self.untuned: list[str] = []
        """Kernel settings that were left as they are."""
        self._told_to_stop = trio.Event()
        self._is_over = False

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Mount, serve until unmounted or `stop`, and unmount. StartupError if it cannot be mounted."""
        try:
            pyfuse3.init(Adapter(self._filesystem), os.fspath(self._mountpoint), self._options)
        except RuntimeError as error:
            raise StartupError(f"cannot mount on {self._mountpoint}: {error}") from error
        self._filesystem.namespace.kernel = Pyfuse3KernelCache()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._serve, nursery.cancel_scope)
                await self._wait_until_it_answers()
                task_status.started()
                await self._told_to_stop.wait()
                await trio.sleep(DRAIN_S)
                log.warning("requests did not end within %.0f s of the signal; giving them up", DRAIN_S)
                nursery.cancel_scope.cancel()
        finally:
            self._is_over = True
            pyfuse3.close(unmount=True)

    def stop(self) -> bool:
        """End `run` in good order: requests in progress may end, for DRAIN_S at most. False if it has ended already."""
        if self._is_over:
            return False
        self._told_to_stop.set()
        pyfuse3.terminate()
        return True

    async def _serve(self, scope: trio.CancelScope) -> None:
        await pyfuse3.main(max_tasks=MAX_TASKS)
        scope.cancel()

    async def _wait_until_it_answers(self) -> None:
        with trio.move_on_after(ANSWER_TIMEOUT_S) as scope:
            facts = await self._look(self._mountpoint.stat)
            self.untuned = await self._look(lambda: tune_kernel(facts.st_dev))
        if scope.cancelled_caught:
            raise StartupError(f"the mount at {self._mountpoint} does not answer")

    async def _look(self, work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(work, abandon_on_cancel=True)
