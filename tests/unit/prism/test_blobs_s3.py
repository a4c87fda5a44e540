"""Blobs in a bucket, over HTTP: moto's server speaks S3, and can be told to check signatures."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import boto3
import httpx
import pytest
from moto.server import ThreadedMotoServer

from prism.data.blobs import BlobStore
from prism.errors import ConfigError, DataError, ServiceError

URL = "s3://images/run"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    made = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    made.start()
    host, port = made.get_host_and_port()
    yield f"http://{host}:{port}"
    made.stop()


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The server's address, with an empty bucket; found by AWS_* variables alone."""
    httpx.post(f"{server}/moto-api/reset")
    environment = {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="images")
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()  # one of another test has its variables
    return server


def keys() -> list[str]:
    return [item["Key"] for item in boto3.client("s3").list_objects_v2(Bucket="images").get("Contents", [])]


@pytest.mark.usefixtures("bucket")
def test_what_was_put_is_got_and_lies_there_once() -> None:
    store = BlobStore(URL)
    name = hashlib.sha256(b"pixels").hexdigest()
    assert [store.put(b"pixels"), store.put(b"pixels")] == [name, name]
    assert keys() == [f"run/{name[:2]}/{name}"]
    assert BlobStore(URL).get(name) == b"pixels"
    assert store.get(store.put(b"")) == b""


@pytest.mark.usefixtures("bucket")
def test_threads_share_a_store() -> None:
    store = BlobStore(URL)
    blobs = [b"%d" % number for number in range(20)] * 3
    with ThreadPoolExecutor(8) as threads:
        names = list(threads.map(store.put, blobs))
        assert list(threads.map(store.get, names)) == blobs
    assert len(keys()) == 20


@pytest.mark.usefixtures("bucket")
def test_a_missing_and_a_corrupt_blob_are_the_datas_fault() -> None:
    store = BlobStore(URL)
    with pytest.raises(DataError, match="no blob 00"):
        store.get("0" * 64)
    name = store.put(b"pixels")
    boto3.client("s3").put_object(Bucket="images", Key=f"run/{name[:2]}/{name}", Body=b"pixelz")
    with pytest.raises(DataError, match="corrupt"):
        store.get(name)


def test_bad_credentials_are_nobodys_blob(bucket: str) -> None:
    name = BlobStore(URL).put(b"pixels")
    # From the next request on, signatures are checked: there is no user with this key.
    httpx.post(f"{bucket}/moto-api/reset-auth", content=b"0")
    try:
        for ask in (lambda: BlobStore(URL).get(name), lambda: BlobStore(URL).put(b"others")):
            with pytest.raises(ServiceError, match=r"blob store images/run \(s3\) failed: PermissionError.*AWS_\*"):
                ask()
    finally:
        httpx.post(f"{bucket}/moto-api/reset-auth", content=b"inf")


@pytest.mark.usefixtures("bucket")
def test_a_bucket_that_is_not_there_is_not_made() -> None:
    with pytest.raises(ServiceError, match="failed: FileNotFoundError: The specified bucket does not exist"):
        BlobStore("s3://other/run").put(b"pixels")
    assert [bucket["Name"] for bucket in boto3.client("s3").list_buckets()["Buckets"]] == ["images"]


def test_a_store_that_is_away_is_said(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(ServiceError, match=r"failed: .*127\.0\.0\.1:9"):
        BlobStore(URL).get("0" * 64)


def test_a_store_without_its_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    def missing(url: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(ConfigError, match=r"pip install 'prism-align\[s3\]'"):
        BlobStore(URL)
