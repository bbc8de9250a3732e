"""From a path to its mount, and what is printed of many things."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.cli import progress as progress_module
from lazyfs.cli.mounts import MountEntry
from lazyfs.cli.output import Troubles, echo_json, shown
from lazyfs.cli.places import mount_of
from lazyfs.cli.progress import View
from lazyfs.cli.waiting import describe
from lazyfs.core.errors import StartupError

PATHS = st.lists(st.sampled_from("ab"), max_size=4).map(lambda names: Path("/", *names))


@given(PATHS, st.lists(PATHS, max_size=5))
def test_the_deepest_mount_counts_and_of_those_the_last(path: Path, mountpoints: list[Path]) -> None:
    mounts = [MountEntry(place, f"type-{number}", "") for number, place in enumerate(mountpoints)]
    found = mount_of(path, mounts)
    above = [entry for entry in mounts if path == entry.mountpoint or entry.mountpoint in path.parents]
    assert (found is None) == (not above)
    if found is not None:
        deepest = max(len(entry.mountpoint.parts) for entry in above)
        assert found is [entry for entry in above if len(entry.mountpoint.parts) == deepest][-1]


@given(st.text())
def test_a_path_is_one_line(path: str) -> None:
    assert len(shown(path).splitlines()) <= 1
    assert shown(path).isprintable()


@pytest.mark.parametrize("documents", [[], [1], [{"a": "b\n"}, 2, None]])
def test_an_array_is_printed_as_it_comes(documents: list[object], capsys: pytest.CaptureFixture[str]) -> None:
    echo_json(iter(documents))
    assert json.loads(capsys.readouterr().out) == documents


def test_an_array_is_closed_when_something_goes_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    def documents() -> object:
        yield 1
        raise StartupError("gone")

    with pytest.raises(StartupError):
        echo_json(documents())  # type: ignore[arg-type]
    assert json.loads(capsys.readouterr().out) == [1]


def test_one_bad_argument_does_not_keep_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    def work(text: str) -> list[str]:
        if text == "bad":
            raise StartupError("not\nhere")
        return [text, text]

    troubles = Troubles()
    assert list(troubles.each(["a", "bad", "b"], work)) == ["a", "a", "b", "b"]
    assert troubles.exit_code == 1
    assert capsys.readouterr().err == "lazyfs: not here\n"


def test_how_far_a_task_is() -> None:
    progress = {"files": 3, "total_files": 1200, "bytes": 1024, "total_bytes": None, "failures": 0}
    assert describe({"progress": progress, "failed": 0, "seconds": 2.0}) == "3 of 1,200 files, 1.0 KiB, 2.0 s"
    assert describe({"progress": {}, "failed": 2, "seconds": 0.5}) == "2 failed, 500 ms"


def test_plain_lines_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress_module, "EVERY_S", 0)
    with View() as view:
        view.tell("some", done=1, total=2)
    monkeypatch.setattr(progress_module, "EVERY_S", 100)
    with View() as view:
        view.tell("more")
    assert capsys.readouterr().err == "some\n"


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    with View() as view:
        view.tell("3 files", done=1, total=2)
    assert "3 files" in capsys.readouterr().err
