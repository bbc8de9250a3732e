"""Long work that the command line has asked for: it goes on in the daemon, has an id, can be looked at and cancelled.

Promises that what a task runs into stays in it: an error is its outcome and never the mount's. Bounded: so many run, so
many that have ended are remembered, and so many of their failures.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import trio

from lazyfs.core.errors import ControlError, LazyfsError

log = logging.getLogger(__name__)

MAX_RUNNING = 16
MAX_ENDED = 100
MAX_FAILURES = 10_000
"""Of a task, of which the reasons are remembered; the others are counted."""
MAX_SHOWN = 100
"""Failures that are told with the task; the others are asked for, page by page."""
MAX_REPORTED = 10
"""Ended tasks that keep all their failures; earlier ones keep what is shown."""
_PAGE, _PAGE_BYTES = 500, 256 * 1024


@dataclass(slots=True)
class Task:
    """`state` is running, done, failed or cancelled. `progress` tells what the work says of itself; `about` is what the
    user named."""

    id: str
    verb: str
    about: str
    progress: Callable[[], dict[str, Any]]
    scope: trio.CancelScope
    started_s: float
    ended_s: float | None = None
    state: str = "running"
    error: str = ""
    failures: list[tuple[str, str]] = field(default_factory=list)
    failed: int = 0

    def fail(self, what: str, reason: str) -> None:
        """Something of it could not be done, and the rest goes on."""
        self.failed += 1
        if len(self.failures) < MAX_FAILURES:
            self.failures.append((what, reason))

    def told(self) -> dict[str, Any]:
        """As `lazyfs task show` has it."""
        return {
            "id": self.id,
            "verb": self.verb,
            "about": self.about,
            "state": self.state,
            "error": self.error or None,
            "started_s": self.started_s,
            "seconds": (self.ended_s or time.time()) - self.started_s,
            "progress": self.progress(),
            "failed": self.failed,
            "failures": self.failures[:MAX_SHOWN],
        }


Work: TypeAlias = Callable[[Task], Awaitable[None]]
"""Does it; raises LazyfsError if it could not."""


class Tasks:
    """The tasks of one mount, whose ids begin with `name`; they run in `nursery` and end with it."""

    def __init__(self, *, name: str, nursery: trio.Nursery) -> None:
        self._name = name
        self._nursery = nursery
        self._number = 0
        self._tasks: dict[str, Task] = {}

    def verbs(self) -> dict[str, Any]:
        """What the control socket offers."""
        return {"tasks": self.list, "task": self.show, "failures": self.failures, "cancel": self.cancel}

    def start(self, verb: str, about: str, work: Work, progress: Callable[[], dict[str, Any]]) -> Task:
        """Begin. ControlError if too many run already."""
        if sum(task.state == "running" for task in self._tasks.values()) >= MAX_RUNNING:
            raise ControlError(f"{MAX_RUNNING} tasks run already; wait for one, or cancel one (lazyfs task ls)")
        self._number += 1
        task = Task(f"{self._name}-{self._number}", verb, about, progress, trio.CancelScope(), time.time())
        self._tasks[task.id] = task
        ended = [one for one in self._tasks.values() if one.state != "running"]
        for one in ended[: max(0, len(ended) - MAX_ENDED)]:
            del self._tasks[one.id]
        for one in ended[: max(0, len(ended) - MAX_REPORTED)]:
            del one.failures[MAX_SHOWN:]
        self._nursery.start_soon(self._run, task, work)
        return task

    async def list(self, _arguments: dict[str, Any]) -> dict[str, Any]:
        """All that are remembered, oldest first, without their failures."""
        return {"tasks": [{**task.told(), "failures": []} for task in self._tasks.values()]}

    async def show(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """One of them. ControlError."""
        return self._named(arguments).told()

    async def failures(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Some of what failed of one, from number `after` on. ControlError."""
        task, after = self._named(arguments), arguments.get("after", 0)
        if not isinstance(after, int) or after < 0:
            raise ControlError("after must be a number")
        told: list[tuple[str, str]] = []
        size = 0
        for what, reason in task.failures[after : after + _PAGE]:
            size += 6 * (len(what) + len(reason))  # so long may a letter be in JSON
            if told and size > _PAGE_BYTES:
                break
            told.append((what, reason))
        return {"failures": told, "failed": task.failed}

    async def cancel(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """End one that runs. ControlError."""
        task = self._named(arguments)
        if task.state != "running":
            raise ControlError(f"task {task.id} has ended already: {task.state}")
        task.scope.cancel()
        return task.told()

    def _named(self, arguments: dict[str, Any]) -> Task:
        task = self._tasks.get(str(arguments.get("id", "")))
        if task is None:
            raise ControlError(f"there is no task {arguments.get('id')} (any more); see lazyfs task ls")
        return task

    async def _run(self, task: Task, work: Work) -> None:
        outcome, error = "cancelled", ""
        try:
            with task.scope:
                await work(task)
                outcome = "done"
        except LazyfsError as caught:
            outcome, error = "failed", str(caught)
        except Exception:
            log.exception("unexpected error in task %s (%s)", task.id, task.verb)
            outcome, error = "failed", "a bug; see the mount's log"
        finally:
            task.ended_s = time.time()
            task.state, task.error = outcome, error
