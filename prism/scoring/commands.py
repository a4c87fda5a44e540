"""``prism score`` and ``prism calibrate``: files through the scoring service."""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import aclosing, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from prism.clients import Unavailable
from prism.errors import DataError, ServiceError
from prism.expert_api import CalibrationRequest, CalibrationState, ModelInfo, Reference
from prism.expert_section import Section
from prism.experts_client import Experts
from prism.scoring.batches import Failed, Judging, Scored, judging, score_lines
from prism.scoring.output import Line, Output, Weights, to_line, weights_of
from prism.scoring.rows import reference_row, row_lines, score_row
from prism.scoring.summary import Summary, rows_table
from prism.settings import describe
from prism.weights import file_sha256

Result = TypeVar("Result")
FEW_RESPONSES = 40


class Expert(StrEnum):
    perception = "perception"
    reasoning = "reasoning"
    both = "both"


class Part(StrEnum):
    own = "own"
    all = "all"


Run = Annotated[Path, typer.Option("--run", help="a run that is up; PRISM_* variables go before its stack.json")]
PerceptionUrl = Annotated[str | None, typer.Option("--perception-url", help="with the token in PRISM_TOKEN")]
ReasoningUrl = Annotated[str | None, typer.Option("--reasoning-url", help="with the token in PRISM_TOKEN")]
SectionOption = Annotated[
    Part, typer.Option("--section", help="own: the section an expert was trained on; all: whole texts, tags or not")
]
Batch = Annotated[int, typer.Option("--batch", min=1, help="rows a request")]
Concurrency = Annotated[int, typer.Option("--concurrency", min=1, help="requests at a time")]

# A blank line before each paragraph; \b keeps typer from re-wrapping the examples.
SCORE_HELP = """Score responses with the discriminator experts: JSON Lines in, a table or JSON Lines out.

A row is a prompt and the responses to it, whoever wrote them:

\b
{"id": "q1", "prompt": "What is the sum of the first row?", "images": ["q1.png"],
 "responses": ["<caption>- 3 and 4</caption><think>3 + 4 = 7</think><answer>7</answer>"]}

Instead of prompt and images it may have chat "messages", as in training data, and "response" for a single one. An \
image is a path relative to FILE, a data URI, or an http(s) URL where the service allows it.

\b
prism score answers.jsonl                                    # a table
prism score answers.jsonl --out scores.jsonl                 # resumable: the same command goes on
prism score plain.jsonl --section all --expert perception    # texts without tags

A score is raw: only differences between responses to one prompt mean something, until `prism calibrate`.
"""

CALIBRATE_HELP = """Give scores a meaning: percentiles and a probability, from responses of teacher and policy.

A row is a prompt with responses of both, each a text or a list of texts ("response" or "responses" do for "policy"):

\b
{"id": "q1", "prompt": "What is the sum of the first row?", "images": ["q1.png"],
 "teacher": "<caption>...", "policy": ["<caption>...", "<caption>..."]}

All are scored, and each expert is told. From then on its scores carry their percentile among the teacher's and among \
the policy's, and the probability that the response is the teacher's, until its weights change. Needs the admin token: \
PRISM_ADMIN_TOKEN, or that of the run.

\b
prism calibrate reference.jsonl --run runs/demo
"""


def register(app: typer.Typer) -> None:
    app.command("score", help=SCORE_HELP)(score)
    app.command("calibrate", help=CALIBRATE_HELP)(calibrate)


