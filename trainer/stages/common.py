"""Alignment and RLVR share how a stage begins and how a step goes: checked prompts, figures, pushes."""

import statistics
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

from prism.config import AlignConfig, PolicyLearnerConfig, RlvrConfig
from prism.data.rows import Prompts
from prism.errors import DataError, MismatchError, StreamError, WeightsError
from prism.model.control import vision_tokens
from prism.model.expert import ARCHITECTURES
from prism.model.folder import model_folder
from prism.model.inputs import Example
from prism.trainer.checkpoint.resume import Counts, StageCheckpoints
from prism.trainer.flow.intake import POLICY, Intake, StepRollouts
from prism.trainer.flow.rollout_log import RolloutLog
from prism.trainer.flow.staleness import staleness
from prism.trainer.learn import ranks
from prism.trainer.learn.adapted import WithoutAdapter, adapter_tensors
from prism.trainer.learn.advantages import Advantages
from prism.trainer.learn.expert_learner import ExpertLearner
from prism.trainer.learn.losses import DEFAULT_OPTIONS, Algorithm, LossOptions
from prism.trainer.learn.not_finite import keep_groups
from prism.trainer.learn.offload import Offload
from prism.trainer.learn.policy_learner import PolicyLearner
from prism.trainer.learn.policy_model import load_learner, load_reference
from prism.trainer.run.result import start_version
from prism.trainer.stages.context import Context
from prism.trainer.stages.picture_check import check_pictures
from prism.trainer.weights.named import as_saved, config_json, named_weights, own_weights
from prism.trainer.weights.probe import make_probe
from prism.trainer.weights.publish import Publisher, PushTimes
from prism.wire.response import caption_f1
from prism.wire.sample import is_cut_off, sample_problems
from prism.wire.v1 import rollout_pb2 as pb
from prism.wire.versions import is_mixed, newest
from prism.wire.weights import Probe

T = TypeVar("T")

LOOKED_AT = 64  # of a stage's prompts, for one with a picture


def loss_options(algorithm: str, config: PolicyLearnerConfig, max_tokens: int, *, kl_coef: float = 0.0) -> LossOptions:
    """The options published for the algorithm, but for what the configuration sets."""
    own = config.model_dump(include={"clip_low", "clip_high", "dual_clip", "average"})
    given = {name: value for name, value in own.items() if value is not None}
    return replace(DEFAULT_OPTIONS[Algorithm(algorithm)], max_length=max_tokens, kl_coef=kl_coef, **given)


def new_policy(
    context: Context,
    stage: AlignConfig | RlvrConfig,
    start: Path | str,
    algorithm: str,
    *,
    kl_coef: float = 0.0,
    model: Any = None,
    offload: Offload | None = None,
) -> PolicyLearner:
    """The learner of the policy in ``start``, at its version there; with ``kl_coef`` beside it as it starts.

    ``model``: that of an adapter, which is loaded already; as it starts it is without.
    """
    reference = None
    if kl_coef:
        reference = WithoutAdapter(model) if model is not None else load_reference(start, context.config)
    model = load_learner(start, context.config) if model is None else model
    return PolicyLearner(
        model,
        stage.policy,
        algorithm,
        loss_options(algorithm, stage.policy, stage.rollouts.max_tokens, kl_coef=kl_coef),
        temperature=stage.rollouts.temperature,
        updates=stage.steps,
        version=start_version(start),
        reference=reference,
        never=vision_tokens(model.config),
        offload=offload,
    )


def resume_and_push(
    context: Context,
    learners: Mapping[str, PolicyLearner | ExpertLearner],
    intake: Intake,
    counts: Mapping[str, Counts],
) -> tuple[StageCheckpoints, int, dict[str, Publisher]]:
    """Resume the learners and push them: servers get this attempt's weights before a single rollout is asked for.

    Then they are asked whether they look at pictures. Returns the stage's checkpoints, the step to go on with, and each
    learner's publisher. Raises WeightsError for a damaged checkpoint and for a push that fails.
    """
    saved = StageCheckpoints(context.checkpoints(), context.config, learners, context.say, intake, counts, context.data)
    first = saved.resume()
    publishers = {name: context.publisher(name) for name in learners}
    push_weights(context, publishers, learners.values())
    if ranks.is_first() and context.data:
        prompts = list(islice(Prompts(context.data[0], context.blobs), LOOKED_AT))
        of_experts = [one for one in learners.values() if isinstance(one, ExpertLearner)]
        check_pictures(context, prompts, [e for one in of_experts if one.config.pictures for e in one.experts])
    return saved, first, publishers


