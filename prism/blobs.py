"""Images by content: written once under their sha256, named by it on every wire."""

import hashlib
import re
import uuid

import fsspec

from prism.errors import DataError

_SHA256 = re.compile(r"[0-9a-f]{64}")


class BlobStore:
    """A folder, or any fsspec URL such as ``s3://bucket/prefix``, of immutable blobs."""

    def __init__(self, url: str) -> None:
        self._fs, self._root = fsspec.core.url_to_fs(url)

    def _path(self, sha256: str) -> str:
        if not _SHA256.fullmatch(sha256):
            raise DataError(f"not a sha256: {sha256[:80]!r}")
        return f"{self._root}/{sha256[:2]}/{sha256}"

    def put(self, data: bytes) -> str:
        """Store ``data`` unless it is there already; return its sha256."""
        sha256 = hashlib.sha256(data).hexdigest()
        path = self._path(sha256)
        if not self._fs.exists(path):
            self._fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
            # Written aside and renamed: a reader never sees half a blob, and two writers of one blob do not meet.
            partial = f"{path}.{uuid.uuid4().hex}.partial"
            self._fs.pipe_file(partial, data)
            self._fs.mv(partial, path)
        return sha256

    def get(self, sha256: str) -> bytes:
        """Raises DataError if the blob is missing or is not what its name says."""
        try:
            data = self._fs.cat_file(self._path(sha256))
        except FileNotFoundError:
            raise DataError(f"no blob {sha256} under {self._root}") from None
        if hashlib.sha256(data).hexdigest() != sha256:
            raise DataError(f"blob {sha256} under {self._root} is corrupt")
        return data
