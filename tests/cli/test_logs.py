"""Where the log goes: to a file of ours, and of nobody else's, whatever was put in its place."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lazyfs.cli.logs import configure_logging, open_log_file
from lazyfs.core.errors import StartupError


def link(path: Path) -> None:
    path.symlink_to(path.parent / "treasure")


def dangling(path: Path) -> None:
    path.symlink_to(path.parent / "not-there")


def hard_link(path: Path) -> None:
    path.hardlink_to(path.parent / "treasure")


def pipe(path: Path) -> None:
    os.mkfifo(path)


def everybodys(path: Path) -> None:
    path.touch()
    path.chmod(0o666)


def of_another(path: Path) -> None:
    path.touch()
    os.chown(path, 65534, 65534)


PLANTED: dict[Callable[[Path], None], str] = {
    link: "symbolic link",
    dangling: "symbolic link",
    hard_link: "other names",
    pipe: "No such device or address",
    Path.mkdir: "Is a directory",
    everybodys: "everybody may write",
    of_another: "belongs to user 65534",
}


@pytest.fixture
def root_logger() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("lazyfs")
    before = root.handlers[:], root.level, ours.level
    yield
    for handler in root.handlers:
        if handler not in before[0]:
            handler.close()
    root.handlers[:], root.level = before[:2]
    ours.setLevel(before[2])


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_what_was_planted_is_neither_followed_nor_written_to(plant: Callable[[Path], None], tmp_path: Path) -> None:
    if plant is of_another and os.geteuid() != 0:
        pytest.skip("only root can give things away")
    treasure = tmp_path / "treasure"
    treasure.write_text("mine")
    plant(tmp_path / "log")
    with pytest.raises(StartupError, match=PLANTED[plant]):
        open_log_file(tmp_path / "log")
    assert treasure.read_text() == "mine"
    assert not (tmp_path / "not-there").exists()


def test_what_may_be_written_to(tmp_path: Path) -> None:
    os.close(open_log_file(Path(os.devnull)))
    os.close(open_log_file(tmp_path / "a/log"))
    assert stat.S_IMODE((tmp_path / "a/log").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o700
    (tmp_path / "rotated").touch(mode=0o640)  # by logrotate, for a group that reads logs
    os.close(open_log_file(tmp_path / "rotated"))


@pytest.mark.usefixtures("root_logger")
def test_nor_is_what_was_planted_after_a_rotation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, treasure = tmp_path / "log", tmp_path / "treasure"
    treasure.write_text("mine")
    configure_logging(log, "info")
    logging.getLogger("lazyfs.test").info("one")
    log.rename(tmp_path / "log.1")
    log.symlink_to(treasure)
    logging.getLogger("lazyfs.test").info("two")  # and nothing is raised
    assert "symbolic link" in capsys.readouterr().err
    log.unlink()
    logging.getLogger("lazyfs.test").info("three")
    assert treasure.read_text() == "mine"
    assert log.read_text().endswith("three\n")
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


@pytest.mark.usefixtures("root_logger")
def test_a_log_that_cannot_be_written_any_more_stops_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(tmp_path / "a/log", "info")
    (tmp_path / "a/log").unlink()
    (tmp_path / "a").rmdir()
    (tmp_path / "a").touch()
    logging.getLogger("lazyfs.test").info("lost")
    assert "Not a directory" in capsys.readouterr().err
