"""The parallel import: however the key space is cut, the index becomes the bucket."""

from __future__ import annotations

import json
import random as random_module
from bisect import bisect_right
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyfs.core.errors import StoreError, ThrottledError
from lazyfs.core.keyspace import KeySpace, Segment, midpoint
from lazyfs.core.types import ROOT_INO, ListPage
from lazyfs.index.database import Index
from lazyfs.index.importer import Importer
from lazyfs.store.memory import MemoryStore
from tests.vfs.building import SmallPages

IDENTITY = {"bucket": "test"}
NAMES = st.sampled_from(["a", "b", "a-", "a0", "n01", "n02", "é", "𝒳", "z", "img_1", "img_2", ".", "", "x" * 256])
KEYS = st.lists(st.lists(NAMES, min_size=1, max_size=4).map("/".join).filter(bool), max_size=60)


class TinyPages(SmallPages):
    """Small pages that arrive in any order."""

    page_limit = 3
    seed = 0

    async def list_page(self, prefix: str, *, start_after: str = "", **how: Any) -> ListPage:
        random = random_module.Random(f"{self.seed} {prefix} {start_after}")
        await trio.sleep(random.random())
        page = await super().list_page(prefix, start_after=start_after, **how)
        await trio.sleep(random.random())
        return page


def tree_of(index: Index, ino: int = ROOT_INO) -> dict[str, object]:
    """The index's tree by entry name; a file is its size."""
    tree: dict[str, object] = {}
    rows = index._read.execute("SELECT ino, entry, size FROM node WHERE parent = ?", (ino,)).fetchall()
    for child, entry, size in rows:
        tree[entry] = tree_of(index, child) if entry.endswith("/") else size
    return tree


def tree_of_keys(sizes: dict[str, int]) -> dict[str, object]:
    """What the tree must be, straight from the rules of design.md."""
    tree: dict[str, object] = {}
    for key, size in sizes.items():
        here: dict[str, object] = tree
        *directories, leaf = key.split("/")
        for name in directories:
            if name in ("", ".", "..") or len(name.encode()) > 255:
                break
            here = here.setdefault(name + "/", {})  # type: ignore[assignment]
        else:
            if leaf and leaf not in (".", "..") and len(leaf.encode()) <= 255:
                here[leaf] = size
    return tree


def importer_of(store: MemoryStore, index: Index, *, workers: int = 4, sorted_keys: bool = True) -> Importer:
    return Importer(
        store=store,
        index=index,
        root="",
        workers=workers,
        sorted_keys=sorted_keys,
        clock_ns=lambda: 1_000_000_000,
        on_changes=lambda changes: None,
        on_skipped=lambda keys: None,
    )


def run_jumping(work: object) -> None:
    trio.run(work, clock=trio.testing.MockClock(autojump_threshold=0))  # type: ignore[arg-type]


class Unsorted(TinyPages):
    """Lists in no order, as S3 Express does; knows no start_after."""

    async def list_page(
        self, prefix: str, *, delimiter: str = "", start_after: str = "", token: str | None = None, **_: Any
    ) -> ListPage:
        assert not start_after
        assert not prefix or prefix.endswith("/")
        await trio.lowlevel.checkpoint()
        page = await MemoryStore.list_page(self, prefix, delimiter=delimiter)
        told = [*page.objects, *page.prefixes]
        random_module.Random(self.seed).shuffle(told)
        at = int(token or 0)
        piece = told[at : at + self.page_limit]
        return ListPage(
            tuple(one for one in piece if not isinstance(one, str)),
            tuple(one for one in piece if isinstance(one, str)),
            str(at + self.page_limit) if at + self.page_limit < len(told) else None,
        )


@settings(deadline=None, max_examples=60)
@given(KEYS, KEYS, st.integers(1, 6), st.integers(0, 5), st.booleans())
def test_any_import_by_any_number_of_workers_makes_the_tree_of_the_keys(
    tmp_path_factory: pytest.TempPathFactory,
    old: list[str],
    new: list[str],
    workers: int,
    seed: int,
    sorted_keys: bool,
) -> None:
    index = Index(tmp_path_factory.mktemp("index") / "index.db", IDENTITY)
    store = (TinyPages if sorted_keys else Unsorted)(clock=lambda: 0, min_part_size=1)
    store.seed = seed

    async def work() -> None:
        for keys in (old, new):
            for key in list(store.keys()):
                store.delete_now(key)
            for number, key in enumerate(keys):
                store.put_now(key, bytes(number % 7))
            await importer_of(store, index, workers=workers, sorted_keys=sorted_keys).import_all()
            expected = tree_of_keys({key: len(store.body(key)) for key in store.keys()})  # noqa: SIM118
            assert tree_of(index) == expected
            directories = index._read.execute(
                "SELECT count(*) FROM node WHERE (entry LIKE '%/' OR entry = '') AND listed_ns IS NULL"
            ).fetchone()
            assert directories == (0,), "after an import every directory counts as listed"

    run_jumping(work)
    index.close()


