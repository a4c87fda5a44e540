"""The one path from text and images to token ids and pixels (needs transformers).

SFT, expert scoring, expert learning and policy learning all come through here, so chat template, image placeholders
and end token are the same wherever a text is looked at, and whoever wrote it.
"""

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, groupby
from pathlib import Path
from typing import Any
from unicodedata import normalize
from uuid import uuid4

import numpy as np
import torch
from jinja2 import TemplateError
from PIL import Image
from tokenizers.normalizers import NFC

from prism import logs
from prism.data.images import MAX_ASPECT
from prism.errors import ConfigError, DataError
from prism.model import torchvision_cpu
from prism.model.control import ControlTokens
from prism.wire.messages import image_sha256s, to_template
from prism.wire.v1 import rollout_pb2 as pb

torchvision_cpu.install()

from transformers import AutoProcessor  # noqa: E402  (torchvision must find its operators declared)
from transformers.convert_slow_tokenizer import bytes_to_unicode  # noqa: E402
from transformers.image_utils import SizeDict  # noqa: E402
from transformers.utils import logging as transformers_logging  # noqa: E402

transformers_logging.disable_progress_bar()  # a bar for each load and save would bury the run's own
if logs.is_json():
    transformers_logging.disable_default_handler()
    transformers_logging.enable_propagation()

# A model folder may come from anyone: no code of its own, no pickled weights.
SAFELY: dict[str, Any] = {"trust_remote_code": False, "use_safetensors": True}


TOKEN_BYTES = 40  # of a Python list of token ids


@dataclass(frozen=True)
class Example:
    """One sequence: a prompt, and the response after it.

    input_ids [L], of which the first ``prompt_length`` are the prompt; pixel_values [patches, patch size];
    image_grid_thw [images, 3] in patches.
    """

    input_ids: list[int]
    prompt_length: int
    pixel_values: torch.Tensor | None
    image_grid_thw: torch.Tensor | None

    @property
    def response_ids(self) -> list[int]:
        return self.input_ids[self.prompt_length :]

    @property
    def nbytes(self) -> int:
        """Of memory, about: what a cache of examples is bounded by."""
        grid, pixels = self.image_grid_thw, self.pixel_values
        images = 0 if pixels is None or grid is None else pixels.nbytes + grid.nbytes
        return images + TOKEN_BYTES * len(self.input_ids)


