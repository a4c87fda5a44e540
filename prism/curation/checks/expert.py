"""The perception expert as a check: a true caption has a higher score than each of its own false copies.

Scores of an expert say something within one prompt alone, so there is no score that a caption must have. But the same
caption with one number or word of a bullet changed is about the same image: if a copy scores higher, the expert takes
the copy for the better reading.
"""

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from prism.clients.http import Refused, Unavailable
from prism.clients.services import ExpertClient
from prism.curation.checks import Check, NotChecked
from prism.wire.experts import ScoreItem, ScoreRequest
from prism.wire.messages import Message, data_uri
from prism.wire.response import ParsedResponse

COPIES_OF_A_NUMBER, MOST_COPIES, A_REQUEST = 4, 96, 32


class CaptionExpert:
    def __init__(self, client: ExpertClient, words: Sequence[Sequence[str]]) -> None:
        self._client, self._words = client, words

    async def margin(self, row: dict[str, Any], response: ParsedResponse, images: Mapping[str, bytes]) -> float | None:
        """The caption's score less that of its best false copy; None if it has none. Raises NotChecked."""
        copies = false_copies(response.bullets, self._words, row["id"])
        if not copies:
            return None
        texts = [_write(bullets, response) for bullets in [response.bullets, *copies]]
        messages = messages_with_images(row, images)
        scores = list[float]()
        for begin in range(0, len(texts), A_REQUEST):
            item = ScoreItem(messages=messages, responses=texts[begin : begin + A_REQUEST])
            try:
                answer = await self._client.judge("perception", ScoreRequest(items=[item]))
            except (Refused, Unavailable) as error:
                raise NotChecked(f"the perception expert: {error}") from None
            for score in answer.items[0].scores:
                if score.score is None:
                    raise NotChecked(f"the perception expert: {score.status} {score.detail or ''}")
                scores.append(score.score)
        return scores[0] - max(scores[1:])


def judge_margin(margin: float | None, least: float) -> Check:
    if margin is None:
        return Check("undecided", "the caption holds no number and no known word that could be another", "expert")
    figures = {"margin": round(margin, 4)}
    if margin < least:
        return Check("wrong", f"a false copy of the caption leads it by {-margin:.2f}", "expert", figures)
    return Check("ok", "", "expert", figures)


def messages_with_images(row: dict[str, Any], images: Mapping[str, bytes]) -> list[Message]:
    """As the experts take them, whatever blob store they have."""

    def part(one: dict[str, str]) -> dict[str, str]:
        if one["type"] == "image":
            return {"type": "image", "image": data_uri(images[one["image"].removeprefix("sha256:")])}
        return one

    return [
        Message.model_validate({"role": message["role"], "content": [part(one) for one in message["content"]]})
        for message in row["messages"]
    ]


def false_copies(bullets: Sequence[str], words: Sequence[Sequence[str]], seed: str) -> list[list[str]]:
    """The bullets with one number or word of one of them changed, each time another. A function of its arguments."""
    rng = random.Random(seed)
    others = {word: [other for other in group if other != word] for group in words for word in group}
    named = "|".join(re.escape(word) for word in sorted(others, key=len, reverse=True))
    pattern = re.compile(rf"\d+|\b(?:{named})\b" if named else r"\d+")
    copies = [
        [*bullets[:number], bullet[: found.start()] + other + bullet[found.end() :], *bullets[number + 1 :]]
        for number, bullet in enumerate(bullets)
        for found in pattern.finditer(bullet)
        for other in (others[found[0]] if found[0] in others else _other_numbers(found[0], rng))
    ]
    return copies if len(copies) <= MOST_COPIES else rng.sample(copies, MOST_COPIES)


def _other_numbers(number: str, rng: random.Random) -> list[str]:
    low, high = (10 ** (len(number) - 1) if len(number) > 1 else 0), 10 ** len(number)
    near = [n for n in (int(number) - 1, int(number) + 1) if low <= n < high]
    far = [n for n in (rng.randrange(low, high) for _ in range(COPIES_OF_A_NUMBER)) if n != int(number)]
    return [str(n) for n in dict.fromkeys(near + far)][:COPIES_OF_A_NUMBER]


def _write(bullets: Sequence[str], response: ParsedResponse) -> str:
    caption = "\n".join(f"- {bullet}" for bullet in bullets)
    return f"<caption>{caption}</caption><think>{response.think}</think><answer>{response.answer}</answer>"