@pytest.mark.parametrize(("pages", "most"), [(1, 1), (4, 16), (20, 80), (200, 400)])
def test_an_import_asks_in_proportion_to_the_pages_there_are(tmp_path: Path, pages: int, most: int) -> None:
    """Sixteen workers asked 113 times for 20 pages, and the first reads waited behind them."""
    store = TinyPages(clock=lambda: 0, min_part_size=1)
    store.page_limit = 10
    for number in range(10 * pages):
        store.put_now(f"d{number % 4}/{number:05}", b"x")
    index = Index(tmp_path / "index.db", IDENTITY)
    run_jumping(importer_of(store, index, workers=16).import_all)
    index.close()
    assert sum(request.verb.startswith("list") for request in store.requests) <= most


def test_a_killed_import_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "index.db"
    store = TinyPages(clock=lambda: 0, min_part_size=1)
    store.page_limit = 10
    for number in range(2000):
        store.put_now(f"d{number % 20:02}/{number:05}", b"x")
    calls = 0

    def die_late(moment: str, verb: str, key: str) -> None:
        nonlocal calls
        calls += moment == "before" and verb == "list"
        if calls == 150:
            raise StoreError("killed here")

    async def first() -> None:
        store.hook = die_late
        with pytest.raises(StoreError):
            await importer_of(store, Index(path, IDENTITY), workers=1).import_all()

    run_jumping(first)
    index = Index(path, IDENTITY)
    left = json.loads(index.meta("unfinished import") or "")["segments"]
    assert left

    async def second() -> None:
        nonlocal calls
        calls = 1000
        await importer_of(store, index, workers=1).import_all()

    run_jumping(second)
    assert calls - 1000 <= 100, "pages that were applied before the kill are not listed again"
    assert tree_of(index) == tree_of_keys(dict.fromkeys(store.keys(), 1))
    assert index.meta("unfinished import") == ""


def simulate(keys: list[str], *, page: int, workers: int) -> tuple[int, int]:
    """(rounds, requests) of a listing in which every worker gets one page a round."""
    space, rounds, requests = KeySpace(), 0, 0
    busy: list[Segment] = []
    while not space.done:
        busy = [segment for segment in busy if not segment.done]
        while len(busy) < workers and (segment := space.take()):
            busy.append(segment)
        for segment in busy:
            at = bisect_right(keys, segment.cursor)
            more = at + page < len(keys)
            space.advance(segment, keys[at + page - 1] if more else None)
        requests += len(busy)
        rounds += 1
    return rounds, requests


SHAPES = {
    "flat": "img_{0:08}".format,
    "nested": lambda number: f"train/n{number % 200:04}/{number}.jpg",
    "one deep directory": "a/b/c/d/{0:x}".format,
    "lopsided": lambda number: f"z{'z' * (number % 50)}/{number}",
}


@pytest.mark.parametrize("shape", SHAPES)
def test_sixteen_workers_are_busy_whatever_the_shape_and_waste_few_requests(shape: str) -> None:
    keys = sorted(SHAPES[shape](number) for number in range(100_000))
    rounds, requests = simulate(keys, page=100, workers=16)
    # A cut spends a request where nothing is. Prefixes of fifty letters take many cuts to see through.
    assert requests <= 1000 * (2.5 if shape == "lopsided" else 1.35)
    assert rounds <= 1000 / 16 * (3 if shape == "lopsided" else 1.5), "the workers are busy nearly all the time"


