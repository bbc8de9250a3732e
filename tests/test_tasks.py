"""Tasks of a daemon: what they run into stays in them, and nothing of them grows."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from lazyfs.control import tasks as module
from lazyfs.control.tasks import Task, Tasks
from lazyfs.core.errors import ControlError, StartupError


@asynccontextmanager
async def running() -> AsyncIterator[Tasks]:
    async with trio.open_nursery() as nursery:
        yield Tasks(name="7", nursery=nursery)
        nursery.cancel_scope.cancel()


async def settled() -> None:
    await trio.testing.wait_all_tasks_blocked(0.01)


async def forever(_task: Task) -> None:
    await trio.sleep_forever()


async def at_once(task: Task) -> None:
    task.fail("a", "no")


async def refused(_task: Task) -> None:
    raise StartupError("not today")


async def broken(_task: Task) -> None:
    raise RuntimeError("a bug")


def nothing() -> dict[str, Any]:
    return {}


async def told(tasks: Tasks, task: Task) -> tuple[str, str | None]:
    found = await tasks.show({"id": task.id})
    return found["state"], found["error"]


@pytest.mark.expect_warnings
async def test_each_task_has_its_own_end() -> None:
    async with running() as tasks:
        ends = [tasks.start("x", "y", work, nothing) for work in (at_once, refused, broken, forever)]
        await settled()
        assert [await told(tasks, task) for task in ends] == [
            ("done", None),
            ("failed", "not today"),
            ("failed", "a bug; see the mount's log"),
            ("running", None),
        ]
        assert (await tasks.show({"id": "7-1"}))["failures"] == [("a", "no")]
        await tasks.cancel({"id": ends[3].id})
        await settled()
        assert await told(tasks, ends[3]) == ("cancelled", None)
        with pytest.raises(ControlError, match="ended already: cancelled"):
            await tasks.cancel({"id": ends[3].id})
        assert [one["id"] for one in (await tasks.list({}))["tasks"]] == ["7-1", "7-2", "7-3", "7-4"]


async def test_a_task_that_is_gone() -> None:
    async with running() as tasks:
        for verb in (tasks.show, tasks.cancel):
            with pytest.raises(ControlError, match="no task 9-9"):
                await verb({"id": "9-9"})


async def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ENDED", 3)
    monkeypatch.setattr(module, "MAX_RUNNING", 2)
    monkeypatch.setattr(module, "MAX_FAILURES", 2)
    async with running() as tasks:
        kept = tasks.start("x", "", forever, nothing)
        for number in range(10):
            task = tasks.start("x", str(number), at_once, nothing)
            for _ in range(5):
                task.fail("b", "no")
            await settled()
        assert (task.failed, len(task.failures)) == (6, 2)
        found = (await tasks.list({}))["tasks"]
        assert [one["about"] for one in found] == ["", "6", "7", "8", "9"]
        assert kept.state == "running"
        tasks.start("x", "", forever, nothing)
        with pytest.raises(ControlError, match="2 tasks run already"):
            tasks.start("x", "", forever, nothing)
