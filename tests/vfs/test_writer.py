"""Writing: the object appears as it was written, whole, or there is nothing; and nothing is left behind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import trio
import trio.testing
from hypothesis import example, given
from hypothesis import strategies as st

from lazyfs.cache.memory import MemoryTier
from lazyfs.cache.spool import Spool
from lazyfs.core.errors import (
    LazyfsError,
    NotFoundError,
    OutOfOrderError,
    PreconditionFailedError,
    StoreError,
    TooBigError,
    UnreachableError,
)
from lazyfs.core.parts import PartSizes
from lazyfs.core.types import ANY, Buffer, Condition, Range
from lazyfs.store.base import PutOptions
from lazyfs.vfs import growing
from lazyfs.vfs.growing import PARTS_IN_FLIGHT
from lazyfs.vfs.writer import Writer
from tests.vfs.stores import ScriptedStore

PART = 16
KEY = "dir/out"


@dataclass
class Bench:
    """A writer's surroundings."""

    store: ScriptedStore
    memory: MemoryTier
    nursery: trio.Nursery
    spool: Spool | None = None

    def writer(self, content: Buffer = b"", condition: Condition = ANY, **options: str) -> Writer:
        return Writer(
            store=self.store,
            memory=self.memory,
            nursery=self.nursery,
            key=KEY,
            content=content,
            condition=condition,
            options=PutOptions(metadata=options),
            part_sizes=PartSizes(PART),
            spool=self.spool,
        )

    def nothing_left(self) -> None:
        assert self.memory.reserved_bytes == 0
        assert self.store.uploads == 0
        with pytest.raises(NotFoundError):
            self.store.body(KEY)


@asynccontextmanager
async def bench(budget: int = 1000) -> AsyncIterator[Bench]:
    """Leaving it waits for whatever still runs."""
    async with trio.open_nursery() as nursery:
        yield Bench(ScriptedStore(), MemoryTier(budget_bytes=budget), nursery)


def data(size: int, seed: int = 0) -> bytes:
    return bytes((seed + index * 7) % 251 + 1 for index in range(size))


# -- against a bytearray ------------------------------------------------------------------------------------------

SMALL = st.integers(0, PART)
steps = st.lists(
    st.tuples(st.just("write"), SMALL, st.integers(1, PART))
    | st.tuples(st.just("truncate"), SMALL, st.just(0))
    | st.tuples(st.just("read"), SMALL, SMALL)
    | st.tuples(st.just("commit"), st.just(0), st.just(0)),
    max_size=12,
)


@given(st.binary(max_size=PART), steps)
def test_any_pattern_within_one_part_is_what_a_local_file_would_hold(
    content: bytes, script: list[tuple[str, int, int]]
) -> None:
    async def main() -> None:
        async with bench() as room:
            writer, model = room.writer(content), bytearray(content)
            for number, (verb, at, length) in enumerate(script):
                if verb == "write":
                    piece = data(length, number)[: PART - at]
                    if not piece:
                        continue
                    assert await writer.write(at, piece) == len(piece)
                    model.extend(bytes(max(0, at - len(model))))
                    model[at : at + len(piece)] = piece
                elif verb == "truncate":
                    await writer.truncate(at)
                    del model[at:]
                    model.extend(bytes(at - len(model)))
                elif verb == "read":
                    assert await writer.read(Range(at, at + length)) == model[at : at + length]
                else:
                    await writer.commit()
                    assert room.store.body(KEY) == model
                    assert not writer.is_dirty
                assert writer.size == len(model)
            await writer.commit()
            assert room.store.body(KEY) == model
            assert room.store.calls["create"] == 0
            assert room.store.uploads == room.memory.reserved_bytes == 0

    trio.run(main)


