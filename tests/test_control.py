from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from lazyfs.control import client, protocol, registry, server
from lazyfs.control.client import call, wait_closed
from lazyfs.control.private import make_private_directory
from lazyfs.control.protocol import MAX_LINE, Request
from lazyfs.core.errors import ControlError, StartupError

pytestmark = pytest.mark.usefixtures("runtime")


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LAZYFS_RUNTIME_DIR", str(tmp_path / "run"))
    return tmp_path / "run"


@pytest.fixture
def path(runtime: Path) -> Path:
    return runtime / "x.sock"


async def echo(args: dict[str, Any]) -> dict[str, Any]:
    return args


async def refuse(args: dict[str, Any]) -> dict[str, Any]:
    raise StartupError("not today")


async def fail(args: dict[str, Any]) -> dict[str, Any]:
    raise RuntimeError("a bug")


async def boast(args: dict[str, Any]) -> dict[str, Any]:
    return {"much": "x" * MAX_LINE}


HANDLERS: Mapping[str, server.Handler] = {"echo": echo, "refuse": refuse, "fail": fail, "boast": boast}


@contextlib.asynccontextmanager
async def serving(path: Path, **options: Any) -> AsyncIterator[trio.Nursery]:
    async with trio.open_nursery() as nursery:

        async def serve(task_status: trio.TaskStatus[None]) -> None:
            await server.serve(path, HANDLERS, task_status=task_status, **options)

        await nursery.start(serve)
        yield nursery
        nursery.cancel_scope.cancel()


async def ask(path: Path, verb: str, **args: Any) -> dict[str, Any]:
    return await trio.to_thread.run_sync(lambda: call(path, verb, **args))


async def send(path: Path, data: bytes) -> bytes:
    """Everything that the server says to `data` until it closes or we have a line."""
    stream = await trio.open_unix_socket(path)
    async with stream:
        await stream.send_all(data)
        reply = b""
        while not reply.endswith(b"\n"):
            received = await stream.receive_some(65536)
            if not received:
                break
            reply += received
        return reply


# -- protocol -----------------------------------------------------------------------------------------------


def test_requests_and_replies_survive_the_line() -> None:
    request = Request("status", {"path": "a\nb\udcff", "deep": [1, {"x": None}]})
    line = protocol.encode_request(request)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert protocol.decode_request(line) == request
    assert protocol.decode_reply(protocol.encode_result({"a": "\n"})) == {"a": "\n"}
    with pytest.raises(ControlError, match="so it is"):
        protocol.decode_reply(protocol.encode_error("so it is"))


@pytest.mark.parametrize(
    "line", [b"", b"\xff\n", b"{", b"[]\n", b"1\n", b"{}\n", b'{"verb": 1}', b'{"verb": "a", "args": []}', b"[" * 10**5]
)
def test_what_is_no_request(line: bytes) -> None:
    with pytest.raises(ControlError, match="malformed"):
        protocol.decode_request(line)


@pytest.mark.parametrize(
    "line", [b"", b"{}", b'{"ok": 1}', b'{"ok": true}', b'{"ok": true, "result": []}', b'{"ok": false}']
)
def test_what_is_no_reply(line: bytes) -> None:
    with pytest.raises(ControlError, match="malformed"):
        protocol.decode_reply(line)


def test_a_message_has_a_limit() -> None:
    with pytest.raises(ControlError, match="too long"):
        protocol.encode_request(Request("a", {"b": "x" * MAX_LINE}))
    assert len(protocol.encode_error("x" * 10 * MAX_LINE)) < MAX_LINE


# -- server and client --------------------------------------------------------------------------------------


async def test_round_trip(path: Path) -> None:
    async with serving(path):
        assert await ask(path, "echo", word="ü", number=1) == {"word": "ü", "number": 1}
        assert await ask(path, "echo") == {}


async def test_several_requests_on_one_connection(path: Path) -> None:
    async with serving(path), await trio.open_unix_socket(path) as stream:
        one = protocol.encode_request(Request("echo", {"n": 1}))
        await stream.send_all(one + one[:5])
        assert protocol.decode_reply(await stream.receive_some(65536)) == {"n": 1}
        await stream.send_all(one[5:])
        assert protocol.decode_reply(await stream.receive_some(65536)) == {"n": 1}


async def test_errors_come_back_as_they_are(path: Path) -> None:
    async with serving(path):
        with pytest.raises(ControlError, match="not today"):
            await ask(path, "refuse")
        with pytest.raises(ControlError, match="does not know 'dance'"):
            await ask(path, "dance")


