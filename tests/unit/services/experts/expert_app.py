"""An expert's app inside the test's process, and requests to it."""

import asyncio
import base64
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from PIL import Image

from prism.services.experts.app import create_app
from prism.services.experts.settings import ExpertSettings
from prism.wire.weights import seal

DATA, ADMIN = "data-token-0123456789", "admin-token-0123456789"
GOOD = "<caption>- a one\n- b two</caption><think>1+2=3</think><answer>3</answer>"
OTHER = "<caption>- a two\n- b two</caption><think>2+2=4</think><answer>4</answer>"


@asynccontextmanager
async def serving(settings: ExpertSettings) -> AsyncIterator[httpx.AsyncClient]:
    """A client, with the admin token, of an expert that is ready."""
    app: FastAPI = create_app(settings)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app=app),
            base_url="http://expert",
            headers={"Authorization": f"Bearer {ADMIN}"},
            timeout=30,
        ) as client,
    ):
        await until_ready(client, app)
        yield client


async def until_ready(client: httpx.AsyncClient, app: FastAPI) -> None:
    async with asyncio.timeout(30):
        while (await client.get("/readyz")).status_code == 503:
            assert not hasattr(app.state, "error"), app.state.error
            await asyncio.sleep(0.02)


def png(width: int = 64, height: int = 64) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((width, height), 90).convert("RGB").save(file, "PNG")
    return file.getvalue()


def uri(image: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"


def item(*responses: str, image: str | None = None, **more: Any) -> dict[str, Any]:
    return {"prompt": "Sum?", "images": [image] if image else [], "responses": list(responses or (GOOD,))} | more


async def ask(client: httpx.AsyncClient, *items: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The answer to a request that is served."""
    answer = await client.post("/v1/score", json={"items": list(items or (item(),))} | more)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def score(client: httpx.AsyncClient, *responses: str, image: str | None = None, **more: Any) -> list[Any]:
    """What is said of each of the responses to one prompt."""
    return (await ask(client, item(*responses, image=image), **more))["items"][0]["scores"]


def manifest(root: Path, version: int, *, attempt: int = 1, model: str = "perception") -> dict[str, Any]:
    made = seal(root, f"perception/{version}", model=model, version=version, attempt=attempt)
    return made.model_dump(mode="json")
