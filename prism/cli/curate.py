"""``prism curate``: what the command line offers. prism.curation does it, and is imported only then."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from prism import logs
from prism.cli.options import Fresh, Overrides, WaitForLock, Yes, delete
from prism.errors import ConfigError
from prism.stack.folder_lock import lock_run

Step = StrEnum("Step", ["mine", "ask", "verify", "split", "card"])  # typer checks against it


def curate(
    config: Annotated[Path, typer.Argument(help="a curation's TOML file; docs/curation.md shows one")],
    steps: Annotated[
        list[Step] | None,
        typer.Argument(metavar="[STEP]...", help="mine, ask, verify, split, card; all of them without any"),
    ] = None,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="say what asking the teacher would take, in tokens and dollars; ask nobody"),
    ] = False,
    accept_terms: Annotated[
        str | None,
        typer.Option(
            "--accept-terms", metavar="NAME", help="who accepts the teacher's terms for this use; for the card"
        ),
    ] = None,
    fresh: Fresh = False,
    yes: Yes = False,
    wait_for_lock: WaitForLock = 0,
) -> None:
    """Demonstrations from the hardest problems, a closed teacher, and nothing unverified.

    \b
    mine    the run's policy answers each problem, the grader judges: never
            solved goes to the teacher, solved at times is a prompt for RL
    ask     the teacher answers with a caption of visual facts, steps, answer
    verify  the grader's rules, a judge for what they cannot decide, the
            caption against the images
    split   duplicates and benchmarks' problems out, validation by clusters of
            images, sets for SFT, alignment and RL
    card    card.md: counts, costs, terms, rates of rejection; samples.html

    Each goes on where it was, whatever ended it: an answer that is stored is never paid for again.
    Before a question is sent the most that it can cost is reserved, so that teacher.cap holds.
    Keys are read from PRISM_TEACHER_KEY and PRISM_CURATION_JUDGE_KEY, or files of these names in
    lower case in PRISM_SECRETS_DIR. The services are those of a run that is up (prism up), or
    where PRISM_* variables say.

    \b
    prism curate hard.toml --dry-run
    prism curate hard.toml --accept-terms "Ada Lovelace"
    prism curate hard.toml verify split card --set verify.max_unclear=0.2

    docs/curation.md explains the file.
    """
    from prism.config import load_toml
    from prism.curation.config import CurateConfig

    try:
        from prism.curation.run import STEPS, plan
        from prism.curation.run import curate as curate_all
    except ModuleNotFoundError as error:
        if error.name != "sqlalchemy":
            raise
        raise ConfigError("prism curate keeps its state by SQLAlchemy: pip install 'prism-align[curate]'") from None

    console = logs.console()
    resolved = load_toml(config, CurateConfig, overrides or [])

    def say(text: str) -> None:
        console.print(text, soft_wrap=True, markup=False)

    with lock_run(resolved.folder, "curation", wait_seconds=wait_for_lock):
        if fresh:
            delete(resolved.folder, yes)
        if dry_run:
            plan(resolved, say)
            return
        terms = resolved.terms
        if accept_terms or not terms.accepted_by:
            terms = terms.model_copy(update={"accepted_by": accept_terms or _ask_who_accepts(terms.name)})
        resolved = resolved.model_copy(update={"terms": terms})
        curate_all(resolved, tuple(step for step in STEPS if not steps or Step(step) in steps), say)


def _ask_who_accepts(terms: str) -> str:
    """Raises ConfigError where there is nobody to ask, typer.Abort for no answer."""
    if not sys.stdin.isatty():
        raise ConfigError(
            f"terms.accepted_by is not set: somebody must have read the teacher's terms ({terms}) and accept them for "
            "training on its answers: --accept-terms NAME"
        )
    return typer.prompt(
        f"The teacher's terms are: {terms}.\nWho has read them and accepts them for training on its answers?"
    )
