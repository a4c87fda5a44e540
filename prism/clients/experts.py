"""The discriminator experts from Python: any prompt, images and responses in, typed scores out. (No torch.)

::

    import asyncio
    from prism.clients.experts import Experts, item

    async def main() -> None:
        async with Experts.of_run("runs/demo") as experts:
            answer = await experts.mixture([item("What is the sum?", ["<caption>..."], images=["grid.png"])])
            print(answer.items[0].scores[0])

    asyncio.run(main())
"""

import asyncio
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import httpx
from PIL import Image
from pydantic import ValidationError

from prism.clients.endpoints import ExpertEndpoints, admin_url, load_endpoints, replica_urls
from prism.clients.http import SILENCE_SECONDS
from prism.clients.services import ExpertClient
from prism.data.images import naming_image, read_image
from prism.errors import ConfigError, DataError
from prism.http.client import async_client
from prism.settings import describe
from prism.wire.experts import (
    CalibrationRequest,
    CalibrationState,
    CompareAnswer,
    CompareRequest,
    MixtureAnswer,
    MixtureRequest,
    ModelInfo,
    ScoreAnswer,
    ScoreItem,
    ScoreRequest,
)
from prism.wire.messages import data_uri, image_parts, is_data_uri
from prism.wire.response import Expert

SectionChoice = Literal["own", "all"]
ImageSource = str | Path | bytes | Image.Image
WIRE_IMAGES = ("sha256:", "http://", "https://")  # and data URIs