@pytest.mark.expect_warnings
async def test_a_bug_in_a_handler_is_logged_and_survived(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(path):
        with pytest.raises(ControlError, match="internal error"):
            await ask(path, "fail")
        assert "a bug" in caplog.text
        with pytest.raises(ControlError, match="too long"):
            await ask(path, "boast")
        assert await ask(path, "echo") == {}


async def test_bad_clients_are_survived(path: Path) -> None:
    async with serving(path):
        assert b'"ok":false' in await send(path, b"rubbish\n")
        assert b'"ok":false' in await send(path, b"\xff\xfe\x00\n")
        assert b"may have" in await send(path, b"x" * 2 * MAX_LINE)
        assert b'"ok":false' in await send(path, b'{"verb": "status"}\n')
        half = await trio.open_unix_socket(path)
        await half.send_all(b'{"verb"')
        await half.aclose()
        assert await ask(path, "echo") == {}


async def test_a_client_that_hangs_up_before_the_answer(path: Path) -> None:
    async with serving(path):
        for _ in range(server.MAX_CLIENTS + 1):
            gone = await trio.open_unix_socket(path)
            await gone.send_all(protocol.encode_request(Request("echo", {"x": "y" * 500_000})))
            await gone.aclose()
        assert await ask(path, "echo") == {}


async def test_silent_clients_are_dropped_and_the_next_ones_wait(path: Path) -> None:
    async with serving(path, idle_s=0.05):
        silent = [await trio.open_unix_socket(path) for _ in range(server.MAX_CLIENTS)]
        assert await ask(path, "echo") == {}
        assert await silent[0].receive_some(1) == b""
        for stream in silent:
            await stream.aclose()


async def test_other_users_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(path):
        monkeypatch.setattr(server, "_is_allowed", lambda stream: False)
        with pytest.raises(ControlError, match="only the user who mounted"):
            await ask(path, "echo")
        with pytest.raises(ControlError, match="does not talk to this user"):
            await trio.to_thread.run_sync(lambda: wait_closed(path, timeout_s=5))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
async def test_the_kernel_says_who_asks(path: Path) -> None:
    code = """
import os, socket, sys
os.chdir(os.path.dirname(sys.argv[1]))
asker = socket.socket(socket.AF_UNIX)
os.setuid(65534)
asker.connect(os.path.basename(sys.argv[1]))
sys.stdout.buffer.write(asker.recv(999))
"""
    async with serving(path):
        path.parent.chmod(0o755)
        path.chmod(0o777)
        done = await trio.run_process([sys.executable, "-c", code, str(path)], capture_stdout=True)
        assert b"only the user who mounted, or root" in done.stdout


async def test_nobody_else_can_reach_the_socket_and_it_goes_with_the_server(path: Path) -> None:
    async with serving(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert not path.exists()


async def test_a_dead_socket_is_replaced_but_a_successor_is_left_alone(path: Path) -> None:
    make_private_directory(path.parent)
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()
    first = trio.CancelScope()

    async def serve_first(task_status: trio.TaskStatus[None]) -> None:
        with first:
            await server.serve(path, HANDLERS, task_status=task_status)

    async with trio.open_nursery() as nursery:
        await nursery.start(serve_first)
        async with serving(path):
            first.cancel()
            assert await ask(path, "echo") == {}
            await trio.testing.wait_all_tasks_blocked()
            assert path.exists()
        assert not path.exists()


async def test_a_path_too_long_for_a_socket_is_said(runtime: Path) -> None:
    with pytest.raises(StartupError, match="cannot make the control socket"):
        await server.serve(runtime / ("x" * 120), HANDLERS)


def test_no_daemon(path: Path) -> None:
    with pytest.raises(ControlError, match="no daemon listens"):
        call(path, "status")
    assert wait_closed(path, timeout_s=1)


def listening(path: Path) -> socket.socket:
    make_private_directory(path.parent)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    return listener


def test_a_daemon_that_does_not_answer(path: Path) -> None:
    with listening(path):
        with pytest.raises(ControlError, match="not answer in time"):
            call(path, "status", timeout_s=0.05)
        assert not wait_closed(path, timeout_s=0.05)


@pytest.mark.parametrize(("said", "reason"), [(b"", "closed the connection"), (b"hm\n", "malformed")])
def test_a_daemon_that_answers_badly(said: bytes, reason: str, path: Path) -> None:
    with listening(path) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1024)
                connection.sendall(said)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ControlError, match=reason):
            call(path, "status")
        thread.join()


