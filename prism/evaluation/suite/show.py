"""Samples to look at: what was asked, with its pictures, what came, what was read of it, and what was said of that."""

import html
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape

from prism.data.blobs import BlobStore
from prism.errors import ConfigError, DataError
from prism.evaluation.benchmarks.base import Question
from prism.evaluation.suite.results import read_questions, read_verdicts_by_sample
from prism.evaluation.suite.samples import Sample, Verdict, View, read_samples
from prism.wire.messages import data_uri


class Shown(NamedTuple):
    sample: Sample
    question: Question | None
    """None for one that the newest evaluation did not ask."""
    verdict: Verdict | None


def select(
    out: Path,
    benchmark: str | None = None,
    *,
    status: str | None = None,
    right: bool | None = None,
    ids: Sequence[str] = (),
    view: View = "seen",
) -> Iterator[Shown]:
    """The newest sample of each question that is asked for. Raises ConfigError if there is nothing to look at."""
    names = sorted(path.parent.name for path in out.glob("*/samples.jsonl"))
    if (benchmark and benchmark not in names) or not names:
        raise ConfigError(f"{out} holds no samples" + (f" of {benchmark} (but {', '.join(names)})" if names else ""))
    for name in [benchmark] if benchmark else names:
        questions, verdicts = read_questions(out / name), read_verdicts_by_sample(out / name)
        last = {(one.question, one.sample, one.view): one for one in read_samples(out / name)}
        for sample in last.values():
            if (
                sample.view == view
                and (status is None or sample.status == status)
                and (right is None or sample.right is right)
                and (not ids or sample.question in ids)
            ):
                key = sample.question, sample.sample, sample.view
                yield Shown(sample, questions.get(sample.question), verdicts.get(key))


def lines_of(shown: Shown) -> list[tuple[str, str]]:
    """What there is to say of a sample, by name."""
    sample, question, verdict = shown
    lines = [
        ("asked", (question.asked or question.text) if question else "(not asked by the newest evaluation)"),
        ("pictures", ", ".join(f"{width}×{height}" for width, height in sample.image_sizes) or "none"),
        ("response", sample.response if sample.response is not None else "none"),
        ("ended", f"{sample.finish_reason}, {sample.tokens} tokens"),
        ("gold", sample.gold),
        ("extracted", sample.extracted if sample.extracted is not None else "nothing"),
        ("status", f"{sample.status}{f': {sample.detail}' if sample.detail else ''}"),
        ("rule", "masked" if sample.right is None else "right" if sample.right else "wrong"),
    ]
    if verdict:
        lines.append(
            (
                "judge",
                f"{verdict.verdict or 'no verdict'} ({verdict.judge}){f': {verdict.detail}' if verdict.detail else ''}",
            )
        )
    versions = f"prompt {sample.prompt_version}, scorer {sample.scorer_version}"
    policy = "" if sample.policy_version is None else f", policy {sample.policy_version}"
    lines.append(("versions", f"{versions}{policy}, sampling {sample.sampling}"))
    return lines


def print_samples(samples: Sequence[Shown], console: Console) -> None:
    for shown in samples:
        one = shown.sample
        console.print(f"[bold]{escape(one.benchmark)} {escape(one.question)}[/] sample {one.sample}, {one.view}")
        for name, text in lines_of(shown):
            console.print(f"[dim]{name:>10}[/] {escape(text)}", soft_wrap=True)
        console.print()


def as_page(samples: Sequence[Shown], out: Path) -> str:
    """An HTML page with every picture in it."""
    blobs = BlobStore(str(out / "images"))
    parts: list[str] = []
    for shown in samples:
        one = shown.sample
        pictures = "".join(_picture(blobs, sha256) for sha256 in one.images)
        rows = "".join(f"<dt>{name}</dt><dd>{html.escape(text)}</dd>" for name, text in lines_of(shown))
        colour = {None: "masked", True: "right", False: "wrong"}[one.right]
        title = html.escape(f"{one.benchmark} {one.question}, sample {one.sample}, {one.view}")
        parts.append(f'<section class="{colour}"><h2>{title}</h2>{pictures}<dl>{rows}</dl></section>')
    style = (
        "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem}img{max-width:24rem;max-height:24rem}"
        "section{border-left:4px solid #999;padding:0 1rem;margin:2rem 0}"
        ".right{border-color:#2a7}.wrong{border-color:#c43}"
        "dt{color:#666}dd{white-space:pre-wrap;margin:0 0 .5rem 1rem}"
    )
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Samples</title><style>{style}</style>'
    return f"{head}{''.join(parts)}</html>\n"


def _picture(blobs: BlobStore, sha256: str) -> str:
    try:
        return f'<img alt="picture" src="{data_uri(blobs.get(sha256))}">'
    except DataError as error:
        return f"<p>{html.escape(str(error))}</p>"
