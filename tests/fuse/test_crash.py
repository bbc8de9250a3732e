"""kill -9 of the daemon at random moments: what was acknowledged is there and whole, the rest is absent or whole.

LAZYFS_CRASHES sets how many kills each server gets (default: a few).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from minio import Minio

from tests.campaign import SEED, times
from tests.fuse.conftest import Mounter
from tests.fuse.trees import get, keys
from tests.servers import Server

CRASHES = int(os.environ.get("LAZYFS_CRASHES", times(4, 40)))
MIB = 1024**2
SERVERS_OWN = ["listing the bucket: .*NoSuchKey"]
"""The gateway lists so when a directory goes away meanwhile."""
# Writes files of three kinds without end, renames a directory now and then, and says what close() has acknowledged.
PROGRAM = """
import hashlib, os, random, sys
root, seed = sys.argv[1], int(sys.argv[2])
rng = random.Random(seed)
n = 0
while True:
    n += 1
    size = rng.choice([0, 100, 70_000, 9 << 20, 13 << 20])
    body = rng.randbytes(size)
    directory = f"{root}/tmp-{seed}-{n}" if n % 3 == 0 else root
    os.makedirs(directory, exist_ok=True)
    path = f"{directory}/f-{seed}-{n}"
    patched = size > 9 << 20
    wanted = hashlib.sha256(body[:5] + b"patched" + body[12:] if patched else body).hexdigest()
    name = os.path.relpath(path, root)
    print("writing", name, wanted, flush=True)
    with open(path, "wb") as f:
        f.write(body)
        if patched:
            f.seek(5)
            f.write(b"patched")
    print("closed", name, wanted, flush=True)
    if directory != root:
        print("renaming", name, name[4:], flush=True)
        os.rename(directory, f"{root}/{seed}-{n}")
        print("renamed", name, name[4:], flush=True)
"""


@pytest.mark.campaign
@pytest.mark.parametrize("options", [(), ("--write-back",)], ids=["through", "back"])
def test_what_was_acknowledged_survives_kill_9_and_nothing_is_left_behind(
    mount: Mounter, server: Server, client: Minio, bucket: str, tmp_path: Path, options: tuple[str, ...]
) -> None:
    random = Random(SEED)
    limit_s = 60 + 10 * CRASHES  # of all mounts together; all that was written is read back, and moto is slow
    wanted: dict[str, str] = {}
    acknowledged: set[str] = set()
    moves: dict[str, str] = {}
    for crash in range(CRASHES):
        m = mount(*options, expect_log=SERVERS_OWN, time_limit_s=limit_s)
        script = (sys.executable, "-c", PROGRAM, str(m.path), str(crash))
        with subprocess.Popen(script, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as program:
            assert program.stdout is not None
            told = [program.stdout.readline() for _ in range(random.randrange(1, 9))]
            with contextlib.suppress(subprocess.TimeoutExpired):
                program.wait(random.random() / 4)
            m.kill()
            program.kill()
            told += program.stdout.readlines()
        for line in told:
            what, name, rest = line.split()
            if what == "writing":
                wanted[name] = rest
            elif what == "closed":
                acknowledged.add(name)
            elif what == "renaming":
                moves[name] = rest
            else:
                wanted[rest] = wanted.pop(name)
                acknowledged = acknowledged - {name} | {rest}
                del moves[name]
        assert m.umount().returncode == 0
    last = mount(*options, expect_log=SERVERS_OWN, time_limit_s=limit_s)
    last.wait_uploaded()
    last.wait_imported(timeout_s=60)
    held = {key: hashlib.sha256(get(client, bucket, key)).hexdigest() for key in keys(client, bucket) if key[-1] != "/"}
    for name in acknowledged:  # a rename that was under way is finished or never begun
        assert wanted[name] in (held.get(name), held.get(moves.get(name, name))), name
    origins = {new: name for name, new in moves.items()}
    for name, found in held.items():
        assert found == wanted[origins.get(name, name)], f"{name} is there and not whole"
        assert hashlib.sha256((last / name).read_bytes()).hexdigest() == found
    raw = server.client()
    assert not raw.list_multipart_uploads(Bucket=bucket).get("Uploads")
    raw.close()
    (spool,) = tmp_path.rglob("spool")
    assert not list(spool.iterdir())
    assert not list(tmp_path.rglob("*.data"))
