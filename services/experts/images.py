"""The bytes of images, however a request names them."""

import asyncio
from collections.abc import Iterable

from fastapi import HTTPException

from prism.data.blobs import BlobStore
from prism.errors import DataError, ServiceError
from prism.services.experts.fetch import Allowance, Spent, UrlFetcher
from prism.services.experts.settings import ExpertSettings
from prism.tasks import together
from prism.wire.messages import data_uri_bytes, is_data_uri


class ImageSources:
    def __init__(self, settings: ExpertSettings) -> None:
        self._blobs = BlobStore(settings.blobs) if settings.blobs else None
        self._urls: UrlFetcher | None = None
        self._fetched_bytes = settings.fetched_bytes
        if settings.allow_urls:
            self._urls = UrlFetcher(
                allowed=settings.url_networks,
                max_bytes=settings.url_max_bytes,
                timeout_seconds=settings.url_timeout_seconds,
                max_redirects=settings.url_max_redirects,
            )

    async def read(self, sources: Iterable[str]) -> dict[str, bytes | DataError]:
        """Each distinct source's bytes, or what is wrong with it.

        Raises HTTPException 413 if those that are fetched are too large together.
        """
        distinct, allowance = list(dict.fromkeys(sources)), Allowance(self._fetched_bytes)
        try:
            found = await together(*(self._read(source, allowance) for source in distinct))
        except Spent:
            raise HTTPException(
                413,
                f"the images that this request names by URL are over the limit of {self._fetched_bytes} bytes together "
                "(PRISM_URL_MAX_REQUEST_BYTES): send fewer or smaller ones at a time",
            ) from None
        return dict(zip(distinct, found, strict=True))

    async def _read(self, source: str, allowance: Allowance) -> bytes | DataError:
        """Raises Spent."""
        try:
            if source.startswith(("http://", "https://")):
                return await self._fetch(source, allowance)
            if source.startswith("sha256:"):
                return await asyncio.to_thread(self._blob, source.removeprefix("sha256:"))
            return await asyncio.to_thread(_data_uri, source)  # of 20 million characters, say
        except DataError as error:
            return error

    async def _fetch(self, url: str, allowance: Allowance) -> bytes:
        if self._urls is None:
            raise DataError("images by URL are off: send a data URI, or set PRISM_ALLOW_URLS=true")
        return await self._urls.get(url, allowance)

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
    if not is_data_uri(source):
        raise DataError("an image is given as 'data:image/...;base64,...', 'sha256:...' or an http(s) URL")
    try:
        return data_uri_bytes(source)
    except ValueError as error:
        raise DataError(f"the image's data URI cannot be read: {error}") from None
