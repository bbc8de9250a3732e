"""Where the log of a mount goes: one line a record, whatever the record holds."""

from __future__ import annotations

import errno
import logging
import logging.handlers
import os
import stat
from io import TextIOWrapper
from pathlib import Path

from lazyfs.cli.output import shown
from lazyfs.core.errors import StartupError


class OneLineFormatter(logging.Formatter):
    r"""What is not printable, in messages and tracebacks alike, is written as `\n` or `\x1b`: keys and servers may
    send it, grep wants lines, and a terminal would obey it."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """The record in one line."""
        return shown(super().format(record))


class _OwnLogFile(logging.handlers.WatchedFileHandler):
    """Opens its file, after each rotation too, as `open_log_file` does. A log that cannot be written stops nobody."""

    def _open(self) -> TextIOWrapper:
        return open(open_log_file(Path(self.baseFilename)), "a", encoding=self.encoding, errors=self.errors)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except (OSError, StartupError):
            self.handleError(record)


def open_log_file(path: Path) -> int:
    """A descriptor that appends to `path`, which only its owner may read. Raises StartupError.

    Where others may make files, as in /tmp, they may have put something there: a link to a file of ours, or a file of
    theirs, to read what we write.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # A pipe that nobody reads would make us wait.
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    except OSError as error:
        reason = "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror
        raise StartupError(f"cannot write the log file {path}: {reason}") from error
    wrong = _what_is_wrong(os.fstat(descriptor))
    if wrong:
        os.close(descriptor)
        raise StartupError(f"cannot write the log file {path}: {wrong}")
    os.set_blocking(descriptor, True)
    return descriptor


def _what_is_wrong(status: os.stat_result) -> str:
    """Why a log must not be written there; empty if it may."""
    if stat.S_ISCHR(status.st_mode):  # /dev/null, or a terminal
        return ""
    if not stat.S_ISREG(status.st_mode):
        return "it is no file"
    if status.st_uid != os.geteuid():
        return f"it belongs to user {status.st_uid}, not to you"
    if status.st_mode & stat.S_IWOTH:
        return "everybody may write to it"
    return "it has other names besides this one" if status.st_nlink > 1 else ""


def configure_logging(file: Path | None, level: str) -> None:
    """Send lazyfs's records of `level` and above, and warnings of libraries, to `file` or to standard error."""
    handler: logging.Handler
    if file is None:
        handler = logging.StreamHandler()
    else:
        handler = _OwnLogFile(file, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(OneLineFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("lazyfs").setLevel(level.upper())
