"""Requests made ready for the model: limits, images, token ids. What cannot be scored gets its status here."""

import hashlib
from array import array
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from fastapi import HTTPException

from prism.data.images import decode_image, image_size
from prism.errors import ConfigError, DataError
from prism.model.inputs import Example, InputBuilder
from prism.services.experts.engine import ScoringGroup
from prism.services.experts.settings import ExpertSettings
from prism.wire.experts import JudgedText, JudgingOptions, ResponseScore, ScoreItem, ScoreRequest, ScoreStatus
from prism.wire.messages import Message, from_json, image_parts
from prism.wire.response import parse_response

T = TypeVar("T")

REQUEST_PIXEL_BYTES = 2**29  # where no setting says another


class TooLong(Exception):
    """A text or prompt over the limits; the message names them."""


@dataclass(frozen=True)
class Sized:
    """An image whose header was read. ``tokens`` in a prompt; ``nbytes`` of memory once it is decoded."""

    data: bytes
    sha256: str
    tokens: int
    nbytes: int


@dataclass(frozen=True)
class Pixels:
    """Images made ready for the model."""

    values: torch.Tensor  # [patches, patch size]
    grid: torch.Tensor  # [images, 3]


Measured = Sized | DataError | TooLong
Readied = Pixels | DataError
Steps = Generator[None, None, T]
"""Work that may be left off at each step."""


@dataclass(frozen=True)
class ItemPlan:
    """One item made ready: the answers that need no model, None where the next response of the group gives one."""

    answers: list[ResponseScore | None]
    group: ScoringGroup | None


