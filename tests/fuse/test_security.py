"""What a real mount gives away, and what others can do to it: names, secrets, files and the kernel's rules."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import stat
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.campaign import THOROUGH
from tests.conftest import new_bucket_name
from tests.faults import login_page, refusing, reset_after
from tests.fuse.conftest import Mounter
from tests.fuse.mounts import ROOT, Mount, environment, lazyfs, mounted, nothing_left, witness
from tests.fuse.trees import put
from tests.proxy import Proxy, proxied
from tests.servers import Server, free_port

EVIL = "e\x1b[2J\x07\nv\x9b\x7f"
"""Clears a terminal, rings, breaks the line, and commands terminals that know C1."""
COMMANDS = [
    ("status", "-r"),
    ("status", "{path}"),
    ("find",),
    ("preload", "--wait"),
    ("preload", "{path}-not-there"),
    ("task", "ls"),
    ("sync",),
    ("flush", "{path}"),
    ("flush", "{path}-not-there"),
    ("release", "--dry-run"),
    ("top", "--once", "--interval", "100ms"),
]


def on_a_terminal(m: Mount, *arguments: str) -> str:
    """All that the command `lazyfs ARGUMENTS` writes to a terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "lazyfs", *arguments],
        env={**m.env, "TERM": "dumb"},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    written = b""
    try:
        while part := os.read(ours, 65536):
            written += part
    except OSError:  # EIO: nobody has it open any more
        pass
    os.close(ours)
    process.wait(30)
    return written.decode("utf-8", "surrogateescape")


@pytest.fixture
def server(moto: Server) -> Server:
    """One that takes any keys."""
    return moto


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_no_name_in_the_bucket_commands_the_terminal(named: Mount, arguments: tuple[str, ...]) -> None:
    words = [word.format(path=named.path / EVIL / "f") for word in arguments]
    if "{path}" not in "".join(arguments) and arguments[0] not in ("task", "top"):
        words.append(str(named.path))
    written = on_a_terminal(named, *words).replace("\r\n", "\n")
    assert written.strip()
    assert all(char.isprintable() or char == "\n" for char in written), repr(written)
    if arguments[0] not in ("task", "sync", "top"):
        assert r"e\x1b[2J" in written or arguments[0] in ("preload", "release")


def test_find_gives_programs_the_very_bytes(named: Mount) -> None:
    want = subprocess.run(["find", named.path, "-name", "f"], capture_output=True, check=True).stdout
    command = [sys.executable, "-m", "lazyfs", "find", str(named.path), "--name", "f"]
    found = subprocess.run(command, env=named.env, cwd=ROOT, capture_output=True, check=True).stdout
    assert EVIL.encode() in want
    assert found == want


