"""`mount.lazyfs` as mount(8) calls it, and what systemd is told."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lazyfs.cli.fstab import Call, parse
from lazyfs.cli.notify import notify
from lazyfs.core.errors import UsageError
from tests.fuse.mounts import DEAD, ROOT, environment, is_mounted, is_running, lazyfs, nothing_left, until
from tests.servers import Server

UNIT = ROOT / "examples" / "lazyfs@.service"
HELPER = "import sys; from lazyfs.cli.fstab import main; sys.argv[0] = 'mount.lazyfs'; main()"


# -- what mount(8) says ---------------------------------------------------------------------------------------------


def test_the_arguments_of_mount() -> None:
    said = parse(["s3://b/p", "/mnt/x", "-n", "-v", "-o", "rw,_netdev,config=/etc/l.toml,uid=7", "-t", "fuse.lazyfs"])
    assert said == Call("s3://b/p", "/mnt/x", ["rw", "_netdev", "uid=7"], Path("/etc/l.toml"), verbose=True)
    assert parse(["-f", "b", "-r", "/m"]) == Call("b", "/m", ["ro"], fake=True)
    assert parse(["b", "/m", "-s", "-o", "uid=7,frob,barf=2,ro"]).words == ["uid=7", "ro"]


@pytest.mark.parametrize("arguments", [[], ["b"], ["b", "/m", "x"], ["b", "/m", "-q"], ["b", "/m", "-o"]])
def test_wrong_calls(arguments: list[str]) -> None:
    with pytest.raises(UsageError, match=r"usage: mount\.lazyfs BUCKET"):
        parse(arguments)


# -- really ---------------------------------------------------------------------------------------------------------


class Machine:
    """What root has at boot: hardly an environment, and the helper."""

    def __init__(self, server: Server, home: Path) -> None:
        self.path = home / "mnt"
        self.path.mkdir()
        wide = environment(server, home)
        kept = ("AWS_", "LAZYFS_", "HOME", "XDG_")
        self.env = {name: value for name, value in wide.items() if name.startswith(kept)}
        self.env["PATH"] = f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin"
        self.options = f"rw,_netdev,nofail,x-systemd.automount,endpoint_url={server.endpoint_url}"

    def helper(self, source: str, *flags: str, options: str = "") -> Any:
        """`mount.lazyfs`, as mount(8) runs it."""
        words = [source, str(self.path), *flags, "-o", f"{self.options},{options}"]
        return self.run(sys.executable, "-c", HELPER, *words)

    def run(self, *command: str | Path) -> Any:
        return subprocess.run(
            command, env=self.env, cwd=ROOT, capture_output=True, text=True, timeout=40, check=False, input=""
        )

    def pid(self) -> int:
        (socket_path,) = Path(self.env["LAZYFS_RUNTIME_DIR"]).glob("*.json")
        return int(socket_path.read_text().partition('"pid": ')[2].partition(",")[0])

    def umount(self) -> None:
        done = lazyfs("umount", self.path, env=self.env)
        assert done.returncode == 0, done.stderr


@pytest.fixture
def machine(server: Server, tmp_path: Path) -> Iterator[Machine]:
    if os.geteuid() != 0 or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("real mounts are tested as root with /dev/fuse")
    machine = Machine(server, tmp_path)
    with nothing_left(machine.path):
        yield machine


def test_a_line_of_fstab_mounts_and_does_so_once(machine: Machine, bucket: str) -> None:
    done = machine.helper(f"{bucket}/p", "-n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (machine.path / "f").write_text("x")
    again = machine.helper(f"s3://{bucket}/p/")
    assert again.returncode == 0
    assert again.stderr == f"mount.lazyfs: {bucket}/p is mounted on {machine.path} already\n"
    other = machine.helper(bucket)
    assert other.returncode == 32
    assert other.stderr == (
        f"mount.lazyfs: {bucket}/p is mounted on {machine.path} already; run: lazyfs umount {machine.path}\n"
    )
    # Who says `lazyfs mount` means this mount, with these options; fstab means that there is one.
    plain = lazyfs("mount", f"{bucket}/p", machine.path, env=machine.env)
    assert plain.returncode == 1
    assert (machine.path / "f").read_text() == "x"
    machine.umount()


def test_a_mount_whose_daemon_died_is_mounted_anew(machine: Machine, bucket: str) -> None:
    assert machine.helper(bucket).returncode == 0
    (machine.path / "f").write_text("x")
    first = machine.pid()
    os.kill(first, signal.SIGKILL)
    until(lambda: not is_running(first), "it is dead")
    with pytest.raises(OSError, match=DEAD):
        os.listdir(machine.path)
    done = machine.helper(bucket, "-v")
    assert done.returncode == 0
    assert "whose daemon had died" in done.stderr
    assert done.stdout.startswith(f"mounted {bucket} at {machine.path} (")
    assert (machine.path / "f").read_text() == "x"
    machine.umount()


def test_what_it_refuses_leaves_nothing_mounted(machine: Machine, bucket: str) -> None:
    wrong = machine.helper(bucket, options="frobnicate")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (1, 1)
    assert "unknown mount option 'frobnicate'" in wrong.stderr
    missing = machine.helper("there-is-no-such-bucket")
    assert missing.returncode == 32
    assert missing.stderr.startswith("mount.lazyfs: cannot list bucket there-is-no-such-bucket")
    assert machine.helper(bucket, "-f").returncode == 0
    assert not is_mounted(machine.path)
    assert machine.helper(bucket, "-s", options="frobnicate").returncode == 0
    machine.umount()


IN_A_MACHINE_OF_ITS_OWN = """
bucket=$1 target=$2 options=$3 bin=$4 home=$5
mkdir "$home/sbin" "$home/bin"
cp -a /sbin/mount.fuse* "$home/sbin"
ln -s "$bin/mount.lazyfs" "$home/sbin"
ln -s "$bin/lazyfs" "$home/bin"
mount --bind "$home/sbin" "$(realpath /sbin)"
mount --bind "$home/bin" /usr/local/bin
for type in lazyfs fuse.lazyfs; do
    mount -t $type "$bucket" "$target" -o "$options"
    findmnt -n -o FSTYPE "$target"
    echo $type >"$target/$type"
    "$bin/lazyfs" umount "$target"
    mount -t $type there-is-no-such-bucket "$target" -o "$options" || echo "exit code $?"
