"""What happened, in plain words made from the numbers alone, whichever way they went."""

import itertools
import math
from collections.abc import Sequence
from statistics import fmean

from prism.report.reading import Alert, StageReport
from prism.report.records import Change, Disentanglement, Evaluation, values
from prism.report.totals import RunTotals

KINDS = {"sft": "Supervised fine-tuning", "align": "Alignment", "rlvr": "Reinforcement learning"}
EXPERTS = ("perception", "reasoning")
WATCHED = {
    "format_rate": "the format rate",
    "response_tokens": "the mean response length",
    "truncated": "the share of responses cut off",
    "grad_norm": "the policy's gradient norm",
    "clip_fraction": "the clip fraction",
}
NBSP = "\u00a0"
_DISENTANGLED = (
    "Mean change of the raw score ± one standard error; below 0 the corruption is noticed. Told apart: how often the "
    "original scores higher, 50 % is a coin."
)
_DISENTANGLED_BY = {
    "own": "An expert never sees the other's section: there the change is 0 by construction, while what an expert "
    "notices in its own section it has learnt.",
    "whole": "These experts see whole responses, so each may notice both.",
}
LOOKS = (
    "Of the held-out pairs that differ for an expert, those in which it prefers the teacher's response to the "
    "policy's, ± one standard error: with the right picture, with another prompt's, and with a grey one of the same "
    "size. 50 % is a coin. An expert that looks falls towards it with a wrong picture; one that does not works from "
    "the text, and its reward says nothing of what is there."
)
WINDOW = 5  # steps at either end of a curve that a "from … to …" averages


def headline(stages: Sequence[StageReport]) -> str:
    known = [(stage, e, e.accuracy) for stage in stages if (e := stage.evaluation) and e.accuracy is not None]
    if not known:
        return "No held-out accuracy has been measured yet"
    (first, before, old), (_, after, new) = known[0], known[-1]
    if len(known) == 1:
        return f"{percent(new)} of held-out questions answered correctly after {_lower(called(first, stages))}"
    if _noise(before, after) is not None:
        return f"Held-out accuracy stayed within the noise: {percent(old)} first, {percent(new)} last"
    if percent(old) == percent(new):
        return f"Held-out accuracy stayed at {percent(new)}"
    return f"Held-out accuracy {'rose' if new > old else 'fell'} from {percent(old)} to {percent(new)}"


def sentences(stages: Sequence[StageReport]) -> list[str]:
    """What the stages did."""
    evaluated = [(called(stage, stages), stage.evaluation) for stage in stages if stage.evaluation]
    said = [_first(*evaluated[0])] if evaluated else []
    said += [_change(name, before, after) for (_, before), (name, after) in itertools.pairwise(evaluated)]
    said += [gaps for stage in stages if (gaps := _gaps(stage))]
    said += [seen for stage in stages for seen in _seen(stage)]
    return said + [noticed for stage in stages for noticed in _noticed(stage)]


def called(stage: StageReport, stages: Sequence[StageReport]) -> str:
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


def disentangled(measured: Disentanglement) -> str:
    """How its table is to be read."""
    return f"{_DISENTANGLED} {_DISENTANGLED_BY.get(measured.section, '')}".rstrip()


def alert(one: Alert) -> str:
    """An alert in words, such as "entropy was below 0.01 in steps 3 to 7"."""
    figure, _, side = one.name.rpartition("_")
    bound = "its bound" if one.bound is None else f"{one.bound:g}"
    steps = f"step {one.first}" if one.first == one.last else f"steps {one.first} to {one.last}"
    return f"{WATCHED.get(figure, figure)} was {side} {bound} in {steps}"


def points(value: float) -> str:
    return f"{100 * value:.1f} points"


def seconds(value: float) -> str:
    if value < 60:
        return f"{value:.1f}{NBSP}s" if value >= 1 else f"{value:.2g}{NBSP}s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}{NBSP}h {minutes:02d}{NBSP}min" if hours else f"{minutes}{NBSP}min {rest:02d}{NBSP}s"


def _noise(before: Evaluation, after: Evaluation) -> float | None:
    """The standard error of the difference of accuracies no more than two of it apart; else, or if unknown, None."""
    if None in (before.accuracy, after.accuracy, before.accuracy_stderr, after.accuracy_stderr):
        return None
    error = math.hypot(before.accuracy_stderr or 0.0, after.accuracy_stderr or 0.0)
    return error if abs((after.accuracy or 0.0) - (before.accuracy or 0.0)) <= 2 * error else None


