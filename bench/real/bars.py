"""What must hold of the run, and what was seen, from what it wrote down."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from bench.faults.seen import last_lines
from prism.config import RunConfig
from prism.files import read_jsonl
from prism.trainer.run.result import stage_result
from prism.wire.response import EXPERTS

SFT, ALIGN, RLVR = "sft", "align", "rlvr"
KILLED = "killed.json"
"""Where the run's folder says after which step the trainer of RLVR was killed."""
LEAST_FORMAT, MOST_DROPPED, MOST_MISMATCH = 0.9, 0.1, 0.02


def lines(config: RunConfig) -> list[dict[str, Any]]:
    file = config.run_dir / "metrics.jsonl"
    return read_jsonl(file) if file.is_file() else []


def steps_of(config: RunConfig, name: str) -> int:
    stage = config.stages[name]
    return stage.steps + (stage.warmup_steps if stage.kind == "align" else 0)


def bars(config: RunConfig) -> dict[str, tuple[bool | None, str]]:
    """Name -> whether it holds, None where that is not known yet, and what was seen."""
    of_stage = {name: last_lines([line for line in lines(config) if line["stage"] == name]) for name in (ALIGN, RLVR)}
    game = [line for line in of_stage[ALIGN] if not line["warmup"]]
    learnt = [*game, *of_stage[RLVR]]
    file = config.run_dir / "evaluations.jsonl"
    measured = {each["stage"]: each for each in (read_jsonl(file) if file.is_file() else [])}
    found: dict[str, tuple[bool | None, str]] = {}

    rates = {name: each["format_rate"] for name, each in measured.items()}
    seen = ", ".join(f"{name} {rate:.1%}" for name, rate in rates.items())
    found[f"held-out format, at least {LEAST_FORMAT:.0%} after SFT"] = (
        rates[SFT] >= LEAST_FORMAT if SFT in rates else None,
        seen,
    )
    groups = sum(line["groups"] for line in learnt)
    dropped = sum(line["dropped_groups"] + line["lost_groups"] for line in learnt)
    found[f"groups dropped, less than {MOST_DROPPED:.0%}"] = (
        dropped < MOST_DROPPED * groups if groups else None,
        f"{dropped} of {groups}",
    )
    for expert in EXPERTS:
        scores = [line[f"served_{expert}_score"] for line in game]
        gaps = [line[f"served_{expert}_gap"] for line in game]
        first, last = thirds(scores)
        known = first is not None and last is not None and len(game) == config.stages[ALIGN].steps
        found[f"{expert} expert's score rises"] = (
            last > first if known and first is not None and last is not None else None,
            f"{text(first)} to {text(last)}; the teacher leads by {' to '.join(map(text, thirds(gaps)))}",
        )
    apart = [line["logprob_mismatch"] for line in learnt if line["logprob_mismatch"] is not None]
    found[f"sampler and learner apart, at most {MOST_MISMATCH:g} nats"] = (
        max(apart) <= MOST_MISMATCH if apart else None,
        f"{max(apart, default=0):.2g}" if apart else "",
    )
    found["the trainer was killed, and the run went on"] = resumed(config, of_stage)
    report = config.run_dir / "report.html"
    found["report"] = report.is_file() or None, str(report) if report.is_file() else ""
    figures = [
        f"{name}: accuracy {text(each['accuracy'])}, caption F1 {text(each['caption_f1'])}"
        for name, each in measured.items()
    ]
    found["held-out figures of every stage"] = (len(measured) == len(config.stages) or None, "; ".join(figures))
    seconds = [(line["push_seconds"], line["step_seconds"]) for line in game if line.get("push_seconds") is not None]
    share = sum(push for push, _ in seconds) / sum(step for _, step in seconds) if seconds else None
    found["pushes of a step of alignment"] = (
        share is not None or None,
        f"{sum(p for p, _ in seconds) / len(seconds):.2f} s, {share:.1%} of its time" if share is not None else "",
    )
    return found


def resumed(config: RunConfig, of_stage: dict[str, list[dict[str, Any]]]) -> tuple[bool | None, str]:
    file = config.run_dir / KILLED
    if not file.is_file() or not stage_result(config, RLVR):
        return None, ""
    killed = json.loads(file.read_text())
    attempts = sorted({line["attempt"] for line in lines(config) if line["stage"] == RLVR})
    made = {name: [line["step"] for line in found] for name, found in of_stage.items()}
    whole = all(steps == [*range(1, steps_of(config, name) + 1)] for name, steps in made.items())
    taken = [position for found in of_stage[RLVR] for position in found["positions"]]
    once = len({*taken}) == len(taken)
    again = max(attempts) > killed["attempt"]
    seen = f"after step {killed['step']}; attempts {', '.join(map(str, attempts))}; {len(taken)} groups, each once"
    return whole and once and again, seen if once else f"{seen[:-11]}{len(taken) - len({*taken})} twice"


def thirds(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Means of the first and of the last third."""
    size = max(1, len(values) // 3)
    return average(values[:size]), average(values[-size:])


def average(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def text(value: float | None) -> str:
    return "no data" if value is None else f"{value:.3f}"
