"""What the console is shown beside a finished run: services that are up again, and a paid teacher and judge."""

import os
import secrets
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from killed_run import CONFIG, DEADLINE, ROOT, Run

from bench.curation.errors import serving
from prism.stack.ports import free_port

KEYS = {name: secrets.token_urlsafe() for name in ("PRISM_TEACHER_KEY", "PRISM_CURATION_JUDGE_KEY")}
PAID = """
[{who}]
api = "openai"
url = "http://127.0.0.1:{port}"
model = "stand-in {who}"
input_price = 0.5
output_price = 3.0
cap = 5
max_tokens = 512
expected_tokens = 100
"""


@contextmanager
def services_up(run: Run) -> Iterator[None]:
    """`prism up` over the run's folder, once its services answer, with the weights that were pushed last."""
    environment = os.environ | {"PRISM_LOG_FORMAT": "json", "PYTHONUNBUFFERED": "1"}  # as the run's last start
    with subprocess.Popen(
        run.command("up"), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        assert process.stdout
        told: list[str] = []
        try:
            for line in process.stdout:
                told.append(line)
                if "stack.json" in line:
                    break
            else:
                raise AssertionError("".join(told))
            yield
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=DEADLINE)


@contextmanager
def stand_ins(run: Run) -> Iterator[tuple[int, int]]:
    """Ports of a teacher, who knows the run's prompts and errs at known rates, and of a judge that reads pictures."""
    ports = (port := free_port(in_a_row=2)), port + 1
    with serving(run.folder / "data" / "prompts.jsonl", *ports):
        yield ports


def write_configurations(folder: Path, run: Run, ports: tuple[int, int]) -> None:
    """The demo's, an evaluation over the run's held-out rows, and a curation of its prompts."""
    data = run.folder / "data"
    folder.mkdir()
    (folder / "demo.toml").write_text(CONFIG.read_text())
    (folder / "held-out.toml").write_text(f"""
out = "held-out"
name = "RLVR"
baseline = false
max_masked = 1.0
[sampling]
temperature = 0
max_tokens = 64
[benchmarks.grids]
kind = "own"
path = "{data / "validation.jsonl"}"
questions = 24
""")
    paid = "".join(PAID.format(who=who, port=port) for who, port in zip(("teacher", "judge"), ports, strict=True))
    (folder / "hard.toml").write_text(f"""
name = "hard"
data = ["{data / "prompts.jsonl"}"]
[mine]
n = 2
max_tokens = 64
teacher = [0.0, 0.5]
rl = [0.9, 1.0]
[terms]
name = "none: the teacher is a stand-in"
licence = "Apache-2.0"
{paid}""")
