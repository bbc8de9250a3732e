"""Reading a directory of which a listing is on its way: what is settled is told, and only that, once."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import trio
from hypothesis import example, given
from hypothesis import strategies as st

from lazyfs.core.errors import StoreError
from lazyfs.core.types import ListPage
from lazyfs.vfs.listings import DirectoryListing
from tests.vfs.building import Mount, SmallPages, mounted

MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""An index for each example: on a disk that writes back what others wrote, one takes longer than Hypothesis allows."""
keys = st.sets(st.sampled_from(["A", "a", "a-", "a-b", "a/x", "a0", "a-/y", "b", "b/z", "a.", "a-b/c"]))
"""Below one directory; of these a, a-, a-b and b may be files, directories, or both."""


class GatedPages(SmallPages):
    """A store whose pages of a directory come only when they are let through. `let` is how many still may."""

    def __init__(self) -> None:
        super().__init__()
        self.let = 10**9
        self.failing = False
        self._opened = trio.Event()

    def open(self, pages: int) -> None:
        """Let so many pages through."""
        self.let = pages
        self._opened.set()
        self._opened = trio.Event()

    async def list_page(self, prefix: str, **how: object) -> ListPage:
        if how.get("delimiter"):
            while not self.let:
                await self._opened.wait()
            self.let -= 1
            if self.failing and how.get("token"):
                raise StoreError("the endpoint gave up")
        return await super().list_page(prefix, **how)  # type: ignore[arg-type]


async def _piece(m: Mount, fh: int, offset: int) -> list[tuple[str, int]]:
    return [(name, after) for name, _, after in await m.fs.read_directory(fh, offset)]


async def test_each_page_is_told_when_it_is_there_but_for_a_name_that_may_yet_be_hidden(tmp_path: Path) -> None:
    store = GatedPages()
    store.page_limit = 10
    names = [f"d/{number:02}" for number in range(25)]
    for name in names:
        store.put_now(name, b"")
    async with mounted(store, tmp_path / "index") as m:
        ino = (await m.lookup("d")).ino
        store.open(1)
        fh = await m.fs.open_directory(ino)
        first = await _piece(m, fh, 0)
        assert [f"d/{name}" for name, _ in first] == names[:9]
        with trio.move_on_after(0.05) as waiting:
            await _piece(m, fh, first[-1][1])
        assert waiting.cancelled_caught, "the tenth may still turn out to be a directory"
        store.open(1)
        second = await _piece(m, fh, first[-1][1])
        assert [f"d/{name}" for name, _ in second] == names[9:19]
        assert [f"d/{name}" for name, _ in await _piece(m, fh, first[3][1])] == names[4:19]
        store.open(1)
        third = await _piece(m, fh, second[-1][1])
        assert [f"d/{name}" for name, _ in third] == names[19:]
        assert await _piece(m, fh, third[-1][1]) == []
        lists = [request for request in store.requests if request.verb == "list_page"]
        assert await m.names("d") == [name[2:] for name in names]
        assert [request for request in store.requests if request.verb == "list_page"] == lists


async def test_a_listing_that_fails_on_its_way_tells_what_it_has_then_the_error(tmp_path: Path) -> None:
    store = GatedPages()
    store.page_limit = 10
    for number in range(25):
        store.put_now(f"d/{number:02}", b"")
    async with mounted(store, tmp_path / "index") as m:
        ino = (await m.lookup("d")).ino
        store.failing = True
        fh = await m.fs.open_directory(ino)
        told = await _piece(m, fh, 0)
        assert len(told) == 9
        for _ in range(2):  # however often it is asked
            with pytest.raises(StoreError, match="gave up"):
                await _piece(m, fh, told[-1][1])
        store.failing = False
        assert len(await m.names("d")) == 25, "whoever opens it anew lists it anew"


@example(before={"A", "a", "a-", "a-b", "a/x"}, after={"A", "a", "a-", "a-b", "b"}, page=4, room=4)
@given(
    before=keys,
    after=keys.filter(bool),
    page=st.integers(1, 4),
    room=st.integers(1, 4),
)
def test_what_hides_a_name_is_told_in_its_place_however_the_pages_fall(
    before: set[str], after: set[str], page: int, room: int
) -> None:
    """The index knows the bucket as it was `before`; the listing finds it as it is now."""
    store = SmallPages()
    store.page_limit = page

    async def told() -> list[str]:
        async with mounted(store, Path(place) / "index", ttl_s=0) as m:
            for key in before:
                store.put_now(f"d/{key}", b"")
            await m.namespace.refresh()
            for key in before - after:
                store.delete_now(f"d/{key}")
            for key in after:
                store.put_now(f"d/{key}", b"")
            fh = await m.fs.open_directory((await m.lookup("d")).ino)
            found: list[tuple[str, int]] = []
            while piece := (await _piece(m, fh, found[-1][1] if found else 0))[:room]:
                found += piece
            return [name for name, _ in found]

    with tempfile.TemporaryDirectory(dir=MEMORY) as place:
        names = trio.run(told)
    assert sorted(names) == sorted({key.split("/")[0] for key in after})


def test_a_listing_that_nobody_finishes_settles_nothing() -> None:
    listing = DirectoryListing()
    assert not listing.complete
    assert not listing.settles("a")
