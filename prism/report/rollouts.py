"""Held-out rollouts made ready to look at: the picture, the teacher's response, and the policy's after each stage."""

import base64
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from prism.data.blobs import BlobStore
from prism.errors import DataError, ServiceError
from prism.report.reading import RunData
from prism.report.records import AnsweredPrompt, ScoreRecord, VerdictRecord
from prism.wire.response import caption_f1, parse_response

LONGEST_TEXT = 6000  # characters of one response that are shown
LARGEST_IMAGE = 60_000  # bytes that are inlined as they are
SIDE = 480  # pixels that a larger image is scaled down to
TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "GIF": "image/gif"}


@dataclass(frozen=True)
class Bullet:
    text: str
    mark: str
    """``plain``, ``right`` (the teacher has it), ``wrong`` (it does not) or ``missed`` (only the teacher has it)."""


@dataclass(frozen=True)
class Response:
    """A response in its sections; ``raw`` is the whole text where it does not parse."""

    bullets: list[Bullet]
    think: str
    answer: str
    raw: str
    problems: list[str]


@dataclass(frozen=True)
class ScoreCells:
    expert: str
    policy: str
    teacher: str
    version: str


@dataclass(frozen=True)
class Column:
    stage: str
    version: str
    response: Response
    f1: float | None
    scores: list[ScoreCells]
    verdict: str
    """``right``, ``wrong`` or ``none``."""
    verdict_text: str
    verdict_detail: str


@dataclass(frozen=True)
class Picture:
    source: str
    """A data URI; empty if there is no picture to show."""
    pixelated: bool
    problem: str = ""


@dataclass(frozen=True)
class Rollout:
    prompt_id: str
    question: str
    gold: str
    pictures: list[Picture]
    teacher: Response | None
    columns: list[Column]


def rollouts(run: RunData, prompts: Sequence[str]) -> list[Rollout]:
    """One per prompt, columns in the order of the stages."""
    order = {stage.name: number for number, stage in enumerate(run.stages)}
    views: list[Rollout] = []
    for prompt in prompts:
        samples = [sample for sample in run.samples if sample.prompt_id == prompt]
        samples.sort(key=lambda sample: order.get(sample.stage, len(order)))
        first = samples[0]
        teacher = next((sample.teacher for sample in samples if sample.teacher), None)
        views.append(
            Rollout(
                prompt_id=prompt,
                question=first.question,
                gold=first.gold if first.gold is not None else "unknown",
                pictures=[picture(run.folder, sha256) for sha256 in first.images],
                teacher=response(teacher, None) if teacher else None,
                columns=[_column(sample, teacher) for sample in samples],
            )
        )
    return views


def response(text: str, teacher: str | None) -> Response:
    """The text's sections; with a teacher, each visual fact is held against the teacher's (as caption F1 counts)."""
    parsed = parse_response(text)
    if not parsed.valid:
        missed = parse_response(teacher).bullets if teacher else ()
        return Response([Bullet(t, "missed") for t in missed], "", "", _cut(text), list(parsed.problems))
    if teacher is None:
        bullets = [Bullet(bullet, "plain") for bullet in parsed.bullets]
    else:
        left = Counter(parse_response(teacher).bullets)
        bullets = []
        for bullet in parsed.bullets:
            bullets.append(Bullet(bullet, "right" if left[bullet] > 0 else "wrong"))
            left[bullet] -= 1
        bullets += [Bullet(bullet, "missed") for bullet, count in left.items() for _ in range(count)]
    return Response(bullets, _cut(parsed.think), _cut(parsed.answer), "", [])


def picture(run_dir: Path, sha256: str) -> Picture:
    """The blob as a data URI, scaled down if it is large; never raises."""
    try:
        data = BlobStore(str((run_dir / "blobs").resolve())).get(sha256)
        with Image.open(io.BytesIO(data)) as image:
            kind, small = image.format or "", max(image.size) <= 256
            if kind not in TYPES or len(data) > LARGEST_IMAGE:
                image.thumbnail((SIDE, SIDE))
                buffer = io.BytesIO()
                image.convert("RGB").save(buffer, "JPEG", quality=82)
                data, kind = buffer.getvalue(), "JPEG"
    except DataError as error:
        return Picture("", False, "picture missing" if "no blob" in str(error) else "picture unreadable")
    except (ServiceError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return Picture("", False, "picture unreadable")
    return Picture(f"data:{TYPES[kind]};base64,{base64.b64encode(data).decode()}", small)


def _column(sample: AnsweredPrompt, teacher: str | None) -> Column:
    mark, text, detail = _verdict(sample.verdict)
    return Column(
        stage=sample.stage,
        version="" if sample.policy_version is None else str(sample.policy_version),
        response=response(sample.response, teacher),
        f1=caption_f1(sample.response, teacher) if teacher else None,
        scores=[_score_row(score, sample.teacher_scores) for score in sample.scores],
        verdict=mark,
        verdict_text=text,
        verdict_detail=detail,
    )


def _score_row(score: ScoreRecord, teacher: Sequence[ScoreRecord]) -> ScoreCells:
    other = next((s for s in teacher if s.expert == score.expert), None)
    version = "" if score.version is None else str(score.version)
    return ScoreCells(score.expert, _value(score), _value(other) if other else "no score", version)


def _value(score: ScoreRecord) -> str:
    if score.value is not None:
        return f"{score.value:+.2f}".replace("-", "−")
    return score.status + (f": {score.detail}" if score.detail else "")


def _verdict(verdict: VerdictRecord | None) -> tuple[str, str, str]:
    if verdict is None:
        return "none", "not graded", ""
    detail = verdict.detail or ""
    if verdict.accuracy is not None:
        right = verdict.accuracy >= 1
        said = "correct" if right else "wrong" if verdict.accuracy <= 0 else f"accuracy {verdict.accuracy:.2f}"
        reward = "" if verdict.reward is None else f"reward {verdict.reward:.2f}"
        return "right" if right else "wrong", said, " · ".join(part for part in (reward, detail) if part)
    if verdict.reward is not None:
        return "wrong", "no answer found", " · ".join(p for p in (f"reward {verdict.reward:.2f}", detail) if p)
    return "none", f"no verdict ({verdict.status})", detail


def _cut(text: str) -> str:
    if len(text) <= LONGEST_TEXT:
        return text
    return f"{text[:LONGEST_TEXT]}\n… {len(text) - LONGEST_TEXT} more characters"