def shared_step(
    context: Context, collect: Callable[[], tuple[list[pb.RolloutGroup], list[Example], T]]
) -> tuple[list[pb.RolloutGroup], list[Example], T]:
    """What ``collect`` gives on the first rank, on all: groups travel, their prompts each rank builds itself."""
    built: list[Example] = []

    def on_first() -> tuple[list[pb.RolloutGroup], T]:
        groups, prompts, figures = collect()
        built.extend(prompts)
        return groups, figures

    groups, figures = ranks.from_first(on_first)
    return groups, built if ranks.is_first() else [context.examples.prompt(group) for group in groups], figures


def usable_groups(
    context: Context, intake: Intake, rollouts: StepRollouts, version: int
) -> tuple[list[pb.RolloutGroup], list[Example]]:
    """The groups that a learner at ``version`` can train on, and their prompts as it builds them.

    The others are buried: what cannot be built, what no policy of this run can have sampled, what is too old.
    """
    groups: list[pb.RolloutGroup] = []
    prompts: list[Example] = []
    for group in rollouts.groups:
        try:
            if not intake.bound.accepts(group.policy_version, version):
                raise StreamError(
                    f"sampled by policy version {group.policy_version}, {intake.bound.limit} updates before version "
                    f"{version} or more"
                )
            staleness(newest(group), version)
            _refuse_mixed_scores(group)
            prompts.append(context.examples.prompt(group))
            groups.append(group)
        except (StreamError, DataError) as error:
            prompt_id, position = group.request.prompt.id, group.request.position
            context.say(f"group of prompt {prompt_id} buried: {error}", prompt_id=prompt_id, position=position)
            intake.bury(group, str(error))
    return groups, prompts


def _refuse_mixed_scores(group: pb.RolloutGroup) -> None:
    """Raises StreamError where an expert's scores, the teacher's included, are of more than one version."""
    versions: dict[str, set[int]] = {}
    for score in chain(group.teacher_scores, *(sample.scores for sample in group.samples)):
        if score.status == pb.STATUS_OK:
            versions.setdefault(score.expert, set()).add(score.expert_version)
    for expert, found in versions.items():
        if len(found) > 1:
            raise StreamError(f"{expert} scores of versions {', '.join(map(str, sorted(found)))} cannot be compared")


@contextmanager
def dump_nonfinite_groups(
    context: Context, learner: PolicyLearner | ExpertLearner, step: int, groups: Sequence[pb.RolloutGroup]
) -> Iterator[None]:
    """Watch an update of the step's ``groups``: those that made it not finite go to a file in the run's folder."""
    try:
        yield
    finally:
        if learner.not_finite and ranks.is_first():
            name, whose = context.stage, "a policy"
            if isinstance(learner, ExpertLearner):
                name, whose = f"{name}-{learner.network}", f"the {' and '.join(learner.experts)} expert's"
            offenders = [groups[number] for number in learner.not_finite]
            file = keep_groups(context.config.run_dir, name, step + 1, offenders)
            context.say(f"step {step + 1}: {whose} update was not finite; its {len(offenders)} groups are in {file}")


def refuse_mismatches(context: Context, policy: PolicyLearner, groups: Sequence[pb.RolloutGroup]) -> None:
    """Say which of the step's ``groups`` the policy left out. Raises MismatchError once they are too many."""
    named: list[str] = []
    for number, apart in policy.mismatched.items():
        prompt = groups[number].request.prompt.id
        named.append(f"{prompt} ({apart:.2g} nats)")
        context.say(
            f"group of prompt {prompt} teaches nothing: sampler and learner differ by {apart:.2g} nats a token, over "
            f"max_mismatch = {policy.config.max_mismatch:g}",
            prompt_id=prompt,
        )
    if named and policy.all_mismatched > policy.config.max_mismatched:
        raise MismatchError(
            f"{policy.all_mismatched} groups were sampled from something else than the learner computes, over "
            f"max_mismatched = {policy.config.max_mismatched}; in this step {', '.join(named)}. Do policy server and "
            "learner load the same processor, template and dtype? Is the learning rate so high that one update moves "
            "log-probabilities this far? Else look at these prompts, and take them out of the data"
        )


def keep_rollouts(
    context: Context,
    log: RolloutLog,
    step: int,
    groups: Sequence[pb.RolloutGroup],
    version: int,
    advantages: Advantages,
    policy: PolicyLearner,
) -> None:
    """Some of the step's groups into the run's folder, with what the policy at ``version`` thought of them."""
    if ranks.is_first():
        pairs = zip(advantages.values.tolist(), advantages.keep.tolist(), strict=True)
        known = [value if kept else None for value, kept in pairs]
        log.step(step + 1, groups, version=version, attempt=context.attempt, advantages=known, views=policy.seen)


