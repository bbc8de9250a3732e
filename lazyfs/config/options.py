"""Every option of a mount, declared once, as a field of the dataclasses that carry the values.

An option's name is its flag (`--cache-size`), its key in the TOML file and in `-o` (`cache-size`) and, in capitals,
its variable (`LAZYFS_CACHE_SIZE`). The flags of `lazyfs mount`, the reading of every source and
docs/configuration.md are generated from these declarations.
"""

# ruff: noqa: RUF009 - `_option` returns a dataclass field

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lazyfs.config.machine import (
    Environ,
    Known,
    default_cache_directory,
    default_cache_size,
    default_log_file,
    default_memory,
)
from lazyfs.config.shared import SharedCache, parse_shared_cache
from lazyfs.config.values import (
    one_of,
    parse_account,
    parse_encryption,
    parse_endpoint,
    parse_events,
    parse_id,
    parse_memory,
    parse_mode,
    parse_part_size,
    parse_path,
    parse_path_or_none,
    parse_port,
    parse_snapshot,
    parse_storage_class,
    parse_switch,
    parse_text,
    parse_time_limit,
    parse_ttl,
)
from lazyfs.core.units import parse_duration, parse_size


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One declaration. `group` and `field` say where its value lives in Config."""

    name: str
    parse: Callable[[str], Any]
    default: Callable[[Known, Environ], Any]
    default_text: str
    metavar: str
    help: str
    short: str | None = None
    negation: str | None = None
    group: str = ""
    field: str = ""

    @property
    def is_switch(self) -> bool:
        """Whether the flag stands alone, without a value."""
        return self.parse is parse_switch

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return "LAZYFS_" + self.name.replace("-", "_").upper()


# -- the options --------------------------------------------------------------------------------------------


def _option(
    name: str,
    parse: Callable[[str], Any],
    metavar: str,
    help: str,  # noqa: A002 - the word click has for it
    *,
    default: Any = None,
    computed: Callable[[Known, Environ], Any] | None = None,
    default_text: str = "",
    short: str | None = None,
    negation: str | None = None,
) -> Any:
    """A dataclass field that declares an option. `default` is in final units, `default_text` as a user writes it."""
    choose = computed or (lambda _known, _environ: default)
    option = Option(
        name=name,
        parse=parse,
        default=choose,
        default_text=default_text,
        metavar=metavar,
        help=help,
        short=short,
        negation=negation,
    )
    return dataclasses.field(default_factory=lambda: choose({}, os.environ), metadata={"option": option})


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketConfig:
    """Which bucket, and how to reach it. None means: as the AWS_* variables and files say."""

    name: str
    prefix: str = ""
    endpoint_url: str | None = _option(
        "endpoint-url",
        parse_endpoint,
        "URL",
        "The S3 server, when it is not AWS.",
        default_text="AWS_ENDPOINT_URL, else AWS",
    )
    region: str | None = _option(
        "region", parse_text, "NAME", "Region of the bucket.", default_text="from the AWS configuration"
    )
    profile: str | None = _option(
        "profile", parse_text, "NAME", "Profile of the AWS configuration.", default_text="from the AWS configuration"
    )
    no_sign_request: bool = _option(
        "no-sign-request", parse_switch, "", "Send no credentials, for public buckets.", default=False
    )
    force_path_style: bool | None = _option(
        "force-path-style",
        parse_switch,
        "",
        "Put the bucket's name into the path of URLs, or into the host name.",
        default_text="path style unless the server is AWS",
        negation="no-force-path-style",
    )
    requester_pays: bool = _option(
        "requester-pays", parse_switch, "", "Agree to pay for requests to someone else's bucket.", default=False
    )
    expected_bucket_owner: str | None = _option(
        "expected-bucket-owner", parse_account, "ACCOUNT", "Refuse the bucket unless this AWS account owns it."
    )
    read_timeout_s: float = _option(
        "read-timeout",
        parse_time_limit,
        "TIME",
        "The longest silence of the server in one request; ten times that is the longest request.",
        default=30.0,
        default_text="30s",
    )
    retry_for_s: float = _option(
        "retry-for",
        parse_time_limit,
        "TIME",
        "How long a request that fails for the server's or the network's sake is tried again before a program is told.",
        default=60.0,
        default_text="60s",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MountConfig:
    """Where the bucket appears, and to whom."""

    mountpoint: Path
    read_only: bool = _option(
        "read-only", parse_switch, "", "Refuse every change; re-reads are faster.", default=False, negation="read-write"
    )
    allow_other: bool = _option(
        "allow-other", parse_switch, "", "Let other users in, as the permission bits say.", default=False
    )
    uid: int = _option(
        "uid", parse_id, "ID", "Owner of everything.", computed=lambda _known, _environ: os.getuid(), default_text="you"
    )
    gid: int = _option(
        "gid",
        parse_id,
        "ID",
        "Group of everything.",
        computed=lambda _known, _environ: os.getgid(),
        default_text="your group",
    )
    file_mode: int = _option(
        "file-mode", parse_mode, "OCTAL", "Permission bits of files.", default=0o644, default_text="0644"
    )
    dir_mode: int = _option(
        "dir-mode", parse_mode, "OCTAL", "Permission bits of directories.", default=0o755, default_text="0755"
    )
    posix_metadata: Literal["off", "lazy"] = _option(
        "posix-metadata",
        one_of("off", "lazy"),
        "off|lazy",
        "Whether objects that others made are asked for mode, owner, time and symbolic links (FSx, s3fs, rclone): "
        "lazy sends a HEAD when a version is first looked at.",
        default="off",
        default_text="off",
    )
    xattrs: bool = _option(
        "xattrs",
        parse_switch,
        "",
        "Keep extended attributes user.* as metadata of the object. The kernel then asks for one before each write.",
        default=False,
    )
    session: Literal["auto", "pyfuse3", "direct"] = _option(
        "session",
        one_of("auto", "pyfuse3", "direct"),
        "auto|pyfuse3|direct",
        "How to speak with the kernel: through libfuse (pyfuse3) or without it (direct, Linux 5.4 or later); auto is "
        "direct where that works.",
        default="pyfuse3",
        default_text="pyfuse3",
    )
    foreground: bool = _option(
        "foreground", parse_switch, "", "Stay in the foreground and log to the terminal.", default=False, short="f"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig:
    """What is kept on this machine. `directory` None: no SSD tier; `metadata_ttl_s` may be infinite."""

    directory: Path | None = _option(
        "cache-dir",
        parse_path_or_none,
        "DIR|none",
        "Where data and the namespace are kept between mounts; none keeps nothing on disk.",
        computed=default_cache_directory,
        default_text="$XDG_CACHE_HOME/lazyfs",
    )
    size: int = _option(
        "cache-size",
        parse_size,
        "SIZE",
        "The most that data may take there.",
        computed=default_cache_size,
        default_text="20GiB or a fifth of what is free, the smaller",
    )
    memory: int = _option(
        "memory",
        parse_memory,
        "SIZE",
        "The most memory for data in flight and in cache.",
        computed=default_memory,
        default_text="1GiB or an eighth of the RAM, the smaller",
    )
    metadata_ttl_s: float = _option(
        "metadata-ttl",
        parse_duration,
        "TIME|indefinite",
        "How long names and sizes are believed without asking the server again.",
        default=60.0,
        default_text="60s",
    )
    import_mode: Literal["wait", "background"] = _option(
        "import",
        one_of("wait", "background"),
        "wait|background",
        "Whether the mount waits until the whole bucket is listed.",
        default="background",
        default_text="background",
    )
    preload: bool = _option(
        "preload",
        parse_switch,
        "",
        "Bring all data to the cache directory in the background, as far as there is room.",
        default=False,
    )
    snapshot: str | None = _option(
        "index",
        parse_snapshot,
        "FILE|s3://BUCKET/KEY",
        "Start from this snapshot of `lazyfs index export`, if what is kept here is not as new.",
    )
    events: str | None = _option(
        "events",
        parse_events,
        "minio|sqs:URL",
        "Be told of changes at once: by the server's own stream, or by an SQS queue that is this mount's alone.",
    )
    shared: SharedCache | None = _option(
        "shared-cache",
        parse_shared_cache,
        "URL|none",
        "Where nodes share what one of them fetched: s3://BUCKET/PREFIX, a nearer bucket (?endpoint=URL for another "
        "server), or redis://HOST:PORT/DB, rediss:// for TLS, redis+cluster:// for a cluster. A URL with a password "
        "is taken from the variable or the file only.",
    )
    shared_ttl_s: float = _option(
        "shared-cache-ttl",
        parse_ttl,
        "TIME|indefinite",
        "When Redis forgets what was shared; a bucket needs a lifecycle rule.",
        default=7 * 86400.0,
        default_text="7d",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteConfig:
    """How changes reach the bucket, and which are refused."""

    write_back: bool = _option(
        "write-back",
        parse_switch,
        "",
        "Let close return once the file is durable in the cache directory; it is uploaded later.",
        default=False,
        negation="write-through",
    )
    fsync: Literal["s3", "local"] = _option(
        "fsync",
        one_of("s3", "local"),
        "s3|local",
        "What fsync waits for: the bucket, or, with --write-back, that the file is durable here.",
        computed=lambda known, _environ: "local" if known.get("write-back") else "s3",
        default_text="s3; with --write-back local",
    )
    part_size: int = _option(
        "part-size",
        parse_part_size,
        "SIZE",
        "Part size of multipart uploads; a file that fits in one part is one request.",
        default=8 * 1024**2,
        default_text="8MiB",
    )
    spool_size: int = _option(
        "spool-size",
        parse_size,
        "SIZE",
        "The most that files being written may take in the cache directory.",
        computed=default_cache_size,
        default_text="as --cache-size",
    )
    no_overwrite: bool = _option(
        "no-overwrite", parse_switch, "", "Refuse to replace an object that exists.", default=False
    )
    no_delete: bool = _option("no-delete", parse_switch, "", "Refuse to delete objects.", default=False)
    storage_class: str | None = _option(
        "storage-class",
        parse_storage_class,
        "CLASS",
        "Storage class of new objects, like STANDARD_IA.",
        default_text="the bucket's",
    )
    sse: str | None = _option(
        "sse",
        parse_encryption,
        "AES256|aws:kms|aws:kms:dsse",
        "Encryption of new objects by the server.",
        default_text="the bucket's",
    )
    sse_kms_key_id: str | None = _option(
        "sse-kms-key-id", parse_text, "ID", "The KMS key for it.", default_text="the account's"
    )
    checksum: Literal["crc32c", "none"] = _option(
        "checksum",
        one_of("crc32c", "none"),
        "crc32c|none",
        "The checksum that goes along with what is uploaded; none for servers that refuse it.",
        default="crc32c",
        default_text="crc32c",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig:
    """Where the log goes (None: standard error) and how much of it; where Prometheus asks (port None: nowhere)."""

    file: Path | None = _option(
        "log-file",
        parse_path,
        "FILE",
        "Where the log goes.",
        computed=default_log_file,
        default_text="$XDG_STATE_HOME/lazyfs/BUCKET.log; with -f the terminal",
    )
    level: Literal["debug", "info", "warning", "error"] = _option(
        "log-level",
        one_of("debug", "info", "warning", "error"),
        "debug|info|warning|error",
        "How much is logged.",
        default="info",
        default_text="info",
    )
    metrics_port: int | None = _option(
        "metrics-port",
        parse_port,
        "PORT",
        "Serve metrics for Prometheus at http://ADDRESS:PORT/metrics; 0 takes a free port, which lazyfs status tells.",
    )
    metrics_address: str = _option(
        "metrics-address",
        parse_text,
        "ADDRESS",
        "Where that listens; 0.0.0.0 lets other machines read the metrics.",
        default="127.0.0.1",
        default_text="127.0.0.1",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything that a mount is told."""

    bucket: BucketConfig
    mount: MountConfig
    cache: CacheConfig
    write: WriteConfig
    log: LogConfig


def _declared() -> tuple[Option, ...]:
    groups = {
        "bucket": BucketConfig,
        "mount": MountConfig,
        "cache": CacheConfig,
        "write": WriteConfig,
        "log": LogConfig,
    }
    return tuple(
        dataclasses.replace(field.metadata["option"], group=group, field=field.name)
        for group, section in groups.items()
        for field in dataclasses.fields(section)
        if "option" in field.metadata
    )


OPTIONS = _declared()
"""In the order of --help; a computed default may only look at the options before its own."""
RELOADABLE = {option.name: option for option in OPTIONS if option.name in ("metadata-ttl", "log-level")}
"""What `lazyfs reload` can change while mounted."""
