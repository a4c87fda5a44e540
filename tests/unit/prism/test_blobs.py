"""Images by content."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from prism.data.blobs import BlobStore
from prism.errors import DataError


def test_what_was_put_is_got_and_lies_there_once(tmp_path: Path) -> None:
    store = BlobStore(str(tmp_path))
    names = {store.put(b"pixels"), store.put(b"pixels")}
    assert names == {hashlib.sha256(b"pixels").hexdigest()}
    assert store.get(names.pop()) == b"pixels"
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1
    assert store.get(store.put(b"")) == b""


@pytest.mark.parametrize(
    "name", ["", "../../etc/passwd", "A" * 64, "0" * 63, "0" * 65, "0" * 64 + "\n", "0" * 63 + "é"]
)
def test_a_name_that_is_no_sha256_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="not a sha256"):
        BlobStore(str(tmp_path)).get(name)


def test_a_missing_blob_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no blob 00"):
        BlobStore(str(tmp_path)).get("0" * 64)


def test_a_corrupt_blob_is_never_returned(tmp_path: Path) -> None:
    store = BlobStore(str(tmp_path))
    name = store.put(b"pixels")
    (tmp_path / name[:2] / name).write_bytes(b"pixelz")
    with pytest.raises(DataError, match="corrupt"):
        store.get(name)


def test_writers_of_the_same_blob_do_not_meet(tmp_path: Path) -> None:
    store = BlobStore(str(tmp_path))
    blobs = [b"%d" % number for number in range(100)] * 8
    blobs.sort()
    with ThreadPoolExecutor(8) as threads:
        names = list(threads.map(store.put, blobs))
    assert [store.get(name) for name in names] == blobs
    assert not list(tmp_path.rglob("*.partial"))


def test_any_fsspec_url_will_do() -> None:
    store = BlobStore("memory://prism-test-blobs")
    assert store.get(store.put(b"pixels")) == b"pixels"
