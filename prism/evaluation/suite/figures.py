"""From samples to figures: a score for each scorer, or the reason why there is none."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from prism.evaluation.benchmarks.base import Benchmark, Judged, Question, Unit
from prism.evaluation.suite.estimate import averaged, bounds, mean_of, pass_at
from prism.evaluation.suite.samples import STATUSES, Sample

Scorer = Literal["rule", "judge", "rule_then_judge"]
SCORERS: tuple[Scorer, ...] = ("rule", "judge", "rule_then_judge")
Scored = Mapping[tuple[str, int], tuple[Sample, bool | None]]
"""By question and number of the sample: the sample, and whether this scorer has it right; None if it is masked."""


def combine(rule: bool | None, judge: bool | None) -> bool | None:
    """The paper's: a judge is asked only where the rule said wrong, or nothing. Without its verdict there is none."""
    return True if rule else judge


def sample_units(benchmark: Benchmark, questions: Sequence[Question], scored: Scored, n: int) -> dict[str, list[Unit]]:
    """Each figure's units, averaged over ``n`` samples of each question."""
    of_samples = [
        benchmark.units(
            [
                Judged(question, number, found[1])
                for question in questions
                if (found := scored.get((question.id, number)))
            ]
        )
        for number in range(n)
    ]
    return {name: averaged([units[name] for units in of_samples if name in units]) for name in of_samples[0]}


def score_figures(
    benchmark: Benchmark,
    questions: Sequence[Question],
    scored: Scored,
    n: int,
    max_masked: float,
    *,
    withheld: str = "",
) -> dict[str, Any]:
    """``headline`` is None, and ``why`` says why, where too much is masked; ``withheld`` is another reason."""
    values = [right for _, right in scored.values()]
    masked = sum(right is None for right in values) / len(values) if values else 1.0
    failed = sum(sample.status == "failed" for sample, _ in scored.values()) / len(values) if values else 1.0
    units = sample_units(benchmark, questions, scored, n)
    why = withheld
    if not why and masked > max_masked:
        why = f"{masked:.1%} of responses are masked, over {max_masked:.1%} ({_counts(scored)})"
    if not why and benchmark.headline not in units:
        why = f"{benchmark.headline} needs {benchmark.title}'s other half"
    metrics = {name: _metric(own, shown=not why, bounded=failed <= max_masked) for name, own in units.items()}
    if not why and metrics[benchmark.headline]["value"] is None:
        why = f"{benchmark.headline}: nothing of it was judged"
    shown = {} if why else metrics[benchmark.headline]
    return {
        "headline": shown.get("value"),
        "stderr": shown.get("stderr"),
        "why": why or None,
        "masked": masked,
        "metrics": metrics,
        "pass_at": {} if why else _pass_figures(questions, scored, n),
        "categories": {} if why else _categories(questions, scored),
    }


def _metric(units: Sequence[Unit], *, shown: bool, bounded: bool) -> dict[str, Any]:
    """What is masked is left out of ``value``; ``low`` and ``high`` say what it could come to, were it known.

    They are there for what a model failed to say, not for what a server failed to answer.
    """
    estimate = mean_of(units)
    low, high = bounds(units) if bounded else (None, None)
    return {
        "value": estimate.value if shown else None,
        "stderr": estimate.stderr if shown else None,
        "low": low,
        "high": high,
        "units": estimate.units,
        "masked": estimate.masked,
        "clusters": estimate.clusters,
    }


def _pass_figures(questions: Sequence[Question], scored: Scored, n: int) -> dict[str, Any]:
    if n < 2:
        return {}
    figures: dict[str, Any] = {}
    for k in sorted({2**power for power in range(n.bit_length()) if 2**power <= n} | {n}):
        units: list[Unit] = []
        for question in questions:
            known = [right for number in range(n) if (right := _right(scored, question, number)) is not None]
            units.append(Unit(question.id, pass_at(sum(known), len(known), k), question.cluster))
        estimate = mean_of(units)
        figures[str(k)] = {"value": estimate.value, "stderr": estimate.stderr, "masked": estimate.masked}
    return figures


def _right(scored: Scored, question: Question, number: int) -> bool | None:
    found = scored.get((question.id, number))
    return found and found[1]


def _categories(questions: Sequence[Question], scored: Scored) -> dict[str, dict[str, Any]]:
    """Accuracy by each category's values, with how many responses it rests on."""
    by_id = {question.id: question for question in questions}
    groups: dict[str, dict[str, list[Unit]]] = defaultdict(lambda: defaultdict(list))
    for (name, number), (_, right) in scored.items():
        question = by_id[name]
        unit = Unit(f"{name}#{number}", None if right is None else float(right), question.cluster)
        for category, values in question.categories.items():
            for value in values:
                groups[category][value].append(unit)
    figures: dict[str, dict[str, Any]] = {}
    for category, values in groups.items():
        figures[category] = {}
        for value, units in sorted(values.items()):
            estimate = mean_of(units)
            figures[category][value] = {
                "accuracy": estimate.value,
                "stderr": estimate.stderr,
                "judged": estimate.units,
                "masked": estimate.masked,
            }
    return figures


def response_figures(samples: Sequence[Sample]) -> dict[str, Any]:
    """What became of the responses, how long they are, and how large the pictures were."""
    counts = Counter(sample.status for sample in samples)
    sides = [side for sample in samples for side in sample.image_sizes]
    return {
        "responses": len(samples),
        "statuses": {status: counts[status] for status in STATUSES},
        "tokens": _spread([sample.tokens for sample in samples if sample.tokens is not None]),
        "prompt_tokens": _spread([sample.prompt_tokens for sample in samples if sample.prompt_tokens is not None]),
        "pixels": _spread([width * height for width, height in sides]),
        "largest_picture": list(max(sides, key=lambda side: side[0] * side[1])) if sides else None,
        "policy_versions": sorted({one.policy_version for one in samples if one.policy_version is not None}),
        "served": sorted({one.served for one in samples if one.served}),
        "seconds": _spread([sample.seconds for sample in samples if sample.seconds is not None]),
    }


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    median, p95 = np.quantile(values, (0.5, 0.95))
    return {"mean": float(np.mean(values)), "p50": float(median), "p95": float(p95), "max": float(max(values))}


def _counts(scored: Scored) -> str:
    counts: Counter[str] = Counter()
    for sample, right in scored.values():
        if right is None:
            counts["judge failed" if sample.status == "ok" else sample.status] += 1
    return ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))


def by_scorer(samples: Sequence[Sample], judge_of: Callable[[Sample], bool | None] | None) -> dict[Scorer, Scored]:
    """The same samples under each scorer. ``judge_of`` gives the judge's opinion, None where it has none."""
    rule = {(one.question, one.sample): (one, one.right) for one in samples}
    if judge_of is None:
        return {"rule": rule}
    judged = {key: (one, judge_of(one)) for key, (one, _) in rule.items()}
    both = {key: (one, combine(one.right, judged[key][1])) for key, (one, _) in rule.items()}
    return {"rule": rule, "judge": judged, "rule_then_judge": both}
