"""Who waits for whom: what every part of the platform did while one step was made, and in the last half of a stage.

The learner's parts come from ``metrics.jsonl``, one after another as it does them; those of the services from
``timeline.jsonl``, by their workers' clocks.
"""

from collections.abc import Iterable, Sequence

from prism.report.records import GroupTimes, Record, Step

LEARNER, SERVER, JUDGES, WORKERS = "learner", "policy server", "experts, grader", "rollout workers"
WAITING, PUSH, OTHER = "waiting", "push", "other"

Interval = tuple[float, float]


class Span(Record):
    """Something that a part did, in seconds since the step began."""

    does: str
    start: float
    end: float


class Part(Record):
    name: str
    spans: list[Span]
    """In the step that is shown. Where a part that serves has none, nobody had asked it for anything."""
    busy: float
    """Share of the time of the stage's last half."""


class Waits(Record):
    stage: str
    step: int
    """The one that is shown: of the stage's last half, the one of median length."""
    seconds: float
    parts: list[Part]


def waits(stage: str, steps: Sequence[Step], times: Sequence[GroupTimes]) -> Waits | None:
    """None for a stage without groups, or of a version that did not write down when they were made."""
    groups = [group for line in times if line.stage == stage for group in line.groups if group[2] > 0]
    learning = [step for step in steps if not step.warmup and step.time and step.figures.get("step_seconds")]
    half = learning[len(learning) // 2 :]
    if not groups or not half:
        return None
    shown = sorted(half, key=_seconds)[len(half) // 2]
    asked = {
        SERVER: [(began, sampled) for began, sampled, _ in groups],
        JUDGES: [(sampled, judged) for _, sampled, judged in groups if judged > sampled],
        WORKERS: [(began, judged) for began, _, judged in groups],
    }
    whole = [_window(step) for step in half]
    waited = sum(step.figures.get("wait_seconds") or 0.0 for step in half)
    parts = [Part(name=LEARNER, spans=_learner(shown), busy=1 - waited / sum(map(_seconds, half)))]
    start, end = _window(shown)
    for name, intervals in asked.items():
        at_work = united(intervals, whole[0][0], whole[-1][1])  # once: groups are many more than what they cover
        spans = [Span(does=name, start=a - start, end=b - start) for a, b in united(at_work, start, end)]
        busy = sum(b - a for window in whole for a, b in united(at_work, *window))
        parts.append(Part(name=name, spans=spans, busy=busy / sum(map(_seconds, half))))
    return Waits(stage=stage, step=shown.step, seconds=_seconds(shown), parts=parts)


def united(intervals: Iterable[Interval], start: float, end: float) -> list[Interval]:
    """What they cover of the time from ``start`` to ``end``, in order and apart."""
    found: list[Interval] = []
    for a, b in sorted((max(a, start), min(b, end)) for a, b in intervals):
        if b <= a:
            continue
        if found and a <= found[-1][1]:
            found[-1] = found[-1][0], max(b, found[-1][1])
        else:
            found.append((a, b))
    return found


def _learner(step: Step) -> list[Span]:
    """What it did, in the order of the stages; what is left of the step is of none of these."""
    updates = [name for name in step.figures if name.endswith("_update_seconds")]
    policy = [name for name in updates if name.startswith("policy_")]
    of_experts = [name for name in updates if name not in policy]
    named = [(WAITING, "wait_seconds")]
    named += [(f"{name.removesuffix('_update_seconds')} update", name) for name in (*of_experts, *policy)]
    spans: list[Span] = []
    at = 0.0
    for does, figure in (*named, (PUSH, "push_seconds")):
        if seconds := step.figures.get(figure):
            spans.append(Span(does=does, start=at, end=at + seconds))
            at += seconds
    return [*spans, Span(does=OTHER, start=at, end=_seconds(step))] if at < _seconds(step) else spans


def _window(step: Step) -> Interval:
    end = (step.time or 0.0) - (step.figures.get("looks_seconds") or 0.0)  # those come after the step
    return end - _seconds(step), end


def _seconds(step: Step) -> float:
    return step.figures.get("step_seconds") or 0.0
