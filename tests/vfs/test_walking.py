"""The tree in pages: each entry once, in order, however small the pages are."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyfs.core.errors import NoEntryError
from lazyfs.vfs import walking
from lazyfs.vfs.walking import Entry, Walk
from tests.vfs.building import Mount, SmallPages, mounted

NAMES = ["a", "b", "c*", ".d", "e-"]


async def told(m: Mount, path: str = "", *, depth: int | None = None, asks: bool = True, limit: int = 100) -> list[str]:
    found: list[str] = []
    after: str | None = ""
    while after is not None:
        page = await Walk(m.namespace, m.index, path, depth=depth, asks=asks).page(after, limit=limit)
        found += [entry.path for entry in page.entries]
        after = page.after
    return found


@settings(max_examples=60, deadline=None)
@given(
    keys=st.sets(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4).map("/".join), min_size=1, max_size=12),
    depth=st.none() | st.integers(0, 2),
    limit=st.integers(1, 3),
    asks=st.booleans(),
)
def test_every_entry_is_told_once(keys: set[str], depth: int | None, limit: int, asks: bool) -> None:
    async def run(path: Path) -> None:
        store = SmallPages()
        for key in keys:
            store.put_now(key, b"x")
        async with mounted(store, path / "index", ttl_s=float("inf")) as m:
            if not asks:
                await m.namespace.refresh()
            directories = {"/".join(key.split("/")[:end]) + "/" for key in keys for end in range(1, key.count("/") + 1)}
            expected = directories | {key for key in keys if key + "/" not in directories}
            if depth == 0:
                expected = {""}
            elif depth is not None:
                expected = {path for path in expected if path.rstrip("/").count("/") < depth}
            assert sorted(await told(m, depth=depth, limit=limit, asks=asks)) == sorted(expected)
            for directory in directories:
                below = {path for path in directories | keys if path.startswith(directory) and path != directory}
                below = {path for path in below if path + "/" not in directories}
                found = await told(m, directory[:-1], limit=limit, asks=asks)
                assert sorted(found) == sorted(below)

    with tempfile.TemporaryDirectory() as folder:
        trio.run(run, Path(folder))


@pytest.fixture
def store() -> SmallPages:
    store = SmallPages()
    for key in ("d/a.jpg", "d/b.jpg", "d/c.png", "d/sub/e.jpg", "e/f.jpg", "e/*", "top"):
        store.put_now(key, b"x")
    return store


@pytest.mark.parametrize(
    ("path", "depth", "expected"),
    [
        ("top", 1, ["top"]),
        ("d", 0, ["d/"]),
        ("d", 1, ["d/a.jpg", "d/b.jpg", "d/c.png", "d/sub/"]),
        ("d/*.jpg", 1, ["d/a.jpg", "d/b.jpg"]),
        ("*/*.jpg", 0, ["d/a.jpg", "d/b.jpg", "e/f.jpg"]),
        ("*", 0, ["d/", "e/", "top"]),
        ("[d]*", 1, ["d/a.jpg", "d/b.jpg", "d/c.png", "d/sub/"]),
        ("[d]*", None, ["d/a.jpg", "d/b.jpg", "d/c.png", "d/sub/", "d/sub/e.jpg"]),
        ("e/*", 1, ["e/*"]),
        ("d/x*", 1, []),
    ],
)
@pytest.mark.parametrize("limit", [1, 100])
async def test_globs(
    store: SmallPages, tmp_path: Path, path: str, depth: int | None, expected: list[str], limit: int
) -> None:
    async with mounted(store, tmp_path / "index", ttl_s=float("inf")) as m:
        assert await told(m, path, depth=depth, limit=limit) == expected


@pytest.mark.parametrize("path", ["no", "d/no", "top/x", "no/*", "\udcff", "a\0"])
@pytest.mark.parametrize("asks", [True, False])
async def test_what_is_not_there(store: SmallPages, tmp_path: Path, path: str, asks: bool) -> None:
    async with mounted(store, tmp_path / "index", ttl_s=float("inf")) as m:
        with pytest.raises(NoEntryError):
            await told(m, path, asks=asks)


async def test_without_asking_nothing_is_asked(store: SmallPages, tmp_path: Path) -> None:
    async with mounted(store, tmp_path / "index", ttl_s=0) as m:
        await m.namespace.refresh()
        store.requests.clear()
        assert "d/sub/e.jpg" in await told(m, asks=False)
        assert not store.requests


async def test_a_page_without_hits_goes_on(store: SmallPages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walking, "SCAN", 2)
    fits: Callable[[Entry], bool] = lambda entry: entry.path == "top"  # noqa: E731
    async with mounted(store, tmp_path / "index", ttl_s=float("inf")) as m:
        walk = Walk(m.namespace, m.index, "", depth=None, asks=True)
        first = await walk.page(limit=10, fits=fits)
        assert first == ([], "d/a.jpg")
        after: str | None = first.after
        found: list[str] = []
        while after is not None:
            page = await walk.page(after, limit=10, fits=fits)
            found += [entry.path for entry in page.entries]
            after = page.after
        assert found == ["top"]


async def test_a_directory_that_goes_between_two_pages(store: SmallPages, tmp_path: Path) -> None:
    async with mounted(store, tmp_path / "index", ttl_s=float("inf")) as m:
        walk = Walk(m.namespace, m.index, "", depth=None, asks=True)
        page = await walk.page(limit=2)
        assert page.after == "d/a.jpg"
        node = m.index.entry(1, "d/")
        assert node is not None
        await m.index.remove_entry(1, "d/")
        rest = await walk.page(page.after, limit=100)
        assert [entry.path for entry in rest.entries] == ["e/", "e/*", "e/f.jpg", "top"]