class Hostile(MemoryStore):
    """Three keys a page, in the manner of `how`; a token is the number of a page."""

    def __init__(self, how: str) -> None:
        super().__init__(clock=lambda: 0)
        self.how = how

    async def list_page(  # type: ignore[override]
        self, prefix: str, *, delimiter: str = "", start_after: str = "", token: str | None = None, limit: int = 1000
    ) -> ListPage:
        whole = await super().list_page(prefix, delimiter=delimiter, start_after=start_after)
        objects, prefixes = list(whole.objects), list(whole.prefixes)
        if self.how == "disorder":
            random_module.Random(1).shuffle(objects)
            prefixes.reverse()
        if self.how == "start-after is ignored":
            objects = list((await super().list_page(prefix, delimiter=delimiter)).objects)
        number = int(token or 0)
        at = number - number // 2 if self.how == "each page twice" else number
        more = str(number + 1)
        match self.how:
            case "same token for ever":
                at, more = 0, "0"
            case "same page for ever":
                at = 0
            case "empty pages for ever":
                objects = prefixes = []
            case _ if at * 3 + 3 >= max(len(objects), len(prefixes)):
                more = ""
        return ListPage(tuple(objects[at * 3 : at * 3 + 3]), tuple(prefixes[at * 3 : at * 3 + 3]), more or None)


HOSTILE_KEYS = ["a", "b", "c", "d", "e/1", "e/2", "e/3", "e/4", "f/g/h", "x", "y", "z"]


@pytest.mark.expect_warnings
@pytest.mark.parametrize("how", ["disorder", "each page twice", "start-after is ignored"])
@pytest.mark.parametrize("act", ["import", "directory"])
def test_pages_in_any_order_or_twice_make_the_same_tree(
    how: str, act: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing that is there is taken for gone, though pages say less than they seem to. One warning tells it."""
    store = Hostile(how)
    for key in HOSTILE_KEYS:
        store.put_now(key, b"x")

    async def work() -> None:
        index = Index(tmp_path / "index.db", IDENTITY)
        importer = importer_of(store, index)
        if act == "import":
            await importer.import_all()
            await importer.import_all(anew=True)
        else:
            await importer.list_directory("")
            await importer.list_directory("e/")
            await importer.list_directory("f/")
            await importer.list_directory("f/g/")
        assert tree_of(index) == tree_of_keys(dict.fromkeys(HOSTILE_KEYS, 1))

    run_jumping(work)
    if how == "disorder":
        assert [record.levelname for record in caplog.records].count("WARNING") == 1


@pytest.mark.expect_warnings
@pytest.mark.parametrize("how", ["same token for ever", "same page for ever", "empty pages for ever"])
@pytest.mark.parametrize("act", ["import", "directory"])
def test_a_listing_that_never_ends_is_an_error_and_not_a_loop(
    how: str, act: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lazyfs.index.importer.IDLE_PAGES", 20)
    store = Hostile(how)
    for key in HOSTILE_KEYS:
        store.put_now(key, b"x")

    async def work() -> None:
        importer = importer_of(store, Index(tmp_path / "index.db", IDENTITY))
        with pytest.raises(StoreError, match=r"for ever|without end|does not advance"):
            await (importer.import_all() if act == "import" else importer.list_directory(""))
        assert len(store.requests) < 200

    run_jumping(work)


def test_an_error_of_a_worker_is_raised_as_itself(tmp_path: Path) -> None:
    def fail(moment: str, verb: str, key: str) -> None:
        raise ThrottledError("slow down")

    async def work() -> None:
        importer = importer_of(MemoryStore(clock=lambda: 0, hook=fail), Index(tmp_path / "index.db", IDENTITY))
        with pytest.raises(ThrottledError):
            await importer.import_all()
        assert importer.progress.state == "failed"

    run_jumping(work)


@given(st.text(max_size=5), st.none() | st.text(max_size=5))
def test_a_midpoint_lies_between(low: str, high: str | None) -> None:
    middle = midpoint(low, high)
    assert middle is None or (low < middle and (high is None or middle < high))


@given(st.data())
def test_segments_always_tile_the_key_space(data: st.DataObject) -> None:
    space = KeySpace()
    position = 0
    for _ in range(data.draw(st.integers(0, 30))):
        space.take()
        busy = [segment for segment in space.segments if segment.taken and not segment.done]
        if busy:
            chosen = data.draw(st.sampled_from(busy))
            position += 1
            cursor = data.draw(st.none() | st.text(min_size=1, max_size=4))
            if cursor is None or cursor > chosen.cursor:
                space.advance(chosen, cursor)
        ordered = sorted(space.segments, key=lambda segment: segment.start)
        assert ordered[0].start == ""
        assert ordered[-1].stop is None
        for left, right in pairwise(ordered):
            assert left.stop == right.start
    assert KeySpace.load(space.dump()).dump() == space.dump()
