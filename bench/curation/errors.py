"""What ``prism curate`` catches of the errors that a teacher is known to make: the demo's prompts, a teacher on this
machine that errs at known rates in caption, steps or answer, a judge that reads the pictures by itself, a real grader.

    python -m bench.curation.errors --rows 300

The card (runs/curation-errors/card.md) has the shares on a labelled sample, and so has the first table here; the second
has those of what was asked. Fails unless the checks catch at least 95 % of wrong answers and 90 % of wrong captions,
and reject at most 5 % of what is right. Of wrong steps it tells what rules catch, and asks for nothing.
"""

import json
import os
import secrets
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.table import Table
from sqlalchemy import select

from bench.curation import stand_ins
from bench.shared import command_line, console, prism_service, started
from configs.demo import prepare
from prism.clients.teacher.keys import JUDGE_KEY, TEACHER_KEY
from prism.config import load_toml
from prism.curation.config import CurateConfig
from prism.curation.mine import wilson
from prism.curation.run import STEPS, Step, curate
from prism.curation.state.store import Store
from prism.curation.state.tables import Demo, Job, Problem
from prism.files import write_text

CONFIG = Path(__file__).with_name("errors.toml")
TEACHER_PORT, JUDGE_PORT = 8190, 8191
CAUGHT = {"answer": 0.95, "caption": 0.9}
"""The least share of what is wrong that a check must catch."""
REJECTED = 0.05
"""The largest share of what is right that it may reject."""


def main() -> None:
    parser = command_line("bench.curation.errors", __doc__)
    parser.add_argument("--rows", type=int, default=300, help="prompts that the teacher is asked")
    parser.add_argument("--labelled", type=int, default=400, help="rows of the labelled sample")
    options = parser.parse_args()
    config = load_toml(CONFIG, CurateConfig)
    sizes = {"prompts": options.rows, "teacher-demos": options.labelled, "public-demos": 1}
    prepare.main(["--out", str(config.run), *(f"--{name}={size}" for name, size in sizes.items())])
    with prism_service("grader", {}) as grader:
        token = grader.headers["Authorization"].removeprefix("Bearer ")
        os.environ |= {"PRISM_GRADER_URL": grader.url, "PRISM_TOKEN": token}
        curate_with_stand_ins(config)
    sys.exit(0 if tell_checks(config) else 1)


def curate_with_stand_ins(config: CurateConfig, steps: Sequence[Step] = STEPS) -> None:
    """With a teacher that knows the prompts beside the labelled sample, and a judge that sees their pictures."""
    labelled = config.verify.labelled
    assert labelled
    data = labelled.parent
    if not labelled.exists():
        rows = [json.loads(line) for line in (data / "teacher.jsonl").read_text().splitlines()]
        write_text(labelled, "".join(json.dumps(row) + "\n" for row in stand_ins.labelled_rows(rows)))
    with serving(data / "prompts.jsonl", TEACHER_PORT, JUDGE_PORT):
        os.environ |= {key: secrets.token_urlsafe() for key in (TEACHER_KEY, JUDGE_KEY)}
        curate(config, steps, lambda text: console.print(text, soft_wrap=True, markup=False))


@contextmanager
def serving(prompts: Path, teacher_port: int, judge_port: int) -> Iterator[None]:
    """Both stand-ins answer: the teacher, who knows these prompts, and the judge. Raises DidNotStart."""
    serve = [sys.executable, "-m", "bench.curation.stand_ins"]
    teacher = [*serve, "teacher", "--rows", str(prompts), "--port", str(teacher_port)]
    judge = [*serve, "judge", "--port", str(judge_port)]
    with started(teacher, {}, teacher_port, "/"), started(judge, {}, judge_port, "/"):
        yield


def tell_checks(config: CurateConfig) -> bool:
    """Print what was caught on the labelled sample and of what was asked; whether it is what it must be."""
    agreement = json.loads((config.folder / "card.json").read_text())["agreement"]
    broken = broken_bars(agreement)
    table = Table("on the labelled sample", "labelled wrong", "caught", "labelled right", "rejected")
    for name, one in agreement.items():
        caught, lost = (
            _share(one[key], one[of]) for key, of in (("caught", "labelled_false"), ("rejected", "labelled_true"))
        )
        table.add_row(name, str(one["labelled_false"]), caught, str(one["labelled_true"]), lost)
    console.print(table)
    _tell_planted(config)
    for text in broken:
        console.print(f"[red]FAILS[/]: {text}")
    return not broken


def broken_bars(agreement: Mapping[str, Any]) -> list[str]:
    """What does not hold of a card's agreement. A share of nothing holds nothing."""
    broken = list[str]()
    for check, least in CAUGHT.items():
        one = agreement.get(check, {})
        caught, rejected = one.get("caught_share"), one.get("rejected_share")
        if caught is None or caught < least:
            broken.append(f"{check}: caught {caught if caught is None else f'{caught:.1%}'}, not {least:.0%}")
        if rejected is None or rejected > REJECTED:
            broken.append(f"{check}: rejected {rejected if rejected is None else f'{rejected:.1%}'} of what is right")
    return broken


def _tell_planted(config: CurateConfig) -> None:
    """What became of answers with each error that the teacher planted, and of those with none."""
    with Store(config.database_url) as store, store.reading() as connection:
        wanted = (
            select(Problem.row, Demo.state, Demo.reason)
            .join(Demo, Demo.problem == Problem.id)
            .join(Job, Job.id == Demo.job)
            .where(Job.name == config.name)
        )
        found = [
            (stand_ins.planted(row["id"]), state, reason or "") for row, state, reason in connection.execute(wanted)
        ]
    table = Table("planted by the teacher", "answers", "rejected", "by")
    for error in (*stand_ins.ERRORS, None):
        mine = [(state, reason) for planted, state, reason in found if planted == error]
        rejected = Counter(reason.partition(":")[0] for state, reason in mine if state == "rejected")
        by = ", ".join(f"{name} {count}" for name, count in rejected.most_common())
        table.add_row(
            f"in the {error}" if error else "nothing", str(len(mine)), _share(rejected.total(), len(mine)), by
        )
    console.print(table)


def _share(count: int, of: int) -> str:
    """With its 95 % interval."""
    if not of:
        return "no data"
    low, high = wilson(count, of)
    return f"{count / of:.1%} [{low:.1%}, {high:.1%}]"


if __name__ == "__main__":
    main()
