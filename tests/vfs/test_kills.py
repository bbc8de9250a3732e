"""kill -9 of write-back at random moments. LAZYFS_KILLS sets how many (default: 200), LAZYFS_SEED where they fall."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.campaign import SEED, times
from tests.vfs.kills import after

KILLS = int(os.environ.get("LAZYFS_KILLS", times(200, 3000)))
ROOT = Path(__file__).parents[2]


@pytest.mark.campaign
def test_what_was_acknowledged_is_there_after_each_of_two_hundred_kills(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.vfs.kills", str(tmp_path), str(SEED), str(KILLS)],
        cwd=ROOT, capture_output=True, text=True, timeout=60 + 2 * KILLS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert f"{KILLS} kills" in done.stdout


def test_what_the_campaign_expects_of_each_change() -> None:
    view = {"a": "1", "d/": "", "d/b": "2"}
    assert after(view, ["unlink", "a", ""]) == {"d/": "", "d/b": "2"}
    assert after(view, ["rename", "a", "d/a"]) == {"d/a": "1", "d/": "", "d/b": "2"}
    assert after(view, ["move", "d/", "e/"]) == {"a": "1", "e/": "", "e/b": "2"}
    assert after(view, ["rmdir", "d/", ""]) == view
    assert after(view, ["mkdir", "d/s/", ""]) == {**view, "d/s/": ""}
    assert after(view, ["write", "x/a", "n", 3]) == view
    assert after(view, ["move", "d/", "d/s/"]) == view