def test_an_endless_answer_is_cut(path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        thread = threading.Thread(target=_pour, args=(theirs,))
        thread.start()
        with pytest.raises(ControlError, match="too long"):
            client._read_line(ours, deadline=time.monotonic() + 30)
        ours.close()
        thread.join()


def _pour(connection: socket.socket) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it is cut off, as it must be
        connection.sendall(b"x" * 2 * MAX_LINE)


async def test_wait_closed_outlives_the_servers_patience_and_sees_its_end(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[bool] = []
    accept = server._accept
    accepted = 0
    came_back = trio.Event()

    async def counted(listener: trio.SocketListener) -> trio.SocketStream:
        nonlocal accepted
        stream = await accept(listener)
        accepted += 1
        if accepted == 3:
            came_back.set()
        return stream

    async def wait() -> None:
        answers.append(await trio.to_thread.run_sync(lambda: wait_closed(path, timeout_s=30)))

    monkeypatch.setattr(server, "_accept", counted)
    async with trio.open_nursery() as nursery, serving(path, idle_s=0.02):
        nursery.start_soon(wait)
        await came_back.wait()
        assert answers == []
    assert answers == [True]


# -- directories --------------------------------------------------------------------------------------------


def test_a_private_directory_is_made_private(tmp_path: Path) -> None:
    loose = tmp_path / "a" / "b"
    loose.mkdir(parents=True, mode=0o777)
    make_private_directory(loose)
    assert stat.S_IMODE(loose.stat().st_mode) == 0o700
    make_private_directory(tmp_path / "c" / "d")
    assert stat.S_IMODE((tmp_path / "c" / "d").stat().st_mode) == 0o700


def test_what_cannot_be_a_private_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartupError, match="is not a directory"):
        make_private_directory(tmp_path / "file")
    with pytest.raises(StartupError, match="Not a directory"):
        make_private_directory(tmp_path / "file" / "below")
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(StartupError, match="belongs to user"):
        make_private_directory(tmp_path)


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
def test_where_others_could_have_put_things_is_refused_and_left_as_it_is(mode: int, tmp_path: Path) -> None:
    loose = tmp_path / "loose"
    loose.mkdir()
    loose.chmod(mode)
    (loose / "theirs").touch()
    with pytest.raises(StartupError, match="others may write to"):
        make_private_directory(loose)
    assert stat.S_IMODE(loose.stat().st_mode) == mode
    (loose / "theirs").unlink()
    make_private_directory(loose)
    assert stat.S_IMODE(loose.stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give things away")
def test_a_link_that_somebody_else_has_put_there_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir(mode=0o755)
    link = tmp_path / "link"
    link.symlink_to("mine")
    os.chown(link, 65534, 65534, follow_symlinks=False)
    with pytest.raises(StartupError, match="a symbolic link of user 65534"):
        make_private_directory(link)
    assert stat.S_IMODE((tmp_path / "mine").stat().st_mode) == 0o755
    os.chown(link, 0, 0, follow_symlinks=False)
    make_private_directory(link)
    assert stat.S_IMODE((tmp_path / "mine").stat().st_mode) == 0o700


# -- registry -----------------------------------------------------------------------------------------------


@pytest.fixture
def ended() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_register_find_and_forget(runtime: Path) -> None:
    mountpoint = Path("/mnt/a b\n/ü")
    made = registry.register(mountpoint, bucket="b")
    assert made.is_alive
    assert made.pid == os.getpid()
    assert made.socket == registry.socket_path(mountpoint)
    assert registry.find(mountpoint) == made
    assert registry.find(Path("/mnt/a")) is None
    registry.register(Path("/mnt/0"), bucket="c")
    assert [entry.bucket for entry in registry.all_mounts()] == ["c", "b"]
    assert stat.S_IMODE(runtime.stat().st_mode) == 0o700
    made.socket.touch()
    registry.unregister(mountpoint)
    registry.unregister(mountpoint)
    assert registry.find(mountpoint) is None
    assert not made.socket.exists()
    assert len(registry.all_mounts()) == 1


def rewrite(mountpoint: Path, **changes: Any) -> None:
    entry = registry._entry(mountpoint)
    entry.write_text(json.dumps({**json.loads(entry.read_text()), **changes}))


def test_a_dead_daemon_is_seen_and_may_be_forgotten(ended: int) -> None:
    mountpoint = Path("/mnt/a")
    registry.register(mountpoint, bucket="b")
    rewrite(mountpoint, pid=ended)
    found = registry.find(mountpoint)
    assert found is not None
    assert not found.is_alive
    registry.unregister(mountpoint)
    assert registry.find(mountpoint) is None


def test_another_process_with_the_same_number_is_not_the_daemon() -> None:
    mountpoint = Path("/mnt/a")
    started = registry.register(mountpoint, bucket="b").process_start
    rewrite(mountpoint, process_start=started - 1)
    found = registry.find(mountpoint)
    assert found is not None
    assert not found.is_alive


def test_a_successor_is_not_forgotten_by_its_predecessor() -> None:
    mountpoint = Path("/mnt/a")
    registry.register(mountpoint, bucket="b")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        rewrite(mountpoint, pid=other.pid, process_start=registry._process_start(other.pid))
        registry.unregister(mountpoint)
        assert registry.find(mountpoint) is not None


def test_a_zombie_is_dead() -> None:
    with subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.read()  # its end of the pipe closes as it ends
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert registry._process_start(child.pid) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"pid": 1}'])
def test_damaged_entries_are_passed_over(text: str, runtime: Path) -> None:
    registry.register(Path("/mnt/a"), bucket="b")
    (runtime / "damaged.json").write_text(text)
    assert len(registry.all_mounts()) == 1


def test_nothing_was_ever_mounted() -> None:
    assert registry.all_mounts() == []
    registry.unregister(Path("/mnt/a"))


def test_where_mounts_are_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    where = registry.runtime_directory
    assert where({"LAZYFS_RUNTIME_DIR": "/a", "XDG_RUNTIME_DIR": "/b"}) == Path("/a")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert where({"XDG_RUNTIME_DIR": "/b"}) == Path("/run/lazyfs")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert where({"XDG_RUNTIME_DIR": "/b"}) == Path("/b/lazyfs")
    monkeypatch.setenv("HOME", "/home/me")
    assert where({}) == Path("/home/me/.cache/lazyfs/run")