done
"""


def test_mount_finds_it_by_its_type(machine: Machine, bucket: str) -> None:
    bin_directory = Path(sys.executable).parent
    if not Path("/sbin/mount.fuse").exists() or not (bin_directory / "mount.lazyfs").exists():
        pytest.skip("fuse3 or lazyfs is not installed")
    if machine.run("unshare", "--mount", "true").returncode != 0:
        pytest.skip("no mount namespaces here")
    shell = ["unshare", "--mount", "sh", "-ec", IN_A_MACHINE_OF_ITS_OWN, "sh"]
    done = machine.run(*shell, bucket, machine.path, machine.options, bin_directory, machine.path.parent)
    assert done.returncode == 0, done.stderr
    unmounted = f"unmounted {machine.path}"
    assert done.stdout.splitlines() == ["fuse.lazyfs", unmounted, "exit code 32"] * 2, done.stderr
    assert done.stderr.count("cannot list bucket there-is-no-such-bucket") == 2


# -- systemd --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["file", "abstract"])
def test_a_unit_of_type_notify_is_told_when_the_mount_answers(place: str, machine: Machine, bucket: str) -> None:
    address = str(machine.path.parent / "notify") if place == "file" else f"@lazyfs-test-{os.getpid()}-{bucket}"
    machine.env["NOTIFY_SOCKET"] = address
    words = [bucket, str(machine.path), "-o", f"{machine.options},foreground,import=wait"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(address.replace("@", "\0", 1))
        ear.settimeout(30)
        with subprocess.Popen(
            [sys.executable, "-c", HELPER, *words], env=machine.env, cwd=ROOT, stderr=subprocess.PIPE
        ) as process:
            try:
                told = ear.recv(4096).decode()
                while told.startswith("EXTEND_TIMEOUT_USEC="):
                    told = ear.recv(4096).decode()
                assert told.splitlines()[0] == "READY=1"
                assert told.splitlines()[1].startswith(f"STATUS=mounted {bucket} at {machine.path}")
                (machine.path / "f").write_text("x")
                process.send_signal(signal.SIGTERM)
                _, log = process.communicate(timeout=30)
            finally:
                process.kill()
    assert process.returncode == 0, log
    assert not is_mounted(machine.path)


def test_nobody_who_listens_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for address in ("", "nonsense", str(tmp_path / "nothing"), "@nobody-is-here", "/" + "x" * 200):
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        began_s = time.monotonic()
        notify("READY=1")
        assert time.monotonic() - began_s < 5


def test_the_unit_says_what_the_helper_takes() -> None:
    lines = [line.partition("=") for line in UNIT.read_text().splitlines() if "=" in line and not line.startswith("#")]
    unit = {name: value for name, _, value in lines}
    assert unit["Type"] == "notify"
    program, *words = unit["ExecStart"].split()
    assert program.endswith("/mount.lazyfs")
    assert parse(words) == Call("${BUCKET}", "%f", ["allow_other", "foreground"])
