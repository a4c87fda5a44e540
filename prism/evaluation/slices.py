"""Small slices of benchmarks while a stage learns: greedily, by the rules, figures of one policy version."""

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prism.clients.chat import ChatClient
from prism.clients.endpoints import Endpoints, load_endpoints
from prism.clients.http import Refused, Unavailable
from prism.clients.services import GraderClient
from prism.config import EvaluationConfig, RunConfig, SamplingConfig, ServerConfig
from prism.data.blobs import BlobStore
from prism.evaluation.benchmarks.base import RuleStatus, Ruling, ToGrader
from prism.evaluation.held_out import CONCURRENCY
from prism.evaluation.suite.ask import Asker, Task
from prism.evaluation.suite.figures import by_scorer, response_figures, score_figures
from prism.evaluation.suite.questions import QuestionSet
from prism.evaluation.suite.run import write_questions
from prism.evaluation.suite.samples import Store
from prism.files import make_folder
from prism.http.client import busy_client
from prism.wire.v1 import rollout_pb2 as pb

FOLDER, IMAGES = "validations", "images"
RULES = {"format": "ignored", "extract": ["answer", "boxed", "phrase", "whole"], "unparseable": "masked"}
STATUS: dict[int, RuleStatus] = {
    pb.STATUS_OK: "ok",
    pb.STATUS_INVALID_FORMAT: "unparsed",
    pb.STATUS_UNPARSEABLE_ANSWER: "unparsed",
}


def read_slices(config: RunConfig) -> list[QuestionSet]:
    """Raises DataError for files and rows that cannot be used."""
    evaluate = config.evaluate
    sets = []
    for name, own in evaluate.benchmarks.items():
        paths = [own.path] if isinstance(own.path, str) else own.path
        found = {
            "path": [str(config.path(path)) for path in paths],
            "questions": own.questions or evaluate.validation_questions,
        }
        sets.append(QuestionSet(name, own.kind or name, own.model_copy(update=found)))
    return sets


def ask_slices(config: RunConfig, stage: str, step: int, version: int, sets: Sequence[QuestionSet]) -> dict[str, Any]:
    """Each slice's figures, of the responses that ``version`` gave; ``other_versions`` counts those of newer weights.

    All samples are kept, as `prism evaluate show` reads them. Raises ServiceError if a service is away.
    """
    if not sets:
        return {}
    out = config.run_dir / FOLDER / stage / f"{step:06d}"
    shutil.rmtree(out, ignore_errors=True)  # of an attempt that did not live to see its checkpoint
    make_folder(out)
    make_folder(config.run_dir / FOLDER / IMAGES)
    (out / IMAGES).symlink_to(Path("..", "..", IMAGES))  # one copy of each picture for all steps
    return asyncio.run(_ask(config, out, version, sets))


async def _ask(config: RunConfig, out: Path, version: int, sets: Sequence[QuestionSet]) -> dict[str, Any]:
    endpoints = load_endpoints(config.run_dir / "stack.json")
    settings = _settings(config, endpoints, out)
    token, patience = endpoints.token.get_secret_value(), config.push.deadline_seconds
    figures: dict[str, Any] = {}
    async with busy_client() as http:
        chat = ChatClient(http, settings.server.url, token, patience, settings.server.silence_seconds)
        grader = GraderClient(http, endpoints.grader_url, token, patience)

        async def grade(items: Sequence[ToGrader]) -> list[Ruling]:
            return [await _grade(grader, item) for item in items]

        for questions in sets:
            make_folder(out / questions.name)
            write_questions(out / questions.name, questions.questions)
            store, blobs = Store(out / questions.name), BlobStore(str(out / IMAGES))
            asker = Asker(settings, questions, store, blobs, chat, grade, lambda: None, min_version=version)
            await asker.ask([Task(question, 0, "seen") for question in questions.questions])
            figures[questions.name] = _figures(settings, questions, store, version)
    return figures


def _settings(config: RunConfig, endpoints: Endpoints, out: Path) -> EvaluationConfig:
    """Greedy, as held-out questions are."""
    return EvaluationConfig(
        out=out,
        server=ServerConfig(url=f"{endpoints.policy_url.rstrip('/')}/v1", in_flight=CONCURRENCY),
        sampling=SamplingConfig(temperature=0, top_p=1, max_tokens=config.evaluate.max_tokens),
        benchmarks=config.evaluate.benchmarks,
        baseline=False,
    )


def _figures(settings: EvaluationConfig, questions: QuestionSet, store: Store, version: int) -> dict[str, Any]:
    samples = list(store.samples.values())
    # A server without a version in its answers is none of ours; a sample that failed has none, and is masked.
    own = [one for one in samples if one.policy_version == version or one.status == "failed"]
    asked = {one.question for one in own}
    benchmark = questions.benchmark
    score = score_figures(
        benchmark,
        [question for question in questions.questions if question.id in asked],
        by_scorer(own, None)["rule"],
        1,
        settings.max_masked,
    )
    main = score["metrics"].get(benchmark.headline) or {}
    return {
        "figure": benchmark.headline,
        "score": score["headline"],
        "stderr": score["stderr"],
        "low": main.get("low"),
        "high": main.get("high"),
        "why": score["why"],
        "questions": len(own),
        "of": questions.total,
        "other_versions": len(samples) - len(own),
        "statuses": response_figures(own)["statuses"],
        "prompt_version": benchmark.prompt_version,
        "scorer_version": benchmark.scorer_version,
    }


async def _grade(grader: GraderClient, item: ToGrader) -> Ruling:
    options = {**item.options, "graded": False}  # an answer in part is right by its kind's threshold, or wrong
    try:
        (verdict,) = await grader.grade([item.response], list(item.gold), item.kind, options, RULES)
    except (Refused, Unavailable) as error:
        if isinstance(error, Unavailable) and not error.reached:
            raise
        return Ruling("failed", detail=str(error))
    status = STATUS.get(verdict.status, "failed")
    right = verdict.accuracy >= 1 if status == "ok" and verdict.HasField("accuracy") else None
    return Ruling(status if right is not None or status != "ok" else "failed", right, verdict.extracted, verdict.detail)
