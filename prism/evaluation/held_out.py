"""Held-out questions through the live services: what a stage is worth, and responses to look at. (No torch.)"""

import asyncio
import json
import math
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from prism.clients.endpoints import load_endpoints
from prism.clients.http import Refused, Unavailable
from prism.clients.rollout import RolloutServices, open_services
from prism.config import DataConfig, DataNames, EvaluateConfig, RunConfig
from prism.data.blobs import BlobStore
from prism.data.mixture import data_files
from prism.data.rows import DataFile, Mixture, RowCheck, read_rows, to_prompt
from prism.errors import DataError, ServiceError
from prism.evaluation.unasked import Unasked, print_unasked, unasked_figures, why_unasked
from prism.files import append_json, read_jsonl
from prism.tasks import together
from prism.wire.messages import image_sha256s
from prism.wire.response import EXPERTS, caption_f1
from prism.wire.sample import sample_problems
from prism.wire.v1 import rollout_pb2 as pb

CONCURRENCY = 48
EVALUATIONS = "evaluations.jsonl"
SHOWN = 12  # questions whose responses are kept with the experts' scores, the same in every stage


def evaluate(
    config: RunConfig,
    stage: str,
    kind: str,
    version: int,
    *,
    temperature: float = 0.0,
    data: str | None = None,
    questions: int | None = None,
    check: RowCheck | None = None,
) -> dict[str, Any]:
    """Ask every held-out question once and record the figures and the first responses of ``stage``.

    With ``data``, another split than the configuration's, the figures are returned alone. A question that cannot be
    asked is counted and named in them (``unasked``), as are rows of the file that cannot be used (``skipped_rows``):
    those that ``check`` refuses, too.
    Raises ServiceError unless one policy version, ``version``, gave all the responses, and DataError if the file holds
    no question, or with ``on_bad_row="fail"`` a bad row.
    """
    other = {"data": data or config.evaluate.data, "questions": questions or config.evaluate.questions}
    settings = config.evaluate.model_copy(update=other)
    started = time.perf_counter()
    rows, groups, unasked = asyncio.run(ask(config, settings, version, temperature, check))
    versions = {group.policy_version for group in groups}
    if groups and versions != {version}:
        raise ServiceError(f"stage {stage} ended with policy version {version}, the server answered with {versions}")
    figures = {
        "stage": stage,
        "kind": kind,
        "policy_version": version,
        "temperature": temperature,
        **group_figures(groups),
        **unasked_figures(rows, unasked),
        "by_level": {level: group_figures(of_level) for level, of_level in _by_level(groups).items()},
        "seconds": time.perf_counter() - started,
        "time": time.time(),
    }
    if data is None:
        append_json(config.run_dir / "samples.jsonl", *(shown(stage, group) for group in groups[:SHOWN]))
        append_json(config.run_dir / EVALUATIONS, figures)  # last: with it the stage counts as evaluated
    return figures


def evaluated_stages(run_dir: Path) -> dict[str, dict[str, Any]]:
    """The newest figures of each stage that was evaluated."""
    return {figures["stage"]: figures for figures in read_jsonl(run_dir / EVALUATIONS)}


def print_figures(console: Console, figures: dict[str, Any]) -> None:
    def percent(value: float | None) -> str:
        return "no data" if value is None else f"{value:.1%}"

    console.print(
        f"[bold]{figures['stage']:>10}[/] held-out: accuracy {percent(figures['accuracy'])}, "
        f"format {percent(figures['format_rate'])}, caption F1 {percent(figures['caption_f1'])} "
        f"[dim]({figures['questions']} questions, policy version {figures['policy_version']})[/]"
    )
    print_unasked(console, figures)


def refuse_bad_rows(config: RunConfig, check: RowCheck | None = None) -> None:
    """Before a run trains: raises DataError for held-out data without a usable row, or with ``on_bad_row="fail"`` for
    the first that is bad.
    """
    read_questions(config, config.evaluate.data, check)
    if config.evaluate.validation is not None:
        read_questions(config, config.evaluate.validation, check)


def read_questions(config: RunConfig, data: DataNames, check: RowCheck | None) -> Mixture:
    """Raises DataError for data without a usable row, or with ``on_bad_row="fail"`` for the first that is bad."""

    def read(path: Path, entry: DataConfig) -> DataFile:
        return read_rows(path, config.on_bad_row, ("gold",), limits=config.limits, check=check, entry=entry)

    return Mixture([read(*one) for one in data_files(data, config.path)])