def score(
    file: Annotated[Path, typer.Argument(help="JSON Lines of prompts and responses")],
    out: Annotated[Path | None, typer.Option("--out", help="write JSON Lines here; rows it holds are skipped")] = None,
    expert: Annotated[Expert, typer.Option("--expert")] = Expert.both,
    alpha: Annotated[float, typer.Option(min=0, max=1, help="weight of perception in the mixture of both")] = 0.5,
    section: SectionOption = Part.own,
    run: Run = Path("runs/demo"),
    perception_url: PerceptionUrl = None,
    reasoning_url: ReasoningUrl = None,
    batch: Batch = 8,
    concurrency: Concurrency = 4,
    mixed_versions: Annotated[
        bool, typer.Option("--mixed-versions", help="go on when weights change; every line names those that judged it")
    ] = False,
) -> None:
    how = judging(expert.value, section.value, alpha)
    if out is not None and out.exists() and out.samefile(file):
        raise DataError(f"{out} is the input: name another file to write to")
    summary, few, failed = Summary(), list[Line](), 0
    output = Output(out, summary.add) if out is not None else None

    async def work() -> None:
        nonlocal failed
        async with Experts.of_run(run, perception_url=perception_url, reasoning_url=reasoning_url) as experts:
            infos: dict[Section, ModelInfo] = {name: await experts.model(name) for name in how.experts}
            weights: dict[Section, Weights] = {name: weights_of(info, how.section) for name, info in infos.items()}
            if output is not None:
                output.require(how, None if mixed_versions else weights)
            total = output.require_input(file, row_lines(file)) if output else sum(1 for _ in row_lines(file))
            done = output.done if output else {}
            with _progress("scoring", total, len(done)) as tell:
                todo = (line for line in row_lines(file) if line.index not in done)
                outcomes = score_lines(
                    experts, how, todo, lambda line: score_row(line, file.parent), batch=batch, concurrency=concurrency
                )
                async with aclosing(outcomes):
                    async for outcome in outcomes:
                        tell(_problem(file, outcome))
                        if isinstance(outcome, Failed):
                            failed += 1
                            continue
                        if not mixed_versions:
                            _same_weights(outcome, infos, "score with --mixed-versions to go on all the same")
                        line = to_line(outcome, how, weights)
                        summary.add(line)
                        if output is not None:
                            output.write(line)
                        elif len(few) <= FEW_RESPONSES:
                            few.append(line)

    try:
        _run(work, f"what is scored is in {out}: the same command goes on" if out else "nothing was kept")
    finally:
        if output is not None:
            output.close()
    console = Console(highlight=False)
    if few and sum(len(line.responses) for line in few) <= FEW_RESPONSES:
        console.print(rows_table(few))
    console.print(summary.table())
    bad = failed + summary.rows_with_errors
    if bad:
        raise DataError(
            f"{bad} of {failed + summary.rows} rows in {file} failed: {failed} are named above and have no scores, "
            f"{summary.rows_with_errors} have a response with status error"
        )


def calibrate(
    file: Annotated[Path, typer.Argument(help="JSON Lines of prompts with responses of teacher and policy")],
    expert: Annotated[Expert, typer.Option("--expert")] = Expert.both,
    section: SectionOption = Part.own,
    run: Run = Path("runs/demo"),
    perception_url: PerceptionUrl = None,
    reasoning_url: ReasoningUrl = None,
    batch: Batch = 8,
    concurrency: Concurrency = 4,
) -> None:
    how = judging(expert.value, section.value)

    async def work() -> tuple[dict[Section, CalibrationState], dict[Section, "Sides"], int]:
        async with Experts.of_run(run, perception_url=perception_url, reasoning_url=reasoning_url) as experts:
            experts.require_admin()
            infos: dict[Section, ModelInfo] = {name: await experts.model(name) for name in how.experts}
            sides: dict[Section, Sides] = {name: Sides() for name in how.experts}
            unread = 0
            with _progress("scoring the reference", sum(1 for _ in row_lines(file)), 0) as tell:
                outcomes = score_lines(
                    experts,
                    how,
                    row_lines(file),
                    lambda line: reference_row(line, file.parent),
                    batch=batch,
                    concurrency=concurrency,
                )
                async with aclosing(outcomes):
                    async for outcome in outcomes:
                        tell(_problem(file, outcome))
                        if isinstance(outcome, Failed):
                            unread += 1
                            continue
                        _same_weights(outcome, infos, "nothing was calibrated: run it again when they rest")
                        for name, of_expert in sides.items():
                            of_expert.add(name, outcome)
            reference = Reference(name=file.name[-200:], sha256=file_sha256(file))
            requests: dict[Section, CalibrationRequest] = {
                name: sides[name].request(name, reference, info, how, unread) for name, info in infos.items()
            }
            states: dict[Section, CalibrationState] = {
                name: await experts.calibrate(name, one) for name, one in requests.items()
            }
            return states, sides, unread

    states, sides, unread = _run(work, "nothing was calibrated")
    console = Console(highlight=False)
    for name, state in states.items():
        console.print(
            f"[bold]{name}[/] version {state.version} (attempt {state.attempt}), section {state.section}: calibrated "
            f"on {escape(state.reference.name)} [dim](sha256 {state.reference.sha256[:12]}…)[/]\n"
            f"  percentiles are among {state.teacher} responses of the teacher and {state.policy} of the policy\n"
            f"  a probability over 50 % means the teacher's: right for {state.accuracy:.1%} of the reference (both "
            f"sides weighed alike; 50 % is chance)\n"
            f"  {sides[name].left_out(unread)}"
        )


