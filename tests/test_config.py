from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lazyfs.cache.engine import BucketAddress, RedisAddress
from lazyfs.cli.reference import configuration
from lazyfs.config import OPTIONS, CacheConfig, Config, LogConfig, load, machine, parse_bucket, parse_mount_options
from lazyfs.core.errors import UsageError

GIB = 1024**3


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {f"XDG_{name}_HOME": str(tmp_path / name.lower()) for name in ("CONFIG", "CACHE", "STATE")}


def loaded(environ: Mapping[str, str], flags: Mapping[str, str | bool | None] | None = None, **more: Any) -> Config:
    return load("bucket", "/mnt/x", flags or {}, environ=environ, **more)


def value_of(config: Config, name: str) -> object:
    option = next(option for option in OPTIONS if option.name == name)
    return getattr(getattr(config, option.group), option.field)


# -- the bucket argument ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bucket", ("bucket", "")),
        ("bucket/", ("bucket", "")),
        ("bucket/a", ("bucket", "a/")),
        ("bucket/a/b/", ("bucket", "a/b/")),
        ("bucket//a//", ("bucket", "a/")),
        ("s3://bucket", ("bucket", "")),
        ("s3://bucket/a b/ü", ("bucket", "a b/ü/")),
        ("my.bucket-1", ("my.bucket-1", "")),
        ("Old_Bucket", ("Old_Bucket", "")),
        ("express--use1-az4--x-s3/a", ("express--use1-az4--x-s3", "a/")),
    ],
)
def test_bucket_and_prefix(text: str, expected: tuple[str, str]) -> None:
    assert parse_bucket(text) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no bucket's name"),
        ("s3://", "no bucket's name"),
        ("s3:///a", "no bucket's name"),
        ("ab", "not a bucket's name"),
        ("-ab", "not a bucket's name"),
        ("a..b", "not a bucket's name"),
        ("my bucket", "not a bucket's name"),
        ("bücket", "not a bucket's name"),
        ("buck\net", "not a bucket's name"),
        ("gs://bucket", "must begin with s3://"),
        ("https://s3.example.com/bucket", "must begin with s3://"),
        ("bucket/" + "x" * 1024, "longer than"),
    ],
)
def test_not_a_bucket(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_bucket(text)


@pytest.mark.parametrize(
    ("first", "second"),
    [("/mnt/data", "bucket"), ("./data", "bucket"), ("~/data", "bucket"), ("data", "s3://bucket"), (".", "bucket")],
)
def test_swapped_arguments_are_noticed(first: str, second: str) -> None:
    with pytest.raises(UsageError, match=f"lazyfs mount {second} {first}"):
        load(first, second, {}, environ={})


def test_a_directory_first_and_no_directory_second_is_swapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    with pytest.raises(UsageError, match="the bucket comes first"):
        load("data", "bucket", {}, environ=environ)
    Path("here").mkdir()
    assert load("data", "here", {}, environ=environ).mount.mountpoint == tmp_path / "here"


def test_two_paths_are_not_called_swapped() -> None:
    with pytest.raises(UsageError, match="is a path, not a bucket"):
        load("/data", "/mnt", {}, environ={})


def test_an_empty_mount_point_is_refused(environ: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="mount point: empty"):
        load("bucket", "", {}, environ=environ)


def test_the_mount_point_is_absolute_and_has_no_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("real").mkdir()
    Path("link").symlink_to("real")
    assert load("bucket", "link", {}, environ=environ).mount.mountpoint == tmp_path.resolve() / "real"


# -- every option, from every source ------------------------------------------------------------------------

VALUES: dict[str, tuple[str, object]] = {
    "endpoint-url": ("http://127.0.0.1:9000/", "http://127.0.0.1:9000"),
    "region": ("eu-central-1", "eu-central-1"),
    "profile": ("work", "work"),
    "no-sign-request": ("true", True),
    "force-path-style": ("no", False),
    "requester-pays": ("1", True),
    "expected-bucket-owner": ("123456789012", "123456789012"),
    "read-timeout": ("10s", 10.0),
    "retry-for": ("5m", 300.0),
    "read-only": ("yes", True),
    "allow-other": ("on", True),
    "posix-metadata": ("lazy", "lazy"),
    "xattrs": ("on", True),
    "uid": ("1000", 1000),
    "gid": ("0", 0),
    "file-mode": ("0640", 0o640),
    "dir-mode": ("750", 0o750),
    "session": ("direct", "direct"),
    "foreground": ("TRUE", True),
    "cache-dir": ("none", None),
    "cache-size": ("1.5GiB", 3 * GIB // 2),
    "memory": ("512MiB", 512 * 1024**2),
    "metadata-ttl": ("5m", 300.0),
    "import": ("wait", "wait"),
    "preload": ("true", True),
    "index": ("s3://shared/train.idx", "s3://shared/train.idx"),
    "events": ("sqs:http://127.0.0.1:1/2/q", "sqs:http://127.0.0.1:1/2/q"),
    "shared-cache": ("redis://node:7000/2", RedisAddress(host="node", port=7000, db=2)),
    "shared-cache-ttl": ("12h", 12 * 3600.0),
    "write-back": ("true", True),
    "fsync": ("s3", "s3"),
    "part-size": ("16MiB", 16 * 1024**2),
    "spool-size": ("5GiB", 5 * GIB),
    "no-overwrite": ("true", True),
    "no-delete": ("true", True),
    "sse": ("aes256", "AES256"),
    "checksum": ("none", "none"),
    "sse-kms-key-id": ("key", "key"),
    "storage-class": ("standard_ia", "STANDARD_IA"),
    "log-file": ("/var/log/x", Path("/var/log/x")),
    "log-level": ("Debug", "debug"),
    "metrics-port": ("9321", 9321),
    "metrics-address": ("0.0.0.0", "0.0.0.0"),
}


@pytest.mark.parametrize("text", ["0", "indefinite", "0s"])
def test_no_wait_is_endless(text: str) -> None:
    with pytest.raises(UsageError, match="not for ever"):
        load("bucket", "/mnt/x", {"retry-for": text}, environ={})


def test_every_option_has_an_example_here() -> None:
    assert set(VALUES) == {option.name for option in OPTIONS}


@pytest.mark.parametrize("name", VALUES)
def test_each_option_from_each_source(name: str, tmp_path: Path, environ: dict[str, str]) -> None:
    text, expected = VALUES[name]
    if name == "sse-kms-key-id":  # it is of no use alone
        environ = {**environ, "LAZYFS_SSE": "aws:kms"}
    option = next(option for option in OPTIONS if option.name == name)
    file = tmp_path / "config.toml"
    file.write_text(f"{name} = {str(expected).lower()}\n" if option.is_switch else f'{name} = "{text}"\n')
    for config in (
        loaded(environ, {name: text}),
        loaded({**environ, option.variable: text}),
        loaded(environ, mount_options=f"{name.replace('-', '_')}={text}"),
        loaded(environ, file=file),
    ):
        assert value_of(config, name) == expected


def test_a_key_needs_its_kind_of_encryption(environ: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="--sse-kms-key-id is for --sse aws:kms"):
        loaded(environ, {"sse-kms-key-id": "key", "sse": "AES256"})


BAD = [
    ("sse", "rot13"),
    ("checksum", "md5"),
    ("metrics-port", "65536"),
    ("metrics-port", "http"),
    ("endpoint-url", "s3.example.com"),
    ("endpoint-url", "ftp://example.com"),
    ("endpoint-url", "http://"),
    ("endpoint-url", "http://a?b=c"),
    ("region", " "),
    ("no-sign-request", "perhaps"),
    ("expected-bucket-owner", "me"),
    ("uid", "-1"),
    ("uid", "root"),
    ("uid", "4294967295"),
    ("file-mode", "0899"),
    ("file-mode", "rw-r--r--"),
    ("dir-mode", "077777"),
    ("cache-size", "20 apples"),
    ("cache-size", "-1GiB"),
    ("memory", "1MiB"),
    ("metadata-ttl", "soon"),
    ("metadata-ttl", "-5"),
    ("import", "later"),
    ("index", "http://server/train.idx"),
    ("index", "s3://bucket"),
    ("events", "kafka"),
    ("events", "minio:x"),
    ("events", "sqs:my-queue"),
    ("shared-cache", "memcached://node"),
    ("shared-cache", "/mnt/nfs"),
    ("shared-cache", "s3://"),
    ("shared-cache", "s3://bucket?region=x"),
    ("shared-cache", "s3://bucket/p?endpoint=nonsense"),
    ("shared-cache", "redis://"),
    ("shared-cache", "redis://node:port"),
    ("shared-cache", "redis://node/name"),
    ("shared-cache", "redis://node?ssl_ca_certs=/ca.pem"),
    ("shared-cache", "redis+cluster://node/1"),
    ("shared-cache", "rediss://[::1"),
    ("shared-cache", "rediss://node?&"),
    ("shared-cache-ttl", "0"),
    ("part-size", "4MiB"),
    ("part-size", "6GiB"),
    ("storage-class", "cold & cheap"),
    ("log-level", "loud"),
    ("log-file", ""),
]


@pytest.mark.parametrize(("name", "text"), BAD)
def test_bad_values_name_their_source_in_one_line(name: str, text: str, environ: dict[str, str]) -> None:
    with pytest.raises(UsageError) as caught:
        loaded(environ, {name: text})
    assert str(caught.value).startswith(f"--{name}: ")
    assert "\n" not in str(caught.value)


def test_an_endpoint_with_a_password_is_refused_and_not_repeated(environ: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="credentials do not belong") as caught:
        loaded(environ, {"endpoint-url": "https://me:hush@example.com"})
    assert "hush" not in str(caught.value)


SHARED = [
    ("none", None),
    ("redis://node", RedisAddress(host="node")),
    ("redis://[::1]:7000/3", RedisAddress(host="::1", port=7000, db=3)),
    ("rediss://u:p%40%23@node/", RedisAddress(host="node", tls=True, username="u", password="p@#")),
    ("rediss+cluster://:p@node:7", RedisAddress(host="node", port=7, tls=True, cluster=True, password="p")),
    (
        "rediss://node?ssl_ca_certs=/a&ssl_certfile=/b&ssl_keyfile=/c",
        RedisAddress(host="node", tls=True, ca_file="/a", cert_file="/b", key_file="/c"),
    ),
    ("s3://near--use1-az4--x-s3", BucketAddress(bucket="near--use1-az4--x-s3")),
    ("s3://near/a/b/", BucketAddress(bucket="near", prefix="a/b/")),
    ("s3://near/a?endpoint=http://n:9/", BucketAddress(bucket="near", prefix="a/", endpoint_url="http://n:9")),
]


@pytest.mark.parametrize(("url", "expected"), SHARED)
def test_urls_of_a_shared_cache(url: str, expected: BucketAddress | RedisAddress | None) -> None:
    assert loaded({"LAZYFS_SHARED_CACHE": url}).cache.shared == expected
    if expected is not None:
        assert "p@#" not in expected.where + repr(expected)
        assert expected.where.startswith(url.partition("://")[0] + "://")


@pytest.mark.parametrize("url", ["redis://u:hush@node", "rediss+cluster://:hush@node:1"])
def test_a_password_on_the_command_line_is_refused_and_not_repeated(
    url: str, tmp_path: Path, environ: dict[str, str]
) -> None:
    for given in ({"flags": {"shared-cache": url}}, {"mount_options": f"shared_cache={url}"}):
        with pytest.raises(UsageError, match="is seen by everybody; set it as LAZYFS_SHARED_CACHE") as caught:
            loaded(environ, **given)
        assert "hush" not in str(caught.value)
    file = tmp_path / "config.toml"
    file.write_text(f'shared-cache = "{url}"\n')
    for config in (loaded({**environ, "LAZYFS_SHARED_CACHE": url}), loaded(environ, file=file)):
        assert isinstance(config.cache.shared, RedisAddress)
        assert config.cache.shared.password == "hush"
        assert "hush" not in repr(config)


@pytest.mark.parametrize(
    "url",
    [
        "redis://u:hush@node:port",
        "redis://u:hu#sh@node",
        "redis://u:hush@node?x=hush",
        "redis://u:hu/sh@node",
        "s3://u:hush@bucket",
        "amqp://u:hush@node",
        "s3://bucket/?endpoint=http://u:hush@node",
        "s3://bucket/?secret=hush",
    ],
)
def test_a_bad_url_with_a_password_is_not_repeated(url: str, environ: dict[str, str]) -> None:
    with pytest.raises(UsageError) as caught:
        loaded({**environ, "LAZYFS_SHARED_CACHE": url})
    assert "hu" not in str(caught.value)


def test_a_shared_cache_inside_the_mount_is_refused(environ: dict[str, str]) -> None:
    for bucket, url in [("data", "s3://data/cache"), ("data/a", "s3://data/a"), ("data/a", "s3://data/a/b")]:
        with pytest.raises(UsageError, match="lies inside what is mounted"):
            load(bucket, "/mnt/x", {"shared-cache": url}, environ=environ)
    for bucket, url in [("data/a", "s3://data/b"), ("data", "s3://data2/x"), ("data", "s3://data?endpoint=http://n")]:
        load(bucket, "/mnt/x", {"shared-cache": url}, environ=environ)


def test_indefinite_is_infinite(environ: dict[str, str]) -> None:
    assert loaded(environ, {"metadata-ttl": "indefinite"}).cache.metadata_ttl_s == math.inf


def test_a_path_of_the_user_is_made_absolute(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert loaded(environ, {"cache-dir": "~/c"}).cache.directory == Path("/home/me/c")
    assert loaded(environ, {"cache-dir": "../c"}).cache.directory == Path.cwd().parent / "c"


# -- precedence ---------------------------------------------------------------------------------------------


def test_flags_over_words_over_environment_over_file_over_defaults(tmp_path: Path, environ: dict[str, str]) -> None:
    file = tmp_path / "config.toml"
    file.write_text('region = "file"\n')
    everywhere = {**environ, "LAZYFS_REGION": "environment"}
    assert loaded(everywhere, {"region": "flag"}, mount_options="region=word", file=file).bucket.region == "flag"
    assert loaded(everywhere, {"region": None}, mount_options="region=word", file=file).bucket.region == "word"
    assert loaded(everywhere, file=file).bucket.region == "environment"
    assert loaded({**environ, "LAZYFS_REGION": ""}, file=file).bucket.region == "file"
    assert loaded(environ).bucket.region is None


def test_a_switch_of_the_file_can_be_taken_back(tmp_path: Path, environ: dict[str, str]) -> None:
    file = tmp_path / "config.toml"
    file.write_text("read-only = true\n")
    assert loaded(environ, file=file).mount.read_only
    assert not loaded(environ, {"read-only": False}, file=file).mount.read_only
    assert not loaded({**environ, "LAZYFS_READ_ONLY": "false"}, file=file).mount.read_only


def test_the_users_own_file_is_read_if_there_is_one(tmp_path: Path, environ: dict[str, str]) -> None:
    own = tmp_path / "config" / "lazyfs" / "config.toml"
    own.parent.mkdir(parents=True)
    own.write_text('memory = "64MiB"\n')
    assert loaded(environ).cache.memory == 64 * 1024**2
    other = tmp_path / "other.toml"
    other.write_text("")
    assert loaded(environ, file=other).cache.memory != 64 * 1024**2


# -- the TOML file ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('cache-sise = "1GiB"', r"unknown key 'cache-sise' in .*config.toml; did you mean cache-size\?"),
        ("zzz = 1", r"unknown key 'zzz' in .*; did you mean "),
        ("[cache]\nsize = 1", r"unknown key 'cache' in "),
        ("read-only = 'true'", "write true or false"),
        ("read-only = 1", "write true or false"),
        ("region = true", "true and false are for switches"),
        ("file-mode = 644", "write it in quotes"),
        ("region = 5", "write it in quotes"),
        ("region = ['a']", "write it in quotes"),
        ("memory = 5", r"memory in .*config.toml: 5 is too little"),
        ("= 5", "is not TOML"),
    ],
)
def test_bad_files(text: str, said: str, tmp_path: Path, environ: dict[str, str]) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match=said) as caught:
        loaded(environ, file=file)
    assert str(file) in str(caught.value)


