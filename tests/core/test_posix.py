"""Mode, owner and times as user metadata: what is written comes back, what others write is understood."""

from __future__ import annotations

import stat
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.core.posix import KEYS, MAX_ID, MAX_NS, Posix, from_metadata

kinds = st.sampled_from([stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK])
modes = st.tuples(kinds, st.integers(0, 0o1777)).map(sum)
ids = st.integers(0, MAX_ID)
times = st.integers(-MAX_NS, MAX_NS)
known = st.builds(
    Posix,
    mode=st.none() | modes,
    uid=st.none() | ids,
    gid=st.none() | ids,
    mtime_ns=st.none() | times,
    atime_ns=st.none() | times,
)


@given(known)
def test_what_is_written_comes_back(posix: Posix) -> None:
    metadata = posix.to_metadata()
    assert from_metadata(metadata) == posix
    assert set(metadata) <= KEYS
    assert from_metadata({key.title(): f" {value} " for key, value in metadata.items()}) == posix


def test_as_fsx_writes_it() -> None:
    posix = Posix(mode=0o100644, uid=1000, gid=0, mtime_ns=1_595_002_920_000_000_001, atime_ns=5)
    assert posix.to_metadata() == {
        "file-permissions": "0100644",
        "file-owner": "1000",
        "file-group": "0",
        "file-mtime": "1595002920000000001ns",
        "file-atime": "5ns",
    }
    assert Posix(mode=0o40755).to_metadata() == {"file-permissions": "0040755"}
    assert Posix(mode=0o120777).to_metadata() == {"file-permissions": "0120777"}
    assert Posix().to_metadata() == {}


@pytest.mark.parametrize(
    ("metadata", "want"),
    [
        ({"file-permissions": "100755"}, Posix(mode=0o100755)),
        ({"file-permissions": "40755"}, Posix(mode=0o40755)),
        ({"file-permissions": "644"}, Posix(mode=0o644)),
        ({"file-mtime": "1595002920000"}, Posix(mtime_ns=1_595_002_920_000_000_000)),
        ({"file-atime": "7"}, Posix(atime_ns=7_000_000)),
        (
            {"mode": "33188", "uid": "1", "gid": "2", "mtime": "3"},
            Posix(mode=0o100644, uid=1, gid=2, mtime_ns=3 * 10**9),
        ),
        ({"mode": "41471", "mtime": "1595002920.25"}, Posix(mode=0o120777, mtime_ns=1_595_002_920_250_000_000)),
        ({"mtime": "1595002920.0000000019"}, Posix(mtime_ns=1_595_002_920_000_000_001)),
        ({"mtime": "-1.5"}, Posix(mtime_ns=-1_500_000_000)),
        ({"file-permissions": "0100600", "mode": "33188"}, Posix(mode=0o100600)),
        ({"file-permissions": "rubbish", "mode": "33188"}, Posix(mode=0o100644)),
        ({"file-owner": "-1", "uid": "7"}, Posix(uid=7)),
    ],
)
def test_what_others_write(metadata: dict[str, str], want: Posix) -> None:
    assert from_metadata(metadata) == want


@pytest.mark.parametrize(
    "metadata",
    [
        {"file-permissions": ""},
        {"file-permissions": "0x1ff"},
        {"file-permissions": "0o644"},
        {"file-permissions": "-644"},
        {"file-permissions": "888"},
        {"file-permissions": "777777777"},
        {"file-permissions": "777777"},
        {"file-permissions": "١٢٣"},
        {"mode": "-1"},
        {"mode": "99999999999999999999999"},
        {"file-owner": str(2**32 - 1), "file-group": "1_000"},
        {"uid": "root", "gid": "1.5"},
        {"file-mtime": "1" * 30 + "ns", "file-atime": "9999999999999999999"},
        {"file-mtime": "9999999999999999999ns"},
        {"file-mtime": "1.5ns", "mtime": "1e9"},
        {"mtime": "nan", "atime": "12:00"},
        {"other": "0100644"},
    ],
)
def test_rubbish_says_nothing(metadata: dict[str, str]) -> None:
    assert from_metadata(metadata) == Posix()


@given(st.dictionaries(st.sampled_from([*sorted(KEYS), "mode", "uid", "gid", "mtime", "atime"]), st.text()))
def test_whatever_a_bucket_holds_is_no_error_and_fits_everywhere(metadata: dict[str, str]) -> None:
    posix = from_metadata(metadata)
    assert posix.mode is None or 0 <= posix.mode < 2**16
    assert all(one is None or 0 <= one <= MAX_ID for one in (posix.uid, posix.gid))
    assert all(one is None or abs(one) <= MAX_NS for one in (posix.mtime_ns, posix.atime_ns))
    assert from_metadata(posix.to_metadata()) == posix


@given(kinds, st.integers(0, 0o7777))
def test_bits_that_give_away_rights_are_not_believed(kind: int, bits: int) -> None:
    assert from_metadata({"file-permissions": f"{kind | bits:07o}"}).mode == kind | (bits & 0o1777)
    assert from_metadata({"mode": str(kind | bits)}).mode == kind | (bits & 0o1777)


@pytest.mark.parametrize("kind", [stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK])
def test_a_type_that_no_object_can_be_is_not_believed(kind: int) -> None:
    said = from_metadata(replace(Posix(), mode=kind | 0o600).to_metadata())
    assert said == Posix(mode=0o600)
