"""``python -m bench.effect report``: tables and plots from the raw results, by one command."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.effect.plots import draw
from bench.effect.results import load_all
from bench.effect.statistics import holm
from bench.effect.study import (
    ArmResults,
    Figure,
    Study,
    accuracy,
    figure_of_training,
    greedy,
    mean_of,
    passing,
    right_when_seen,
)
from configs.effect.plan import SPLITS, ArmPlan, Plan
from prism.files import write_text

KINDS = {
    "main": "Main arms",
    "loss": "RLVR with DAPO and GSPO",
    "ablation": "Ablations",
    "control": "Negative control",
    "steps": "Steps of alignment and of teacher-SFT, before RLVR",
}
MISSING = "–"


def report(plan: Plan, results: Path, out: Path, size: str) -> Path:
    """Write ``report.md`` and plots to ``out``. Raises DataError for results that are not of this plan."""
    study = Study(plan, load_all(results, plan, size))
    pictures = draw(study, out)
    write_text(out / "report.md", "\n".join(_lines(study, size, pictures)) + "\n")
    return out / "report.md"


def _lines(study: Study, size: str, pictures: Sequence[str]) -> list[str]:
    plan = study.plan
    lines = [
        "# The effect: tables",
        "",
        f"Plan `{plan.sha256[:12]}`, size {size}. Made from the raw results by `python -m bench.effect report`.",
        "Means over seeds ± their standard deviation; a dash: no result yet.",
        "",
    ]
    if size != "gpu":
        lines += [f"**Size {size}: this shows that the study runs, and nothing of what it is to find.**", ""]
    lines += _contrasts(study)
    before = [
        ArmResults("base", _named("before SFT"), None, study.at([], None)),
        ArmResults("sft", _named("after SFT"), None, study.at(["sft"], None)),
    ]
    for kind, title in KINDS.items():
        arms = study.arms(kind)
        if not arms and kind != "main":
            continue
        shown = [arm for arm in before if arm.seeds] + arms if kind in ("main", "steps") else arms
        lines += [f"## {title}", ""]
        lines += _table("Accuracy at temperature 1, %", shown, {s: (accuracy(s), 100.0) for s in SPLITS})
        lines += _table("Greedy accuracy, %", shown, {s: (greedy(s), 100.0) for s in SPLITS})
        if kind == "main":
            ks = {f"{s} pass@{k}": (passing(s, k), 100.0) for s in ("inside", "far") for k in (1, 4, 16)}
            lines += _table("Pass@k, %", shown, ks)
        lines += _table("What else was measured", shown, _others())
    lines += [f"![{name}]({name})" for name in pictures]
    return lines


def _named(label: str) -> ArmPlan:
    return ArmPlan(label=label, steps=[], kind="main")


def _others() -> dict[str, tuple[Figure, float]]:
    return {
        "caption F1, inside, %": (mean_of("inside", "f1"), 100),
        "right when the caption is, inside, %": (right_when_seen("inside"), 100),
        "entropy, inside, nats a token": (mean_of("inside", "entropy"), 1),
        "KL to before SFT, inside, nats": (mean_of("inside", "kl"), 1),
        "KL to before SFT, far, nats": (mean_of("far", "kl"), 1),
        "groups alike at RLVR's start, %": (figure_of_training("zero_variance_at_start"), 100),
    }


def _contrasts(study: Study) -> list[str]:
    of = study.plan.statistics
    found = [study.differences(contrast, of.texts) for contrast in of.contrasts]
    known = [difference for difference in found if difference]
    adjusted = iter(holm([difference.p for difference in known]))
    lines = [
        "## Contrasts",
        "",
        f"Accuracy at temperature 1, the mean of {' and '.join(of.splits)}, N = {of.texts}, in points: hierarchical "
        f"paired bootstrap, {of.resamples:,} resamples; p after Holm over the contrasts. The first is primary.",
        "",
        f"| contrast | difference | {of.level:.0%} interval | p | p, Holm | p, t test on seeds | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    for contrast, difference in zip(of.contrasts, found, strict=True):
        if difference is None:
            lines.append(f"| {contrast.name} |{f' {MISSING} |' * 6}")
            continue
        seeds = MISSING if difference.p_seeds is None else f"{difference.p_seeds:.3g}"
        lines.append(
            f"| {contrast.name} | {100 * difference.mean:+.1f} | {100 * difference.low:+.1f} to "
            f"{100 * difference.high:+.1f} | {difference.p:.3g} | {next(adjusted):.3g} | {seeds} | {difference.seeds} |"
        )
    if len(known) < len(found):
        lines += ["", f"{len(found) - len(known)} of {len(found)} contrasts have no results: Holm's p is provisional."]
    return [*lines, ""]


def _table(title: str, arms: Sequence[ArmResults], columns: dict[str, tuple[Figure, float]]) -> list[str]:
    lines = [
        f"**{title}**",
        "",
        f"| arm | N | seeds | {' | '.join(columns)} |",
        f"|---|---|---|{'---|' * len(columns)}",
    ]
    for arm in arms:
        cells: list[Any] = [arm.arm.label, arm.texts or MISSING, len(arm.seeds)]
        for figure, factor in columns.values():
            found = arm.mean(figure)
            cells.append(MISSING if found is None else _shown(found[0] * factor, found[1] * factor))
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return [*lines, ""]


def _shown(mean: float, std: float) -> str:
    digits = 1 if abs(mean) >= 10 else 2
    return f"{mean:.{digits}f}" if np.isnan(std) else f"{mean:.{digits}f} ± {std:.{digits}f}"
