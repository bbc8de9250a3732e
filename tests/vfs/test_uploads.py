"""Uploads that a killed mount left are aborted by the next one, and nobody else's."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing

from lazyfs.core.errors import ThrottledError
from lazyfs.index.database import Index, open_index
from lazyfs.vfs.uploads import Uploads
from tests.vfs.building import IDENTITY
from tests.vfs.stores import ScriptedStore


def opened(tmp_path: Path) -> Index:
    return open_index(tmp_path / "index", IDENTITY, pytest.fail)


async def test_what_has_ended_is_not_remembered(tmp_path: Path) -> None:
    store, index = ScriptedStore(), opened(tmp_path)
    uploads = Uploads(store=store, index=index)
    one, two = await uploads.create_upload("one"), await uploads.create_upload("two")
    part = await uploads.upload_part(one, 1, b"content")
    await uploads.complete_upload(one, [part])
    await uploads.abort_upload(two)
    await Uploads(store=store, index=index).abort_left()
    assert store.body("one") == b"content"
    assert store.calls["abort"] == 1
    index.close()


@pytest.mark.expect_warnings
async def test_what_a_killed_mount_left_is_aborted_in_the_end(tmp_path: Path) -> None:
    store, index = ScriptedStore(), opened(tmp_path)
    theirs = await store.create_upload("f")
    uploads = Uploads(store=store, index=index)
    for key in ("f", "g"):
        await uploads.upload_part(await uploads.create_upload(key), 1, b"part")
    index.close()
    index = opened(tmp_path)
    store.fail("abort", 1, ThrottledError("not now"))
    await Uploads(store=store, index=index).abort_left()
    assert store.uploads == 2
    await Uploads(store=store, index=index).abort_left()
    assert list(store._uploads) == [theirs.upload_id]
    index.close()


async def test_an_upload_that_was_only_being_begun_is_found_by_its_key(tmp_path: Path) -> None:
    store, index = ScriptedStore(), opened(tmp_path)
    theirs = await store.create_upload("f-other")
    uploads = Uploads(store=store, index=index)
    held = store.hold("create")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(uploads.create_upload, "f")
        await trio.testing.wait_all_tasks_blocked(0.05)
        nursery.cancel_scope.cancel()
    held.set()
    await store.create_upload("f")  # it arrived all the same
    index.close()
    index = opened(tmp_path)
    await Uploads(store=store, index=index).abort_left()
    assert list(store._uploads) == [theirs.upload_id]
    index.close()
