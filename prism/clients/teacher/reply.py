"""A question to a teacher, its answer, and what it cost."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from prism.wire.v1 import rollout_pb2 as pb

MESSAGE_TOKENS = 16
"""That a template puts around a message, at most."""
CHARS_PER_TOKEN = 3.5
"""Of English prose, for estimates; what is reserved counts a token for each byte, which no tokenizer exceeds."""
PIXELS_PER_TOKEN = 750
"""Of an image, for estimates (platform.claude.com/docs/en/build-with-claude/vision); others' figures are near."""

Finish = Literal["stop", "length", "refused"]


@dataclass(frozen=True)
class Usage:
    """Tokens that are paid for; what was thought counts as output."""

    input_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class Reply:
    """``text`` is what was said of why, where the teacher refused."""

    text: str
    finish: Finish
    model: str
    """As the teacher names it, which may be more exact than what it was asked by."""
    usage: Usage | None
    """None where the teacher did not say: then it counts as dear as it can be."""


@dataclass(frozen=True)
class Question:
    """Chat messages, images by sha256, and how the answer is drawn."""

    messages: Sequence[pb.Message]
    prompt_version: str
    """Of whoever wrote the messages around the problem."""
    max_tokens: int
    temperature: float | None = None
    """None: the teacher's own."""
    attempt: int = 0
    """Tells several answers to one question apart."""

    def key(self, model: str) -> str:
        """sha256 that names the answer: of model, prompt version, messages, image bytes, sampling and attempt.

        Addresses and keys are not in it: the same model elsewhere is the same model.
        """
        digest = hashlib.sha256()
        temperature = "" if self.temperature is None else repr(float(self.temperature))
        said = [model, self.prompt_version, str(self.max_tokens), temperature, str(self.attempt)]
        for message in self.messages:
            said += ["message", message.role]
            for part in message.parts:
                said += ["image", part.image_sha256] if part.HasField("image_sha256") else ["text", part.text]
        for one in said:
            data = one.encode(errors="surrogatepass")
            digest.update(b"%d:" % len(data) + data)  # lengths keep apart what stands side by side
        return digest.hexdigest()


@dataclass(frozen=True)
class Tokens:
    """Of a question before it is sent: about, and at most."""

    expected: int
    bound: int


def count_tokens(question: Question, sizes: Sequence[tuple[int, int]], image_tokens: int) -> Tokens:
    """``sizes``: width and height of its images that are known; ``image_tokens``: of an image at most."""
    around, images = MESSAGE_TOKENS * len(question.messages), 0
    characters, size = 0, 0
    for message in question.messages:
        for part in message.parts:
            if part.HasField("image_sha256"):
                images += 1
            else:
                text = part.text
                characters += len(text)
                size += len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))
    bound = around + size + image_tokens * images
    pixels = sum(min(image_tokens, math.ceil(width * height / PIXELS_PER_TOKEN)) for width, height in sizes)
    unknown = image_tokens * (images - len(sizes))
    expected = around + math.ceil(characters / CHARS_PER_TOKEN) + pixels + unknown
    return Tokens(min(expected, bound), bound)


NANO = 10**9
"""Money is counted in whole billionths of a dollar: sums are exact."""


@dataclass(frozen=True)
class Prices:
    """Dollars for a million tokens."""

    input: float
    output: float
    share: float = 1.0
    """Of these that is paid: half, for a batch."""

    def cost(self, usage: Usage) -> int:
        """In billionths of a dollar, rounded up."""
        return self._nano(usage.input_tokens, self.input) + self._nano(usage.output_tokens, self.output)

    def _nano(self, tokens: int, price: float) -> int:
        return math.ceil(round(tokens * price * self.share * NANO / 1e6, 3))


def dollars(nano: int) -> str:
    """For people: cents, or as many digits as a small amount takes."""
    amount = nano / NANO
    return f"${amount:,.2f}" if amount >= 1 or not nano else f"${amount:.3g}"


@dataclass
class Estimate:
    """What questions will take: ``prism curate --dry-run``."""

    questions: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: int = 0
    """Expected, in billionths of a dollar."""
    bound: int = 0
    """The most that is reserved for them, if no send has to be repeated."""

    def add(self, tokens: Tokens, expected_output: int, max_output: int, prices: Prices, times: int = 1) -> None:
        self.questions += times
        self.input_tokens += times * tokens.expected
        self.output_tokens += times * expected_output
        self.cost += times * prices.cost(Usage(tokens.expected, expected_output))
        self.bound += times * prices.cost(Usage(tokens.bound, max_output))
