"""What happened, in plain words made from the numbers alone, whichever way they went."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

from prism.report.reading import StageData
from prism.report.records import Change, Evaluation
from prism.report.totals import RunTotals

KINDS = {"sft": "Supervised fine-tuning", "align": "Alignment", "rlvr": "Reinforcement learning"}
EXPERTS = ("perception", "reasoning")
NBSP = "\u00a0"
DISENTANGLED = (
    "Mean change of the raw score ± one standard error; below 0 the corruption is noticed. Told apart: how often the "
    "original scores higher, 50 % is a coin. An expert never sees the other's section: there the change is 0 by "
    "construction, while what an expert notices in its own section it has learnt."
)
WINDOW = 5  # steps at either end of a curve that a "from … to …" averages


@dataclass
class Words:
    headline: str
    sentences: list[str] = field(default_factory=list)
    platform: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def headline(stages: Sequence[StageData], totals: RunTotals) -> Words:
    evaluated = [(stage, stage.evaluation) for stage in stages if stage.evaluation is not None]
    sentences: list[str] = []
    if evaluated:
        sentences.append(_first(called(evaluated[0][0], stages), evaluated[0][1]))
    for (_, before), (stage, after) in itertools.pairwise(evaluated):
        sentences.append(_change(called(stage, stages), before, after))
    sentences += [said for stage in stages if (said := _gaps(stage))]
    sentences += [said for stage in stages for said in _noticed(stage)]
    title = _title([e for _, e in evaluated], called(evaluated[0][0], stages) if evaluated else "")
    return Words(title, sentences, _platform(totals), _warnings(stages, totals))


def called(stage: StageData, stages: Sequence[StageData]) -> str:
    """The stage in words, with its name where the kind alone does not tell it apart."""
    kind = KINDS.get(stage.kind, stage.kind)
    alone = sum(other.kind == stage.kind for other in stages) == 1
    return kind if alone else f"{kind} “{stage.name}”"


def percent(value: float | None, digits: int = 1) -> str:
    return "no data" if value is None else f"{100 * value:.{digits}f}{NBSP}%"


def change(cell: Change) -> str:
    if cell.change is None:
        return "no data"
    return f"{cell.change:+.2f}" + (f" ± {cell.stderr:.2f}" if cell.stderr is not None else "")


def points(value: float) -> str:
    return f"{100 * value:.1f} points"


def seconds(value: float) -> str:
    if value < 60:
        return f"{value:.1f}{NBSP}s" if value >= 1 else f"{value:.2g}{NBSP}s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}{NBSP}h {minutes:02d}{NBSP}min" if hours else f"{minutes}{NBSP}min {rest:02d}{NBSP}s"


def beyond_noise(before: Evaluation, after: Evaluation) -> bool | None:
    """Whether accuracies differ by more than two standard errors of the difference; None where these are unknown."""
    if None in (before.accuracy, after.accuracy, before.accuracy_stderr, after.accuracy_stderr):
        return None
    error = math.hypot(before.accuracy_stderr or 0.0, after.accuracy_stderr or 0.0)
    return abs((after.accuracy or 0.0) - (before.accuracy or 0.0)) > 2 * error


def _noticed(stage: StageData) -> list[str]:
    """Whether each expert lowers its score where its own section was corrupted, by more than two standard errors."""
    measured = stage.disentanglement
    if measured is None:
        return []
    said: list[str] = []
    for expert, section, changes in (
        ("perception", "captions", measured.caption),
        ("reasoning", "steps", measured.steps),
    ):
        cell = changes.get(expert)
        if cell is None or cell.change is None or cell.stderr is None:
            continue
        figures = f"(change of score {change(cell)}, told apart {percent(cell.accuracy, 0)})"
        if cell.change + 2 * cell.stderr < 0:
            said.append(f"The {expert} expert notices corrupted {section} {figures}.")
        else:
            signs = "it tells teacher from policy by other signs"
            said.append(f"The {expert} expert does not notice corrupted {section} {figures}: {signs}.")
    return said


def _title(evaluations: Sequence[Evaluation], first: str) -> str:
    known = [(e, e.accuracy) for e in evaluations if e.accuracy is not None]
    if not known:
        return "No held-out accuracy has been measured yet"
    (before, old), (after, new) = known[0], known[-1]
    if len(known) == 1:
        return f"{percent(new)} of held-out questions answered correctly after {_lower(first)}"
    if beyond_noise(before, after) is False:
        return f"Held-out accuracy stayed within the noise: {percent(old)} first, {percent(new)} last"
    if percent(old) == percent(new):
        return f"Held-out accuracy stayed at {percent(new)}"
    return f"Held-out accuracy {'rose' if new > old else 'fell'} from {percent(old)} to {percent(new)}"


def _first(name: str, e: Evaluation) -> str:
    parts: list[str] = []
    if e.accuracy is not None:
        error = f" (standard error {points(e.accuracy_stderr)})" if e.accuracy_stderr is not None else ""
        parts.append(f"the policy answered {percent(e.accuracy)} of {e.judged} held-out questions correctly{error}")
    if e.format_rate is not None:
        parts.append(f"{percent(e.format_rate)} of its responses kept the format")
    if e.caption_f1 is not None:
        parts.append(f"caption F1 was {percent(e.caption_f1)}")
    return f"After {_lower(name)} {_join(parts)}." if parts else f"The evaluation after {_lower(name)} has no figures."


def _change(name: str, before: Evaluation, after: Evaluation) -> str:
    parts = [
        _moved("caption F1", before.caption_f1, after.caption_f1),
        _moved("held-out accuracy", before.accuracy, after.accuracy, _noise(before, after)),
        _moved("the format rate", before.format_rate, after.format_rate),
    ]
    said = [part for part in parts if part]
    return f"{name} {_join(said)}." if said else f"{name} has no figures to compare with the stage before it."


def _noise(before: Evaluation, after: Evaluation) -> str:
    if beyond_noise(before, after) is not False:
        return ""
    error = math.hypot(before.accuracy_stderr or 0.0, after.accuracy_stderr or 0.0)
    return f", which is within the noise (standard error of the difference {points(error)})"


def _moved(what: str, old: float | None, new: float | None, noise: str = "") -> str:
    if old is None or new is None:
        return ""
    if percent(old) == percent(new):
        return f"left {what} at {percent(new)}"
    verb = "moved" if noise else "raised" if new > old else "lowered"
    return f"{verb} {what} from {percent(old)} to {percent(new)}{noise}"


def _gaps(stage: StageData) -> str:
    parts: list[str] = []
    for expert in EXPERTS:
        gaps = [gap for step in stage.steps if (gap := step.figures.get(f"served_{expert}_gap")) is not None]
        if len(gaps) < 2 * WINDOW:
            continue
        old, new = fmean(gaps[:WINDOW]), fmean(gaps[-WINDOW:])
        verb = "fell" if abs(new) < abs(old) else "grew"
        parts.append(f"the {expert} expert's {verb} from {old:.2f} to {new:.2f}")
    window = f"means of the first and last {WINDOW} steps"
    return f"Of the score gaps between teacher and policy, {_join(parts)} ({window})." if parts else ""


def _platform(totals: RunTotals) -> list[str]:
    said: list[str] = []
    if totals.logprob_mismatch_max is not None:
        said.append(
            f"Logprobs of sampler and learner differed by at most {totals.logprob_mismatch_max:.1e} in a step's mean; "
            f"{totals.logprob_mismatch_bound:.0e} is the bound."
        )
    if totals.paused_seconds is not None and totals.paused_seconds_per_push is not None:
        said.append(
            f"{totals.policy_pushes} pushes of policy weights stopped generation for {seconds(totals.paused_seconds)} "
            f"in all, {seconds(totals.paused_seconds_per_push)} each."
        )
    if totals.idle_share is not None:
        said.append(f"The learner waited for rollouts {percent(totals.idle_share, 0)} of the time.")
    return said


def _warnings(stages: Sequence[StageData], totals: RunTotals) -> list[str]:
    said: list[str] = []
    for stage in stages:
        done = stage.steps[-1].step if stage.steps else 0
        if stage.result is None and not done:
            said.append(f"Stage {stage.name} has not started.")
        elif stage.result is None:
            planned = f" of {stage.planned_steps}" if stage.planned_steps is not None else ""
            steps = "step" if f"{done}{planned}" == "1" else "steps"
            said.append(f"Stage {stage.name} is not finished: {done}{planned} {steps} recorded.")
        elif stage.evaluation is None:
            said.append(f"Stage {stage.name} is finished but was not evaluated.")
        e = stage.evaluation
        if e is not None and e.judged < e.questions:
            missing = e.questions - e.judged
            said.append(f"{missing} of {e.questions} held-out responses after {stage.name} got no verdict.")
        if stage.superseded:
            said.append(f"Stage {stage.name} was resumed: {stage.superseded} recorded steps were done again.")
    if totals.logprob_mismatch_above_bound:
        count = totals.logprob_mismatch_above_bound
        said.append(f"Sampler and learner disagreed by more than the bound in {count} step{'s' * (count != 1)}.")
    counted = {
        "groups were lost": totals.lost_groups,
        "samples had no score or verdict and were masked out": totals.masked_samples,
        "samples could not be placed": totals.unplaceable_samples,
        "optimizer updates were skipped": totals.skipped_updates,
    }
    return said + [f"{count} {what}." for what, count in counted.items() if count]


def _join(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _lower(name: str) -> str:
    return name[:1].lower() + name[1:]
