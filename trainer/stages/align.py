"""Alignment: the adversarial game. Experts learn to tell teacher from policy, the policy learns to be taken for it.

Each step: the experts update on the step's pairs, the policy on the scores these pairs got when they were sampled, all
weights go out to the running servers. No accuracy reward, no KL (method: Policy update in alignment).
"""

import time
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from prism.config import AlignConfig, RunConfig
from prism.model.expert import ExpertModel, load_expert, place
from prism.model.inputs import Example, InputBuilder
from prism.trainer.flow.intake import POLICY, Admission, Intake
from prism.trainer.learn import ranks
from prism.trainer.learn.adapted import Wanted, load_adapted, save_learnt
from prism.trainer.learn.advantages import Advantages, ExpertScores, alignment_advantages
from prism.trainer.learn.expert_learner import ExpertLearner
from prism.trainer.learn.learner_model import learner_model
from prism.trainer.learn.losses import Algorithm
from prism.trainer.learn.offload import offload_of
from prism.trainer.learn.policy_learner import PolicyLearner, training_samples
from prism.trainer.run.alerts import Alerts
from prism.trainer.run.expert_start import expert_start, named_start, refuse_unfit_starts
from prism.trainer.run.recorder import Recorder
from prism.trainer.stages.common import (
    dump_nonfinite_groups,
    keep_rollouts,
    mean,
    new_policy,
    push_weights,
    refuse_mismatches,
    resume_and_push,
    rollout_figures,
    settle,
    shared_step,
    usable_groups,
)
from prism.trainer.stages.context import Context, open_context
from prism.trainer.stages.empty_steps import EmptySteps
from prism.trainer.stages.looks import Looks
from prism.trainer.stages.picture_check import refuse_other_judging
from prism.trainer.stages.validation import Validation
from prism.wire.response import EXPERTS, Expert
from prism.wire.sample import sample_problems
from prism.wire.v1 import rollout_pb2 as pb

SHOWN = ("perception_gap", "reasoning_gap", "caption_f1", "format_rate")
WARMUP_WINDOW = 4  # steps asked for ahead of the learner while the policy stands still


def train(config: RunConfig, name: str, stage: AlignConfig, start: Path | str, output: Path) -> dict[str, Any]:
    """Play the game from the model in ``start`` and write the policy to ``output``; resumes where it stopped."""
    ranks.seed(config.seed)
    ranks.from_first(partial(refuse_unfit_starts, config, {name: stage}, start))
    context = open_context(config, name, start)
    total = stage.warmup_steps + stage.steps
    policy, experts = _learners(context, stage, start)
    intake = context.intake(stage.rollouts, (POLICY, *stage.experts.networks), require=("teacher",))
    learners = {POLICY: policy} | {expert.network: expert for expert in experts}
    never = context.inputs.vision_token_ids
    empty_steps, alerts = EmptySteps(stage), Alerts(config.alerts, context.say)
    counts = {"empty_steps": empty_steps, "alerts": alerts}
    saved, first, publishers = resume_and_push(context, learners, intake, counts)
    ranks.from_first(partial(refuse_other_judging, context, stage.experts))

    validation, looks, ended = Validation(context, total), Looks(context, stage), total
    recorder = Recorder(config.run_dir, name, total, alerts=alerts)
    rollout_log = context.rollout_log()
    started = time.perf_counter()
    asked = first
    with saved:
        for step in range(first, total):
            began = time.perf_counter()
            saved.poll()
            version = policy.version

            def collected(
                step: int = step, version: int = version
            ) -> tuple[list[pb.RolloutGroup], list[Example], dict[str, Any]]:
                nonlocal asked
                grade = config.rollout_log.grade_alignment
                asked = _admit_ahead(intake, stage, asked, step, version, experts[0].version, grade=grade)
                rollouts = intake.collect(step, context.say)
                groups, prompts = usable_groups(context, intake, rollouts, version)
                return groups, prompts, rollout_figures(groups, rollouts, version, never)

            groups, prompts, figures = shared_step(context, collected)
            warming_up, advantages = step < stage.warmup_steps, None
            for expert in experts:
                with dump_nonfinite_groups(context, expert, step, groups):
                    figures |= expert.update(groups, prompts, context.inputs, warming_up=warming_up)
                for judging in expert.experts:
                    empty_steps.expert(judging, figures, warming_up=warming_up)
            if not warming_up:
                advantages = _advantages(groups, stage.alpha, never)
                samples, unplaceable = training_samples(
                    groups, prompts, advantages.values, advantages.keep, context.examples
                )
                with dump_nonfinite_groups(context, policy, step, groups):
                    figures |= policy.update(samples, context.examples, watch=rollout_log.groups)
                refuse_mismatches(context, policy, groups)
                figures |= advantages.figures() | _judged(groups) | {"unplaceable_samples": unplaceable}
                figures |= empty_steps.policy(samples, figures)
            if ranks.is_first():
                intake.finish(step)

            due: list[PolicyLearner | ExpertLearner] = [policy] if policy.version > version else []
            if step == stage.warmup_steps - 1 or not (warming_up or stage.experts.frozen):
                due += experts
            figures |= push_weights(context, publishers, due, groups[0] if groups else None)
            figures |= {"warmup": warming_up, "attempt": context.attempt, "step_seconds": time.perf_counter() - began}
            figures |= looks.measure(step + 1, policy.version, experts[0].version)
            recorder.step(step + 1, figures, show=SHOWN, groups=groups)
            if advantages:
                keep_rollouts(context, rollout_log, step, groups, version, advantages, policy)
            empty_steps.end_if_nothing_learnt(context, intake, step, policy.version, groups)
            validation.begin(step + 1, policy.version)
            if (step + 1) % stage.checkpoint_every == 0 or step + 1 == total:
                saved.save(step + 1)
                if validation.is_over():
                    context.say(f"{name} ends after step {step + 1}: evaluate.stop_after")
                    ended = step + 1
                    break
        validation.close()
    recorder.close()
    settle(publishers)
    save_learnt(policy.model, output, context.inputs)
    for expert in experts:  # with the processor and the licence of what it was made of
        named = named_start(config, stage, expert.network, start)
        inputs = InputBuilder(named, config.limits.pixel_bounds) if named else context.inputs
        save_learnt(expert.model, output / "experts" / expert.network, inputs)
    if ranks.is_first():
        intake.check_newest()
    return {
        "version": policy.version,
        "expert_version": experts[0].version,
        "steps": ended - stage.warmup_steps,
        "seconds": time.perf_counter() - started,
        "data": saved.data,
    }