def test_a_file_that_is_not_text_or_not_there(tmp_path: Path, environ: dict[str, str]) -> None:
    file = tmp_path / "config.toml"
    with pytest.raises(UsageError, match=r"cannot read .*No such file"):
        loaded(environ, file=file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="is not TOML"):
        loaded(environ, file=file)
    with pytest.raises(UsageError, match=r"cannot read .*directory"):
        loaded(environ, file=tmp_path)


def test_bare_numbers_in_a_file_are_bytes_seconds_and_ids(tmp_path: Path, environ: dict[str, str]) -> None:
    file = tmp_path / "config.toml"
    file.write_text("cache-size = 4096\nmetadata-ttl = 0.5\nuid = 7\n")
    config = loaded(environ, file=file)
    assert (config.cache.size, config.cache.metadata_ttl_s, config.mount.uid) == (4096, 0.5, 7)


# -- the words after -o -------------------------------------------------------------------------------------


def test_the_fstab_form() -> None:
    words = "rw,noauto,user,nofail,_netdev,x-systemd.automount,x-foo=1,ro,allow_other,uid=5,cache-size=1G,,"
    assert parse_mount_options(words) == {
        "read-only": "true",
        "allow-other": "true",
        "uid": "5",
        "cache-size": "1G",
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("alow_other", r"unknown mount option 'alow_other'; did you mean allow-other\?"),
        ("noexec", "unknown mount option 'noexec'"),
        ("uid", "mount option uid needs a value: uid=ID"),
        ("=5", "unknown mount option ''"),
    ],
)
def test_bad_words(words: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_mount_options(words)


# -- defaults -----------------------------------------------------------------------------------------------


def test_defaults_need_no_thought(tmp_path: Path, environ: dict[str, str]) -> None:
    config = loaded(environ)
    assert config.cache.directory == tmp_path / "cache" / "lazyfs"
    assert config.cache.metadata_ttl_s == 60
    assert config.cache.import_mode == "background"
    assert 0 < config.cache.size <= 20 * GIB
    assert 0 < config.cache.memory <= GIB
    assert config.write.part_size == 8 * 1024**2
    assert (config.mount.uid, config.mount.gid) == (os.getuid(), os.getgid())
    assert (config.mount.file_mode, config.mount.dir_mode) == (0o644, 0o755)
    assert config.bucket.force_path_style is None
    assert config.log.file == tmp_path / "state" / "lazyfs" / "bucket.log"


def test_the_log_goes_to_the_terminal_in_the_foreground(environ: dict[str, str]) -> None:
    assert loaded(environ, {"foreground": True}).log.file is None


def test_no_cache_directory_means_no_size(environ: dict[str, str]) -> None:
    assert loaded(environ, {"cache-dir": "none"}).cache.size == 0


def test_the_cache_takes_a_fifth_of_a_small_disk(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []

    class Usage:
        free = 10 * GIB

    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: asked.append(path) or Usage)
    assert loaded(environ, {"cache-dir": "/tmp/not/there"}).cache.size == 2 * GIB
    assert set(asked) == {Path("/tmp")}


def test_sections_have_defaults_of_their_own() -> None:
    assert CacheConfig(directory=None).metadata_ttl_s == 60
    assert LogConfig().file is None


def test_relative_xdg_directories_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert machine.xdg_directory("XDG_X", ".x", {"XDG_X": "relative"}) == Path("/home/me/.x")
    assert machine.xdg_directory("XDG_X", ".x", {}) == Path("/home/me/.x")


# -- the reference ------------------------------------------------------------------------------------------


def test_the_reference_is_what_the_declarations_say() -> None:
    written = Path(__file__).parent.parent / "docs" / "configuration.md"
    assert written.read_text() == configuration(), "run: python -m lazyfs.cli.reference > docs/configuration.md"