class Sides:
    """One expert's scores of the reference."""

    def __init__(self) -> None:
        self.teacher: list[float] = []
        self.policy: list[float] = []
        self._without: Counter[str] = Counter()

    def add(self, expert: Section, scored: Scored) -> None:
        for number, judgement in enumerate(scored.judgements):
            side = "teacher" if number < scored.row.teachers else "policy"
            score = judgement.experts[expert]
            if score.score is None:
                self._without[f"{side} {score.status}"] += 1
            else:
                (self.teacher if side == "teacher" else self.policy).append(score.score)

    def left_out(self, unread: int) -> str:
        """How many were not used, and why."""
        why = [f"{count} {what}" for what, count in sorted(self._without.items())]
        why += [f"{unread} whole rows, named above"] if unread else []
        return f"left out: {', '.join(why)}" if why else "no response was left out"

    def request(
        self, expert: Section, reference: Reference, info: ModelInfo, how: Judging, unread: int
    ) -> CalibrationRequest:
        """Raises DataError if a side has too few scores, or more than a service takes."""
        for side, scores in (("teacher", self.teacher), ("policy", self.policy)):
            if len(scores) < 2:
                raise DataError(
                    f"the {expert} expert scored {len(scores)} responses of the {side}, a calibration needs 2 or more; "
                    f"{self.left_out(unread)}"
                )
        try:
            return CalibrationRequest(
                reference=reference,
                version=info.version,
                attempt=info.attempt,
                section=how.section,
                teacher=self.teacher,
                policy=self.policy,
            )
        except ValidationError as error:
            raise DataError(f"this reference cannot be used: {'; '.join(describe(error))}") from None


def _same_weights(scored: Scored, infos: dict[Section, ModelInfo], what_to_do: str) -> None:
    """Raises ServiceError if others than those in use at the beginning have judged this row."""
    for name, judge in scored.judges.items():
        then = infos[name]
        if (judge.version, judge.attempt) != (then.version, then.attempt):
            raise ServiceError(
                f"the {name} expert's weights changed from version {then.version} (attempt {then.attempt}) to "
                f"{judge.version} ({judge.attempt}) in the middle, and scores of different weights do not compare; "
                f"{what_to_do}"
            )


def _problem(file: Path, outcome: Scored | Failed) -> str | None:
    return f"{file}:{outcome.line.number}: {outcome.reason}" if isinstance(outcome, Failed) else None


@contextmanager
def _progress(what: str, total: int, done: int) -> Iterator[Callable[[str | None], None]]:
    """Gives what counts one row more, and says its problem if it has one."""
    console = Console(stderr=True, highlight=False)
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total, completed=done)

        def tell(problem: str | None) -> None:
            progress.advance(task)
            if problem:
                console.print(escape(problem), soft_wrap=True)

        yield tell


def _run(work: Callable[[], Coroutine[Any, Any, Result]], kept: str) -> Result:
    """``kept`` says where one stands when it ends early."""
    try:
        return asyncio.run(work())
    except Unavailable as error:
        raise ServiceError(f"{error}\n{kept}") from None
    except KeyboardInterrupt:
        Console(stderr=True, highlight=False).print(f"interrupted: {kept}", soft_wrap=True, markup=False)
        raise
