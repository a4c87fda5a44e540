"""Requests made ready for the model: limits, images, token ids. What cannot be scored gets its status here."""

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from fastapi import HTTPException

from prism.data.images import decode_image
from prism.errors import DataError
from prism.model.inputs import Example, InputBuilder
from prism.services.experts.engine import ScoringGroup
from prism.services.experts.settings import ExpertSettings
from prism.wire.experts import JudgedText, JudgingOptions, ResponseScore, ScoreItem, ScoreRequest, ScoreStatus
from prism.wire.messages import Message, from_json, image_parts
from prism.wire.response import parse_response


class TooLong(Exception):
    """A text or prompt over the limits; the message names them."""


@dataclass(frozen=True)
class Pixels:
    """An image made ready for the model. sha256 is of its bytes."""

    sha256: str
    values: torch.Tensor  # [patches, patch size]
    grid: torch.Tensor  # [1, 3]


Readied = Pixels | DataError | TooLong


@dataclass(frozen=True)
class ItemPlan:
    """One item made ready: the answers that need no model, None where the next response of the group gives one."""

    answers: list[ResponseScore | None]
    group: ScoringGroup | None


class Planner:
    def __init__(self, settings: ExpertSettings, inputs: InputBuilder) -> None:
        self.settings, self.inputs = settings, inputs

    def check_limits(self, items: Sequence[ScoreItem]) -> None:
        """Raises HTTPException 413 that names the variable."""
        responses = [len(item.responses) for item in items]
        images = [len(image_parts(item.chat())) for item in items]
        for count, what, name in (
            (len(items), "items", "max_items"),
            (max(responses), "responses of one item", "max_responses"),
            (sum(responses), "responses of one request", "max_request_responses"),
            (max(images), "images of one item", "max_images"),
            (sum(images), "images of one request", "max_request_images"),
        ):
            limit = self.settings.limits[name]
            if count > limit:
                raise HTTPException(413, f"{count} {what} are over the limit of {limit} (PRISM_{name.upper()})")

    def plan(self, request: ScoreRequest, sources: dict[str, bytes | DataError]) -> list[ItemPlan]:
        """One for each item. ``sources`` holds the images by the names that the request has for them."""
        images: dict[str, Readied] = {}
        plans: list[ItemPlan] = []
        for item in request.items:
            try:
                plans.append(self._plan_item(item, request.section == "all", sources, images))
            except DataError as error:
                plans.append(self._all(item, "error", f"the prompt cannot be used: {error}", request))
            except TooLong as error:
                plans.append(self._all(item, "too_long", f"the prompt alone: {error}", request))
        return plans

    def _plan_item(
        self,
        item: ScoreItem,
        whole: bool,
        sources: dict[str, bytes | DataError],
        images: dict[str, Readied],
    ) -> ItemPlan:
        """Raises DataError or TooLong for a prompt that cannot be used.

        ``images`` holds those of earlier items.
        """
        chat = item.chat()
        pixels = [self._pixels(sources[part.image], images) for part in image_parts(chat)]
        prompt = self._prompt(chat, pixels)
        section = self.judged(whole)
        answers: list[ResponseScore | None] = []
        responses: list[list[int]] = []
        for text in item.responses:
            parsed = parse_response(text)
            if not whole and not parsed.valid:
                answers.append(unscored("invalid_format", section, "; ".join(parsed.problems)))
                continue
            try:
                ids = self._ids(text if whole else parsed.section(self.settings.expert), len(prompt.input_ids))
            except TooLong as error:
                answers.append(unscored("too_long", section, str(error)))
                continue
            answers.append(None)
            responses.append(ids)
        if not responses:
            return ItemPlan(answers, None)
        image_keys = tuple(image.sha256 for image in pixels)
        key = hashlib.sha256(array("q", prompt.input_ids).tobytes() + "".join(image_keys).encode()).hexdigest()
        return ItemPlan(answers, ScoringGroup(prompt, key, image_keys, responses))

    def _pixels(self, data: bytes | DataError, images: dict[str, Readied]) -> Pixels:
        """An image, made ready once a request. Raises DataError or TooLong."""
        if isinstance(data, DataError):
            raise data
        sha256 = hashlib.sha256(data).hexdigest()
        if sha256 not in images:
            images[sha256] = self._made_ready(sha256, data)
        made = images[sha256]
        if not isinstance(made, Pixels):
            raise made
        return made

    def _made_ready(self, sha256: str, data: bytes) -> Readied:
        try:
            image = decode_image(data, self.settings.max_image_pixels)
            tokens = self.inputs.image_tokens(*image.size)
            if tokens > self.settings.max_tokens:  # found out before its pixels are unfolded into hundreds of megabytes
                return self._too_long(f"an image of {tokens} tokens", "max_tokens")
            return Pixels(sha256, *self.inputs.images([image]))
        except DataError as error:
            return error

    def _prompt(self, chat: Sequence[Message], pixels: Sequence[Pixels]) -> Example:
        """Raises DataError or TooLong."""
        names = (image.sha256 for image in pixels)
        messages = from_json(chat, lambda _: next(names))
        self._check_chars(sum(len(part.text) for message in messages for part in message.parts))
        values = torch.cat([image.values for image in pixels]) if pixels else None
        grid = torch.cat([image.grid for image in pixels]) if pixels else None
        prompt = self.inputs.prompt_of(messages, values, grid)
        if len(prompt.input_ids) >= self.settings.max_tokens:
            raise self._too_long(f"{len(prompt.input_ids)} tokens", "max_tokens")
        return prompt

    def _ids(self, text: str, prompt_tokens: int) -> list[int]:
        """Raises TooLong."""
        self._check_chars(len(text))
        ids = [*self.inputs.text_ids(text), self.inputs.end_token_id]
        tokens = prompt_tokens + len(ids)
        if tokens > self.settings.max_tokens:
            raise self._too_long(f"{tokens} tokens with the prompt", "max_tokens")
        return ids

    def _check_chars(self, count: int) -> None:
        """Before a text is tokenised, which of a body full of one word takes minutes."""
        if count > self.settings.max_text_chars:
            raise self._too_long(f"{count} characters", "max_text_chars")

    def _too_long(self, what: str, limit: str) -> TooLong:
        return TooLong(f"{what}, over the limit of {self.settings.limits[limit]} (PRISM_{limit.upper()})")

    def judged(self, whole: bool) -> JudgedText:
        return "all" if whole else self.settings.expert

    def _all(self, item: ScoreItem, status: ScoreStatus, detail: str, request: JudgingOptions) -> ItemPlan:
        section = self.judged(request.section == "all")
        return ItemPlan([unscored(status, section, detail) for _ in item.responses], None)


def unscored(status: ScoreStatus, section: JudgedText, detail: str) -> ResponseScore:
    return ResponseScore(status=status, score=None, section=section, detail=detail)
