"""What alignment and RLVR share: groups that no learner may see, options, and what is kept of bad days."""

import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from google.protobuf.json_format import ParseDict

from prism.config import PolicyLearnerConfig
from prism.errors import MismatchError, NotFiniteError, StreamError, WeightsError
from prism.model.inputs import Example
from prism.trainer.flow.intake import Intake, StepRollouts
from prism.trainer.flow.staleness import StalenessBound
from prism.trainer.learn.expert_learner import ExpertLearner
from prism.trainer.learn.losses import Algorithm
from prism.trainer.learn.policy_learner import PolicyLearner
from prism.trainer.learn.policy_model import load_reference
from prism.trainer.stages import common
from prism.trainer.stages.common import dump_nonfinite_groups, loss_options, refuse_mismatches, usable_groups
from prism.trainer.stages.context import Context
from prism.trainer.weights.publish import PushTimes
from prism.wire.response import EXPERTS
from prism.wire.v1 import rollout_pb2 as pb

EXAMPLE = Example([1], 1, None, None)


class Examples:
    """Builds every prompt but that of position 9."""

    def prompt(self, group: pb.RolloutGroup) -> Example:
        if group.request.position == 9:
            raise StreamError("other tokens")
        return EXAMPLE


def context(folder: Path) -> Any:
    said: list[str] = []
    config = SimpleNamespace(run_dir=folder)
    return SimpleNamespace(
        examples=Examples(), config=config, stage="rlvr", say=lambda text, **_: said.append(text), said=said
    )


def group(position: int, version: int, **scores: tuple[int, ...]) -> pb.RolloutGroup:
    """``scores``: an expert's versions; the first judged the teacher."""
    made = pb.RolloutGroup(request=pb.RolloutRequest(position=position), policy_version=version)
    for expert, versions in scores.items():
        first, *others = [
            pb.Score(expert=expert, status=pb.STATUS_OK, value=0.5, expert_version=number) for number in versions
        ]
        made.teacher_scores.append(first)
        made.samples.extend(pb.Sample(text="x", scores=[score]) for score in others)
    return made


def test_what_cannot_be_trained_on_is_buried_with_the_reason_and_the_others_are_used(tmp_path: Path) -> None:
    buried: dict[int, str] = {}
    intake = SimpleNamespace(
        bound=StalenessBound(1), bury=lambda group, reason: buried.update({group.request.position: reason})
    )
    failed = pb.Score(expert="reasoning", status=pb.STATUS_ERROR, expert_version=1)
    with_failure = group(5, 7, reasoning=(3, 3))
    with_failure.samples[0].scores.append(failed)  # gave no score: its version does not count
    groups = [
        group(1, 7, perception=(3, 3), reasoning=(4, 4)),
        group(2, 8),
        group(3, 5),
        group(4, 6, perception=(3, 3, 4)),
        with_failure,
        group(6, 7, reasoning=(2, 3)),  # the teacher's differs
        group(9, 7),
        group(10, 6),
        group(11, 6),
    ]
    for made_of, number in ((groups[-2], 7), (groups[-1], 8)):  # of which some tokens are of a newer version
        runs = [pb.VersionRun(policy_version=6, tokens=1), pb.VersionRun(policy_version=number, tokens=1)]
        made_of.samples.append(pb.Sample(token_ids=[1, 2], versions=runs))
    made = context(tmp_path)
    used, prompts = usable_groups(cast(Context, made), cast(Intake, intake), StepRollouts(groups, [], 0.0), 7)
    assert [g.request.position for g in used] == [1, 5, 10]
    assert prompts == [EXAMPLE, EXAMPLE, EXAMPLE]
    assert buried.keys() == {2, 3, 4, 6, 9, 11}
    assert "policy version 8 reached a learner at version 7" in buried[11]
    assert "policy version 8 reached a learner at version 7" in buried[2]
    assert "sampled by policy version 5" in buried[3]
    assert buried[4] == "perception scores of versions 3, 4 cannot be compared"
    assert buried[6] == "reasoning scores of versions 2, 3 cannot be compared"
    assert len(made.said) == 6


@pytest.mark.parametrize("fatal", [False, True])
def test_groups_of_an_update_that_was_not_finite_are_kept(tmp_path: Path, fatal: bool) -> None:
    class Learner:
        not_finite = (1,)

        def update(self) -> dict[str, Any]:
            if fatal:
                raise NotFiniteError("5 updates in a row")
            return {"policy_skipped": 1}

    made, groups, learner = context(tmp_path), [group(1, 7), group(2, 7, perception=(3, 3))], Learner()
    if fatal:
        with pytest.raises(NotFiniteError), dump_nonfinite_groups(made, cast(PolicyLearner, learner), 11, groups):
            learner.update()
    else:
        with dump_nonfinite_groups(made, cast(PolicyLearner, learner), 11, groups):
            assert learner.update() == {"policy_skipped": 1}
    file = tmp_path / "not-finite" / "rlvr-000012.jsonl"
    (line,) = file.read_text().splitlines()
    assert ParseDict(json.loads(line), pb.RolloutGroup()) == groups[1]
    assert str(file) in made.said[0]


