"""Where the log of a mount goes: one line a record, whatever the record holds."""

from __future__ import annotations

import logging
import logging.handlers
import os
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


def open_log_file(path: Path) -> int:
    """A descriptor that appends to `path`, which only its owner may read. Raises StartupError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StartupError(f"cannot write the log file {path}: {error.strerror}") from error


def configure_logging(file: Path | None, level: str) -> None:
    """Send lazyfs's records of `level` and above, and warnings of libraries, to `file` or to standard error."""
    handler: logging.Handler
    if file is None:
        handler = logging.StreamHandler()
    else:
        os.close(open_log_file(file))  # created with its mode before logging opens it
        handler = logging.handlers.WatchedFileHandler(file, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(OneLineFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("lazyfs").setLevel(level.upper())
