"""`lazyfs bench`: what lazyfs is worth to a training job, measured on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lazyfs.cli.options import GroupedCommand, by_name, declared_options
from lazyfs.cli.preflight import check_fuse
from lazyfs.config import OPTIONS, BucketConfig, parse_bucket, read_options
from lazyfs.core.errors import StartupError, UsageError
from lazyfs.core.units import format_duration, format_size, parse_duration, parse_size

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from lazyfs.bench.dataset import DataSet
    from lazyfs.bench.modes import Comparison, Outcome, Stage, Tell
    from lazyfs.cli.gateway import Gateway

BUCKET = "bench"
FILES, FILE_SIZE, LIMIT_FILES = 2000, "114660", 2000
"""114,660 bytes is a picture of ImageNet in MLPerf Storage's resnet50. Many fewer files would all fit into what the
loader has on its way at once (16 batches), so that the first batch would wait for everything."""
COUNT = click.IntRange(min=1)
EPILOG = """Examples:
  lazyfs bench modes --png modes.png
  lazyfs bench modes --files 4000 --epochs 2
  lazyfs bench modes my-bucket/imagenet/train --limit-files 5000 --json modes.json --scratch /nvme"""


@click.group()
def bench() -> None:
    """Measure what lazyfs is worth to a training job."""


@bench.command(cls=GroupedCommand, epilog=EPILOG)
@click.argument("bucket", required=False, metavar="[BUCKET[/PREFIX]]")
@declared_options("bucket")
@click.option("--files", type=COUNT, help=f"How many files to make where there is no BUCKET.  [{FILES}]")
@click.option("--file-size", metavar="SIZE", help=f"How large they are.  [{FILE_SIZE}, an ImageNet picture]")
@click.option("--limit-files", type=COUNT, help=f"The most files of BUCKET, in the order of keys.  [{LIMIT_FILES}]")
@click.option("--batch", type=COUNT, default=32, show_default=True, help="Files a batch.")
@click.option("--workers", type=COUNT, default=8, show_default=True, help="Threads of the data loader.")
@click.option("--compute", default="100ms", show_default=True, metavar="TIME", help="What a batch takes to compute.")
@click.option("--epochs", type=COUNT, default=1, show_default=True, help="How often each file is read in a run.")
@click.option("--label", metavar="TEXT", help="What table and picture call the server.  [its URL]")
@click.option("--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="Write all figures here.")
@click.option("--png", "png_file", type=click.Path(path_type=Path), metavar="FILE", help="Draw a picture here.")
@click.option(
    "--scratch",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where data is downloaded and cached: on the disk to measure.  [the temporary directory]",
)
def modes(
    *,
    bucket: str | None,
    files: int | None,
    file_size: str | None,
    limit_files: int | None,
    label: str | None,
    json_file: Path | None,
    png_file: Path | None,
    scratch: Path | None,
    compute: str,
    batch: int,
    workers: int,
    epochs: int,
    **flags: str | bool | None,
) -> None:
    """Compare one training job over four ways to its data.

    File mode downloads everything and then trains; lazyfs mounts and trains at once, first with an empty cache, then
    with --preload, then with what the first run left. Files are really read, by threads that work as those of a PyTorch
    DataLoader, and every byte is checked; the accelerator is emulated by sleeping, as in MLPerf Storage.

    Without BUCKET this starts an S3 server of its own on loopback. With BUCKET it reads what is there, and only reads.
    """
    _check_files(json_file, png_file)
    check_fuse(allow_other=False)
    from lazyfs.bench.training import Job  # noqa: PLC0415 - as all below: `lazyfs --help` answers at once

    job = Job(batch=batch, workers=workers, compute_s=_seconds(compute), epochs=epochs)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_sigterm_as_ctrl_c())
        view = stack.enter_context(_View())
        folder = Path(stack.enter_context(_scratch(scratch)))
        if bucket is not None:
            if files is not None or file_size is not None:
                raise UsageError("--files and --file-size make a data set; for one that exists: --limit-files")
            config, data = _users(bucket, flags, limit_files or LIMIT_FILES)
            server = config.endpoint_url or "AWS S3"
        else:
            _refuse_without_bucket(limit_files, flags)
            size = _bytes(file_size or FILE_SIZE)
            config, data = stack.enter_context(_own(folder, files or FILES, size, view.tell))
            server = "an S3 server on loopback"
        from lazyfs.bench.modes import Stage, compare  # noqa: PLC0415

        stage = Stage(bucket=config, data=data, job=job, scratch=folder, tell=view.tell)
        comparison = compare(stage)
    _show(view.console, comparison, stage, label or server, json_file, png_file)


# -- the data set ---------------------------------------------------------------------------------------------------


def _users(bucket: str, flags: dict[str, Any], limit: int) -> tuple[BucketConfig, DataSet]:
    """The user's bucket, which is only read."""
    from lazyfs.bench.dataset import list_files, on_bucket  # noqa: PLC0415
    from lazyfs.core.stats import Stats  # noqa: PLC0415

    name, prefix = parse_bucket(bucket)
    section = read_options(by_name(flags), bucket=name)
    config = BucketConfig(name=name, prefix=prefix, **section["bucket"])
    data = on_bucket(config, lambda store: list_files(store, prefix=prefix, limit=limit), stats=Stats())
    if not data.files:
        raise StartupError(f"no files to train on in {name}/{prefix}")
    return config, data


