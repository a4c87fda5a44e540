"""Verifying: nothing goes out that was not checked, and what is rejected keeps its reason."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, bindparam, select, update

from prism.clients.http import Refused, Unavailable
from prism.clients.services import GraderClient
from prism.curation.checks import Check, NotChecked
from prism.curation.checks.expert import CaptionExpert, judge_margin
from prism.curation.checks.judge import Judge
from prism.curation.checks.rules import check_equations, check_format
from prism.curation.config import CaptionCheck, VerifyConfig
from prism.curation.rows import golds_of, images_of, question_of
from prism.curation.state.job import OpenJob
from prism.curation.state.tables import Answer, Demo, Problem
from prism.curation.window import in_chunks, work_through
from prism.data.blobs import BlobStore
from prism.errors import DataError
from prism.wire.response import ParsedResponse, parse_response
from prism.wire.v1 import rollout_pb2 as pb

CHUNK = 256
DEMOS: Any = Demo.__table__


@dataclass
class Verifier:
    """Who checks. Every check is a function of the problem and the answer's text alone."""

    config: VerifyConfig
    grader: GraderClient
    blobs: BlobStore
    judge: Judge | None = None
    expert: CaptionExpert | None = None
    margin: float | None = None
    """By which a caption must lead its false copies, for the expert."""

    async def checks(
        self, row: dict[str, Any], text: str, *, all_of_them: bool = False, caption: bool = True
    ) -> dict[str, Check]:
        """By name, cheap ones first; after the first that says wrong there are no more, unless all are asked for.
        ``caption``: whether its check is one of them.

        Raises NotChecked where somebody gave no verdict, Stopped where nobody can be asked any more.
        """
        response, found = parse_response(text), dict[str, Check]()
        found["format"] = self.check_format(response)
        if found["format"].outcome == "wrong":
            return found
        found["answer"] = await self.answer(row, text, response.answer)
        if found["answer"].outcome == "ok" or all_of_them:
            found["steps"] = check_equations(response.think)
            if self.config.steps == "judge" and self.judge and found["steps"].outcome != "wrong":
                found["steps"] = await self.judge.check_steps(question_of(row), response)
        if caption and (all_of_them or all(check.outcome != "wrong" for check in found.values())):
            found["caption"] = await self.caption(row, text)
        return found

    async def answer(self, row: dict[str, Any], text: str, answer: str) -> Check:
        """The grader's rules, and a judge for what they cannot decide."""
        golds = golds_of(row)
        try:
            (verdict,) = await self.grader.grade([text], golds, row.get("kind", "auto"), row.get("options"))
        except (Refused, Unavailable) as error:
            raise NotChecked(f"the grader: {error}") from None
        if verdict.status == pb.STATUS_OK and verdict.HasField("accuracy"):
            is_right = verdict.accuracy >= 1
            return Check(
                "ok" if is_right else "wrong", "" if is_right else f"{answer[:100]!r} is not {golds[0][:100]!r}"
            )
        if self.judge:
            return await self.judge.check_answer(question_of(row), golds, answer)
        status = pb.Status.Name(verdict.status).removeprefix("STATUS_").lower()
        return Check("undecided", f"the rules do not decide it ({status}), and there is no judge")

    def check_format(self, response: ParsedResponse) -> Check:
        return check_format(response, self.config.min_bullets, self.config.bullet_limit)

    async def caption(self, row: dict[str, Any], text: str, by: CaptionCheck | None = None) -> Check:
        """By whoever decides on captions, or by ``by``."""
        by, response = by or self.config.caption, parse_response(text)
        if by == "none":
            return Check("ok", "not checked", "nobody")
        if by == "judge" and self.judge:
            return await self.judge.check_caption(response.bullets, await self.images(row), self.config.max_unclear)
        if self.margin is None:
            raise NotChecked("the expert's margin is not known yet")
        return judge_margin(await self.expert_margin(row, response), self.margin)

    async def expert_margin(self, row: dict[str, Any], response: ParsedResponse) -> float | None:
        assert self.expert
        return await self.expert.margin(row, response, await self.images(row))

    async def images(self, row: dict[str, Any]) -> Mapping[str, bytes]:
        try:
            return {sha256: await asyncio.to_thread(self.blobs.get, sha256) for sha256 in dict.fromkeys(images_of(row))}
        except DataError as error:
            raise NotChecked(str(error)) from None