async def ask(
    config: RunConfig,
    settings: EvaluateConfig,
    version: int,
    temperature: float,
    check: RowCheck | None,
    rows: Mixture | None = None,
) -> tuple[Mixture, list[pb.RolloutGroup], list[Unasked]]:
    """The files, the groups of its questions in order, and the questions of which none could be made.

    ``rows``: those of the files, where they were read before.
    """
    endpoints = load_endpoints(config.run_dir / "stack.json")
    blobs = BlobStore(endpoints.blobs)
    rows = rows or read_questions(config, settings.data, check)
    room = asyncio.Semaphore(CONCURRENCY)

    async def ask(judges: RolloutServices, index: int) -> pb.RolloutGroup | Unasked:
        file, row = rows.at(index)
        try:
            request = pb.RolloutRequest(
                prompt=to_prompt(row, file, blobs),
                sampling=pb.Sampling(n=1, temperature=temperature, max_tokens=settings.max_tokens, seed=index),
                stage="evaluate",
                min_policy_version=version,
                experts=EXPERTS if index < SHOWN else (),
                grade=True,
                rules_json=config.grader.rules_json(held_out=True),
            )
            async with room:
                return await judges.rollout(request, "evaluate")
        except (Refused, Unavailable, DataError) as error:
            return why_unasked(row.id, error)

    async with open_services(
        endpoints, connections=CONCURRENCY, patience_seconds=config.push.deadline_seconds
    ) as judges:
        asked = await together(*(ask(judges, i) for i in range(min(settings.questions, len(rows)))))
    groups = [one for one in asked if not isinstance(one, Unasked)]
    return rows, groups, [one for one in asked if isinstance(one, Unasked)]


def group_figures(groups: Sequence[pb.RolloutGroup]) -> dict[str, Any]:
    """Accuracy over judged questions alone: a grader that failed is not an answer that was wrong."""
    samples = [group.samples[0] for group in groups]
    right = [sample.verdict.accuracy for sample in samples if sample.verdict.HasField("accuracy")]
    accuracy = sum(right) / len(right) if right else None
    facts = [
        f1
        for group, sample in zip(groups, samples, strict=True)
        if (f1 := caption_f1(sample.text, group.request.prompt.teacher)) is not None
    ]
    return {
        "questions": len(groups),
        "judged": len(right),
        "accuracy": accuracy,
        "accuracy_stderr": None if accuracy is None else math.sqrt(accuracy * (1 - accuracy) / len(right)),
        "format_rate": sum(not sample_problems(s) for s in samples) / len(samples) if samples else None,
        "caption_f1": sum(facts) / len(facts) if facts else None,
        "response_tokens": sum(len(s.token_ids) for s in samples) / len(samples) if samples else None,
    }


def _by_level(groups: Sequence[pb.RolloutGroup]) -> dict[str, list[pb.RolloutGroup]]:
    levels: dict[str, list[pb.RolloutGroup]] = defaultdict(list)
    for group in groups:
        level = json.loads(group.request.prompt.meta_json or "{}").get("level")
        if level is not None:
            levels[str(level)].append(group)
    return dict(sorted(levels.items()))


def shown(stage: str, group: pb.RolloutGroup) -> dict[str, Any]:
    prompt, sample = group.request.prompt, group.samples[0]
    parts = [part for message in prompt.messages for part in message.parts]
    verdict = sample.verdict
    return {
        "stage": stage,
        "prompt_id": prompt.id,
        "images": image_sha256s(prompt.messages),
        "question": "\n".join(part.text for part in parts if part.HasField("text")),
        "gold": prompt.gold,
        "teacher": prompt.teacher,
        "response": sample.text,
        "policy_version": group.policy_version,
        "scores": [_score(score) for score in sample.scores],
        "teacher_scores": [_score(score) for score in group.teacher_scores],
        "verdict": {
            "status": _status(verdict.status),
            **{name: _known(verdict, name) for name in ("accuracy", "format", "reward")},
            "extracted": verdict.extracted,
            "detail": verdict.detail,
        },
    }


def _score(score: pb.Score) -> dict[str, Any]:
    return {
        "expert": score.expert,
        "version": score.expert_version,
        "status": _status(score.status),
        "value": _known(score, "value"),
        "detail": score.detail,
    }


def _known(message: pb.Verdict | pb.Score, name: str) -> float | None:
    return getattr(message, name) if message.HasField(name) else None


def _status(status: pb.Status) -> str:
    return pb.Status.Name(status).removeprefix("STATUS_").lower()
