"""What a curation would take, in tokens and dollars: ``prism curate --dry-run``. Nobody is asked."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Row, select

from prism.clients.teacher.config import TeacherConfig
from prism.clients.teacher.reply import Estimate, Question, count_tokens, dollars
from prism.curation import prompts
from prism.curation.ask import Asked, queued
from prism.curation.checks.judge import case_question
from prism.curation.rows import images_of, sizes_of
from prism.curation.state.job import OpenJob
from prism.curation.state.tables import Demo, Problem
from prism.curation.window import in_chunks
from prism.data.blobs import BlobStore

CHUNK = 256
BULLET = "x" * 80
"""As long as most are."""
Sizes = Sequence[tuple[int, int]]


@dataclass
class Plan:
    asked: Estimate = field(default_factory=Estimate)
    """The teacher, about all that is queued and not stored."""
    judged: Estimate = field(default_factory=Estimate)
    """The judge, about the captions of all that is not decided on."""
    unmined: Estimate = field(default_factory=Estimate)
    """Teacher and judge, should every problem that is not mined yet go to the teacher."""


def estimate(job: OpenJob, asked: Asked, blobs: BlobStore) -> Plan:
    plan, config = Plan(), asked.config
    judge = config.judge if config.verify.caption == "judge" else None
    bullets, attempts = config.verify.expected_bullets, config.ask.attempts
    for demo in in_chunks(lambda last: queued(job, last), lambda row: row.id):
        if demo.finish is None:
            _add(plan.asked, config.teacher, asked.question(demo.row, demo.attempt), _sizes(demo.row, blobs), 1)
    if judge:
        for row in _undecided(job):
            _add(plan.judged, judge, _about_a_bullet(row, judge), _sizes(row, blobs), bullets)
    for row in _unmined(job):
        sizes = _sizes(row, blobs)
        _add(plan.unmined, config.teacher, asked.question(row, 0), sizes, attempts)
        if judge:
            _add(plan.unmined, judge, _about_a_bullet(row, judge), sizes, attempts * bullets)
    return plan


def tell(plan: Plan, asked: Asked, say: Callable[[str], None]) -> None:
    teacher, judge = asked.config.teacher, asked.config.judge
    _tell(plan.asked, teacher, say)
    if judge and plan.judged.questions:
        _tell(plan.judged, judge, say)
    if left := plan.unmined.questions:
        say(
            f"problems that are not mined yet come on top, those that the policy never solves: {left:,} questions and "
            f"{dollars(plan.unmined.cost)} more if it solves none"
        )


def _tell(found: Estimate, model: TeacherConfig, say: Callable[[str], None]) -> None:
    say(
        f"{found.questions:,} questions to {model.model}: about {found.input_tokens:,} tokens sent and "
        f"{found.output_tokens:,} answered, {dollars(found.cost)}; {dollars(found.bound)} if each took all it may"
    )
    ends = "" if found.cost <= model.cap * 1e9 else ": it ends before"
    say(f"the cap is {dollars(round(model.cap * 1e9))}{ends}")


def _add(found: Estimate, model: TeacherConfig, question: Question, sizes: Sizes, times: int) -> None:
    tokens, expected = count_tokens(question, sizes, model.image_tokens), min(model.expected_tokens, model.max_tokens)
    found.add(tokens, expected, model.max_tokens, model.prices, times)


def _about_a_bullet(row: dict[str, Any], judge: TeacherConfig) -> Question:
    return case_question(prompts.JUDGE_BULLET, {"statement": BULLET}, dict.fromkeys(images_of(row)), judge)


def _sizes(row: dict[str, Any], blobs: BlobStore) -> Sizes:
    return sizes_of(row, {sha256: blobs.get(sha256) for sha256 in set(images_of(row))})


def _undecided(job: OpenJob) -> Iterator[dict[str, Any]]:
    open_ = Demo.state.in_(("queued", "sent", "answered", "failed"))
    wanted = select(Demo.id, Problem.row).join(Problem, Problem.id == Demo.problem).where(Demo.job == job.id, open_)
    return _rows(job, wanted, Demo.id)


def _unmined(job: OpenJob) -> Iterator[dict[str, Any]]:
    wanted = select(Problem.id, Problem.row).where(Problem.job == job.id, Problem.route.is_(None))
    return _rows(job, wanted, Problem.id)


def _rows(job: OpenJob, wanted: Any, number: Any) -> Iterator[dict[str, Any]]:
    def read(last: int) -> list[Row[Any]]:
        with job.store.reading() as connection:
            return list(connection.execute(wanted.where(number > last).order_by(number).limit(CHUNK)).all())

    return (found.row for found in in_chunks(read, lambda row: row.id))
