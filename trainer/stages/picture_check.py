"""At a stage's start: whether policy and experts look at the picture. If another one changes nothing, that is said.

And whether the experts' services show their models of a response what the learner does.

Asked over HTTP, of the servers that the stage works with: with a wrong processor, a template without its placeholder or
weights without a vision tower, a model answers fluently and learns from text alone.
"""

import asyncio
import io
from collections.abc import Sequence

import httpx
from PIL import ImageOps
from pydantic import ValidationError

from prism.clients.http import Refused, Unavailable
from prism.clients.services import ExpertClient
from prism.config import ExpertLearnerConfig
from prism.data.images import decode_image
from prism.errors import ConfigError
from prism.http.client import async_client
from prism.trainer.stages.context import Context
from prism.wire.experts import ModelInfo, ScoreItem, ScoreRequest
from prism.wire.messages import image_sha256s, to_json, to_openai, with_images
from prism.wire.response import EXPERTS, Expert
from prism.wire.v1 import rollout_pb2 as pb

LEAST = 1e-4  # nats a token, or units of score: what is asked twice with one picture differs by less
PATIENCE_SECONDS = 60.0
FAILURES = (httpx.HTTPError, Refused, Unavailable, ValidationError, LookupError, TypeError, ValueError)


def check_pictures(context: Context, prompts: Sequence[pb.Prompt], experts: Sequence[Expert]) -> list[str]:
    """Say, and return, which models answer the same to another picture, and which could not be asked.

    Asked is about the first of ``prompts`` with a picture; without one there is nothing to ask.
    """
    prompt = next((each for each in prompts if image_sha256s(each.messages)), None)
    if prompt is None:
        return []
    found = asyncio.run(_ask(context, prompt, experts))
    for text in found:
        context.say(text, prompt_id=prompt.id)
    return found


def refuse_other_judging(context: Context, learner: ExpertLearnerConfig) -> None:
    """Raises ConfigError for an expert's service that shows its model something else than the learner does: its scores
    would be of what it was never trained on. A service that cannot be asked is said."""
    for expert, info in asyncio.run(_judging(context)).items():
        if isinstance(info, str):
            context.say(f"what the {expert} expert is shown could not be asked: {info}")
        elif (info.pictures, info.section) != (learner.pictures, learner.section):
            raise ConfigError(
                f"the {expert} expert's service judges with PRISM_EXPERT_PICTURES={str(info.pictures).lower()} and "
                f"PRISM_EXPERT_SECTION={info.section}, this stage learns with pictures = "
                f'{str(learner.pictures).lower()} and section = "{learner.section}": start the service with this run '
                "(PRISM_RUN_LIMITS), or set these variables to the same"
            )


async def _judging(context: Context) -> dict[Expert, ModelInfo | str]:
    """Of each expert's service, or why it could not be asked."""
    at, found = context.endpoints, dict[Expert, ModelInfo | str]()
    async with async_client() as http:
        for expert in EXPERTS:
            client = ExpertClient(http, at.expert_url(expert), at.token.get_secret_value(), PATIENCE_SECONDS)
            try:
                found[expert] = await client.ask(ModelInfo, "GET", "/v1/model")
            except (Refused, Unavailable) as error:
                found[expert] = str(error)
    return found


async def _ask(context: Context, prompt: pb.Prompt, experts: Sequence[Expert]) -> list[str]:
    text = prompt.teacher or prompt.gold or "."
    both = prompt.messages, with_other_pictures(prompt.messages, context)
    said: list[str] = []
    async with async_client(timeout=httpx.Timeout(PATIENCE_SECONDS, connect=5)) as http:
        for model in ("policy", *experts):
            name = model if model == "policy" else f"{model} expert"
            try:
                if model == "policy":
                    one, other = [await _logprobs(http, context, messages, text) for messages in both]
                else:
                    one, other = [await _score(http, context, model, messages, text) for messages in both]
                apart = sum(abs(a - b) for a, b in zip(one, other, strict=True)) / len(one)
            except FAILURES as error:
                said.append(f"whether the {name} looks at pictures could not be asked: {error}")
                continue
            if apart < LEAST:
                said.append(
                    f"the {name} answers the same to another picture (of prompt {prompt.id}, {apart:.1g} apart): it "
                    "works from text alone. Are its weights, processor and chat template those of one model?"
                )
    return said


def with_other_pictures(messages: Sequence[pb.Message], context: Context) -> list[pb.Message]:
    """The same with each picture upside down and in negative, of the same size."""

    def other(sha256: str) -> str:
        file = io.BytesIO()
        ImageOps.flip(ImageOps.invert(decode_image(context.blobs.get(sha256), max_pixels=None))).save(file, "PNG")
        return context.blobs.put(file.getvalue())

    return with_images(messages, other)


async def _logprobs(
    http: httpx.AsyncClient, context: Context, messages: Sequence[pb.Message], text: str
) -> list[float]:
    """The policy's, of the text's last tokens."""
    images = {name: context.blobs.get(name) for name in image_sha256s(messages)}
    body = {
        "model": "policy",
        "messages": [*to_openai(messages, images), {"role": "assistant", "content": text}],
        "add_generation_prompt": False,
        "continue_final_message": True,
        "max_tokens": 1,
        "prompt_logprobs": 0,
    }
    headers = {"Authorization": f"Bearer {context.endpoints.token.get_secret_value()}"}
    answer = await http.post(f"{context.endpoints.policy_url}/v1/chat/completions", json=body, headers=headers)
    entries = answer.raise_for_status().json()["prompt_logprobs"][-max(1, len(context.inputs.text_ids(text))) :]
    return [next(iter(entry.values()))["logprob"] for entry in entries]


async def _score(
    http: httpx.AsyncClient, context: Context, expert: Expert, messages: Sequence[pb.Message], text: str
) -> list[float]:
    """An expert's, of the whole text."""
    endpoints = context.endpoints
    client = ExpertClient(http, endpoints.expert_url(expert), endpoints.token.get_secret_value(), PATIENCE_SECONDS)
    item = ScoreItem(messages=to_json(messages), responses=[text])
    (score,) = (await client.judge(expert, ScoreRequest(items=[item], section="all"))).items[0].scores
    if score.score is None:
        raise Refused(score.detail or score.status)
    return [score.score]
