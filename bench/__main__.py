"""``make bench``: the demo's speed: generation, weight pushes, and who waits for whom.

Two short RLVR runs over the live services, one in lock-step and one a version behind, from the same SFT policy. Beside
them what a user would pick instead: transformers' own ``generate``. The policy update has a bench of its own.
"""

import shutil
import statistics
from pathlib import Path
from typing import Any

from rich.table import Table

from bench.generation import compare_generation
from bench.idle import busy_samples, idle_shares
from bench.shared import command_line, console
from prism.config import RunConfig, load_config
from prism.files import read_jsonl, write_json
from prism.report.model import load_report
from prism.trainer.run.pipeline import run
from prism.trainer.run.result import stage_folder

CONFIG = Path(__file__).with_name("platform.toml")
SKIPPED = 3  # first steps, which warm caches up, are not counted


def main() -> None:
    parser = command_line("bench", __doc__)
    parser.add_argument("--steps", type=int, default=16, help=f"RLVR steps of each run, {SKIPPED} of them not counted")
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="a finished demo, for its time by stage")
    options = parser.parse_args()
    results: dict[str, Any] = {}
    first: RunConfig | None = None
    for name, staleness in (("lock-step", 0), ("staleness 1", 1)):
        console.rule(name)
        overrides = [
            f"name=bench-{staleness}",
            f"stages.rlvr.steps={options.steps}",
            f"stages.rlvr.rollouts.staleness={staleness}",
        ]
        config = load_config(CONFIG, overrides)
        shutil.rmtree(config.run_dir, ignore_errors=True)
        if first:
            shutil.copytree(stage_folder(first, "sft"), stage_folder(config, "sft"))

        def generation(config: RunConfig = config) -> None:
            results["generation"] = compare_generation(config)

        with busy_samples(config) as samples:
            run(config, CONFIG, overrides, console, at_end=None if first else generation)
        steps = [line for line in read_jsonl(config.run_dir / "metrics.jsonl") if line["stage"] == "rlvr"][SKIPPED:]
        results[name] = _figures(steps) | idle_shares(steps, samples)
        first = first or config
    assert first
    write_json(first.runs_dir / "bench.json", results)
    _print(results, options.demo)


def _figures(steps: list[dict[str, Any]]) -> dict[str, float]:
    medians = ("step_seconds", "sync_paused_seconds", "sync_total_seconds")
    return {name: statistics.median(step[name] for step in steps) for name in medians} | {
        "trained_tokens_per_second": sum(s["trained_tokens"] for s in steps) / sum(s["step_seconds"] for s in steps),
        "staleness_max": max(s["staleness_max"] for s in steps),
    }


def _print(results: dict[str, Any], demo: Path) -> None:
    table = Table("figure", "PRISM", "instead", "ratio", title="The demo's model and batch: 16 prompts × 8 responses")
    row = results["generation"]
    prism, instead = row["prism_tokens_per_second"], row["instead_tokens_per_second"]
    name = "generation, tokens/s (v transformers generate)"
    table.add_row(name, f"{prism:,.0f}", f"{instead:,.0f}", f"{prism / instead:.2f}×")
    lock, stale = results["lock-step"], results["staleness 1"]
    console.print(table)
    table = Table("figure", "lock-step", "staleness 1")
    for name, key, form in (
        ("seconds a step (median)", "step_seconds", ".2f"),
        ("trained tokens/s, the whole loop", "trained_tokens_per_second", ",.0f"),
        ("seconds a weight push takes (median)", "sync_total_seconds", ".3f"),
        ("seconds it pauses generation (median)", "sync_paused_seconds", ".3f"),
        ("learner idle", "learner_idle", ".0%"),
        ("policy server idle", "policy_idle", ".0%"),
        ("staleness, most", "staleness_max", ".0f"),
    ):
        table.add_row(name, f"{lock[key]:{form}}", f"{stale[key]:{form}}")
    speedup = stale["trained_tokens_per_second"] / lock["trained_tokens_per_second"]
    console.print(table)
    console.print(f"staleness 1 trains {speedup:.2f}× the tokens a second of lock-step")
    reported = load_report(demo).stages if demo.is_dir() else []
    if stages := {stage.name: stage.seconds for stage in reported if stage.seconds is not None}:
        text = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in stages.items())
        console.print(f"{demo} by stage: {text}; together {sum(stages.values()) / 60:.1f} min")
    else:
        console.print(f"{demo} by stage: no data, run `make demo` first")


if __name__ == "__main__":
    main()
