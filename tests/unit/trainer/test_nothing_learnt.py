"""Stages that learn nothing: they say why and end, and what teaches nothing makes no version."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import test_stages
from test_stages import COUNT, POLICY, Stage, figures

from prism.errors import NothingLearntError
from prism.trainer.checkpoint.folder import checkpoints
from prism.wire.v1 import rollout_pb2 as pb

inputs, stage = test_stages.inputs, test_stages.stage


def from_step(first: int, spoil: Callable[[pb.RolloutGroup], None], last: int = 1000) -> Any:
    """Spoils the groups of these steps, counted from 0."""

    def of_steps(group: pb.RolloutGroup) -> None:
        if first <= group.request.step <= last:
            spoil(group)

    return of_steps


def malformed(group: pb.RolloutGroup) -> None:
    for sample in group.samples:
        sample.text, sample.finish_reason = "no tags", "length"
        sample.ClearField("scores")
        if group.request.grade:
            sample.verdict.CopyFrom(pb.Verdict(status=pb.STATUS_INVALID_FORMAT, format=0, accuracy=0, reward=0))


def unreadable_gold(group: pb.RolloutGroup) -> None:
    for sample in group.samples:
        sample.verdict.CopyFrom(pb.Verdict(status=pb.STATUS_UNPARSEABLE_GOLD))


def masked(group: pb.RolloutGroup) -> None:
    for sample in group.samples:
        sample.verdict.CopyFrom(pb.Verdict(status=pb.STATUS_UNPARSEABLE_ANSWER))


def all_wrong(group: pb.RolloutGroup) -> None:
    for sample in group.samples:
        sample.verdict.CopyFrom(pb.Verdict(status=pb.STATUS_OK, format=1, accuracy=0, reward=0.2))


def unscored(group: pb.RolloutGroup) -> None:
    for sample in group.samples:
        for score in sample.scores:
            score.status = pb.STATUS_ERROR
            score.ClearField("value")


FRUITLESS: dict[str, tuple[str, Any, dict[str, Any], int, str]] = {
    "nothing keeps the format": (
        "align", malformed, {}, 5,
        r"the policy learnt nothing in steps 3 to 5 \(max_empty_steps = 3\). Of 27 samples in 9 groups:\n"
        r"  27 samples without a valid format: teach .* SFT first\n  27 samples cut off: raise rollouts.max_tokens\n"
        r"  9 groups with fewer than two",
    ),
    "no score comes": ("align", unscored, {}, 5, r"the policy learnt.*\n  27 samples of a valid format with"),
    "nothing keeps the grader's format": ("rlvr", malformed, {}, 5, r"steps 3 to 5.*\n  27 samples without a valid"),
    "no gold can be read": (
        "rlvr", unreadable_gold, {"max_empty_steps": 2}, 4,
        r"steps 3 to 4 \(max_empty_steps = 2\). Of 18.*\n  18 samples whose gold answer the grader cannot read: mend",
    ),
    "every answer is masked": ("rlvr", masked, {}, 5, r"Of 27 .*\n  27 samples whose answer cannot be read, which"),
    "all answers are alike": (
        "rlvr", all_wrong, {"max_flat_steps": 4}, 6,
        r"steps 3 to 6 \(max_flat_steps = 4\).*\n  12 groups whose answers are all right or all wrong: take",
    ),
    "dynamic sampling finds none": (
        "rlvr", all_wrong, {"max_flat_steps": 4, "dynamic_sampling": True, "max_sampling_rounds": 2}, 6,
        r"steps 3 to 6 \(max_flat_steps = 4\).*24 groups:\n  24 groups whose answers are all right or all wrong: take",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "spoil", "values", "last", "message"), FRUITLESS.values(), ids=FRUITLESS.keys())
def test_a_stage_that_learns_nothing_ends_with_the_reasons_and_makes_no_version(
    stage: Stage, kind: str, spoil: Any, values: dict[str, Any], last: int, message: str, tmp_path: Path
) -> None:
    """The first two steps are good; of alignment the first is the warm-up."""
    with pytest.raises(NothingLearntError, match=f"(?s)stage it: .*{message}"):
        stage(kind, "it", spoil=from_step(2, spoil), **{"steps": 9, "checkpoint_every": 2} | values)
    lines = figures(tmp_path / "it")
    assert max(lines) == last
    versions = {line["policy_version"] for step, line in lines.items() if step > 1}
    assert versions == {2 if kind == "rlvr" else 1}
    assert lines[last]["flat_steps"] == last - 2
    assert ("format_rate_below" in lines[last].get("alerts", {})) is (spoil is malformed)
    kept = tmp_path / "it" / "nothing-learnt" / f"it-{last:06d}.jsonl"
    assert len(kept.read_text().splitlines()) == lines[last]["groups"] >= COUNT


def test_a_start_again_ends_at_once_and_a_mended_run_samples_the_steps_anew(stage: Stage, tmp_path: Path) -> None:
    """The groups of a step that taught nothing would end the run again, though what spoilt them is mended."""
    run, values = tmp_path / "it", {"steps": 7, "checkpoint_every": 2}
    for _ in range(2):  # steps 3 and 4 lie in a checkpoint, with their count
        with pytest.raises(NothingLearntError, match=r"steps 3 to 5 \(max_empty_steps = 3\). Of 27 samples"):
            stage("rlvr", "it", spoil=from_step(2, unreadable_gold), **values)
        assert (max(figures(run)), checkpoints(run / "checkpoints" / "it")[-1].name) == (5, "000004")
    journal = stage("rlvr", "it", **values)
    assert journal.positions("asked") == list(range(4 * COUNT, 7 * COUNT))
    assert {step: line["flat_steps"] for step, line in figures(run).items()} == dict(
        enumerate([0, 0, 1, 2, 0, 0, 0], 1)
    )


@pytest.mark.parametrize(("kind", "staleness"), [("rlvr", 0), ("align", 1)])
def test_a_step_that_teaches_nothing_makes_no_version_and_the_next_one_is_asked_for(
    stage: Stage, kind: str, staleness: int, tmp_path: Path
) -> None:
    journal = stage(kind, "it", steps=5, staleness=staleness, spoil=from_step(2, malformed, last=3))
    lines = figures(tmp_path / "it")
    assert [lines[step].get("empty_steps", 0) for step in sorted(lines)][:5] == [0, 0, 1, 2, 0]
    pushed = [event.number for event in journal.of("pushed") if event.whose == POLICY]
    assert pushed == [0, 1, 2, 3]
    assert all(line["staleness_max"] <= staleness for line in lines.values())


def test_experts_that_made_no_update_in_their_warm_up_end_the_stage(stage: Stage, tmp_path: Path) -> None:
    message = (
        r"the perception expert and the reasoning expert learnt nothing in steps 1 to 2 \(the warm-up: .*\n  6 sampl"
    )
    with pytest.raises(NothingLearntError, match=f"(?s){message}"):
        stage("align", "it", spoil=malformed, warmup_steps=2)
    with pytest.raises(NothingLearntError, match=r"steps 1 to 3 \(max_empty_steps = 3\)"):
        stage("align", "longer", spoil=malformed, warmup_steps=9)


def test_experts_that_are_skipped_by_configuration_end_nothing(stage: Stage, tmp_path: Path) -> None:
    experts = {"optimizer": {"lr": 1e-3}, "mixture": {}, "skip_above_accuracy": 0.501}
    stage("align", "it", experts=experts, max_empty_steps=1, steps=3)
    lines = figures(tmp_path / "it")
    assert max(lines) == 4
    assert {line["perception_updated"] for line in lines.values()} == {0, 1}
