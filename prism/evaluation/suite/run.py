"""``prism evaluate``: read, ask, judge, compute; goes on where it stopped."""

import asyncio
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from prism.clients.chat import ChatClient
from prism.config import EvaluationConfig, JudgeConfig, ServerConfig
from prism.data.blobs import BlobStore
from prism.errors import LockedError, ServiceError
from prism.evaluation.benchmarks.base import Question
from prism.evaluation.suite.ask import Asker, Grade, Task
from prism.evaluation.suite.figures import Scorer, by_scorer, response_figures, score_figures
from prism.evaluation.suite.judge import JUDGE_VERSION, Judge, case_of, is_right
from prism.evaluation.suite.questions import QuestionSet
from prism.evaluation.suite.samples import Sample, Store, View
from prism.files import make_folder, write_json
from prism.http.client import busy_client

RESULT = "result.json"


def run_evaluation(config: EvaluationConfig, grade: Grade, console: Console) -> dict[str, Any]:
    """The figures, which ``result.json`` holds as well.

    Raises DataError for files and rows that cannot be used, before anything is asked; ServiceError, with what was
    answered kept and no ``result.json``, if the server or the judge is away.
    """
    sets = [QuestionSet(name, config.kind_of(name), own) for name, own in config.benchmarks.items()]
    with _locked(config.out):
        (config.out / RESULT).unlink(missing_ok=True)  # no figures of before stand beside samples of now
        stores = {one.name: Store(config.out / one.name) for one in sets}
        for one in sets:
            write_questions(config.out / one.name, one.questions)
        with _progress(console) as begin:
            figures = asyncio.run(_evaluate(config, sets, stores, grade, begin))
        result = {
            "name": config.name or config.out.name,
            "model": config.server.model,
            "server": _without_user(config.server.url),
            "sampling": config.sampling.model_dump(),
            "system": config.system,
            "judge": config.judge and config.judge.model,
            "max_masked": config.max_masked,
            "benchmarks": figures,
            "time": time.time(),
        }
        write_json(config.out / RESULT, result)
    return result


async def _evaluate(
    config: EvaluationConfig,
    sets: Sequence[QuestionSet],
    stores: dict[str, Store],
    grade: Grade,
    begin: Callable[[str, int], Callable[[], None]],
) -> dict[str, Any]:
    blobs = BlobStore(str(config.out / "images"))
    async with _client(config.server) as server, _client(config.judge) as judging:
        figures: dict[str, Any] = {}
        for questions in sets:
            store, tasks = stores[questions.name], _tasks(config, questions)
            advance = begin(questions.name, len(tasks))
            asker = Asker(config, questions, store, blobs, _chat(server, config.server), grade, advance)
            await asker.ask(tasks)
            samples = [store.samples[key] for key in asker.kept]
            judge, calibration = None, None
            if config.judge:
                cases = [case for one in samples if (case := case_of(questions.by_id(one.question), one))]
                advance = begin(f"{questions.name}: judge", len(cases) + 2 * config.judge.calibrate)
                chat = _chat(judging, config.judge)
                judge = Judge(config.judge, questions.benchmark, questions.name, store, chat, advance)
                calibration = await judge.calibrate(questions.questions)
                await judge.ask(cases)
            figures[questions.name] = benchmark_figures(config, questions, samples, judge, calibration)
    return figures


def _tasks(config: EvaluationConfig, questions: QuestionSet) -> list[Task]:
    views: list[View] = ["seen", "blank"] if config.baseline else ["seen"]
    return [
        Task(question, sample, view)
        for view, sample, question in product(views, range(config.sampling.n), questions.questions)
        if view == "seen" or question.pictures
    ]


def benchmark_figures(
    config: EvaluationConfig,
    questions: QuestionSet,
    samples: Sequence[Sample],
    judge: Judge | None,
    calibration: dict[str, Any] | None,
) -> dict[str, Any]:
    benchmark = questions.benchmark

    def opinion(sample: Sample) -> bool | None:
        question = questions.by_id(sample.question)
        verdict = judge.verdict(case) if judge and (case := case_of(question, sample)) else None
        return is_right(question, verdict) if verdict else None

    uncertain = _uncertain(config.judge, calibration) if config.judge and calibration else ""
    views: dict[str, Any] = {}
    for view in ("seen", "blank"):
        own = [one for one in samples if one.view == view]
        if not own:
            continue
        asked = {one.question for one in own}
        asked_questions = [question for question in questions.questions if question.id in asked]
        scorers = by_scorer(own, opinion if judge else None)
        views[view] = response_figures(own) | {
            "scores": {
                scorer: score_figures(
                    benchmark,
                    asked_questions,
                    scored,
                    config.sampling.n,
                    config.max_masked,
                    withheld=uncertain if scorer != "rule" else "",
                )
                for scorer, scored in scorers.items()
            },
            "judge_changed": _changed(scorers) if judge else None,
        }
    return {
        "kind": benchmark.name,
        "title": benchmark.title,
        "official": benchmark.official,
        "headline": benchmark.headline,
        "questions": len(questions.questions),
        "of": questions.total,
        "n": config.sampling.n,
        "prompt_version": benchmark.prompt_version,
        "scorer_version": benchmark.scorer_version,
        "judge_version": JUDGE_VERSION if judge else None,
        "calibration": calibration,
        "views": views,
    }


