"""Whether each expert judges its own section: held-out responses of the teacher, and the same with lies in one section.

Scored by the running services, so it is what a user of them gets. An expert never sees the other's section: that it
does not notice a lie there holds by construction, that it notices one in its own is what it has learnt. (Of whole
responses, ``experts.section``, it sees both. No torch.)
"""

import asyncio
import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from prism.clients.endpoints import load_endpoints
from prism.clients.http import Refused, Unavailable
from prism.clients.services import ExpertClient
from prism.config import DisentangleConfig, RunConfig
from prism.data.blobs import BlobStore
from prism.data.mixture import data_files
from prism.data.rows import Mixture, read_rows, to_prompt
from prism.errors import DataError, ServiceError
from prism.evaluation import corrupt
from prism.evaluation.corrupt import Lies
from prism.evaluation.unasked import Unasked, print_unasked, unasked_figures, why_unasked
from prism.files import append_json, read_jsonl
from prism.http.client import async_client
from prism.tasks import together
from prism.wire.response import EXPERTS, Expert
from prism.wire.v1 import rollout_pb2 as pb

CONCURRENCY = 8
FILE = "disentanglement.jsonl"


def disentangle(config: RunConfig, stage: str, settings: DisentangleConfig, version: int) -> dict[str, Any]:
    """Measure and record. A row that cannot be asked about is counted and named (``unasked``).

    Raises ServiceError unless version ``version`` of both experts gave all the scores.
    """
    started = time.perf_counter()
    file, texts, unasked = _texts(config, settings)
    answers = asyncio.run(_changes(config, texts, version))
    changes = [one for one in answers if not isinstance(one, Unasked)]
    unasked += [one for one in answers if isinstance(one, Unasked)]
    figures = {
        "stage": stage,
        "expert_version": version,
        "share": settings.share,
        "section": config.run_limits.expert_section,
        "rows": len(changes),
        **unasked_figures(file, unasked),
        **{
            section: {expert: summary([c[section, expert] for c in changes]) for expert in EXPERTS}
            for section in corrupt.CORRUPTED_PARTS
        },
        "seconds": time.perf_counter() - started,
        "time": time.time(),
    }
    append_json(config.run_dir / FILE, figures)
    return figures


def disentangled_stages(run_dir: Path) -> set[str]:
    return {line["stage"] for line in read_jsonl(run_dir / FILE)}


def print_disentanglement(console: Console, figures: dict[str, Any]) -> None:
    for section in corrupt.CORRUPTED_PARTS:
        shown = [f"{expert} {_shown(figures[section][expert])}" for expert in EXPERTS]
        console.print(f"{figures['stage']:>10} lies in the {section} alone change the score by: {', '.join(shown)}")
    print_unasked(console, figures)


def summary(changes: Sequence[float | None]) -> dict[str, float | int | None]:
    """Of the changes of score, corrupted minus original: mean, spread, and how often the original has the higher one.

    A tie is half a win: who cannot tell gets 0.5. None counts as no data; without data, or with one row for a spread,
    figures are None.
    """
    known = [change for change in changes if change is not None]
    std = statistics.stdev(known) if len(known) > 1 else None
    return {
        "rows": len(known),
        "change": statistics.fmean(known) if known else None,
        "std": std,
        "stderr": None if std is None else std / math.sqrt(len(known)),
        "accuracy": statistics.fmean((c < 0) + 0.5 * (c == 0) for c in known) if known else None,
    }


def _texts(
    config: RunConfig, settings: DisentangleConfig
) -> tuple[Mixture, list[tuple[pb.Prompt, dict[str, str]]], list[Unasked]]:
    """The files; their prompts, each with its corrupted responses by section that holds a number; bad rows."""
    blobs = BlobStore(load_endpoints(config.run_dir / "stack.json").blobs)
    rows = Mixture(
        [
            read_rows(path, config.on_bad_row, require=("teacher",), limits=config.limits, entry=entry)
            for path, entry in data_files(config.evaluate.data, config.path)
        ]
    )
    lies = Lies(settings.words, settings.share)
    made = [
        (
            file,
            row,
            {
                s: text
                for s in corrupt.CORRUPTED_PARTS
                if (text := lies.corrupt(row.teacher or "", s, row.id)) is not None
            },
        )
        for file, row in map(rows.at, range(min(settings.rows, len(rows))))
    ]
    prompts: list[tuple[pb.Prompt, dict[str, str]]] = []
    unasked: list[Unasked] = []
    for file, row, texts in made:
        try:
            if texts:
                prompts.append((to_prompt(row, file, blobs), texts))
        except DataError as error:
            unasked.append(why_unasked(row.id, error))
    return rows, prompts, unasked


async def _changes(
    config: RunConfig, texts: Sequence[tuple[pb.Prompt, dict[str, str]]], version: int
) -> list[dict[tuple[str, str], float | None] | Unasked]:
    """For each prompt, section and expert: the corrupted response's score minus the original's; None: not scored.

    Unasked stands for a prompt that the experts did not take.
    """
    endpoints = load_endpoints(config.run_dir / "stack.json")
    patience = config.push.deadline_seconds
    room = asyncio.Semaphore(CONCURRENCY)
    async with async_client() as http:
        clients: dict[Expert, ExpertClient] = {
            expert: ExpertClient(http, endpoints.expert_url(expert), endpoints.token.get_secret_value(), patience)
            for expert in EXPERTS
        }

        async def of(prompt: pb.Prompt, corrupted: dict[str, str]) -> dict[tuple[str, str], float | None]:
            changes: dict[tuple[str, str], float | None] = {
                (s, e): None for s in corrupt.CORRUPTED_PARTS for e in EXPERTS
            }
            for expert, client in clients.items():
                async with room:  # one call: one version judges original and corrupted alike
                    original, *others = await client.score(
                        expert, prompt.messages, [prompt.teacher, *corrupted.values()], version
                    )
                if original.expert_version != version:
                    raise ServiceError(
                        f"the {expert} expert answered with version {original.expert_version}, not {version}"
                    )
                for section, other in zip(corrupted, others, strict=True):
                    if original.HasField("value") and other.HasField("value"):
                        changes[section, expert] = other.value - original.value
            return changes

        async def asked(prompt: pb.Prompt, corrupted: dict[str, str]) -> dict[tuple[str, str], float | None] | Unasked:
            try:
                return await of(prompt, corrupted)
            except (Refused, Unavailable) as error:
                return why_unasked(prompt.id, error)

        return await together(*(asked(prompt, corrupted) for prompt, corrupted in texts))


def _shown(cell: dict[str, Any]) -> str:
    if cell["change"] is None:
        return "no data"
    error = "" if cell["stderr"] is None else f" ± {cell['stderr']:.2f}"
    return f"{cell['change']:+.2f}{error} ({cell['accuracy']:.0%} told apart)"