class Experts:
    """Both experts, or one. An asynchronous context manager; any number of calls may be at work at a time.

    Every method raises Unavailable when a service was away for ``patience_seconds`` (until then it is asked again, also
    while its weights are older than ``min_version``; an answer that is being made is waited for), Refused when it never
    will answer, and ConfigError when the expert's address is not known.
    """

    def __init__(
        self,
        *,
        token: str,
        perception_url: str | None = None,
        reasoning_url: str | None = None,
        admin_token: str | None = None,
        admin_port: int | None = None,
        patience_seconds: float = 120,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._http = async_client(transport=transport, limits=httpx.Limits(max_connections=None))
        urls: dict[Expert, str | None] = {"perception": perception_url, "reasoning": reasoning_url}
        self._bounds = patience_seconds, min(SILENCE_SECONDS, patience_seconds)
        self._experts: dict[Expert, ExpertClient] = {
            expert: ExpertClient(self._http, url, token, *self._bounds) for expert, url in urls.items() if url
        }
        self._admin_token, self._admin_port = admin_token, admin_port

    @classmethod
    def of_run(
        cls,
        run_dir: Path | str = "runs/demo",
        *,
        perception_url: str | None = None,
        reasoning_url: str | None = None,
        patience_seconds: float = 120,
    ) -> Self:
        """The experts of a run that is up: what is not given comes from PRISM_* variables, else its ``stack.json``.

        Raises ConfigError if no token is found.
        """
        stack_file = Path(run_dir) / "stack.json"
        try:
            known = load_endpoints(stack_file, ExpertEndpoints)
        except ConfigError as error:
            raise ConfigError(f"{error}, and {stack_file} does not tell: is the run up (`prism up`)?") from None
        return cls(
            token=known.token.get_secret_value(),
            admin_token=known.admin_token.get_secret_value() if known.admin_token else None,
            admin_port=known.admin_port,
            perception_url=perception_url or known.perception_url,
            reasoning_url=reasoning_url or known.reasoning_url,
            patience_seconds=patience_seconds,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def score(
        self,
        items: Sequence[ScoreItem],
        *,
        expert: Expert,
        section: SectionChoice = "own",
        min_version: int | None = None,
    ) -> ScoreAnswer:
        """One expert's scores, all by one version of it."""
        request = ScoreRequest(items=list(items), section=section, min_version=min_version)
        return await self._of(expert).judge(expert, request)

    async def mixture(
        self,
        items: Sequence[ScoreItem],
        *,
        alpha: float = 0.5,
        section: SectionChoice = "own",
        min_version: int | None = None,
    ) -> MixtureAnswer:
        """Both experts' scores and their mixture, from one call to one of them, which asks the other."""
        client = next(iter(self._experts.values()), None) or self._of("perception")
        request = MixtureRequest(items=list(items), alpha=alpha, section=section, min_version=min_version)
        answer = await client.ask(MixtureAnswer, "POST", "/v1/mixture", request)
        client.check_counts(request.items, [len(item.scores) for item in answer.items])
        return answer

    async def compare(
        self,
        pair: ScoreItem,
        *,
        expert: Expert,
        section: SectionChoice = "own",
        min_version: int | None = None,
    ) -> CompareAnswer:
        """The probability that the first of an item's two responses is the teacher's."""
        if len(pair.responses) != 2:
            raise DataError(f"two responses are compared, this item has {len(pair.responses)}")
        first, second = pair.responses
        request = CompareRequest(
            messages=pair.messages,
            prompt=pair.prompt,
            images=pair.images,
            first=first,
            second=second,
            section=section,
            min_version=min_version,
        )
        client = self._of(expert)
        answer = await client.ask(CompareAnswer, "POST", "/v1/compare", request)
        client.check_expert(expert, answer)
        return answer

    async def calibrate(self, expert: Expert, request: CalibrationRequest) -> CalibrationState:
        """From now on scores by these weights carry percentiles and a probability, whichever replica gives them.

        Raises ConfigError without an admin token, and Refused once other weights are in use; where a replica was told
        and another could not be, the same call completes it.
        """
        token = self.require_admin()
        url = admin_url(self._of(expert).url, self._admin_port)
        replicas = [
            ExpertClient(self._http, replica, token, *self._bounds)
            for replica in await asyncio.to_thread(replica_urls, url)
        ]
        asked = (replica.ask(CalibrationState, "PUT", "/v1/calibration", request) for replica in replicas)
        states: list[CalibrationState] = []
        for answer in await asyncio.gather(*asked, return_exceptions=True):
            if isinstance(answer, BaseException):
                raise answer
            states.append(answer)
        return states[0]

    async def model(self, expert: Expert) -> ModelInfo:
        """Who judges: version, architecture, limits, calibration. Raises Refused if it is not that expert."""
        client = self._of(expert)
        info = await client.ask(ModelInfo, "GET", "/v1/model")
        client.check_expert(expert, info)
        return info

    def require_admin(self) -> str:
        """The admin token. Raises ConfigError if there is none."""
        if not self._admin_token:
            raise ConfigError("this needs the admin token: set PRISM_ADMIN_TOKEN")
        return self._admin_token

    def _of(self, expert: Expert) -> ExpertClient:
        client = self._experts.get(expert)
        if client is None:
            raise ConfigError(
                f"the {expert} expert's address is not known: set PRISM_{expert.upper()}_URL, or name a run that is up"
            )
        return client


def item(
    prompt: str | Sequence[Mapping[str, Any]],
    responses: Sequence[str],
    *,
    images: Sequence[ImageSource] = (),
    folder: Path | str = "",
    image_root: Path | str | None = None,
) -> ScoreItem:
    """A prompt, as text (after its images) or as chat messages, and the responses to it.

    An image is a path, relative to ``folder``, or bytes, a Pillow image, or what goes over the wire as it is: a data
    URI, an http(s) URL, ``sha256:...``. A path as text may be what a row of somebody else's says: its file must lie in
    ``image_root``, by default ``folder``. A ``Path`` is taken as it is. Raises DataError if an image cannot be read or
    the prompt is none.
    """
    if isinstance(responses, str):
        raise DataError("responses is a list of texts: put a single response into a list")
    value = {"prompt": prompt} if isinstance(prompt, str) else {"messages": list(prompt)}
    sources = [image_uri(image, folder, image_root) for image in images]
    return parse_item({**value, "images": sources, "responses": list(responses)}, folder, image_root)


def parse_item(
    value: Mapping[str, Any],
    folder: Path | str = "",
    image_root: Path | str | None = None,
    extra: Literal["forbid", "ignore"] = "forbid",
) -> ScoreItem:
    """An item as JSON has it, its images as paths in ``image_root`` too; ``extra``: unknown keys.

    Raises DataError that says what is wrong.
    """
    try:
        parsed = ScoreItem.model_validate(value, extra=extra)
    except ValidationError as error:
        raise DataError("; ".join(describe(error))) from None
    for part in image_parts(parsed.messages or []):
        part.image = image_uri(part.image, folder, image_root)
    parsed.images = [image_uri(image, folder, image_root) for image in parsed.images]
    return parsed


def image_uri(image: ImageSource, folder: Path | str = "", image_root: Path | str | None = None) -> str:
    """An image as it goes over the wire. Raises DataError for a file that cannot be read, or may not: see ``item``."""
    if isinstance(image, Image.Image):
        return data_uri(_png(image))
    if isinstance(image, bytes):
        return data_uri(image)
    if isinstance(image, str) and (is_data_uri(image) or image.startswith(WIRE_IMAGES)):
        return image
    if isinstance(image, str):
        return data_uri(_read_inside(image, Path(folder), Path(folder if image_root is None else image_root)))
    return data_uri(read_image(image, Path(folder)))


def _read_inside(image: str, folder: Path, root: Path) -> bytes:
    """The file that a text names. Raises DataError where it lies outside of ``root``, links followed."""
    with naming_image(image):
        file = (folder / image).resolve()
        if not file.is_relative_to(root.resolve()):
            raise ValueError(
                f"lies outside of {root.resolve()}, and rows are not trusted to name other files; if these are, "
                "name the folder of their images: --image-root (image_root)"
            )
        return file.read_bytes()


def _png(image: Image.Image) -> bytes:
    if image.mode in ("I", "F"):
        raise DataError("pixels of 32 bits have no agreed range: convert the image to 8 or 16 bits")
    if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=image.getexif())  # which may say that it is rotated
    return buffer.getvalue()