def _uncertain(config: JudgeConfig, calibration: dict[str, Any]) -> str:
    """Why the judge's scores are withheld; empty if it called enough of the known answers what they are."""
    if not config.calibrate:
        return ""
    shares = {name: calibration[name] for name in ("right", "wrong") if calibration[f"{name}_tried"]}
    if bad := [name for name, share in shares.items() if share is None or share < config.least_accuracy]:
        said = ", ".join(f"{name} answers: {_percent(shares[name])}" for name in bad)
        return (
            f"the judge calls too few known answers what they are ({said}; {config.least_accuracy:.0%} are asked for)"
        )
    return ""


def _percent(share: float | None) -> str:
    return "no verdict" if share is None else f"{share:.0%}"


def _changed(scorers: Any) -> dict[str, int]:
    """Where judge and rule differ: a judge may lower a score as well as raise it."""
    pairs = [(scorers["rule"][key][1], scorers["judge"][key][1]) for key in scorers["rule"]]
    return {
        "raised": sum(rule is False and judge is True for rule, judge in pairs),
        "lowered": sum(rule is True and judge is False for rule, judge in pairs),
        "read_more": sum(rule is None and judge is not None for rule, judge in pairs),
        "no_verdict": sum(rule is not None and judge is None for rule, judge in pairs),
    }


def scorer_of(result: dict[str, Any]) -> Scorer:
    """Which of a result's scorers tables show by default: the paper's, if there is a judge."""
    return "rule_then_judge" if result["judge"] else "rule"


def missing_scores(result: dict[str, Any]) -> list[str]:
    """Why a benchmark has no score, a line for each scorer that has none."""
    return [
        f"{name}, {scorer.replace('_', ' ')}: {score['why']}"
        for name, figures in result["benchmarks"].items()
        for scorer, score in figures["views"]["seen"]["scores"].items()
        if score["why"]
    ]


def refuse_missing_scores(result: dict[str, Any], out: Path) -> None:
    """Raises ServiceError where a score is withheld: nobody's script may take that for a success."""
    if lines := missing_scores(result):
        raise ServiceError(
            "\n".join(["no score for", *lines, f"`prism evaluate show {out} --status …` shows responses"])
        )


def write_questions(folder: Path, questions: Sequence[Question]) -> None:
    """Beside their samples, so that these can be looked at and compared where the benchmark's files are not."""
    records = []
    for question in questions:
        record = asdict(question) | {"text": question.text}
        for name in ("parts", "before", "answer_options"):
            del record[name]
        records.append(record)
    write_json(folder / "questions.json", records)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Raises LockedError if another process evaluates into the folder. A kill leaves nothing to clean up."""
    make_folder(folder)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockedError(
                f"{folder}: another process evaluates into it; wait for it, or name another out"
            ) from None
        yield


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[str, int], Callable[[], None]]]:
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    )  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:

        def begin(what: str, total: int) -> Callable[[], None]:
            task = progress.add_task(what, total=total)
            return lambda: progress.advance(task)

        yield begin


def _client(config: ServerConfig | JudgeConfig | None) -> httpx.AsyncClient:
    return busy_client(proxy=config.proxy if config else None)


def _chat(http: httpx.AsyncClient, config: ServerConfig | JudgeConfig) -> ChatClient:
    silence = config.silence_seconds if isinstance(config, ServerConfig) else 600.0
    return ChatClient(http, config.url, _secret(config.key_variable), config.patience_seconds, silence)


def _secret(variable: str) -> str:
    """From the environment, or a file in PRISM_SECRETS_DIR; else empty, for servers that ask for none."""
    if value := os.environ.get(variable, ""):
        return value
    folder = os.environ.get("PRISM_SECRETS_DIR")
    file = Path(folder, variable.lower()) if folder else None
    return file.read_text().strip() if file and file.is_file() else ""


def _without_user(url: str) -> str:
    return str(httpx.URL(url).copy_with(username=None, password=None))
