"""What a kernel session is, whichever way it speaks with the kernel."""

from __future__ import annotations

from typing import Protocol

import trio

ANSWER_TIMEOUT_S = 30.0
DRAIN_S = 15.0
"""How long requests in progress may take to end after the session was told to."""


class Session(Protocol):
    """One mount point, from mount(2) to unmount.

    Promises that `started` means the mount answers, and that leaving `run` by any way leaves nothing mounted.
    """

    name: str
    untuned: list[str]
    """Kernel settings that were left as they are."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Mount, serve until unmounted or `stop`, and unmount. StartupError if it cannot be mounted."""
        ...

    def stop(self) -> bool:
        """End `run` in good order: requests in progress may end, for DRAIN_S at most. False if it has ended already."""
        ...