@given(
    st.lists(st.tuples(st.sampled_from(["write", "hole", "back"]), st.integers(1, 3 * PART)), min_size=1, max_size=10),
    st.integers(0, 4 * PART),
)
@example([("write", PART), ("hole", PART)], 0)
@example([("write", 1)], 4 * PART)
def test_appending_with_holes_and_late_changes_uploads_what_a_local_file_would_hold(
    script: list[tuple[str, int]], longer: int
) -> None:
    async def main() -> None:
        async with bench() as room:
            writer, model = room.writer(), bytearray()
            for number, (verb, length) in enumerate(script):
                piece = data(length, number)
                at = len(model)
                if verb == "hole":
                    at += length
                elif verb == "back":  # what has not been sent may still change
                    at = max(writer._settled, at - length)
                await writer.write(at, piece)
                model.extend(bytes(max(0, at - len(model))))
                model[at : at + length] = piece
                assert writer.size == len(model)
                assert len(writer._tail) <= PART  # never more than a part is held back
                assert await writer.read(Range(writer._settled, len(model))) == model[writer._settled :]
            await writer.truncate(len(model) + longer)
            model.extend(bytes(longer))
            assert writer.size == len(model)
            await writer.commit()
            assert writer.size == len(model)
            assert room.store.body(KEY) == model
            assert room.store.uploads == room.memory.reserved_bytes == 0
            if len(model) > PART:
                assert sorted(room.store.parts) == [
                    (number + 1, min(PART, len(model) - number * PART)) for number in range(-(-len(model) // PART))
                ]
                assert room.store.calls["put"] == 0
            else:
                assert room.store.parts == []

    trio.run(main)


@pytest.mark.parametrize("size", [0, 1, PART - 1, PART])
async def test_up_to_one_part_is_one_put(size: int) -> None:
    async with bench() as room:
        writer = room.writer(mode="33188")
        if size:
            await writer.write(0, data(size))
        await writer.commit()
        assert [request.verb for request in room.store.requests] == ["put"]
        assert (await room.store.head(KEY)).metadata == {"mode": "33188"}
        assert writer.etag == (await room.store.head(KEY)).etag


async def test_one_byte_more_is_two_parts() -> None:
    async with bench() as room:
        writer = room.writer(mode="33188")
        await writer.write(0, data(PART + 1))
        await writer.commit()
        assert sorted(room.store.parts) == [(1, PART), (2, 1)]
        info = await room.store.head(KEY)
        assert info.metadata == {"mode": "33188"}
        assert writer.etag == info.etag


async def test_parts_are_sent_while_the_program_writes() -> None:
    async with bench() as room:
        writer = room.writer()
        for number in range(6):
            await writer.write(number * PART, data(PART, number))
        await trio.testing.wait_all_tasks_blocked()
        assert len(room.store.parts) == 5  # the last may be the last
        await writer.commit()


async def test_a_file_that_says_its_length_first_is_written_into_it() -> None:
    """As safetensors does: ftruncate(total), then writes."""
    async with bench() as room:
        writer = room.writer()
        await writer.truncate(5 * PART)
        assert writer.size == 5 * PART
        await writer.write(0, data(3 * PART))
        await writer.commit()
        assert room.store.body(KEY) == data(3 * PART) + bytes(2 * PART)


async def test_a_commit_costs_nothing_when_there_is_nothing_new() -> None:
    async with bench() as room:
        for size in (3, 3 * PART):
            writer = room.writer()
            await writer.write(0, data(size))
            await writer.commit()
            before = len(room.store.requests)
            await writer.commit()
            assert len(room.store.requests) == before


async def test_a_small_file_may_be_committed_again_and_again() -> None:
    """As fsync after each line of a log does."""
    async with bench() as room:
        writer = room.writer(condition=Condition(absent=True))
        etags = []
        for number in range(3):
            await writer.write(number, b"x")
            await writer.commit()
            etags.append(writer.etag)
            assert room.store.body(KEY) == b"x" * (number + 1)
        assert room.store.conditions == [Condition(absent=True), Condition(etag=etags[0]), Condition(etag=etags[1])]


@pytest.mark.parametrize("size", [3, 3 * PART])
async def test_the_condition_of_the_open_holds_at_the_commit(size: int) -> None:
    async with bench() as room:
        writer = room.writer(condition=Condition(absent=True))
        await writer.write(0, data(size))
        room.store.put_now(KEY, b"somebody else's")
        with pytest.raises(PreconditionFailedError):
            await writer.commit()
        assert room.store.body(KEY) == b"somebody else's"
        room.store.delete_now(KEY)
        room.nothing_left()


async def test_between_two_commits_of_ours_nobody_is_overwritten() -> None:
    async with bench() as room:
        writer = room.writer()
        await writer.write(0, b"1")
        await writer.commit()
        room.store.put_now(KEY, b"somebody else's")
        await writer.write(0, b"2")
        with pytest.raises(PreconditionFailedError):
            await writer.commit()
        assert room.store.body(KEY) == b"somebody else's"


# -- what cannot be ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("act", ["write", "truncate"])
async def test_touching_what_was_sent_poisons_and_leaves_nothing(act: str) -> None:
    async with bench() as room:
        writer = room.writer()
        await writer.write(0, data(3 * PART))
        with pytest.raises(OutOfOrderError):
            await (writer.write(0, b"x") if act == "write" else writer.truncate(1))
        assert writer.error is not None
        assert not writer.is_dirty
        for again in (lambda: writer.write(3 * PART, b"x"), writer.commit, lambda: writer.truncate(0)):
            with pytest.raises(OutOfOrderError):
                await again()
        with pytest.raises(OutOfOrderError):
            await writer.read(Range(0, 1))
    room.nothing_left()


async def test_reading_back_what_was_sent_is_refused_and_does_no_harm() -> None:
    async with bench() as room:
        writer = room.writer()
        await writer.write(0, data(3 * PART))
        with pytest.raises(OutOfOrderError):
            await writer.read(Range(PART, 3 * PART))
        await writer.commit()
        assert room.store.body(KEY) == data(3 * PART)


@pytest.mark.parametrize("act", ["write", "truncate"])
async def test_a_finished_upload_takes_no_more(act: str) -> None:
    async with bench() as room:
        writer = room.writer()
        await writer.write(0, data(2 * PART))
        await writer.commit()
        with pytest.raises(OutOfOrderError):
            await (writer.write(2 * PART, b"x") if act == "write" else writer.truncate(3 * PART))
    assert room.store.body(KEY) == data(2 * PART)
    assert room.memory.reserved_bytes == room.store.uploads == 0


async def test_more_than_the_parts_can_hold_is_refused_before_anything_is_sent() -> None:
    async with bench() as room:
        writer = room.writer()
        reach = PartSizes(PART).reach
        with pytest.raises(TooBigError, match="part-size"):
            await writer.truncate(reach + 1)
        with pytest.raises(TooBigError, match="part-size"):
            await writer.write(reach, b"x")
        assert writer.error is None
        await writer.write(0, b"still good")
        await writer.commit()
        assert room.store.body(KEY) == b"still good"
        assert room.store.calls["create"] == 0


# -- failure and cancellation of every call ------------------------------------------------------------------------

CALLS = [("create", 1), ("part", 1), ("part", 2), ("part", 5), ("part", 12), ("complete", 1)]


@pytest.mark.parametrize(("verb", "number"), CALLS)
async def test_whichever_call_fails_nothing_is_left_and_the_program_hears_it(verb: str, number: int) -> None:
    async with bench() as room:
        room.store.fail(verb, number, UnreachableError("no route"))
        writer = room.writer()
        with pytest.raises(UnreachableError, match="no route"):  # noqa: PT012 - a program writes until it hears
            for count in range(12):
                await writer.write(count * PART, data(PART))
            await writer.commit()
        for again in (lambda: writer.write(12 * PART, b"x"), writer.commit):
            with pytest.raises(UnreachableError):
                await again()
    room.nothing_left()


async def test_a_put_that_fails() -> None:
    async with bench() as room:
        room.store.fail("put", 1, StoreError("refused"))
        writer = room.writer()
        await writer.write(0, b"x")
        with pytest.raises(StoreError, match="refused"):
            await writer.commit()
        assert isinstance(writer.error, StoreError)
    room.nothing_left()


@pytest.mark.parametrize("verb", ["create", "part", "complete", "put"])
async def test_cancelled_in_the_middle_nothing_is_left(verb: str) -> None:
    async with bench() as room:
        held = room.store.hold(verb)
        writer, scope = room.writer(), trio.CancelScope()

        async def write() -> None:
            with scope:
                for count in range(1 if verb == "put" else 12):
                    await writer.write(count * PART, data(PART))
                await writer.commit()

        room.nursery.start_soon(write)
        await trio.testing.wait_all_tasks_blocked()
        assert room.store.calls[verb]
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        held.set()  # parts on their way are waited for
        await trio.testing.wait_all_tasks_blocked()
        assert scope.cancelled_caught
        with pytest.raises(LazyfsError, match="interrupted"):
            await writer.commit()
    room.nothing_left()


async def test_when_the_mount_ends_parts_on_their_way_are_withdrawn() -> None:
    store, memory = ScriptedStore(), MemoryTier(budget_bytes=1000)
    store.hold("part")
    async with trio.open_nursery() as nursery:
        room = Bench(store, memory, nursery)
        writer = room.writer()
        await writer.write(0, data(3 * PART))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    await writer.discard()
    room.nothing_left()


@pytest.mark.parametrize("verb", ["create", "part", "reserve"])
async def test_discarded_while_a_write_waits(verb: str) -> None:
    async with bench() as room:
        held = trio.Event() if verb == "reserve" else room.store.hold(verb)
        if verb == "reserve":
            assert room.memory.try_reserve(1000)
        writer = room.writer()
        heard: list[LazyfsError] = []

        async def write() -> None:
            try:
                for count in range(12):
                    await writer.write(count * PART, data(PART))
                await writer.commit()
            except LazyfsError as error:
                heard.append(error)

        room.nursery.start_soon(write)
        await trio.testing.wait_all_tasks_blocked()
        room.nursery.start_soon(writer.discard)
        await trio.testing.wait_all_tasks_blocked()
        held.set()
        if verb == "reserve":
            room.memory.release(1000)
    assert ["not finished" in str(error) for error in heard] == [True]
    room.nothing_left()


async def test_discarded_while_it_is_committed() -> None:
    async with bench() as room:
        writer = room.writer()
        await writer.write(0, data(3 * PART))
        held = room.store.hold("part")
        heard: list[LazyfsError] = []

        async def commit() -> None:
            try:
                await writer.commit()
            except LazyfsError as error:
                heard.append(error)

        room.nursery.start_soon(commit)
        await trio.testing.wait_all_tasks_blocked()
        room.nursery.start_soon(writer.discard)
        await trio.testing.wait_all_tasks_blocked()
        held.set()
    assert len(heard) == 1
    room.nothing_left()


async def test_discarding_twice_or_without_an_upload_is_nothing() -> None:
    async with bench() as room:
        writer = room.writer()
        await writer.write(0, b"x")
        await writer.discard()
        await writer.discard()
        with pytest.raises(OutOfOrderError, match="not finished"):
            await writer.commit()
        assert room.store.requests == []


@pytest.mark.expect_warnings
async def test_an_abort_that_fails_is_told_and_hides_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async with bench() as room:
        room.store.fail("complete", 1, StoreError("refused"))
        room.store.fail("abort", 1, UnreachableError("no route"))
        writer = room.writer()
        await writer.write(0, data(2 * PART))
        with pytest.raises(StoreError, match="refused"):
            await writer.commit()
    assert [record.getMessage() for record in caplog.records] == [f"upload of {KEY!r} was not aborted: no route"]


@pytest.mark.autojump
@pytest.mark.expect_warnings
async def test_an_abort_waits_for_parts_and_answers_only_so_long(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growing, "_SETTLE_S", 3.0)
    monkeypatch.setattr(growing, "_ABORT_S", 2.0)
    async with bench() as room:
        parts, abort = room.store.hold("part"), room.store.hold("abort")
        writer = room.writer()
        await writer.write(0, data(3 * PART))
        await trio.testing.wait_all_tasks_blocked()
        began_s = trio.current_time()
        await writer.discard()
        assert trio.current_time() - began_s == 5
        assert room.store.calls["abort"] == 1  # tried, although the parts never came
        parts.set()
        abort.set()
    assert "no answer" in caplog.text
    assert room.memory.reserved_bytes == 0


# -- bounds -------------------------------------------------------------------------------------------------------


async def test_no_more_parts_at_once_than_is_said() -> None:
    async with bench() as room:
        held = room.store.hold("part")
        writer, written = room.writer(), 0

        async def write() -> None:
            nonlocal written
            for count in range(40):
                await writer.write(count * PART, data(PART, count))
                written = count + 1
            await writer.commit()

        room.nursery.start_soon(write)
        await trio.testing.wait_all_tasks_blocked()
        assert room.store.now["part"] == PARTS_IN_FLIGHT
        assert written == PARTS_IN_FLIGHT + 1  # the program waits
        assert room.memory.reserved_bytes == PARTS_IN_FLIGHT * PART
        held.set()
    assert room.store.peak["part"] == PARTS_IN_FLIGHT
    assert room.store.body(KEY) == b"".join(data(PART, count) for count in range(40))
    assert room.memory.reserved_bytes == 0


async def test_a_full_memory_makes_the_program_wait() -> None:
    async with bench(budget=2 * PART) as room:
        held = room.store.hold("part")
        writer = room.writer()

        async def write() -> None:
            await writer.write(0, data(9 * PART))
            await writer.commit()

        room.nursery.start_soon(write)
        await trio.testing.wait_all_tasks_blocked()
        assert room.store.now["part"] == 2
        held.set()
    assert room.store.peak["part"] == 2
    assert room.store.body(KEY) == data(9 * PART)


async def test_a_part_larger_than_the_memory_goes_alone() -> None:
    async with bench(budget=PART // 2) as room:
        writer = room.writer()
        await writer.write(0, data(4 * PART))
        await writer.commit()
    assert room.store.peak["part"] == 1
    assert room.store.body(KEY) == data(4 * PART)
