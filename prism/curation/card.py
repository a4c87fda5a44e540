"""The data card: what is in the sets, where it came from, what it cost, what was thrown away and why; and a page."""

import base64
import io
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image
from sqlalchemy import Row, func, select

from prism.clients.teacher.config import TeacherConfig
from prism.clients.teacher.reply import dollars
from prism.curation import prompts
from prism.curation.config import CurateConfig
from prism.curation.mine import wilson
from prism.curation.rows import golds_of, images_of, question_of
from prism.curation.sets.write import demos_of
from prism.curation.state.job import OpenJob
from prism.curation.state.tables import Answer, Demo, Job, Problem, Purse, Sample, SendRow
from prism.data.blobs import BlobStore
from prism.files import write_json, write_text
from prism.wire.response import parse_response

TEMPLATES = Path(__file__).parent / "templates"
SHOWN, SIDE = 12, 480
"""Samples of each kind on the page, and the longest side of their images there, in pixels."""


def write_card(job: OpenJob, config: CurateConfig, blobs: BlobStore) -> Path:
    """Write ``card.json``, ``card.md`` and ``samples.html`` into the job's folder; gives the card's path."""
    facts = figures(job, config)
    write_json(config.folder / "card.json", facts)
    write_text(config.folder / "card.md", _render("card.md", card=facts, config=config))
    write_text(config.folder / "samples.html", _render("samples.html", card=facts, groups=_samples(job, blobs)))
    return config.folder / "card.md"


def figures(job: OpenJob, config: CurateConfig) -> dict[str, Any]:
    """Everything that the card tells. A share without anything to be a share of is None."""
    with job.store.reading() as connection:
        row = connection.execute(select(Job).where(Job.id == job.id)).one()
        problems = connection.scalar(select(func.count()).where(Problem.job == job.id)) or 0
        routes = _counted(connection, Problem.route, Problem.job == job.id)
        fates = _counted(connection, Problem.fate, Problem.job == job.id)
        states = _counted(connection, Demo.state, Demo.job == job.id)
        asked = connection.scalar(select(func.sum(Problem.asked)).where(Problem.job == job.id)) or 0
        judged_problems = select(Problem.right, Problem.judged).where(Problem.job == job.id, Problem.judged > 0)
        judged, right, interval = _pass_rate(connection.execute(judged_problems, execution_options={"yield_per": 1000}))
        versions = _distinct(connection, Problem.policy_version, Problem.job == job.id)
        graders = _distinct(connection, Problem.grader_version, Problem.job == job.id)
        served = select(Answer.model).join(Demo, Demo.key == Answer.key).where(Demo.job == job.id)
        models = sorted(connection.scalars(served.distinct()))
        purses = [_purse(connection, purse) for purse in connection.execute(select(Purse).where(Purse.job == job.id))]
        cut = Sample.problem == Problem.id, Problem.job == job.id, Sample.finish != "stop"
        truncated = connection.scalar(select(func.count()).where(*cut)) or 0
    reasons = _reasons(job)
    decided = states.get("verified", 0) + states.get("rejected", 0)
    facts = row.facts
    return {
        "name": config.name,
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "stopped": row.stopped,
        "data": facts.get("data", []),
        "problems": problems,
        "mined": {
            "routes": routes,
            "samples": asked,
            "judged": judged,
            "truncated": truncated,
            "right": right,
            "pass_rate": right / judged if judged else None,
            "pass_interval": interval,
            "policy_of": facts.get("mined_from"),
            "policy_versions": versions,
            "grader_versions": graders,
            "settings": config.mine.model_dump(mode="json") if config.mine else None,
        },
        "teacher": {
            "model": config.teacher.model,
            "prompt": None,
            "prompt_text": None,
            **(facts.get("teacher") or {}),
            "url": config.teacher.url,
            "served": models,
        },
        "terms": facts.get("terms", {}),
        "judge": _judge(config.judge),
        "answers": states,
        "rejected_share": states.get("rejected", 0) / decided if decided else None,
        "reasons": reasons,
        "verify": config.verify.model_dump(mode="json", exclude={"labelled"}),
        "labelled": facts.get("labelled"),
        "margin": facts.get("margin"),
        "agreement": facts.get("agreement"),
        "fates": fates,
        "split": facts.get("split"),
        "sets": facts.get("sets"),
        "costs": purses,
    }


