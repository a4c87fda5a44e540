"""The bytes of images, however a request names them."""

import asyncio
import re
from collections.abc import Iterable

from prism.data.blobs import BlobStore
from prism.errors import DataError, ServiceError
from prism.services.experts.fetch import UrlFetcher
from prism.services.experts.settings import ExpertSettings
from prism.tasks import together
from prism.wire.messages import data_uri_bytes

_DATA_URI = re.compile(r"\s*data:\s*image/[^,]*;\s*base64\s*,", re.IGNORECASE)


class ImageSources:
    def __init__(self, settings: ExpertSettings) -> None:
        self._blobs = BlobStore(settings.blobs) if settings.blobs else None
        self._urls: UrlFetcher | None = None
        if settings.allow_urls:
            self._urls = UrlFetcher(
                allowed=settings.url_networks,
                max_bytes=settings.url_max_bytes,
                timeout_seconds=settings.url_timeout_seconds,
                max_redirects=settings.url_max_redirects,
            )

    async def read(self, sources: Iterable[str]) -> dict[str, bytes | DataError]:
        """Each distinct source's bytes, or what is wrong with it."""
        distinct = list(dict.fromkeys(sources))
        return dict(zip(distinct, await together(*map(self._read, distinct)), strict=True))

    async def _read(self, source: str) -> bytes | DataError:
        try:
            if source.startswith(("http://", "https://")):
                return await self._fetch(source)
            if source.startswith("sha256:"):
                return await asyncio.to_thread(self._blob, source.removeprefix("sha256:"))
            return _data_uri(source)
        except DataError as error:
            return error

    async def _fetch(self, url: str) -> bytes:
        if self._urls is None:
            raise DataError("images by URL are off: send a data URI, or set PRISM_ALLOW_URLS=true")
        return await self._urls.get(url)

    def _blob(self, sha256: str) -> bytes:
        if self._blobs is None:
            raise DataError("this service has no blob store: send a data URI, or set PRISM_BLOBS")
        try:
            return self._blobs.get(sha256)
        except ServiceError as error:
            raise DataError(str(error)) from None

    async def close(self) -> None:
        if self._urls:
            await self._urls.close()


def _data_uri(source: str) -> bytes:
    if not _DATA_URI.match(source):
        raise DataError("an image is given as 'data:image/...;base64,...', 'sha256:...' or an http(s) URL")
    try:
        return data_uri_bytes(source)
    except ValueError as error:
        raise DataError(f"the image's base64 does not decode: {error}") from None