def rollout_figures(
    groups: Sequence[pb.RolloutGroup], rollouts: StepRollouts, version: int, never: Collection[int] = ()
) -> dict[str, Any]:
    """Figures of what was sampled, before anything is learnt from it. ``never``: tokens that stand for pictures."""
    samples = [(group, sample) for group in groups for sample in group.samples]
    lengths = [len(sample.token_ids) for _, sample in samples]
    truncated = [float(is_cut_off(sample)) for _, sample in samples]
    valid = [float(not sample_problems(sample, never)) for _, sample in samples]
    ages = [staleness(group.policy_version, version) for group in groups]
    facts = [
        f1
        for group, sample in samples
        if group.request.prompt.teacher and (f1 := caption_f1(sample.text, group.request.prompt.teacher)) is not None
    ]
    return {
        "positions": [group.request.position for group in groups],
        "groups": len(groups),
        "lost_groups": len(rollouts.lost) + len(rollouts.groups) - len(groups),
        "wait_seconds": rollouts.wait_seconds,
        "generate_seconds": mean([group.generate_seconds for group in groups]),
        "judge_seconds": mean([group.judge_seconds for group in groups]),
        "response_tokens": mean(lengths),
        "sampled_tokens": sum(lengths),
        "samples": len(samples),
        "truncated": mean(truncated),
        "truncated_samples": round(sum(truncated)),
        "format_rate": mean(valid),
        "malformed_samples": round(len(valid) - sum(valid)),
        "caption_f1": mean(facts),
        "mixed_samples": sum(is_mixed(sample) for _, sample in samples),
        "staleness_mean": mean(ages),
        "staleness_max": max(ages, default=None),
    }


def push_weights(
    context: Context,
    publishers: Mapping[str, Publisher],
    learners: Iterable[PolicyLearner | ExpertLearner],
    group: pb.RolloutGroup | None = None,
) -> dict[str, Any]:
    """Publish the weights of these learners at once, from all ranks; ``group`` gives the policy's probe its prompt and
    text. ``push_seconds`` are all that the loop waits for it.

    Raises WeightsError as the publishers do, once all of them are done.
    """
    began = time.perf_counter()
    pushes = [_prepared_push(context, publishers, learner, group) for learner in learners]

    def push() -> dict[str, Any]:
        if not pushes:
            return {}
        with ThreadPoolExecutor(len(pushes), "push") as threads:
            done = [threads.submit(each) for each in pushes]
        return {name: value for each in done for name, value in each.result().items()}

    figures = ranks.from_first(push)
    return figures | {"push_seconds": time.perf_counter() - began} if pushes else {}


def _prepared_push(
    context: Context,
    publishers: Mapping[str, Publisher],
    learner: PolicyLearner | ExpertLearner,
    group: pb.RolloutGroup | None,
) -> Callable[[], dict[str, Any]]:
    """Probe and weights of one learner, from all ranks; what is returned pushes them, and gives the figures."""
    model: Any = learner.model
    name = learner.network if isinstance(learner, ExpertLearner) else POLICY
    prefixes = [f"{expert}_" for expert in learner.experts] if isinstance(learner, ExpertLearner) else [""]
    probe = None if group is None or name != POLICY else _probe(context, model, group)
    if hasattr(model, "adapted"):
        tensors, base = adapter_tensors(model), model_folder(model.adapted.base)

        def push() -> PushTimes:
            return publishers[name].push_adapter(learner.version, base, tensors, model.adapted.config, probe)

    elif isinstance(learner, ExpertLearner):
        weights = ranks.full_weights(model)
        config = config_json(model, ARCHITECTURES[model.config.model_type])
        own, saved = own_weights(model, weights), partial(as_saved, model)

        def push() -> PushTimes:
            return publishers[name].push(learner.version, own, config, None, saved)

    else:
        weights = ranks.full_weights(model)  # after the probe's pass, which leaves weights gathered
        config = config_json(model)

        def push() -> PushTimes:
            return publishers[name].push(learner.version, named_weights(model, weights), config, probe)

    def figures() -> dict[str, Any]:
        try:
            times = push()
        except WeightsError as error:
            if probe is None or group is None:
                raise
            raise WeightsError(f"{error} (probed with prompt {group.request.prompt.id})") from error
        return {name: value for prefix in prefixes for name, value in times.figures(prefix).items()}

    return figures


def _probe(context: Context, model: Any, group: pb.RolloutGroup) -> Probe | None:
    text = next((sample.text for sample in group.samples if sample.text), group.request.prompt.teacher)
    tolerance = context.config.push.probe_tolerance
    return make_probe(model, context.inputs, group.request.prompt, text, context.blobs, tolerance)


def settle(publishers: Mapping[str, Publisher]) -> None:
    """Wait for the files that follow the last broadcasts. Raises WeightsError where a server refuses them."""
    for publisher in publishers.values():
        publisher.settle()


def mean(values: Sequence[float]) -> float | None:
    """None where there is nothing to average: no data is no number."""
    return statistics.fmean(values) if values else None
