"""A model that decides what rules cannot. It sees what it must judge and nothing of how it was made."""

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import select

from prism.clients.teacher.client import Teacher
from prism.clients.teacher.config import TeacherConfig
from prism.clients.teacher.errors import Busy, Refused, Unusable
from prism.clients.teacher.reply import Question
from prism.curation import prompts
from prism.curation.checks import Check, NotChecked
from prism.curation.state.store import Store
from prism.curation.state.tables import Answer
from prism.wire.response import ParsedResponse
from prism.wire.v1 import rollout_pb2 as pb
from prism.wire.verdict import one_verdict

REPLIES = 2
"""That one start pays for before a case waits for the next start: what is no verdict is stored, and stays none."""


def case_question(system: str, case: Mapping[str, Any], images: Iterable[str], config: TeacherConfig) -> Question:
    """``images``: sha256 of each that the judge is shown."""
    parts = [*(pb.Part(image_sha256=sha256) for sha256 in images), pb.Part(text=json.dumps(case, ensure_ascii=False))]
    messages = [pb.Message(role="system", parts=[pb.Part(text=system)]), pb.Message(role="user", parts=parts)]
    return Question(messages, prompts.JUDGE_VERSION, config.max_tokens, config.temperature)


class Judge:
    """Its answers are kept as the teacher's are: what was judged once is not paid for again."""

    def __init__(self, teacher: Teacher, store: Store) -> None:
        self._teacher, self._store = teacher, store
        self._asking: dict[str, asyncio.Task[tuple[str, bool]]] = {}

    async def check_answer(self, question: str, golds: Sequence[str], answer: str) -> Check:
        """Raises NotChecked, and Stopped as ``Teacher.ask`` does."""
        case = {"question": question, "references": list(golds), "candidate": answer}
        verdict = await self._verdict(prompts.JUDGE_ANSWER, case, {}, ("yes", "no"))
        why = "" if verdict == "yes" else "the judge takes it for another answer"
        return Check("ok" if verdict == "yes" else "wrong", why, "judge")

    async def check_caption(self, bullets: Sequence[str], images: Mapping[str, bytes], max_unclear: float) -> Check:
        """Each bullet by itself, against the images. Raises as ``check_answer``."""
        asked = (
            self._verdict(prompts.JUDGE_BULLET, {"statement": bullet}, images, ("yes", "no", "unclear"))
            for bullet in bullets
        )
        verdicts = list[str]()
        for said in await asyncio.gather(*asked, return_exceptions=True):  # all come to their end: they are paid for
            if isinstance(said, BaseException):
                raise said
            verdicts.append(said)
        figures = {"bullets": len(bullets), "unclear": verdicts.count("unclear")}
        if "no" in verdicts:
            wrong = bullets[verdicts.index("no")]
            return Check("wrong", f"the images do not show it: {wrong[:200]}", "judge", figures)
        if verdicts.count("unclear") > max_unclear * len(bullets):
            return Check(
                "wrong", f"{verdicts.count('unclear')} of {len(bullets)} bullets are unclear", "judge", figures
            )
        return Check("ok", "", "judge", figures)

    async def check_steps(self, question: str, response: ParsedResponse) -> Check:
        """Raises as ``check_answer``."""
        case = {
            "known": list(response.bullets),
            "question": question,
            "steps": response.think,
            "answer": response.answer,
        }
        verdict = await self._verdict(prompts.JUDGE_STEPS, case, {}, ("yes", "no"))
        return Check(*("ok", "") if verdict == "yes" else ("wrong", "the judge does not follow the steps"), by="judge")

    async def _verdict(
        self, system: str, case: dict[str, Any], images: Mapping[str, bytes], allowed: tuple[str, ...]
    ) -> str:
        question, paid = case_question(system, case, images, self._teacher.config), 0
        while True:
            text, is_new = await self._reply(question, images)
            verdict = one_verdict(text, allowed)
            if verdict is not None:
                return verdict
            paid += is_new
            if paid == REPLIES:
                raise NotChecked(f"the judge's reply is no verdict: {text[:100]}")
            question = replace(question, attempt=question.attempt + 1)

    async def _reply(self, question: Question, images: Mapping[str, bytes]) -> tuple[str, bool]:
        """Its text, and whether it is paid for now."""
        key = question.key(self._teacher.config.model)
        if key not in self._asking:  # two attempts often say the same of a picture
            self._asking[key] = asyncio.ensure_future(self._text(question, key, images))
            self._asking[key].add_done_callback(lambda done: self._forget(key, done))
        try:
            return await asyncio.shield(self._asking[key])
        except (Busy, Unusable, Refused) as error:
            raise NotChecked(f"the judge: {error}") from None

    def _forget(self, key: str, done: "asyncio.Task[tuple[str, bool]]") -> None:
        self._asking.pop(key, None)
        if not done.cancelled():
            done.exception()  # whoever waits is told; that nobody does any more is no matter

    async def _text(self, question: Question, key: str, images: Mapping[str, bytes]) -> tuple[str, bool]:
        with self._store.reading() as connection:
            known = connection.scalar(select(Answer.text).where(Answer.key == key))
        return (known, False) if known is not None else ((await self._teacher.ask(question, images)).text, True)
