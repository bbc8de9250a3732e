"""The order in which acknowledged changes reach the bucket."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.core.changes import Change, Op, Order, decode_change, directory_of, encode_change
from lazyfs.core.types import Condition, ObjectId

KEYS = st.sampled_from(["a", "b", "d/a", "d/b", "d/", "d/e/a", "d/e/", "dd/a"])
CONDITIONS = st.builds(Condition, absent=st.booleans(), etag=st.none() | st.text(max_size=3))


@st.composite
def histories(draw: st.DrawFn) -> list[Change]:
    """Changes as programs make them: nobody knows of what is not yet."""
    changes = []
    for number in range(1, draw(st.integers(1, 12)) + 1):
        op = draw(st.sampled_from(Op))
        source = ObjectId(draw(KEYS), "1") if op is Op.COPY else None
        changes.append(
            Change(
                number=number,
                op=op,
                key=draw(KEYS),
                source=source,
                knows=draw(st.integers(0, number - 1)),
                vouches=draw(st.booleans()),
            )
        )
    return changes


def must_wait(later: Change, earlier: Change) -> bool:
    """The rules, one by one."""
    if earlier.number >= later.number:
        return False
    if earlier.key == later.key:
        return True
    if earlier.source is not None and earlier.source.key == later.key:
        return True
    if later.op is Op.DELETE:
        if earlier.op is not Op.DELETE:
            return True
        return later.key.endswith("/") and earlier.key.startswith(later.key)
    return (
        later.vouches
        and earlier.op is not Op.DELETE
        and earlier.number <= later.knows
        and earlier.key.startswith(directory_of(later.key))
        and earlier.key != directory_of(later.key)
    )


@given(histories(), st.randoms(use_true_random=False))
def test_whatever_ends_first_nothing_begins_before_what_it_must_wait_for(history: list[Change], random: object) -> None:
    order = Order()
    for change in history:
        order.add(change)
    left = list(history)
    while left:
        for change in left:
            wanted = [earlier.number for earlier in left if must_wait(change, earlier)]
            assert order.blocker(change.number) == max(wanted, default=None)
        ready = [change for change in left if order.blocker(change.number) is None]
        assert ready, "they wait for each other"
        done = random.choice(ready)  # type: ignore[attr-defined]
        order.remove(done.number)
        left.remove(done)
        assert list(order) == left
    assert len(order) == 0
    assert not any((order._by_key, order._makers, order._deletes, order._by_source))


def put(number: int, key: str, *, knows: int | None = None, vouches: bool = True) -> Change:
    return Change(number=number, op=Op.PUT, key=key, knows=number - 1 if knows is None else knows, vouches=vouches)


def test_an_index_waits_for_the_shards_that_were_closed_before_it_was_written() -> None:
    order = Order()
    order.add(put(1, "ckpt/shard-1", vouches=False))
    order.add(put(2, "ckpt/deep/shard-2", vouches=False))
    order.add(put(3, "other/file", vouches=False))
    order.add(put(4, "ckpt/index.json"))
    assert order.blocker(4) == 2
    order.remove(2)
    assert order.blocker(4) == 1
    order.remove(1)
    assert order.blocker(4) is None


def test_files_that_were_written_side_by_side_do_not_wait_for_each_other() -> None:
    order = Order()
    order.add(put(1, "d/a", knows=0))
    order.add(put(2, "d/b", knows=0))
    assert order.blocker(2) is None


def test_the_old_checkpoint_goes_after_the_new_one_came() -> None:
    order = Order()
    order.add(put(1, "new/shard", vouches=False))
    order.add(Change(number=2, op=Op.DELETE, key="old/shard"))
    order.add(Change(number=3, op=Op.DELETE, key="old/"))
    assert (order.blocker(2), order.blocker(3)) == (1, 2)
    order.remove(1)
    assert (order.blocker(2), order.blocker(3)) == (None, 2)


@given(histories(), CONDITIONS, st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2))
def test_a_record_comes_back_as_it_was(history: list[Change], condition: Condition, metadata: dict[str, str]) -> None:
    for change in history:
        full = Change(
            number=change.number, op=change.op, key=change.key, source=change.source, size=5, mtime_ns=7, token="ab1",
            condition=condition if condition.is_set else Condition(), metadata=metadata,
        )  # fmt: skip
        assert decode_change(change.number, encode_change(full)) == full


@pytest.mark.parametrize("token", ["../x", "a/b", ".", "é"])
def test_a_record_cannot_name_a_file_elsewhere(token: str) -> None:
    record = encode_change(put(1, "a")).replace('"token": ""', f'"token": "{token}"')
    with pytest.raises(ValueError, match=r"."):
        decode_change(1, record)


@given(st.text() | st.from_regex(r"\{.*\}"))
def test_rubbish_is_no_record(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode_change(1, text)
