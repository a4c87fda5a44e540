"""One question to two policies that are up: a pair to vote on."""

import asyncio
from collections.abc import Sequence
from typing import Any

from prism.services.console.live import services
from prism.services.console.live.services import Services
from prism.services.console.votes.pairs import Side, as_text
from prism.wire.console import AskPairRequest, ChatRequest, JudgeRequest, Turn


async def ask_both(known: Sequence[Services], asked: AskPairRequest) -> tuple[Side, Side]:
    """Both answers, scored by the first one's experts. Raises ServiceError if a policy gives no whole answer."""
    turns = [Turn(role="user", content=asked.question)]
    shared = {"messages": turns, "image": asked.image}
    how = {"max_tokens": asked.max_tokens, "temperature": asked.temperature}
    one, other = await asyncio.gather(
        *(
            services.answer(each, ChatRequest(run=run, **shared, **how))
            for each, run in zip(known, asked.runs, strict=True)
        )
    )
    judge = asked.runs[0]

    async def side(run: str, text: str, version: int | None) -> Side:
        judged = await services.score(known[0], JudgeRequest(run=judge, response=text, **shared))
        scores: list[dict[str, Any]] = [
            {"expert": one.expert, "version": one.version, "status": one.status, "value": one.score} for one in judged
        ]
        name = run if version is None else f"{run}, version {version}"
        return Side(name, version, as_text(text), judge, scores)

    return await side(asked.runs[0], *one), await side(asked.runs[1], *other)
