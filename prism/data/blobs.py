"""Images by content: written once under their sha256, named by it on every wire."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from prism.errors import ConfigError, DataError, ServiceError
from prism.files import write_bytes

_SHA256 = re.compile(r"[0-9a-f]{64}")


class BlobStore:
    """A folder, or any fsspec URL such as ``s3://bucket/prefix``, of immutable blobs. A bucket must exist.

    Raises ConfigError for a URL whose library is not installed; ServiceError, here ``put`` and ``get``, when the store
    cannot be reached or refuses: that may pass, and says nothing about the blob.
    """

    def __init__(self, url: str) -> None:
        try:
            self._fs, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            hint = ": pip install 'prism-align[s3]'" if url.startswith("s3:") else ""
            raise ConfigError(f"blobs in {url}: {error}{hint}") from None

    def _path(self, sha256: str) -> str:
        if not _SHA256.fullmatch(sha256):
            raise DataError(f"not a sha256: {sha256[:80]!r}")
        return f"{self._root}/{sha256[:2]}/{sha256}"

    def put(self, data: bytes) -> str:
        """Store ``data`` unless it is there already; return its sha256."""
        sha256 = hashlib.sha256(data).hexdigest()
        path = self._path(sha256)
        with self._telling():
            if isinstance(self._fs, LocalFileSystem):
                file = Path(path)
                if not file.is_file() or file.stat().st_size != len(data):  # a power cut may have emptied it
                    write_bytes(file, data, sync=False)
            elif not self._fs.exists(path):  # an object is there as a whole, or not
                self._fs.pipe_file(path, data)
        return sha256

    def get(self, sha256: str) -> bytes:
        """Raises DataError if the blob is missing or is not what its name says."""
        path = self._path(sha256)
        with self._telling():
            try:
                if isinstance(self._fs, LocalFileSystem):  # then fsspec takes longer than the file
                    with open(path, "rb", buffering=0) as file:
                        data = file.read()
                else:
                    data = self._fs.cat_file(path)
            except FileNotFoundError:
                raise DataError(f"no blob {sha256} under {self._root}") from None
        if hashlib.sha256(data).hexdigest() != sha256:
            raise DataError(f"blob {sha256} under {self._root} is corrupt")
        return data

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """What a store's library raises, as ServiceError: each has errors of its own."""
        try:
            yield
        except DataError:
            raise
        except Exception as error:
            protocol = self._fs.protocol if isinstance(self._fs.protocol, str) else self._fs.protocol[0]
            hint = "; are AWS_* variables right?" if "s3" in protocol else ""
            problem = f"{type(error).__name__}: {error}"
            raise ServiceError(f"the blob store {self._root} ({protocol}) failed: {problem}{hint}") from error