def _seen(stage: StageReport) -> list[str]:
    """What another picture changed, after the last step at which it was measured."""
    if not stage.looks:
        return []
    last = stage.looks[-1]
    return [
        f"After step {last.step} of {stage.name} the {expert} expert told {percent(look.right.share, 0)} of "
        f"{look.pairs} held-out pairs apart, {percent(look.shuffled.share, 0)} with another prompt's picture and "
        f"{percent(look.blank.share, 0)} with a blank one."
        for expert, look in last.experts.items()
        if look.pairs
    ]


def _noticed(stage: StageReport) -> list[str]:
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
    error = _noise(before, after)
    noise = "" if error is None else f", which is within the noise (standard error of the difference {points(error)})"
    parts = [
        _moved("caption F1", before.caption_f1, after.caption_f1),
        _moved("held-out accuracy", before.accuracy, after.accuracy, noise),
        _moved("the format rate", before.format_rate, after.format_rate),
    ]
    said = [part for part in parts if part]
    return f"{name} {_join(said)}." if said else f"{name} has no figures to compare with the stage before it."


def _moved(what: str, old: float | None, new: float | None, noise: str = "") -> str:
    if old is None or new is None:
        return ""
    if percent(old) == percent(new):
        return f"left {what} at {percent(new)}"
    verb = "moved" if noise else "raised" if new > old else "lowered"
    return f"{verb} {what} from {percent(old)} to {percent(new)}{noise}"


def _gaps(stage: StageReport) -> str:
    parts: list[str] = []
    for expert in EXPERTS:
        gaps = values(stage.steps, f"served_{expert}_gap")
        if len(gaps) < 2 * WINDOW:
            continue
        old, new = fmean(gaps[:WINDOW]), fmean(gaps[-WINDOW:])
        verb = "fell" if abs(new) < abs(old) else "grew"
        parts.append(f"the {expert} expert's {verb} from {old:.2f} to {new:.2f}")
    window = f"means of the first and last {WINDOW} steps"
    return f"Of the score gaps between teacher and policy, {_join(parts)} ({window})." if parts else ""


def platform(totals: RunTotals) -> list[str]:
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


def warnings(stages: Sequence[StageReport], totals: RunTotals) -> list[str]:
    said: list[str] = []
    for stage in stages:
        if not stage.finished and not stage.steps_done:
            said.append(f"Stage {stage.name} has not started.")
        elif not stage.finished:
            planned = f" of {stage.steps_planned}" if stage.steps_planned is not None else ""
            done = f"{stage.steps_done}{planned}"
            said.append(f"Stage {stage.name} is not finished: {done} step{'s' * (done != '1')} recorded.")
        elif stage.evaluation is None:
            said.append(f"Stage {stage.name} is finished but was not evaluated.")
        e = stage.evaluation
        if e is not None and e.judged < e.questions:
            missing = e.questions - e.judged
            said.append(f"{missing} of {e.questions} held-out responses after {stage.name} got no verdict.")
        if e is not None:
            said += _left_out(stage.name, e)
        said += [f"In stage {stage.name} {alert(one)}." for one in stage.alerts]
        said += _blind(stage)
        if stage.steps_without_learning:
            count = stage.steps_without_learning
            said.append(f"In {count} step{'s' * (count != 1)} of stage {stage.name} the policy learnt nothing.")
        if stage.superseded_steps:
            said.append(f"Stage {stage.name} was resumed: {stage.superseded_steps} recorded steps were done again.")
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


def _blind(stage: StageReport) -> list[str]:
    said: list[str] = []
    for expert in EXPERTS:
        steps = [looks.step for looks in stage.looks if (look := looks.experts.get(expert)) and look.close]
        if steps:
            after = f"step{'s' * (len(steps) > 1)} {_join([str(step) for step in steps])}"
            said.append(
                f"The {expert} expert of {stage.name} hardly looked at the picture after {after}: with another "
                "prompt's it told nearly as many pairs apart."
            )
    return said


def _left_out(name: str, e: Evaluation) -> list[str]:
    """Held-out rows that the figures are not about, with the first of them."""
    said: list[str] = []
    asked = [f"{one.row}: {one.reason}" for one in e.unasked_rows]
    for count, what, reasons in (
        (e.unasked, "could not be asked", asked),
        (e.skipped_rows, "cannot be used", e.skipped_reasons),
    ):
        if count:
            rows, more = f"{count} held-out row{'s' * (count != 1)}", "; and others" if count > 3 else ""
            said.append(f"{rows} {what} after {name}: {'; '.join(reasons[:3])}{more}.")
    return said


def _join(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _lower(name: str) -> str:
    return name[:1].lower() + name[1:]
