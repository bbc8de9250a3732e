"""What the user asked for: flags over environment over TOML file over defaults, checked and in final units.

Never here: credentials. They stay in the AWS_* variables and files, so no repr and no log can show them. One exception:
the URL of a shared cache may hold a password, which its repr leaves out and the command line refuses.
No module below `daemon` sees a Config: each class takes its own knobs.
"""

from lazyfs.config.options import (
    OPTIONS,
    BucketConfig,
    CacheConfig,
    Config,
    LogConfig,
    MountConfig,
    Option,
    WriteConfig,
)
from lazyfs.config.sources import load, parse_bucket, parse_mount_options, read_options

__all__ = [
    "OPTIONS",
    "BucketConfig",
    "CacheConfig",
    "Config",
    "LogConfig",
    "MountConfig",
    "Option",
    "WriteConfig",
    "load",
    "parse_bucket",
    "parse_mount_options",
    "read_options",
]
