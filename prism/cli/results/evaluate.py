"""``prism evaluate``: what the command line offers; prism.evaluation.suite does it, and is imported only then."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from prism.cli.options import Fresh, Overrides, Yes, agree_to_delete

if TYPE_CHECKING:
    from prism.evaluation.benchmarks.base import Ruling, ToGrader

# In docstrings here \b keeps typer from re-wrapping examples.


class _RunByDefault(TyperGroup):
    """``prism evaluate FILE`` is ``prism evaluate run FILE``."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            args = ["run", *args]
        return super().resolve_command(ctx, args)


evaluate = typer.Typer(
    cls=_RunByDefault,
    no_args_is_help=True,
    help="Public benchmarks and your own file, over any OpenAI-compatible server: `prism evaluate FILE.toml`.",
)
Folder = Annotated[Path, typer.Argument(help="folder of an evaluation's results")]
ScorerOption = Annotated[
    Literal["rule", "judge", "rule_then_judge"] | None,
    typer.Option("--scorer", help="whose scores; by default the rule, then the judge, if there is one"),
]


@evaluate.command()
def run(
    file: Annotated[Path, typer.Argument(help="a TOML file: server, sampling, judge, benchmarks")],
    set_: Overrides = None,
    download: Annotated[
        bool, typer.Option("--download", help="first fetch benchmarks whose folder is not there from the hub")
    ] = False,
    fresh: Fresh = False,
    yes: Yes = False,
) -> None:
    """Ask a server the questions of benchmarks, and score the responses.

    \b
    out = "evaluations/rlvr"
    [server]
    url = "http://127.0.0.1:8101/v1"     # any OpenAI-compatible server; the key is in PRISM_TOKEN
    [benchmarks.mathvista]
    path = "benchmarks/MathVista/data/testmini-*.parquet"

    An interrupted evaluation goes on with the same command.
    Without a score, because too many responses are masked or the server is away, the exit status is 1.
    docs/evaluation.md has every key, and what each benchmark's rule is.
    """
    from prism import logs
    from prism.config import EvaluationConfig, load_toml
    from prism.evaluation.suite.download import download as fetch
    from prism.evaluation.suite.run import refuse_missing_scores, run_evaluation
    from prism.evaluation.suite.table import summary

    config = load_toml(file, EvaluationConfig, set_ or [])
    console = logs.console()
    if fresh:
        import shutil

        agree_to_delete(config.out, yes)
        shutil.rmtree(config.out, ignore_errors=True)
    if download:
        for line in fetch(config):
            console.print(line, markup=False)
    with _InProcess() as grader:
        result = run_evaluation(config, grader.grade, console)
    console.print(summary(result))
    console.print(f"figures: {config.out / 'result.json'}", soft_wrap=True)
    refuse_missing_scores(result, config.out)


@evaluate.command()
def show(
    out: Folder,
    benchmark: Annotated[str | None, typer.Option("--benchmark", help="of this one alone")] = None,
    status: Annotated[
        Literal["ok", "truncated", "refused", "unparsed", "failed"] | None,
        typer.Option("--status", help="samples that ended so"),
    ] = None,
    wrong: Annotated[bool, typer.Option("--wrong", help="samples that the rule calls wrong")] = False,
    ids: Annotated[list[str] | None, typer.Option("--id", help="of this question; repeatable")] = None,
    blank: Annotated[bool, typer.Option("--blank", help="those with a blank picture")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, help="samples at most")] = 20,
    page: Annotated[Path | None, typer.Option("--html", help="write a page with their pictures here")] = None,
) -> None:
    """Open samples: question, pictures, response, what was read of it, verdicts."""
    from itertools import islice

    from prism import logs
    from prism.evaluation.suite.show import as_page, print_samples, select
    from prism.files import write_text

    found = select(
        out, benchmark, status=status, right=False if wrong else None, ids=ids or (), view="blank" if blank else "seen"
    )
    samples = list(islice(found, limit))
    console = logs.console()
    if page:
        write_text(page, as_page(samples, out))
        console.print(f"{len(samples)} samples: {page}", soft_wrap=True, markup=False)
    else:
        print_samples(samples, console)


@evaluate.command()
def compare(first: Folder, second: Folder, scorer: ScorerOption = None) -> None:
    """Compare two evaluations question by question: bootstrap over clusters, and McNemar's test."""
    from prism import logs
    from prism.evaluation.suite.compare import compare as compare_folders
    from prism.evaluation.suite.compare import comparison_table

    note, comparisons = compare_folders(first, second, scorer)
    console = logs.console()
    console.print(comparison_table(first.name, second.name, comparisons))
    if note:
        console.print(note, markup=False)


@evaluate.command()
def table(
    folders: Annotated[list[str], typer.Argument(metavar="[NAME=]DIR...", help="evaluations, a row each, in order")],
    out: Annotated[Path, typer.Option("--out", help="writes OUT.html, OUT.md and OUT.csv")] = Path("table"),
    scorer: ScorerOption = None,
) -> None:
    """Write the paper's table, a row for each evaluation, a column for each benchmark, as HTML, Markdown and CSV.

    \b
    prism evaluate table Instruct=evaluations/instruct SFT=evaluations/sft "SFT → PRISM → GRPO"=evaluations/rlvr
    """
    from prism import logs
    from prism.evaluation.suite.results import read_result
    from prism.evaluation.suite.table import as_csv, as_html, as_markdown, paper_table
    from prism.files import write_text

    results = []
    for text in folders:
        name, mark, folder = text.rpartition("=")
        result = read_result(Path(folder))
        results.append((name if mark else result["name"], result))
    made = paper_table(results, scorer)
    for suffix, form in (("html", as_html), ("md", as_markdown), ("csv", as_csv)):
        write_text(out.with_name(f"{out.name}.{suffix}"), form(made))
    console = logs.console()
    console.print(as_markdown(made), markup=False, soft_wrap=True)
    console.print(f"{out}.html, {out}.md, {out}.csv", soft_wrap=True, markup=False)


class _InProcess:
    """The grader's kinds, in worker processes that start when the first comparison needs them."""

    def __init__(self) -> None:
        self._grader = None

    def __enter__(self) -> "_InProcess":
        return self

    def __exit__(self, *_: object) -> None:
        if self._grader is not None:
            self._grader.close()

    async def grade(self, items: "Sequence[ToGrader]") -> "list[Ruling]":
        from prism.services.grader.engine import Grader
        from prism.services.grader.evaluation import rulings
        from prism.services.grader.settings import EngineSettings

        if self._grader is None:
            self._grader = Grader(EngineSettings.model_validate({}))
        return await rulings(self._grader, items)