def test_an_update_that_was_finite_leaves_nothing(tmp_path: Path) -> None:
    learner = SimpleNamespace(not_finite=[])
    with dump_nonfinite_groups(cast(Context, context(tmp_path)), cast(PolicyLearner, learner), 0, []):
        pass
    assert list(tmp_path.iterdir()) == []


def test_options_are_the_published_ones_but_for_what_is_set() -> None:
    def config(**values: Any) -> PolicyLearnerConfig:
        return PolicyLearnerConfig.model_validate({"optimizer": {"lr": 1}} | values)

    dapo = loss_options(Algorithm.DAPO, config(), 64)
    assert (dapo.clip_low, dapo.clip_high, dapo.dual_clip, dapo.max_length, dapo.kl_coef) == (0.2, 0.28, 10.0, 64, 0)
    own = loss_options(Algorithm.DAPO, config(clip_low=0.1, clip_high=0.3), 32, kl_coef=0.05)
    assert (own.clip_low, own.clip_high, own.dual_clip, own.max_length, own.kl_coef) == (0.1, 0.3, 10.0, 32, 0.05)
    verl = loss_options(Algorithm.GRPO, config(dual_clip=3, average="tokens"), 32)
    assert (verl.dual_clip, verl.average, verl.clip_high) == (3, "tokens", 0.2)


def test_a_reference_learns_nothing(tiny_model: Path) -> None:
    config: Any = SimpleNamespace(dtype="float32", device="cpu")
    reference = load_reference(tiny_model, config)
    assert not reference.training
    assert not any(parameter.requires_grad for parameter in reference.parameters())
    assert next(reference.parameters()).dtype == torch.float32


def test_groups_that_were_sampled_from_something_else_are_named_and_too_many_end_the_run(tmp_path: Path) -> None:
    made = context(tmp_path)
    groups = [group(0, 7), group(1, 7)]
    for each in groups:
        each.request.prompt.id = f"prompt-{each.request.position}"
    config = PolicyLearnerConfig.model_validate({"optimizer": {"lr": 1e-6}, "max_mismatched": 2})
    policy: Any = SimpleNamespace(config=config, mismatched={1: 1.16}, all_mismatched=2)
    refuse_mismatches(cast(Context, made), policy, groups)
    assert made.said == [
        "group of prompt prompt-1 teaches nothing: sampler and learner differ by 1.2 nats a token, over "
        "max_mismatch = 0.5"
    ]
    policy.all_mismatched = 3
    with pytest.raises(MismatchError, match=r"3 groups .* max_mismatched = 2; in this step prompt-1 \(1.2 nats\)"):
        refuse_mismatches(cast(Context, made), policy, groups)
    policy.mismatched = {}
    refuse_mismatches(cast(Context, made), policy, groups)  # it was said when it happened


def test_a_push_whose_probe_fails_says_which_prompt_it_was_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = context(tmp_path)
    made.config.push = SimpleNamespace(probe_tolerance=1e-3)
    made.inputs = made.blobs = None
    for name in ("make_probe", "config_json", "named_weights"):
        monkeypatch.setattr(common, name, lambda *_: {})
    monkeypatch.setattr(common.ranks, "full_weights", lambda _: {})

    def refuse(*_: Any) -> Any:
        raise WeightsError("the probe differs by 1.08")

    probed = group(0, 7)
    probed.request.prompt.id, probed.request.prompt.teacher = "the-photo", "x"
    publishers: Any = {"policy": SimpleNamespace(push=refuse)}
    policy: Any = SimpleNamespace(model=None, version=1)
    with pytest.raises(WeightsError, match=r"1\.08 \(probed with prompt the-photo\)"):
        common.push_weights(cast(Context, made), publishers, [policy], probed)
    with pytest.raises(WeightsError, match=r"1\.08$"):
        common.push_weights(cast(Context, made), publishers, [policy])


def test_all_models_are_pushed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None waits for another: each is let go once all are under way."""
    made = context(tmp_path)
    for name in ("config_json", "named_weights", "own_weights"):
        monkeypatch.setattr(common, name, lambda *_: {})
    monkeypatch.setattr(common.ranks, "full_weights", lambda _: {})
    under_way = threading.Barrier(3)

    def push(version: int, *_: Any) -> PushTimes:
        under_way.wait(20)
        return PushTimes(total_seconds=version, paused_seconds=0, bytes_written=0, bytes_saved=0)

    experts: list[Any] = []
    for number, name in enumerate(EXPERTS, 2):
        expert: Any = object.__new__(ExpertLearner)
        expert.network, expert.experts, expert.version = name, (name,), number
        expert.model = cast(Any, SimpleNamespace(config=SimpleNamespace(model_type="qwen3_vl")))
        experts.append(expert)
    policy: Any = SimpleNamespace(model=None, version=1)
    publishers: Any = dict.fromkeys(("policy", *EXPERTS), SimpleNamespace(push=push))
    figures = common.push_weights(cast(Context, made), publishers, [policy, *experts])
    totals = [figures[f"{prefix}sync_total_seconds"] for prefix in ("", "perception_", "reasoning_")]
    assert totals == [1, 2, 3]
    assert figures["push_seconds"] > 0
    assert common.push_weights(cast(Context, made), publishers, []) == {}
