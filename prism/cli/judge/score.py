"""``prism score`` and ``prism calibrate`` as commands; what they do is in prism.scoring, imported when it is needed."""

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

# In docstrings here \b keeps typer from re-wrapping examples.

ExpertOption = Annotated[Literal["perception", "reasoning", "both"], typer.Option("--expert", help="who judges")]
SectionOption = Annotated[
    Literal["own", "all"],
    typer.Option("--section", help="own: the section an expert was trained on; all: whole texts, tags or not"),
]
Run = Annotated[Path, typer.Option("--run", help="a run that is up; PRISM_* variables go before its stack.json")]
PerceptionUrl = Annotated[str | None, typer.Option("--perception-url", help="with the token in PRISM_TOKEN")]
ReasoningUrl = Annotated[str | None, typer.Option("--reasoning-url", help="with the token in PRISM_TOKEN")]
Batch = Annotated[int, typer.Option("--batch", min=1, help="rows a request")]
Concurrency = Annotated[int, typer.Option("--concurrency", min=1, help="requests at a time")]
ImageRoot = Annotated[
    Path | None,
    typer.Option("--image-root", help="folder that images of rows must lie in; without it, the folder of FILE"),
]
Patience = Annotated[float, typer.Option("--patience", min=0, help="seconds a service may be away or busy")]


def score(
    file: Annotated[Path, typer.Argument(help="JSON Lines or Parquet of prompts and responses")],
    out: Annotated[Path | None, typer.Option("--out", help="write JSON Lines here; rows it holds are skipped")] = None,
    expert: ExpertOption = "both",
    alpha: Annotated[float, typer.Option(min=0, max=1, help="weight of perception in the mixture of both")] = 0.5,
    section: SectionOption = "own",
    run: Run = Path("runs/demo"),
    perception_url: PerceptionUrl = None,
    reasoning_url: ReasoningUrl = None,
    batch: Batch = 8,
    concurrency: Concurrency = 4,
    patience: Patience = 120,
    image_root: ImageRoot = None,
    mixed_versions: Annotated[
        bool, typer.Option("--mixed-versions", help="go on when weights change; every line names those that judged it")
    ] = False,
) -> None:
    """Score responses with the discriminator experts: JSON Lines or Parquet in, a table or JSON Lines out.

    A row is a prompt and the responses to it, whoever wrote them:

    \b
    {"id": "q1", "prompt": "What is the sum of the first row?", "images": ["q1.png"],
     "responses": ["<caption>- 3 and 4</caption><think>3 + 4 = 7</think><answer>7</answer>"]}

    Instead of prompt and images it may have chat "messages", as in training data, and "response" for a single one.
    An image is a path relative to FILE, in its folder or --image-root,
    a data URI, or an http(s) URL where the service allows it.

    \b
    prism score answers.jsonl                                    # a table
    prism score answers.jsonl --out scores.jsonl                 # resumable: the same command goes on
    prism score plain.jsonl --section all --expert perception    # texts without tags

    A score is raw: only differences between responses to one prompt mean something. `prism calibrate` says what.
    """
    from prism.clients.experts import Experts
    from prism.scoring.batches import WhoJudges
    from prism.scoring.score import score_file

    connect = partial(Experts.of_run, run, perception_url=perception_url, reasoning_url=reasoning_url)
    how = WhoJudges(expert, section, connect, patience, batch, concurrency, alpha)
    score_file(file, out, how, mixed_versions=mixed_versions, image_root=image_root)


def calibrate(
    file: Annotated[Path, typer.Argument(help="JSON Lines or Parquet of prompts with responses of teacher and policy")],
    expert: ExpertOption = "both",
    section: SectionOption = "own",
    run: Run = Path("runs/demo"),
    perception_url: PerceptionUrl = None,
    reasoning_url: ReasoningUrl = None,
    batch: Batch = 8,
    concurrency: Concurrency = 4,
    patience: Patience = 120,
    image_root: ImageRoot = None,
) -> None:
    """Give scores a meaning: percentiles and a probability, from responses of teacher and policy.

    A row is a prompt with responses of both, each a text or a list of texts
    ("response" or "responses" do for "policy"):

    \b
    {"id": "q1", "prompt": "What is the sum of the first row?", "images": ["q1.png"],
     "teacher": "<caption>...", "policy": ["<caption>...", "<caption>..."]}

    All are scored, and each expert is told.
    From then on, of several responses to a prompt each score carries the percentile of its lead over the others
    among the teacher's and among the policy's, and the probability that the response is the teacher's, until the
    weights change. What prompts have in common means nothing, so a response alone has neither. How good that is,
    is measured on prompts that were held out.
    Needs the admin token: PRISM_ADMIN_TOKEN, or that of the run.

    \b
    prism calibrate reference.jsonl --run runs/demo
    """
    from prism.clients.experts import Experts
    from prism.scoring.batches import WhoJudges
    from prism.scoring.calibrate import calibrate_on

    connect = partial(Experts.of_run, run, perception_url=perception_url, reasoning_url=reasoning_url)
    calibrate_on(file, WhoJudges(expert, section, connect, patience, batch, concurrency), image_root)
