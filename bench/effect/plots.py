"""The report's pictures. What there are no results of is left out."""

from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from bench.effect.study import ArmResults, Study, accuracy, mean_of, passing

STYLE: dict[Any, Any] = {
    "svg.hashsalt": "prism",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
KS = (1, 4, 16)


def draw(study: Study, out: Path) -> list[str]:
    """Write the pictures and return their names."""
    out.mkdir(parents=True, exist_ok=True)
    arms, names = study.arms("main"), list[str]()
    with rc_context(STYLE):
        if points := _points(study):
            figure = Figure(figsize=(6, 4.5))
            axes = figure.subplots()
            for label, steps in points.items():
                axes.plot(*zip(*steps, strict=True), marker="o", label=label)
            axes.set(xlabel="accuracy inside, families 1 to 4, %", ylabel="accuracy far, families 7 to 12, %")
            axes.legend(fontsize=7)
            names.append(_save(figure, out, "outside-inside.svg"))
        if taught := [arm for arm in arms if arm.texts]:
            figure = Figure(figsize=(9, 3.5))
            panels = figure.subplots(1, 2, sharey=True)
            for axes, split in zip(panels, ("inside", "far"), strict=True):
                for label in dict.fromkeys(arm.arm.label for arm in taught):
                    own = [arm for arm in taught if arm.arm.label == label]
                    means = [(arm.texts or 0, *_scaled(arm.mean(accuracy(split)))) for arm in own]
                    numbers, values, spreads = zip(*means, strict=True)
                    axes.errorbar(numbers, values, yerr=spreads, marker="o", capsize=2, label=label)
                axes.set(xscale="log", xlabel="teacher's texts, N", title=split)
                axes.set_xticks(study.plan.texts, [str(n) for n in study.plan.texts])
            panels[0].set_ylabel("accuracy at temperature 1, %")
            panels[0].legend(fontsize=7)
            names.append(_save(figure, out, "texts.svg"))
        at_n = [arm for arm in arms if arm.texts in (None, study.plan.statistics.texts)]
        if at_n:
            figure = Figure(figsize=(9, 3.5))
            panels = figure.subplots(1, 2, sharey=True)
            for axes, split in zip(panels, ("inside", "far"), strict=True):
                for arm in at_n:
                    found = [(k, _scaled(m)[0]) for k in KS if (m := arm.mean(passing(split, k))) is not None]
                    axes.plot(*zip(*found, strict=True), marker="o", label=arm.arm.label)
                axes.set(xscale="log", xlabel="k", title=split)
                axes.set_xticks(KS, [str(k) for k in KS])
            panels[0].set_ylabel("pass@k, %")
            panels[0].legend(fontsize=7)
            names.append(_save(figure, out, "pass-at-k.svg"))
            figure = Figure(figsize=(6, 4))
            axes = figure.subplots()
            for arm in at_n:
                kl, value = arm.mean(mean_of("far", "kl")), arm.mean(accuracy("far"))
                if kl and value:
                    axes.plot(kl[0], 100 * value[0], marker="o", linestyle="none", label=arm.arm.label)
            axes.set(xlabel="KL to the policy before SFT, far, nats a response", ylabel="accuracy far, %")
            axes.legend(fontsize=7)
            names.append(_save(figure, out, "forgetting.svg"))
    return names


def _points(study: Study) -> dict[str, list[tuple[float, float]]]:
    """For each main arm, at the plan's N, (inside, far) after each of its steps: retention at matched accuracy is read
    off upwards."""
    texts, found = study.plan.statistics.texts, dict[str, list[tuple[float, float]]]()
    for name, arm in study.plan.arms.items():
        if arm.kind != "main":
            continue
        steps: list[tuple[float, float]] = []
        for end in range(len(arm.steps) + 1):
            at = ArmResults(name, arm, texts, study.at(arm.steps[:end], texts))
            inside, far = at.mean(accuracy("inside")), at.mean(accuracy("far"))
            if inside and far:
                steps.append((100 * inside[0], 100 * far[0]))
        if study.at(arm.steps, texts):
            found[arm.label] = steps
    return found


def _scaled(mean: tuple[float, float] | None) -> tuple[float, float]:
    assert mean is not None
    value, spread = mean
    return 100 * value, 0.0 if spread != spread else 100 * spread


def _save(figure: Figure, out: Path, name: str) -> str:
    figure.savefig(out / name, metadata={"Date": None}, bbox_inches="tight")
    return name
