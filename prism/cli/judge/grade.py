"""``prism grade FILE``: what the command line offers. services.grader.grade_file does it, and is imported only then."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from prism.cli.options import Fresh, Yes, agree_to_delete
from prism.services.grader.verdict import KINDS
from prism.wire.grading import split_sources

Kind = StrEnum("Kind", list(KINDS))  # typer checks --kind against it


def grade(
    file: Annotated[
        Path, typer.Argument(help="JSON Lines or Parquet of response, gold and perhaps id, kind, options, tokens")
    ],
    out: Annotated[
        Path | None, typer.Option(help="write the verdicts here, as JSON Lines; goes on if it exists")
    ] = None,
    fresh: Fresh = False,
    yes: Yes = False,
    kind: Annotated[Kind, typer.Option(help="the kind of rows that name none")] = Kind("auto"),
    any_format: Annotated[
        bool, typer.Option("--any-format", help="do not require <caption>, <think> and <answer>")
    ] = False,
    extract: Annotated[
        list[str],
        typer.Option(
            help="where the answer is, first match first, of: answer, boxed, phrase, whole, tag:NAME, "
            "pattern:REGULAR EXPRESSION; by commas, or each with an --extract of its own"
        ),
    ] = ["answer,boxed,phrase"],  # noqa: B006
    mask_unparseable: Annotated[
        bool, typer.Option("--mask-unparseable", help="give an answer that cannot be read no numbers, not 0")
    ] = False,
    workers: Annotated[int | None, typer.Option(help="worker processes; one for each core by default")] = None,
    deadline: Annotated[float, typer.Option(help="seconds one comparison may take")] = 5.0,
    url: Annotated[str | None, typer.Option(help="a running grader; its token is read from PRISM_TOKEN")] = None,
    judge_url: Annotated[
        str | None, typer.Option(help="an OpenAI-compatible server for kind judge; token in PRISM_JUDGE_TOKEN")
    ] = None,
    judge_model: Annotated[str | None, typer.Option(help="the model's name there; judge by default")] = None,
) -> None:
    """Grade the responses in a file against their gold answers.

    FILE holds JSON Lines, one response each; other keys are ignored:

        {"response": "<caption>…</caption>…<answer>0.5</answer>", "gold": "1/2"}
        {"response": "it is \\boxed{B}", "gold": ["B", "12 cm"], "kind": "choice"}
        {"response": "…", "gold": "3.14", "options": {"rel_tol": 0.01}}

    kind is auto unless the row or --kind says another: number, choice, text, math, multi, box, judge.
    Every response gets a verdict: a status, and accuracy and reward unless it could not be judged.
    A row that cannot be used is named with its line; the others are graded, and the exit status is 1.
    Numbers may stand for texts ("gold": 7, "id": 5).
    Without --out a table is printed; with it the verdicts are written too, one line each,
    and a run that was stopped goes on where it was.

        prism grade answers.jsonl --out verdicts.jsonl
        prism grade answers.jsonl --any-format --extract boxed,phrase,whole
        prism grade answers.jsonl --any-format --extract 'pattern:ANSWER: *(.+)' --extract tag:final
        prism grade answers.jsonl --url http://127.0.0.1:8104

    --any-format grades responses without PRISM's sections.
    pattern: is a regular expression in RE2's syntax, which takes all that follows it, commas too.
    Of its last match the group named answer, else the first group, else all of it is the answer.
    --mask-unparseable leaves an answer that cannot be read out of the means, instead of counting it as wrong.
    --url asks a running grader, whose token is in PRISM_TOKEN.
    PRISM_JUDGE_* variables set the judge's limits (of calls, tokens, characters, seconds), as they do for the service.
    """
    from prism.services.grader.grade_file import grade_file

    if fresh and out:
        agree_to_delete(out, yes)
    if not url:
        from prism.services.grader.pool import preload

        preload("prism.cli")
    engine = {"workers": workers, "deadline_seconds": deadline, "judge_url": judge_url, "judge_model": judge_model}
    rules = {
        "format": "ignored" if any_format else "required",
        "extract": [source for text in extract for source in split_sources(text)],
        "unparseable": "masked" if mask_unparseable else "wrong",
    }
    grade_file(file, kind.value, out, url, engine, rules, fresh=fresh)
