"""`lazyfs doctor`: what this machine and this endpoint can do, and what it costs where they cannot."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import click

from lazyfs.cli.checks import Finding, Level, check_machine
from lazyfs.cli.options import GroupedCommand, by_name, declared_options
from lazyfs.cli.output import say, shown
from lazyfs.config import BucketConfig, CacheConfig, parse_bucket, read_options
from lazyfs.core.errors import StartupError

_COLOURS = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "red"}


@click.command(cls=GroupedCommand)
@click.argument("bucket", required=False, metavar="[BUCKET[/PREFIX]]")
@declared_options("bucket", "cache")
@click.option("--try-writes", is_flag=True, help="Also write a small object to the bucket, and delete it again.")
def doctor(bucket: str | None, try_writes: bool, **flags: str | bool | None) -> None:
    """Check that this machine can mount; with BUCKET, that the bucket can be reached and what its server supports.

    Each line is ok, warn (it works, at a cost) or fail. The exit code is 1 if anything failed.
    """
    name, prefix = parse_bucket(bucket) if bucket is not None else ("", "")
    section = read_options(by_name(flags), bucket=name)
    findings = check_machine(CacheConfig(**section["cache"]))
    if bucket is not None:
        findings = chain(findings, _endpoint(BucketConfig(name=name, prefix=prefix, **section["bucket"]), try_writes))
    failed = 0
    for finding in findings:
        failed += finding.level is Level.FAIL
        _print(finding)
    if bucket is None:
        click.echo("\nTo check a bucket and its server, too: lazyfs doctor BUCKET")
    if failed:
        raise StartupError(f"{failed} of the checks failed")


def _endpoint(config: BucketConfig, try_writes: bool) -> Iterator[Finding]:
    from lazyfs.cli.endpoint import check_endpoint  # noqa: PLC0415 - boto3 and trio are slow to import

    yield from check_endpoint(config, writable=try_writes)


def _print(finding: Finding) -> None:
    click.echo(f"{click.style(f'{finding.level.value:<4}', fg=_COLOURS[finding.level])}  {shown(finding.text)}")
    if finding.advice:
        say(f"      {finding.advice}")