@pytest.fixture(scope="module")
def named(gateway: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """A mount with a name of the worst kind, for all commands."""
    bucket = gateway.make_bucket(new_bucket_name())
    put(witness(gateway), bucket, f"{EVIL}/f", b"x" * 1000)
    with mounted(bucket, gateway, directory=tmp_path_factory.mktemp("named"), time_limit_s=180) as m:
        m.wait_imported()
        yield m
    gateway.drop_bucket(bucket)


# -- secrets ----------------------------------------------------------------------------------------------------------

KEY, SECRET, TOKEN, PASSWORD = "AKIASECRETIVE", "s3cr3t+of/the=user", "t0ken/of+the=user", "pr0xy-passw0rd"
KEYS = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_SESSION_TOKEN": TOKEN}
HIDDEN = [
    SECRET,
    TOKEN,
    PASSWORD,
    quote(SECRET, ""),
    quote(TOKEN, ""),
    "Signature=",
    "X-Amz-Credential",
    "s3cr3t",
    "t0ken",
]


class _AsItIs(Server):
    """A server whose user's environment is `told`."""

    told: dict[str, str]

    def environment(self) -> dict[str, str]:
        return self.told


def known_by(server: Server, **told: str) -> Server:
    found = _AsItIs(server.endpoint_url, KEY, SECRET, server.name, server.limits)
    object.__setattr__(found, "told", {"AWS_DEFAULT_REGION": "us-east-1", **told})
    return found


def gives_away(*texts: str | bytes) -> list[str]:
    """The secrets that show in what was told."""
    told = b"\n".join(text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text for text in texts)
    return [word for word in HIDDEN if word.encode() in told]


def left_in(directory: Path, *but: Path) -> dict[str, list[str]]:
    """The files below `directory` that hold a secret, and which."""
    files = [path for path in directory.rglob("*") if path.is_file() and path not in but and "mnt" not in path.parts]
    assert files
    return {str(path): found for path in files if (found := gives_away(path.read_bytes()))}


def live(m: Mount, proxy: Proxy) -> list[str]:
    """What the mount and its commands tell while it works and while it fails."""
    (m / "f").write_bytes(b"x" * 100_000)
    (m / "f").rename(m / "g")
    (m / "g").chmod(0o600)
    lasting = (reset_after, login_page, refusing(500, "InternalError"))  # each is tried again for a second
    for fault in (refusing(403, "SignatureDoesNotMatch"), *(lasting if THOROUGH else lasting[:1])):
        proxy.fault = lambda _seen, fault=fault: fault  # type: ignore[misc]
        for number, use in enumerate((os.listdir, os.stat, Path.read_bytes, lambda path: path.write_bytes(b"y"))):
            with contextlib.suppress(OSError):
                use(m / f"not-there-{number}")  # type: ignore[operator]
    proxy.fault = lambda _seen: None
    told = [m.output, m.log(), json.dumps(m.status())]
    for arguments in (["status", m.path], ["status", "--json"], ["top", "--once"], ["sync", m.path], ["find", m.path]):
        done = m.lazyfs(*arguments)
        told += [done.stdout, done.stderr]
    for process in ("cmdline", "comm", "maps", "mountinfo"):
        told.append(Path(f"/proc/{m.pid}/{process}").read_text(errors="surrogateescape"))
    with urllib.request.urlopen(m.status()["metrics"]) as page:
        told.append(page.read().decode())
    return told


@pytest.mark.campaign
@pytest.mark.parametrize(
    ("where", "how"), [("environment", ()), ("profile", ("--write-back",))], ids=["environment", "profile, write-back"]
)
def test_no_secret_is_in_anything_that_a_mount_tells_or_leaves(
    where: str, how: tuple[str, ...], mount: Mounter, moto: Server, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    options, credentials, told = list(how), home / "credentials", KEYS
    if where == "profile":
        home.mkdir()
        lines = [f"{name.lower()} = {value}" for name, value in KEYS.items()]
        credentials.write_text("\n".join(["[mine]", *lines, ""]))
        told, options = {"AWS_SHARED_CREDENTIALS_FILE": str(credentials)}, [*options, "--profile", "mine"]
    with proxied(moto) as proxy:
        options += ["--log-level", "debug", "--metrics-port", "0", "--retry-for", "1s"]
        m = mount(*options, on=known_by(proxy.server, **told), expect_log=["."])
        assert gives_away(*live(m, proxy)) == []
        assert proxy.seen
        assert {one.access_key for one in proxy.seen} == {KEY}, "it is these keys that were used"
        assert m.umount().returncode == 0
        assert gives_away(m.log()) == []
    assert left_in(home, credentials) == {}


@pytest.mark.campaign
def test_no_secret_is_in_what_a_mount_that_fails_tells_or_leaves(bucket: str, gateway: Server, tmp_path: Path) -> None:
    closed = f"127.0.0.1:{free_port()}"
    proxy = f"http://user:{PASSWORD}@{closed}"
    cases: list[tuple[dict[str, str], list[str]]] = [
        ({}, ["--endpoint-url", gateway.endpoint_url]),  # which checks them
        ({}, ["--endpoint-url", f"http://user:{PASSWORD}@{closed}"]),
        ({"LAZYFS_ENDPOINT_URL": f"http://user:{PASSWORD}@{closed}"}, []),
        ({"AWS_ENDPOINT_URL": f"htp://user:{PASSWORD}@{closed}/%zz"}, []),
    ]
    if THOROUGH:  # no connection: each is tried again for ten seconds
        cases += [
            ({}, ["--endpoint-url", f"http://{closed}"]),
            ({"AWS_ENDPOINT_URL": f"http://user:{PASSWORD}@{closed}"}, []),
            ({"http_proxy": proxy, "https_proxy": proxy}, ["--endpoint-url", "http://s3.invalid"]),
            ({"http_proxy": proxy, "https_proxy": proxy}, ["--endpoint-url", "https://s3.invalid"]),
            ({"http_proxy": f"htp:/{PASSWORD}"}, ["--endpoint-url", "http://s3.invalid"]),
        ]
    (tmp_path / "mnt").mkdir()
    for told, options in cases:
        env = environment(known_by(gateway, **KEYS, **told), tmp_path)
        options += ["--log-level", "debug"]
        with nothing_left(tmp_path / "mnt"):
            done = lazyfs("mount", bucket, tmp_path / "mnt", *options, env=env)
        assert done.returncode in (1, 2)
        assert done.stderr.count("\n") == 1
        assert gives_away(done.stdout, done.stderr) == [], (told, options)
    assert left_in(tmp_path) == {}


# -- what the kernel is told ---------------------------------------------------------------------------------------


def test_the_kernel_checks_modes_and_believes_no_bits_that_give_rights(
    mount: Mounter, bucket: str, moto: Server
) -> None:
    client = moto.client()
    for name, mode in {"setuid": "0104755", "setgid": "0102755", "device": "0020666"}.items():
        told = {"file-permissions": mode, "file-owner": "0", "file-group": "0"}
        client.put_object(Bucket=bucket, Key=name, Body=b"#!/bin/sh\n", Metadata=told)
    client.close()
    m = mount("--allow-other", "--posix-metadata", "lazy")
    (line,) = [text for text in Path("/proc/self/mountinfo").read_text().splitlines() if f" {m.path} " in text]
    assert {"nosuid", "nodev"} <= set(line.split()[5].split(","))
    assert {"default_permissions", "allow_other"} <= set(line.split()[-1].split(","))
    for name in ("setuid", "setgid", "device"):
        mode = (m / name).stat().st_mode
        assert stat.S_ISREG(mode)
        assert not mode & (stat.S_ISUID | stat.S_ISGID)


def test_what_it_keeps_is_its_owners_alone(mount: Mounter, tmp_path: Path) -> None:
    m = mount("--write-back", "--metrics-port", "0")
    (m / "d").mkdir()
    (m / "d/f").write_bytes(b"x" * 300_000)
    m.wait_uploaded()
    kept = [path for path in (tmp_path / "home").rglob("*") if "mnt" not in path.parts]
    assert {"cache", "run"} <= {path.name for path in kept}
    loose = [path for path in kept if not path.is_symlink() and path.stat().st_mode & 0o077]
    assert loose == []
    assert m.status()["metrics"].startswith("http://127.0.0.1:")


def test_a_cache_directory_that_others_could_fill_is_refused(bucket: str, moto: Server, tmp_path: Path) -> None:
    cache, path = tmp_path / "cache", tmp_path / "mnt"
    path.mkdir()
    cache.mkdir()
    (cache / "blocks").mkdir()
    options = ["--endpoint-url", moto.endpoint_url, "--cache-dir", cache]
    for mode, owner, reason in ((0o775, 0, "others may write to"), (0o755, 65534, "belongs to user 65534")):
        cache.chmod(mode)
        os.chown(cache, owner, owner)
        with nothing_left(path):
            done = lazyfs("mount", bucket, path, *options, env=environment(moto, tmp_path))
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
        assert reason in done.stderr
        assert stat.S_IMODE(cache.stat().st_mode) == mode
