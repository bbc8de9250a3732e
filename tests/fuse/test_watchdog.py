"""The watchdog of these tests does what it is there for."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.fuse.mounts import DEAD, is_mounted, is_running, mounted, until
from tests.sparse_server import sparse_server


def test_a_call_that_hangs_is_freed_and_the_test_fails(tmp_path: Path, session: str) -> None:
    with sparse_server({"file": 10}) as sparse:
        bucket, server = sparse.bucket, sparse.server
        with (  # noqa: PT012 - the failure comes when the block ends
            pytest.raises(AssertionError, match="its watchdog ended it"),
            mounted(bucket, server, "--read-only", directory=tmp_path, session=session, time_limit_s=3) as m,
        ):
            os.kill(m.pid, signal.SIGSTOP)
            with pytest.raises(OSError, match=DEAD):
                (m / "never-looked-up").stat()
        assert not is_mounted(m.path)
        until(lambda: not is_running(m.pid), "the daemon is dead")
