"""Going into the background, with the parent staying until it is known whether that worked.

Nothing here may run after a thread or a client exists: fork copies neither. The child reports through a pipe in JSON
lines: any number of `{"progress": {…}}`, then one `{"ready": true}` or `{"error": reason, "exit": code}`; a pipe that
closes without that one means that the child died. Progress never waits for the parent: what does not fit is dropped.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TextIO

from lazyfs.cli.logs import open_log_file
from lazyfs.core.errors import LazyfsError, StartupError, UsageError

Tell = Callable[[dict[str, Any]], None]
Body = Callable[[Callable[[], None], Tell], None]
"""What the daemon does: call the first argument once when ready, the second before that to tell of progress, return
when done, raise LazyfsError on failure."""

log = logging.getLogger(__name__)


def daemonise(body: Body, *, log_file: Path, on_progress: Tell = lambda _: None) -> None:
    """Run `body` in a background process; returns when it is ready. `on_progress` hears what it tells before.

    Raises what the body raised before that, as StartupError or UsageError, or StartupError if it died without a word.
    An interrupt (Ctrl-C) while waiting ends the child too.
    """
    log_descriptor = open_log_file(log_file)
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _become_daemon(body, writer, log_descriptor, log_file)
    os.close(writer)
    os.close(log_descriptor)
    try:
        with os.fdopen(reader, encoding="utf-8") as pipe:
            report = _listen(pipe, on_progress)
    except KeyboardInterrupt:
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)
        raise
    _judge(report, child, log_file)


def _listen(pipe: TextIO, on_progress: Tell) -> str:
    """The line that decides; an incomplete one or none if the child died."""
    for line in pipe:
        progress = json.loads(line).get("progress") if line.endswith("\n") else None
        if progress is None:
            return line
        on_progress(progress)
    return ""


def _judge(report: str, child: int, log_file: Path) -> None:
    """Return if the child is ready; raise its reason if not."""
    if not report.endswith("\n"):
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        raise StartupError(f"the daemon {how} before the mount was ready; its log is {log_file}")
    answer = json.loads(report)
    if "error" in answer:
        os.waitpid(child, 0)
        raise (UsageError if answer["exit"] == 2 else StartupError)(answer["error"])


def _become_daemon(body: Body, pipe: int, log_descriptor: int, log_file: Path) -> NoReturn:
    """The child's whole life: never returns into the parent's stack."""
    code = 1
    try:
        _detach(log_descriptor)
        code = _run(body, pipe, log_file)
    except BaseException:
        log.exception("the daemon failed")
    finally:
        logging.shutdown()
        os._exit(code)


def _detach(log_descriptor: int) -> None:
    os.setsid()
    os.chdir("/")
    os.umask(0o077)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(log_descriptor, 1)
    os.dup2(log_descriptor, 2)
    os.close(null)
    os.close(log_descriptor)


def _first_leaf(error: BaseException) -> BaseException:
    """What a group is about: its first error that is no group."""
    return _first_leaf(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


def _run(body: Body, pipe: int, log_file: Path) -> int:
    told = False

    def tell(**report: object) -> None:
        nonlocal told
        if not told:
            told = True
            try:
                os.set_blocking(pipe, True)
                os.write(pipe, json.dumps(report).encode() + b"\n")
            except BrokenPipeError:  # the parent was killed; the mount is alive all the same
                log.warning("nobody waits for the mount to be ready")
            os.close(pipe)

    def tell_progress(progress: dict[str, Any]) -> None:
        if not told:
            with contextlib.suppress(BlockingIOError, BrokenPipeError):  # a line is written whole: it is short
                os.write(pipe, json.dumps({"progress": progress}).encode() + b"\n")

    os.set_blocking(pipe, False)
    try:
        body(lambda: tell(ready=True), tell_progress)
    except LazyfsError as error:
        log.error("%s", error)
        code = 2 if isinstance(error, UsageError) else 1
        tell(error=str(error), exit=code)
        return code
    except Exception as error:
        log.exception("unexpected error")
        cause = _first_leaf(error)
        tell(error=f"unexpected error: {type(cause).__name__}: {cause}; its log is {log_file}", exit=1)
        return 1
    if not told:
        tell(error="the daemon ended before the mount was ready", exit=1)
        return 1
    return 0