def _pass_rate(problems: Iterable[Row[Any]]) -> tuple[int, int, tuple[float, float] | None]:
    """Samples judged, and right; the 95 % interval of the rate among problems like these.

    Samples of one problem are alike, so it is that of as many independent ones as would scatter like these problems.
    """
    count = judged = right = squares = products = rights = 0
    for row in problems:
        count, judged, right = count + 1, judged + row.judged, right + row.right
        squares, products, rights = squares + row.judged**2, products + row.judged * row.right, rights + row.right**2
    if not judged:
        return 0, 0, None
    rate = right / judged
    scatter = rights - 2 * rate * products + rate * rate * squares
    if count == 1 or scatter <= 0:
        return judged, right, wilson(rate * count, count)
    alike = rate * (1 - rate) * judged**2 * (count - 1) / (count * scatter)
    return judged, right, wilson(rate * min(alike, judged), min(alike, judged))


def _judge(config: TeacherConfig | None) -> dict[str, Any] | None:
    if config is None:
        return None
    asked = {"answer": prompts.JUDGE_ANSWER, "caption": prompts.JUDGE_BULLET, "steps": prompts.JUDGE_STEPS}
    return {"model": config.model, "url": config.url, "prompt": prompts.JUDGE_VERSION, "prompt_texts": asked}


def _counted(connection: Any, column: Any, condition: Any) -> dict[str, int]:
    found = connection.execute(select(column, func.count()).where(condition).group_by(column)).all()
    return {str(name): count for name, count in sorted(found, key=str) if name is not None}


def _distinct(connection: Any, column: Any, condition: Any) -> list[Any]:
    """What is known of it, in order."""
    return sorted(one for one in connection.scalars(select(column).where(condition).distinct()) if one is not None)


def _purse(connection: Any, purse: Row[Any]) -> dict[str, Any]:
    mine = SendRow.job == purse.job, SendRow.purse == purse.name
    lost = connection.scalar(select(func.sum(SendRow.reserved)).where(*mine, SendRow.state == "lost")) or 0
    return {
        "of": purse.name,
        "cap": dollars(purse.cap),
        "spent": dollars(purse.spent),
        "unknown": dollars(lost),
        "sends": _counted(connection, SendRow.state, mine[0] & mine[1]),
    }


def _reasons(job: OpenJob) -> dict[str, int]:
    """Of rejection, by the check and its kind."""
    with job.store.reading() as connection:
        wanted = select(Demo.reason, func.count()).where(Demo.job == job.id, Demo.state == "rejected")
        found = connection.execute(wanted.group_by(Demo.reason)).all()
    counts = Counter[str]()
    for reason, count in found:
        counts[str(reason).partition(":")[0]] += count
    return dict(counts.most_common())


def _samples(job: OpenJob, blobs: BlobStore) -> list[tuple[str, list[dict[str, Any]]]]:
    """Some of each: for alignment, for SFT, rejected by each check. Always the same ones."""
    groups: list[tuple[str, list[dict[str, Any]]]] = []
    for name, conditions in (
        ("For alignment", (Demo.best, Problem.fate == "align")),
        ("For SFT", (Demo.best, Problem.fate == "sft")),
        ("Rejected", (Demo.state == "rejected",)),
        ("Refused by the teacher", (Demo.state == "refused",)),
    ):
        chosen = _drawn(demos_of(job, *conditions))
        if chosen:
            groups.append((name, [_shown(demo, blobs) for demo in chosen]))
    return groups


def _drawn(demos: Iterator[Row[Any]]) -> list[Row[Any]]:
    """A sample of a stream, without holding it."""
    rng, drawn = random.Random("samples"), list[Row[Any]]()
    for number, demo in enumerate(demos):
        if len(drawn) < SHOWN:
            drawn.append(demo)
        elif (place := rng.randrange(number + 1)) < SHOWN:
            drawn[place] = demo
    return drawn


def _shown(demo: Row[Any], blobs: BlobStore) -> dict[str, Any]:
    response = parse_response(demo.text or "")
    return {
        "id": demo.row["id"],
        "question": question_of(demo.row),
        "golds": golds_of(demo.row),
        "images": [_thumbnail(blobs.get(sha256)) for sha256 in images_of(demo.row)],
        "response": response if response.valid else None,
        "text": demo.text or "",
        "reason": demo.reason,
        "checks": demo.checks or {},
    }


def _thumbnail(data: bytes) -> str:
    image = Image.open(io.BytesIO(data))
    image.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    image.convert("RGB").save(out, "PNG")
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


def _render(template: str, **values: Any) -> str:
    # The page shows what models wrote: everything in it is escaped. Markdown is text for people and is not.
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=template.endswith(".html"), undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["percent"] = lambda share: "no data" if share is None else f"{share:.1%}"
    environment.filters["interval"] = lambda ends: "" if ends is None else f"[{ends[0]:.1%}, {ends[1]:.1%}]"
    environment.filters["cell"] = lambda text: str(text).replace("|", "\\|").replace("\n", " ")
    return environment.get_template(template).render(**values)