@contextlib.contextmanager
def _own(folder: Path, files: int, size: int, tell: Tell) -> Iterator[tuple[BucketConfig, DataSet]]:
    """A bucket of our own making on a server of our own, until the block ends."""
    from lazyfs.bench.dataset import fill, on_bucket  # noqa: PLC0415
    from lazyfs.cli.demo import witness  # noqa: PLC0415
    from lazyfs.cli.gateway import REGION, running_gateway  # noqa: PLC0415
    from lazyfs.core.stats import Stats  # noqa: PLC0415

    directory = folder / "server"
    directory.mkdir(mode=0o700)
    with running_gateway(directory) as gateway, _as_user_of(gateway):
        witness(gateway).make_bucket(BUCKET)
        config = BucketConfig(name=BUCKET, endpoint_url=gateway.endpoint_url, region=REGION)

        def advance(done: int) -> None:
            tell("fill a bucket", done, files)

        yield (
            config,
            on_bucket(config, lambda store: fill(store, files=files, file_size=size, advance=advance), stats=Stats()),
        )


@contextlib.contextmanager
def _as_user_of(gateway: Gateway) -> Iterator[None]:
    """Be this server's user: what is set for other servers and mounts does not count."""
    before = dict(os.environ)
    strangers = {option.variable for option in OPTIONS} | {name for name in before if name.startswith("AWS_")}
    for name in strangers & before.keys():
        del os.environ[name]
    os.environ.update(gateway.environment(), LAZYFS_CONFIG=os.devnull)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _refuse_without_bucket(limit_files: int | None, flags: dict[str, Any]) -> None:
    given = [f"--{name}" for name, value in by_name(flags).items() if value is not None]
    if limit_files is not None:
        given.append("--limit-files")
    if given:
        raise UsageError(f"{given[0]} is about a bucket: name it")


# -- before and around the work -------------------------------------------------------------------------------------


def _check_files(json_file: Path | None, png_file: Path | None) -> None:
    """What can be known to fail in the end fails before the work."""
    if png_file is not None:
        from lazyfs.bench.picture import check_can_draw  # noqa: PLC0415

        check_can_draw()
    for file in (json_file, png_file):
        if file is not None and (file.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK)):
            raise StartupError(f"cannot write {file}")


def _bytes(text: str) -> int:
    try:
        size = parse_size(text)
    except UsageError as error:
        raise UsageError(f"--file-size: {error}") from error
    if not size:
        raise UsageError("--file-size: empty files have nothing to read")
    return size


def _seconds(text: str) -> float:
    try:
        seconds = parse_duration(text)
    except UsageError as error:
        raise UsageError(f"--compute: {error}") from error
    if seconds == float("inf"):
        raise UsageError("--compute: the accelerator has to come to an end")
    return seconds


def _scratch(directory: Path | None) -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(prefix="lazyfs-modes-", dir=directory)
    except OSError as error:
        raise StartupError(f"cannot work in {directory or tempfile.gettempdir()}: {error.strerror}") from error


@contextlib.contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """A benchmark that is told to end takes its mounts and servers down, as with Ctrl-C."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# -- telling --------------------------------------------------------------------------------------------------------


class _View:
    """What is being done: a bar on a terminal, a line elsewhere; on standard error."""

    def __init__(self) -> None:
        from rich.console import Console  # noqa: PLC0415
        from rich.progress import Progress  # noqa: PLC0415

        self.console: Console = Console(highlight=False)
        if not self.console.is_terminal:
            self.console = Console(highlight=False, width=120)
        self._stderr = Console(stderr=True, highlight=False)
        # Drawn seldom: the benchmark wants the processors for itself.
        self._bar: Progress = Progress(console=self._stderr, transient=True, refresh_per_second=2)
        self._task: TaskID | None = None
        self._what = ""

    def __enter__(self) -> _View:
        if self._stderr.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._stderr.is_terminal:
            self._bar.stop()

    def tell(self, what: str, done: int, of: int) -> None:
        """See modes.Tell."""
        if what != self._what:
            self._what = what
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(what, total=of)
            if not self._stderr.is_terminal:
                click.echo(f"{what} …", err=True)
        assert self._task is not None, "made with the first word"
        self._bar.update(self._task, completed=done)


def _show(
    console: Console,
    comparison: Comparison,
    stage: Stage,
    server: str,
    json_file: Path | None,
    png_file: Path | None,
) -> None:
    from lazyfs.bench.picture import draw  # noqa: PLC0415
    from lazyfs.bench.report import as_data, describe  # noqa: PLC0415

    parameters = describe(stage, server=server)
    _print_table(console, comparison.outcomes, parameters)
    for note in comparison.notes:
        console.print(f"note: {note}")
    if json_file is not None:
        json_file.write_text(json.dumps(as_data(comparison, stage), indent=2) + "\n", encoding="utf-8")
    if png_file is not None:
        draw(comparison.outcomes, subtitle=parameters, file=png_file)


def _print_table(console: Console, outcomes: list[Outcome], parameters: str) -> None:
    from rich import box  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=box.SIMPLE, title=parameters, title_justify="left", title_style="")
    heads = ("mode", "download, mount", "first batch", "stall", "total", "busy", "requests", "S3", "SSD", "memory")
    for head in heads:
        table.add_column(head, justify="left" if head == "mode" else "right", no_wrap=head == "mode")
    for outcome in outcomes:
        timeline = outcome.timeline
        times = (outcome.setup_s, timeline.first_batch_s, timeline.stall_s, timeline.total_s)
        sizes = (outcome.s3_bytes, outcome.ssd_bytes, outcome.memory_bytes)
        table.add_row(
            outcome.mode,
            *(format_duration(seconds) for seconds in times),
            f"{timeline.utilisation:.0%}",
            f"{sum(outcome.requests.values()):,}",
            *(format_size(size) if size else "–" for size in sizes),
        )
    console.print(table)