class InputBuilder:
    """Builds examples with a model folder's own processor: tokenizer, chat template, image processor. Thread-safe.

    ``pixel_bounds`` are the pixels that small images are enlarged to and large ones scaled down to, instead of the
    folder's own. Raises ConfigError if the folder holds no processor, or no chat template.
    """

    def __init__(self, model: Path | str, pixel_bounds: tuple[int, int] | None = None) -> None:
        self.start, self.pixel_bounds = model, pixel_bounds
        try:
            self.processor = AutoProcessor.from_pretrained(str(model), trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise ConfigError(f"no processor can be loaded from {model}: {str(error)[:500]}") from None
        self.tokenizer = self.processor.tokenizer
        if not self.processor.chat_template:
            if not self.tokenizer.chat_template:
                raise ConfigError(
                    f"{model} holds no chat template: add chat_template.jinja, or chat_template in its "
                    "tokenizer_config.json, as the model was published with it"
                )
            self.processor.chat_template = self.tokenizer.chat_template
        if pixel_bounds:
            self.processor.image_processor.size = SizeDict(shortest_edge=pixel_bounds[0], longest_edge=pixel_bounds[1])
        # A tokenizer of our own, for which a special token that is written out is text: transformers switches that on
        # and off in one that all threads share. What is a control token in a prompt is found before, in `_pieces`.
        self._encoder = deepcopy(self.tokenizer.backend_tokenizer)
        self._encoder.encode_special_tokens = True
        self._encoder.no_truncation()
        self._encoder.no_padding()
        added = self._encoder.get_added_tokens_decoder().items()
        self.control = ControlTokens({token.content: number for number, token in added if token.special})
        self.end_token_id: int = self.tokenizer.eos_token_id
        self.image_token_id: int = self.processor.image_token_id
        self._merge: int = self.processor.image_processor.merge_size**2
        # A sampled vision token would be taken for a placeholder of an image that is not there.
        self.vision_token_ids = frozenset(
            self.tokenizer.convert_tokens_to_ids(token)
            for token in ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
        )

    def images(self, images: Sequence[Image.Image]) -> tuple[torch.Tensor, torch.Tensor]:
        """pixel_values [all patches, patch size] and image_grid_thw [images, 3].

        Raises DataError for an image of a shape that the processor does not take.
        """
        try:
            out = self.processor.image_processor(images=list(images), return_tensors="pt")
        except ValueError as error:
            raise DataError(f"the image cannot be processed: {error}") from None
        return out["pixel_values"], out["image_grid_thw"]

    def image_tokens(self, width: int, height: int) -> int:
        """Placeholders that an image of this size will take in a prompt. Raises DataError as ``images`` does."""
        try:
            patches: int = self.processor.image_processor.get_number_of_image_patches(height, width)
        except ValueError as error:
            raise DataError(f"the image cannot be processed: {error}") from None
        return patches // self._merge

    def prompt_tokens(self, messages: Sequence[pb.Message], sizes: Sequence[tuple[int, int]], *, room: int) -> int:
        """Tokens of a prompt with images of these widths and heights, or a larger number that fits into ``room``.

        Raises DataError for a prompt that the chat template does not take.
        """
        images = sum(self.image_tokens(*size) for size in sizes)
        pieces = self._pieces(messages)
        size = sum(len(piece.encode()) for piece in pieces)
        if images + size <= room:  # no token is less than a byte: most prompts need not be tokenised
            return images + size
        return images + len(self._ids(pieces)) - len(sizes)

    def refuse_control(self, messages: Sequence[pb.Message]) -> None:
        """Raises DataError for a prompt with a control token written out in its texts.

        Here it is text, yet the policy server refuses it: vLLM tokenises a whole chat, and could not tell them apart.
        """
        for message in messages:
            if token := self.control.find("".join(part.text for part in message.parts)):
                raise DataError(f"the prompt writes out {token}, a control token, which the policy server refuses")

    def _pieces(self, messages: Sequence[pb.Message]) -> list[str]:
        """The prompt as the chat template renders it, split at the template's own control tokens as by ``split``.

        What the messages write out stays in its piece: a mask keeps it from being taken for the template's.
        Raises DataError for a prompt that the template does not take.
        """
        mask = ""
        if any(self.control.find("".join(part.text for part in message.parts)) for message in messages):
            mask = uuid4().hex  # which no text can hold, since nobody knows it
            messages = [self._masked(message, mask) for message in messages]
        try:
            rendered = self.processor.apply_chat_template(
                to_template(messages), tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:
            raise DataError(f"the chat template does not take the prompt: {error}") from None
        pieces = self.control.split(rendered)
        if mask:
            pieces[::2] = [text.replace(mask, "") for text in pieces[::2]]
        return pieces

    def _masked(self, message: pb.Message, mask: str) -> pb.Message:
        """Texts that follow one another as one: a template may write them so, and halves would make a whole."""
        parts: list[pb.Part] = []
        for is_image, run in groupby(message.parts, lambda part: part.HasField("image_sha256")):
            if is_image:
                parts.extend(run)
            else:
                parts.append(pb.Part(text=self.control.masked("".join(part.text for part in run), mask)))
        return pb.Message(role=message.role, parts=parts)

    def prompt(self, messages: Sequence[pb.Message], images: Sequence[Image.Image]) -> Example:
        """The prompt alone, ready for a response. Raises DataError if it does not name exactly these images."""
        pixel_values, grid = self.images(images) if images else (None, None)
        return self.prompt_of(messages, pixel_values, grid)

    def prompt_of(
        self, messages: Sequence[pb.Message], pixel_values: torch.Tensor | None, grid: torch.Tensor | None
    ) -> Example:
        """As ``prompt``, from images that are processed already."""
        raw = self._ids(self._pieces(messages))
        counts = [] if grid is None else (grid.prod(-1) // self._merge).tolist()
        named = len(image_sha256s(messages))
        if named != len(counts) or raw.count(self.image_token_id) != len(counts):
            raise DataError(
                f"the prompt names {named} images and holds {raw.count(self.image_token_id)} placeholders, "
                f"{len(counts)} images were given"
            )
        placeholders = iter(counts)
        ids: list[int] = []
        for token in raw:
            ids.extend([token] * next(placeholders) if token == self.image_token_id else [token])
        return Example(ids, len(ids), pixel_values, grid)

    def without_pictures(self, prompt: Example) -> Example:
        """The prompt for an expert that is shown none: nothing stands where they stood."""
        ids = [token for token in prompt.input_ids[: prompt.prompt_length] if token not in self.vision_token_ids]
        return Example(ids, len(ids), None, None)

    def text_prompt(self, messages: Sequence[pb.Message]) -> Example:
        """``without_pictures`` of the prompt, without a look at them. Raises DataError as ``prompt`` does."""
        ids = self._ids(self._pieces(messages))
        return self.without_pictures(Example(ids, len(ids), None, None))

    def most_image_tokens(self, pixels: int) -> int:
        """No fewer than ``image_tokens`` of any image of so many pixels, whatever its shape."""
        processor = self.processor.image_processor
        side, size = processor.patch_size * processor.merge_size, processor.size
        scaled = max(min(pixels, size["longest_edge"]), size["shortest_edge"])
        # Each side is made whole tokens, by less than one more, which adds most to the thinnest strip.
        sides = math.sqrt(scaled * MAX_ASPECT) + math.sqrt(scaled / MAX_ASPECT)
        return int((scaled / side + sides) / side + 1)

    @property
    def image_token_bytes(self) -> int:
        """Of the pixel_values behind one placeholder."""
        processor = self.processor.image_processor
        values = 3 * processor.temporal_patch_size * processor.patch_size**2
        return self._merge * values * torch.float32.itemsize

    def least_tokens(self, text: str) -> int:
        """A number of tokens that ``text_ids`` cannot come below, a hundred times sooner than it is done.

        Each byte takes a share of its token, no less than one by the length of the longest token that holds such a
        byte; the shares of a token's bytes come to one at most.
        """
        normalizer = self._encoder.normalizer
        if isinstance(normalizer, NFC):
            text = normalize("NFC", text)
        elif normalizer is not None:
            text = normalizer.normalize_str(text)
        counts = np.bincount(np.frombuffer(text.encode(), np.uint8), minlength=256)
        return math.ceil(float(counts @ self._byte_shares) - 1e-6)

    @cached_property
    def _byte_shares(self) -> "np.ndarray[Any, Any]":
        """[256], 0 for a byte that no token holds."""
        letters = {letter: byte for byte, letter in bytes_to_unicode().items()}  # of a byte-level vocabulary
        added = {token.content for token in self._encoder.get_added_tokens_decoder().values()}
        longest = np.zeros(256)
        for token in self._encoder.get_vocab().keys() - self.control.ids.keys():
            is_bytes = token not in added and letters.keys() >= set(token)
            spelled = [letters[letter] for letter in token] if is_bytes else list(token.encode())
            held = list(set(spelled))
            longest[held] = np.maximum(longest[held], len(spelled))
        return np.divide(1, longest, out=np.zeros(256), where=longest > 0)

    def text_ids(self, text: str) -> list[int]:
        """Tokens of a response's text. Special tokens written out in it are text like any other."""
        return self._encode([text])[0]

    def _ids(self, pieces: Sequence[str]) -> list[int]:
        """Of what ``_pieces`` gives."""
        texts = self._encode(pieces[::2])
        tokens = [[self.control.ids[token]] for token in pieces[1::2]]
        between = [*tokens, list[int]()]
        return list(chain.from_iterable(chain.from_iterable(zip(texts, between, strict=True))))

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        """As a batch, even of one: that alone lets other threads run meanwhile."""
        return [text.ids for text in self._encoder.encode_batch_fast(list(texts), add_special_tokens=False)]

    def with_text(self, prompt: Example, text: str) -> Example:
        """The prompt answered by ``text`` and ended: how every text, teacher's or student's, is looked at."""
        return self.with_ids(prompt, [*self.text_ids(text), self.end_token_id])

    def with_ids(self, prompt: Example, response_ids: Sequence[int]) -> Example:
        """The prompt answered by the very tokens the policy sampled."""
        return replace(prompt, input_ids=[*prompt.input_ids[: prompt.prompt_length], *response_ids])


def distinct(examples: Sequence[Example]) -> tuple[list[Example], list[int]]:
    """Each example once, and for each of ``examples`` its place there.

    Rows of a batch differ by rounding even where their texts are the same: what is computed once cannot.
    """
    keys = [(id(example.pixel_values), tuple(example.input_ids)) for example in examples]
    once: dict[tuple[int, tuple[int, ...]], Example] = {}
    for key, example in zip(keys, examples, strict=True):
        once.setdefault(key, example)
    places = {key: place for place, key in enumerate(once)}
    return list(once.values()), [places[key] for key in keys]
