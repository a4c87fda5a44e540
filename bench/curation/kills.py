"""``prism curate`` killed (SIGKILL) at random moments and begun again each time, over stand-ins of its services, a
teacher and a judge. Fails unless no stored answer was asked for again, the books cover what teacher and judge billed,
and no cap was passed:

    python -m bench.curation.kills --kills 200
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.table import Table

from bench.shared import command_line, console
from prism.clients.teacher.keys import JUDGE_KEY, TEACHER_KEY
from prism.clients.teacher.reply import dollars
from prism.config import toml_value
from tests.fake_services import TOKEN, FakeServices, response, served, write_rows
from tests.fake_teacher import FakeTeacher


def main() -> None:
    parser = command_line("bench.curation.kills", __doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--batch", action="store_true", help="by batches")
    parser.add_argument("--seconds", type=float, default=0.6, help="after which a start is killed, at most")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the moments; by default the clock's")
    options = parser.parse_args()
    troubles = {"busy": 0.05, "drop": 0.02, "malformed": 0.02}
    teacher = FakeTeacher(delay=0.05, troubles=troubles, answer=lambda body: response(_number(body)))
    judge = FakeTeacher(delay=0.02, answer=lambda _: '{"verdict": "yes"}')
    with (
        tempfile.TemporaryDirectory() as name,
        served(FakeServices()) as services,
        served(teacher) as at,
        served(judge) as judge_at,
    ):
        folder = Path(name)
        write_rows(folder, [0.0] * options.rows)
        config = folder / "job.toml"
        config.write_text(_config(folder, f"{at}/v1", judge_at, options.batch))
        told = {"TOKEN": TOKEN, "POLICY_URL": services, "GRADER_URL": services}
        told |= {f"{expert}_URL": f"{services}/{expert.lower()}" for expert in ("PERCEPTION", "REASONING")}
        environment = os.environ | {f"PRISM_{key}": value for key, value in told.items()}
        environment |= {TEACHER_KEY: "a-key", JUDGE_KEY: "another"}
        command = [sys.executable, "-m", "bench.curation.killed", str(config), "--kills", str(options.kills)]
        command += ["--seed", str(options.seed), "--seconds", str(options.seconds)]
        began = time.monotonic()
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    console.print(f"{options.rows} rows, moments by --seed {options.seed}, {time.monotonic() - began:.0f} s")
    sys.exit(_tell(json.loads(done.stdout), {"teacher": teacher, "judge": judge}, options.rows))


def _number(body: dict[str, Any]) -> str:
    return re.findall(r"Q(\d+) solved", json.dumps(body["messages"]))[0]


def _config(folder: Path, teacher: str, judge: str, batch: bool) -> str:
    model: dict[str, Any] = {
        "api": "openai",
        "model": "oracle",
        "input_price": 1,
        "output_price": 10,
        "max_tokens": 500,
    }
    model |= {"patience_seconds": 60, "poll_seconds": 0.05, "concurrency": 8, "max_sends": 1000, "cap": 50}
    values: dict[str, Any] = {
        "name": "killed",
        "runs_dir": str(folder / "runs"),
        "run": str(folder),
        "data": str(folder / "problems.jsonl"),
        "mine": {"n": 4, "max_tokens": 50},
        "teacher": model | {"url": teacher, "batch": batch, "batch_rows": 20},
        "judge": model | {"url": judge, "model": "judge"},
        "terms": {"name": "none", "accepted_by": "nobody", "licence": "none"},
    }
    return "\n".join(f"{key} = {toml_value(value)}" for key, value in values.items())


def _tell(seen: dict[str, Any], fakes: dict[str, FakeTeacher], rows: int) -> int:
    """Print what was seen; 0 if all held."""
    held = {
        f"killed {seen['kills']} times and through": seen["status"] == 0,
        f"decided on: {seen['demos']}": sum(seen["demos"].values()) == rows and "queued" not in seen["demos"],
        f"asked again though stored: {seen['asked_again_though_stored']}": seen["asked_again_though_stored"] == 0,
        f"sends: {seen['sends']}": "open" not in seen["sends"],
    }
    for name, fake in fakes.items():
        purse = seen["purses"][name]
        spent, covered = purse["spent"], purse["spent"] + purse["reserved"]
        told = f"{name}: ours {dollars(spent)}, billed {dollars(fake.billed)}, with what was open {dollars(covered)}"
        held[told] = spent <= fake.billed <= covered <= purse["cap"]
    table = Table("check", "")
    for told, holds in held.items():
        table.add_row(told, "holds" if holds else "[red]FAILS[/]")
    console.print(table)
    return 0 if all(held.values()) else 1


if __name__ == "__main__":
    main()
