"""``prism score`` and ``prism calibrate`` as commands; what they do is in prism.scoring, imported when it is needed."""

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer


class ExpertChoice(StrEnum):
    perception = "perception"
    reasoning = "reasoning"
    both = "both"


class SectionArgument(StrEnum):
    own = "own"
    all = "all"


ExpertOption = Annotated[ExpertChoice, typer.Option("--expert", help="who judges")]
SectionOption = Annotated[
    SectionArgument,
    typer.Option("--section", help="own: the section an expert was trained on; all: whole texts, tags or not"),
]
Run = Annotated[Path, typer.Option("--run", help="a run that is up; PRISM_* variables go before its stack.json")]
PerceptionUrl = Annotated[str | None, typer.Option("--perception-url", help="with the token in PRISM_TOKEN")]
ReasoningUrl = Annotated[str | None, typer.Option("--reasoning-url", help="with the token in PRISM_TOKEN")]
Batch = Annotated[int, typer.Option("--batch", min=1, help="rows a request")]
Concurrency = Annotated[int, typer.Option("--concurrency", min=1, help="requests at a time")]
Patience = Annotated[float, typer.Option("--patience", min=0, help="seconds a service may be away or busy")]

# \b keeps typer from re-wrapping the examples.
SCORE_HELP = """Score responses with the discriminator experts: JSON Lines or Parquet in, a table or JSON Lines out.

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
    file: Annotated[Path, typer.Argument(help="JSON Lines or Parquet of prompts and responses")],
    out: Annotated[Path | None, typer.Option("--out", help="write JSON Lines here; rows it holds are skipped")] = None,
    expert: ExpertOption = ExpertChoice.both,
    alpha: Annotated[float, typer.Option(min=0, max=1, help="weight of perception in the mixture of both")] = 0.5,
    section: SectionOption = SectionArgument.own,
    run: Run = Path("runs/demo"),
    perception_url: PerceptionUrl = None,
    reasoning_url: ReasoningUrl = None,
    batch: Batch = 8,
    concurrency: Concurrency = 4,
    patience: Patience = 120,
    mixed_versions: Annotated[
        bool, typer.Option("--mixed-versions", help="go on when weights change; every line names those that judged it")
    ] = False,
) -> None:
    from prism.clients.experts import Experts
    from prism.scoring.batches import WhoJudges
    from prism.scoring.score import score_file

    connect = partial(Experts.of_run, run, perception_url=perception_url, reasoning_url=reasoning_url)
    how = WhoJudges(expert.value, section.value, connect, patience, batch, concurrency, alpha)
    score_file(file, out, how, mixed_versions=mixed_versions)


def calibrate(
    file: Annotated[Path, typer.Argument(help="JSON Lines or Parquet of prompts with responses of teacher and policy")],
    expert: ExpertOption = ExpertChoice.both,
    section: SectionOption = SectionArgument.own,
    run: Run = Path("runs/demo"),
    perception_url: PerceptionUrl = None,
    reasoning_url: ReasoningUrl = None,
    batch: Batch = 8,
    concurrency: Concurrency = 4,
    patience: Patience = 120,
) -> None:
    from prism.clients.experts import Experts
    from prism.scoring.batches import WhoJudges
    from prism.scoring.calibrate import calibrate_on

    connect = partial(Experts.of_run, run, perception_url=perception_url, reasoning_url=reasoning_url)
    calibrate_on(file, WhoJudges(expert.value, section.value, connect, patience, batch, concurrency))