class Planner:
    """Raises ConfigError for a limit of bytes that refuses a prompt which the other limits allow."""

    def __init__(self, settings: ExpertSettings, inputs: InputBuilder) -> None:
        self.settings, self.inputs = settings, inputs
        prompt = self.largest_prompt()
        request, in_all = settings.max_request_pixel_bytes, settings.max_pixel_bytes
        if request is None:
            request = max(prompt, min(REQUEST_PIXEL_BYTES, in_all or REQUEST_PIXEL_BYTES))
        self.max_request_pixel_bytes, self.max_pixel_bytes = request, in_all or 2 * request
        if self.max_request_pixel_bytes < prompt:
            raise ConfigError(
                f"PRISM_MAX_REQUEST_PIXEL_BYTES: {self.max_request_pixel_bytes} is less than the {prompt} bytes that "
                "images of one prompt may take by PRISM_MAX_IMAGES, PRISM_MAX_IMAGE_PIXELS, PRISM_MAX_PIXELS and "
                "PRISM_MAX_MODEL_LEN: lower one of those"
            )
        if self.max_pixel_bytes < self.max_request_pixel_bytes:
            raise ConfigError(
                f"PRISM_MAX_PIXEL_BYTES: {self.max_pixel_bytes} is less than the {self.max_request_pixel_bytes} bytes "
                "that one request may take (PRISM_MAX_REQUEST_PIXEL_BYTES), which would wait for ever"
            )

    def largest_prompt(self) -> int:
        """Bytes of the decoded images of one prompt, at most, whatever their shapes."""
        settings, inputs = self.settings, self.inputs
        images = settings.max_images * inputs.most_image_tokens(settings.max_image_pixels)
        copies = 2 if settings.max_images > 1 else 1  # each alone, and all of them together
        return copies * min(images, settings.max_model_len) * inputs.image_token_bytes

    @property
    def limits(self) -> dict[str, int]:
        """All that rule a request."""
        pixels = {"max_request_pixel_bytes": self.max_request_pixel_bytes, "max_pixel_bytes": self.max_pixel_bytes}
        return self.settings.limits | pixels

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

    def pictures(self, item: ScoreItem) -> list[str]:
        """The images that the expert is shown of a prompt, as the request names them."""
        return [part.image for part in image_parts(item.chat())] if self.settings.expert_pictures else []

    def measure(self, sources: Mapping[str, bytes | DataError]) -> dict[str, Measured]:
        """The images by the names that a request has for them, none decoded, or what is wrong with them."""
        return {name: self._measured(data) for name, data in sources.items()}

    def _measured(self, data: bytes | DataError) -> Measured:
        if isinstance(data, DataError):
            return data
        try:
            size = image_size(data, self.settings.max_image_pixels)
            tokens = self.inputs.image_tokens(*size)
        except DataError as error:
            return error
        if tokens > self.settings.max_model_len:
            return self._too_long(f"an image of {tokens} tokens", "max_model_len")
        return Sized(data, hashlib.sha256(data).hexdigest(), tokens, tokens * self.inputs.image_token_bytes)

    def pixel_bytes(self, items: Sequence[ScoreItem], images: Mapping[str, Measured]) -> int:
        """That the items' images take once they are decoded. Raises HTTPException 413 if that is too much."""
        sizes: dict[tuple[str, ...], int] = {}  # of images, and of those that one prompt holds together
        for item in items:
            found = [images[name] for name in self.pictures(item)]
            used = [image for image in found if isinstance(image, Sized)]
            if len(used) == len(found) and sum(image.tokens for image in used) <= self.settings.max_model_len:
                sizes |= {(image.sha256,): image.nbytes for image in used}
                sizes |= {tuple(image.sha256 for image in used): sum(image.nbytes for image in used)}
        size, limit = sum(sizes.values()), self.max_request_pixel_bytes
        if size > limit:
            raise HTTPException(
                413,
                f"the images of this request take {size} bytes once they are decoded, over the limit of {limit} "
                "(PRISM_MAX_REQUEST_PIXEL_BYTES): send fewer or smaller ones at a time",
            )
        return size

    def plan(self, request: ScoreRequest, images: Mapping[str, Measured]) -> Steps[list[ItemPlan]]:
        """One for each item. ``images`` is what ``measure`` gave."""
        readied: dict[tuple[str, ...], Readied] = {}
        plans: list[ItemPlan] = []
        for item in request.items:
            try:
                plans.append((yield from self._plan_item(item, request.section == "all", images, readied)))
            except DataError as error:
                plans.append(self._all(item, "error", f"the prompt cannot be used: {error}", request))
            except TooLong as error:
                plans.append(self._all(item, "too_long", f"the prompt alone: {error}", request))
            yield
        return plans

    def _plan_item(
        self, item: ScoreItem, whole: bool, images: Mapping[str, Measured], readied: dict[tuple[str, ...], Readied]
    ) -> Steps[ItemPlan]:
        """Raises DataError or TooLong for a prompt that cannot be used.

        ``readied`` holds the images of earlier items, alone and together.
        """
        chat = item.chat()
        sized = [_usable(images[name]) for name in self.pictures(item)]
        self._check_text("".join(part.text for message in chat for part in message.parts if part.type == "text"))
        self._check_tokens(sum(image.tokens for image in sized), "of images")
        for image in sized:
            if (image.sha256,) not in readied:
                readied[image.sha256,] = self._made_ready(image.data)
                yield
        names = tuple(image.sha256 for image in sized)
        if names and names not in readied:
            readied[names] = _together([_usable(readied[name,]) for name in names])
        prompt = self._prompt(chat, _usable(readied[names]) if names else None)
        section = self.judged(whole)
        answers: list[ResponseScore | None] = []
        responses: list[list[int]] = []
        for text in item.responses:
            yield
            parsed = parse_response(text)
            if not whole and not parsed.valid:
                answers.append(unscored("invalid_format", section, "; ".join(parsed.problems)))
                continue
            shown = text if whole else parsed.judged(self.settings.expert, self.settings.expert_section)
            try:
                ids = self._ids(shown, len(prompt.input_ids))
            except TooLong as error:
                answers.append(unscored("too_long", section, str(error)))
                continue
            answers.append(None)
            responses.append(ids)
        if not responses:
            return ItemPlan(answers, None)
        key = hashlib.sha256(array("q", prompt.input_ids).tobytes() + "".join(names).encode()).hexdigest()
        return ItemPlan(answers, ScoringGroup(prompt, key, names, responses))

    def _made_ready(self, data: bytes) -> Readied:
        try:
            return Pixels(*self.inputs.images([decode_image(data, self.settings.max_image_pixels)]))
        except DataError as error:
            return error

    def _prompt(self, chat: Sequence[Message], pixels: Pixels | None) -> Example:
        """Raises DataError or TooLong."""
        messages = from_json(chat, lambda _: "image")
        if self.settings.expert_pictures:
            prompt = self.inputs.prompt_of(messages, pixels and pixels.values, pixels and pixels.grid)
        else:
            prompt = self.inputs.text_prompt(messages)
        if len(prompt.input_ids) >= self.settings.max_model_len:
            raise self._too_long(f"{len(prompt.input_ids)} tokens", "max_model_len")
        return prompt

    def _ids(self, text: str, prompt_tokens: int) -> list[int]:
        """Raises TooLong."""
        self._check_text(text, prompt_tokens)
        ids = [*self.inputs.text_ids(text), self.inputs.end_token_id]
        self._check_tokens(prompt_tokens + len(ids), "with the prompt")
        return ids

    def _check_text(self, text: str, more_tokens: int = 0) -> None:
        """Before a text is tokenised, which of a million characters takes a second. Raises TooLong."""
        if len(text) > self.settings.max_text_chars:
            raise self._too_long(f"{len(text)} characters", "max_text_chars")
        self._check_tokens(more_tokens + self.inputs.least_tokens(text), "at least")

    def _check_tokens(self, tokens: int, what: str) -> None:
        """Raises TooLong."""
        if tokens > self.settings.max_model_len:
            raise self._too_long(f"{tokens} tokens {what}", "max_model_len")

    def _too_long(self, what: str, limit: str) -> TooLong:
        return TooLong(f"{what}, over the limit of {self.settings.limits[limit]} (PRISM_{limit.upper()})")

    def judged(self, whole: bool) -> JudgedText:
        return "all" if whole or self.settings.expert_section == "whole" else self.settings.expert

    def _all(self, item: ScoreItem, status: ScoreStatus, detail: str, request: JudgingOptions) -> ItemPlan:
        section = self.judged(request.section == "all")
        return ItemPlan([unscored(status, section, detail) for _ in item.responses], None)


def _together(images: Sequence[Pixels]) -> Pixels:
    """One prompt's. A single image is not copied."""
    if len(images) == 1:
        return images[0]
    return Pixels(torch.cat([image.values for image in images]), torch.cat([image.grid for image in images]))


def _usable(image: T | DataError | TooLong) -> T:
    """The image; raises what is wrong with it."""
    if isinstance(image, DataError | TooLong):
        raise image
    return image


def unscored(status: ScoreStatus, section: JudgedText, detail: str) -> ResponseScore:
    return ResponseScore(status=status, score=None, section=section, detail=detail)