def _learners(context: Context, stage: AlignConfig, start: Path | str) -> tuple[PolicyLearner, list[ExpertLearner]]:
    """The policy's and the experts'. Those with adapters that start from one folder share its model."""
    config, updates, networks = context.config, stage.warmup_steps + stage.steps, stage.experts.networks
    starts = {POLICY: start} | {
        network: ranks.from_first(partial(expert_start, config, context.stage, stage, network)) for network in networks
    }
    wanted = {POLICY: Wanted(stage.policy.lora)} if stage.policy.lora else {}
    if (lora := stage.experts.lora) is not None:
        wanted |= dict.fromkeys(networks, Wanted(lora, stage.experts.mixture, stage.experts.dropout))
    adapted: dict[str, Any] = {}
    for folder in dict.fromkeys(starts[name] for name in wanted):
        of_folder = {name: one for name, one in wanted.items() if starts[name] == folder}
        adapted |= load_adapted(folder, config, of_folder)
    offload = offload_of(config)
    policy = new_policy(context, stage, start, Algorithm.ALIGN, model=adapted.get(POLICY), offload=offload)
    models = [adapted[n] if n in adapted else _new_expert(config, stage, starts[n]) for n in networks]
    made = zip(networks, models, strict=True)
    return policy, [ExpertLearner(network, model, stage.experts, updates, offload) for network, model in made]


def _new_expert(config: RunConfig, stage: AlignConfig, start: Path | str) -> ExpertModel:
    def load(dtype: torch.dtype) -> ExpertModel:
        model = load_expert(start, seed=config.seed, dropout=stage.experts.dropout, dtype=dtype)
        return place(model, config.device, move=False)

    return learner_model(load, config)


def _admit_ahead(
    intake: Intake, stage: AlignConfig, asked: int, step: int, version: int, expert_version: int, *, grade: bool
) -> int:
    """Ask for as many steps as may be asked for now; returns the first step not asked for.

    ``version`` is the policy's at ``step``. ``expert_version`` counts steps of the game, also those at which an expert
    learnt nothing: a request names one version for both.
    """
    total = stage.warmup_steps + stage.steps
    while asked < total:
        warming_up = asked < stage.warmup_steps
        if warming_up and asked >= step + WARMUP_WINDOW:
            break
        if not warming_up and step < stage.warmup_steps:
            break  # the first scored step waits for experts that are warmed up
        admission = Admission(
            step=asked,
            update=version if warming_up else version + asked - step,
            count=stage.warmup_prompts if warming_up else stage.rollouts.prompts,
            n=stage.warmup_n if warming_up else stage.rollouts.n,
            experts=() if warming_up else EXPERTS,
            grade=grade and not warming_up,
        )
        if not intake.admit(admission, version=version, expert_version=expert_version):
            break
        asked += 1
    return asked


def _scores(groups: Sequence[pb.RolloutGroup], expert: Expert) -> ExpertScores:
    values: list[float | None] = []
    versions: list[int] = []
    for group in groups:
        for sample in group.samples:
            score = next((s for s in sample.scores if s.expert == expert), None)
            values.append(score.value if score is not None and score.status == pb.STATUS_OK else None)
            versions.append(score.expert_version if score is not None else 0)
    return ExpertScores(values, versions)


def _advantages(groups: Sequence[pb.RolloutGroup], alpha: float, never: Collection[int] = ()) -> Advantages:
    return alignment_advantages(
        _scores(groups, "perception"),
        _scores(groups, "reasoning"),
        [not sample_problems(sample, never) for group in groups for sample in group.samples],
        [number for number, group in enumerate(groups) for _ in group.samples],
        alpha=alpha,
    )


def _judged(groups: Sequence[pb.RolloutGroup]) -> dict[str, Any]:
    """Figures of the scores the policy learnt from: given by the serving experts, at the versions named."""
    figures: dict[str, Any] = {}
    for expert in EXPERTS:
        scores = _scores(groups, expert)
        teacher = [
            score.value
            for group in groups
            for score in group.teacher_scores
            if score.expert == expert and score.status == pb.STATUS_OK
        ]
        policy = [value for value in scores.values if value is not None]
        teacher_mean, policy_mean = mean(teacher), mean(policy)
        figures |= {
            f"served_{expert}_version": max(scores.versions, default=None),
            f"served_{expert}_score": policy_mean,
            f"served_{expert}_teacher_score": teacher_mean,
            f"served_{expert}_gap": None if teacher_mean is None or policy_mean is None else teacher_mean - policy_mean,
        }
    return figures
