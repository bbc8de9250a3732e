from __future__ import annotations

import re
import subprocess
import sys

import click
import pytest

from lazyfs import __version__
from lazyfs.cli import main as main_module
from lazyfs.cli.main import run
from lazyfs.config import OPTIONS
from lazyfs.core.errors import StartupError, UsageError

pytestmark = pytest.mark.usefixtures("home")


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    for command in main_module.COMMANDS:
        assert re.search(rf"^  {command} +\S", shown, re.MULTILINE)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from lazyfs.cli.main import run; run(['--help']); run(['mount', '--help']); "
        "print({'boto3', 'obstore', 'pyfuse3', 'trio', 'lxml', 'diskcache'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"lazyfs {__version__}\n"


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 2
    assert "Usage: lazyfs" in capsys.readouterr().err


def test_help_of_mount_has_headings_and_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["mount", "--help"]) == 0
    shown = capsys.readouterr().out
    places = [shown.index(f"\n{heading}:\n") for heading in ("Bucket", "Mount", "Cache", "Write", "Logs", "Examples")]
    assert places == sorted(places)
    assert shown.index("--endpoint-url URL") < shown.index("\nMount:")
    assert len(re.findall(r"^  lazyfs mount ", shown, re.MULTILINE)) == 3
    for option in OPTIONS:
        assert f"--{option.name}" in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["frobnicate"], "No such command 'frobnicate' (see lazyfs --help)"),
        (["mount"], "Missing argument 'BUCKET[/PREFIX]' (see lazyfs mount --help)"),
        (["mount", "bucket"], "Missing argument 'MOUNTPOINT' (see lazyfs mount --help)"),
        (["mount", "bucket", "/mnt", "--cache-sise", "1"], "No such option '--cache-sise'"),
        (["mount", "bucket", "/mnt", "--cache-size", "many"], "--cache-size: not a size: 'many'"),
        (["mount", "bucket", "/mnt", "--metadata-ttl", "soon"], "--metadata-ttl: not a duration: 'soon'"),
        (["mount", "bucket", "/mnt", "-o", "uuid=5"], "unknown mount option 'uuid'; did you mean uid?"),
        (["mount", "bucket", "/mnt", "--config", "/not/there"], "cannot read /not/there"),
        (["mount", "/mnt", "bucket"], "the bucket comes first, then the mount point: lazyfs mount bucket /mnt"),
        (["mount", "", "/mnt"], "no bucket's name in ''"),
        (["umount"], "Missing argument 'MOUNTPOINT'"),
        (["umount", "/mnt", "--timeout", "x"], "not a duration: 'x'"),
        (["doctor", "b"], "not a bucket's name: 'b'"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("lazyfs: ")
    assert captured.err.count("\n") == 1
    assert said in captured.err


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr(main_module.lazyfs, "main", fail)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("so\n  not"), 2),
        (StartupError("so not"), 1),
        (click.UsageError("so not"), 2),
        (click.ClickException("so not"), 1),
    ],
)
def test_errors_are_one_line(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raising(monkeypatch, error)
    assert run([]) == code
    assert capsys.readouterr().err == "lazyfs: so not\n"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_an_interrupt_has_no_traceback(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raising(monkeypatch, error)
    assert run([]) == 130
    assert capsys.readouterr().err == "lazyfs: interrupted\n"


def test_debug_keeps_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAZYFS_DEBUG", "1")
    raising(monkeypatch, StartupError("so not"))
    with pytest.raises(StartupError):
        run([])


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    code = "import sys; from lazyfs.cli.main import main; sys.stdin.readline(); main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "--help"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, said = process.communicate(b"\n", timeout=30)
    assert said == b""
    assert process.returncode == 1