def decide(checks: Mapping[str, Check]) -> tuple[str, str | None]:
    """State and reason. Steps without an equation are let through, nothing else that is undecided."""
    for name, check in checks.items():
        if check.outcome == "wrong":
            return "rejected", f"{name}: {check.why}"
    for name, check in checks.items():
        if check.outcome == "undecided" and name != "steps":
            return "rejected", f"{name}, undecided: {check.why}"
    return "verified", None


async def verify(job: OpenJob, verifier: Verifier) -> int:
    """Every answer that has not been decided on; gives how many could not be, which the next run takes up again."""
    waiting = 0

    def read(last: int) -> list[Row[Any]]:
        with job.store.reading() as connection:
            wanted = (
                select(Demo.id, Problem.row, Answer.text, Answer.finish)
                .join(Problem, Problem.id == Demo.problem)
                .join(Answer, Answer.key == Demo.key)
                .where(Demo.job == job.id, Demo.state == "answered", Demo.id > last)
            )
            return list(connection.execute(wanted.order_by(Demo.id).limit(CHUNK)).all())

    async def one(demo: Row[Any]) -> None:
        nonlocal waiting
        if demo.finish == "length":
            state, why, checks = "rejected", "format: the answer was cut off at max_tokens", dict[str, Check]()
        else:
            try:
                checks = await verifier.checks(demo.row, demo.text)
                state, why = decide(checks)
            except NotChecked as error:
                waiting += 1
                state, why, checks = "answered", f"waiting: {error}"[:500], {}
        record = {name: check.record() for name, check in checks.items()}
        await job.store.write(_write, (job, demo.id, state, why, record))

    await work_through(in_chunks(read, lambda row: row.id), one, verifier.config.concurrency)
    choose_best(job)
    return waiting


def choose_best(job: OpenJob) -> None:
    """Of the verified attempts at each problem the one with most of its caption confirmed, then the first."""
    with job.store.writing() as connection:
        job.require_newest(connection)
        connection.execute(update(Demo).where(Demo.job == job.id, Demo.best).values(best=False))
        wanted = select(Demo.id, Demo.problem, Demo.attempt, Demo.checks).where(
            Demo.job == job.id, Demo.state == "verified"
        )
        best: dict[int, tuple[tuple[int, int, int], int]] = {}
        for demo in connection.execute(wanted, execution_options={"yield_per": 1000}):
            caption = (demo.checks or {}).get("caption", {})
            unclear = caption.get("unclear", 0)
            worth = (-unclear, caption.get("bullets", 0), -demo.attempt)
            if demo.problem not in best or worth > best[demo.problem][0]:
                best[demo.problem] = worth, demo.id
        chosen = [{"at": id} for _, id in best.values()]
        for begin in range(0, len(chosen), 1000):
            which = update(DEMOS).where(DEMOS.c.id == bindparam("at")).values(best=True)
            connection.execute(which, chosen[begin : begin + 1000])


def _write(connection: Connection, found: Sequence[tuple[OpenJob, int, str, str | None, dict[str, Any]]]) -> list[None]:
    found[0][0].require_newest(connection)
    values = [{"at": id, "became": state, "why": why, "said": said} for _, id, state, why, said in found]
    became = {
        "state": bindparam("became"),
        "reason": bindparam("why"),
        "checks": bindparam("said", type_=DEMOS.c.checks.type),
    }
    connection.execute(update(DEMOS).where(DEMOS.c.id == bindparam("at")).values(**became), values)
    return [None] * len(found)
