"""The policy learner on a real model: how a batch is cut changes nothing, and no data is no number."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from prism.config import PolicyLearnerConfig
from prism.data.blobs import BlobStore
from prism.data.images import decode_image
from prism.errors import NotFiniteError, StreamError
from prism.model.inputs import Example, InputBuilder
from prism.model.packing import pack
from prism.trainer.checkpoint.tensors import read_tensors, write_tensors
from prism.trainer.flow.examples import GroupExamples
from prism.trainer.learn.losses import LossOptions
from prism.trainer.learn.policy_learner import PolicyLearner, TrainingSample, training_samples
from prism.trainer.learn.policy_model import load_policy, response_logprobs
from prism.wire.v1 import rollout_pb2 as pb

VERSION = 5
TEXTS = ("<caption>- a one</caption>", "<think>9-1=8</think><answer>8</answer>", "7", "- b two\n- c three")


@pytest.fixture(scope="module")
def examples(tiny_model: Path, blobs: BlobStore) -> GroupExamples:
    return GroupExamples(InputBuilder(tiny_model), blobs)


@pytest.fixture(scope="module")
def groups(examples: GroupExamples, tiny_model: Path, teacher_prompts: list[pb.Prompt]) -> list[pb.RolloutGroup]:
    """Four groups of two samples, with the logprobs that the untrained policy gives them."""
    model = load_policy(tiny_model, dtype=torch.float32).eval()
    made: list[pb.RolloutGroup] = []
    for number, prompt in enumerate(teacher_prompts[:4]):
        group = pb.RolloutGroup(request=pb.RolloutRequest(prompt=prompt, position=number), policy_version=VERSION)
        group.prompt_token_ids.extend(prompt_ids(examples, prompt))
        built = examples.prompt(group)
        for text in (TEXTS[number], TEXTS[number - 1]):
            example = examples.inputs.with_text(built, text)
            with torch.no_grad():
                logprobs = response_logprobs(model, pack([example], examples.inputs)).tolist()
            group.samples.append(pb.Sample(text=text, token_ids=example.response_ids, logprobs=logprobs))
        made.append(group)
    return made


def prompt_ids(examples: GroupExamples, prompt: pb.Prompt) -> list[int]:
    """As the server reports them."""
    images = [
        decode_image(examples._blobs.get(part.image_sha256))
        for message in prompt.messages
        for part in message.parts
        if part.HasField("image_sha256")
    ]
    return examples.inputs.prompt(prompt.messages, images).input_ids


@pytest.fixture(scope="module")
def samples(groups: list[pb.RolloutGroup], examples: GroupExamples) -> list[TrainingSample]:
    advantages = torch.tensor([1.0, -1.0, 0.5, -0.5, 2.0, -2.0, 0.25, -0.25])
    prompts = [examples.prompt(group) for group in groups]
    made, unplaceable = training_samples(groups, prompts, advantages, torch.ones(8, dtype=torch.bool), examples)
    assert unplaceable == 0
    return made


@pytest.fixture
def learner(tiny_model: Path) -> Callable[..., PolicyLearner]:
    def make(
        algorithm: str = "grpo",
        *,
        temperature: float = 1.0,
        lr: float = 1e-3,
        kl_coef: float = 0.0,
        reference: Any = None,
        **values: Any,
    ) -> PolicyLearner:
        config = PolicyLearnerConfig.model_validate({"optimizer": {"lr": lr}} | values)
        model = load_policy(tiny_model, dtype=torch.float32)
        options = LossOptions(max_length=64, kl_coef=kl_coef)
        return PolicyLearner(
            model,
            config,
            algorithm,
            options,
            temperature=temperature,
            updates=10,
            version=VERSION,
            reference=reference,
        )

    return make


def weights(learner: PolicyLearner) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in learner.model.parameters()])


@pytest.mark.parametrize("algorithm", ["grpo", "gspo", "dr_grpo"])
def test_an_update_does_not_depend_on_the_micro_batch(
    learner: Callable[..., PolicyLearner],
    samples: list[TrainingSample],
    examples: GroupExamples,
    algorithm: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    results: list[tuple[dict[str, Any], torch.Tensor]] = []
    for tokens in (1, 150, 100_000):
        one = learner(algorithm, micro_batch_tokens=tokens)
        figures: dict[str, Any] = {}
        update = one.update
        monkeypatch.setattr(one, "update", lambda *given, f=figures, u=update: f.update(u(*given)))
        results.append((figures, gradient_of_update(one, samples, examples)))
    (figures, gradient), *others = results
    for other_figures, other_gradient in others:
        assert (other_gradient - gradient).norm() < 1e-5 * gradient.norm()
        for name in ("policy_loss", "entropy", "clip_fraction", "ratio_max", "approx_kl", "logprob_mismatch"):
            assert other_figures[name] == pytest.approx(figures[name], abs=1e-5), name


def test_a_first_update_is_on_policy_and_moves_the_weights(
    learner: Callable[..., PolicyLearner], samples: list[TrainingSample], examples: GroupExamples
) -> None:
    one = learner()
    before = weights(one)
    figures = one.update(samples, examples)
    assert not torch.equal(weights(one), before)
    assert one.version == figures["policy_version"] == VERSION + 1
    assert figures["ratio_max"] == pytest.approx(1, abs=1e-4)
    assert figures["clip_fraction"] == 0
    assert figures["logprob_mismatch"] < 1e-5
    assert figures["policy_grad_norm"] > 0
    assert figures["trained_samples"] == len(samples)
    assert figures["trained_tokens"] == sum(len(sample.logprobs) for sample in samples)


def test_learning_makes_what_was_good_likelier(
    learner: Callable[..., PolicyLearner], samples: list[TrainingSample], examples: GroupExamples
) -> None:
    one = learner(lr=3e-4)

    def difference() -> float:
        one.model.eval()
        total = 0.0
        for sample in samples:
            with torch.no_grad():
                logprobs = response_logprobs(one.model, pack([sample.example], examples.inputs))
            total += sample.advantage * float(logprobs.mean())
        return total

    before = difference()
    for _ in range(3):
        one.update(samples, examples)
    assert difference() > before


@pytest.mark.parametrize("minibatches", [2, 4])
def test_minibatches_of_whole_groups_make_ratios_leave_one(
    learner: Callable[..., PolicyLearner], samples: list[TrainingSample], examples: GroupExamples, minibatches: int
) -> None:
    one = learner(minibatches=minibatches)
    figures = one.update(samples, examples)
    assert one._optimizer.steps == minibatches
    assert figures["ratio_max"] > 1.001
    assert figures["logprob_mismatch"] < 1e-5  # looked at before the first update alone
    assert one.version == VERSION + 1


def test_epochs_go_over_the_batch_again(
    learner: Callable[..., PolicyLearner], samples: list[TrainingSample], examples: GroupExamples
) -> None:
    one = learner(epochs=2)
    assert one.update(samples, examples)["ratio_max"] > 1.001
    assert one._optimizer.steps == 2


@pytest.mark.parametrize("minibatches", [1, 4])
def test_without_a_sample_the_version_stays_and_no_figure_is_made(
    learner: Callable[..., PolicyLearner], examples: GroupExamples, minibatches: int
) -> None:
    one = learner(minibatches=minibatches)
    before = weights(one)
    figures = one.update([], examples)
    assert one.version == VERSION
    assert torch.equal(weights(one), before)
    none = ("policy_loss", "policy_grad_norm", "clip_fraction", "ratio_max", "approx_kl", "logprob_mismatch")
    assert {name: figures[name] for name in none} == dict.fromkeys(none)
    assert (figures["trained_samples"], figures["trained_tokens"], figures["policy_skipped"]) == (0, 0, 0)


@pytest.mark.parametrize("kl_coef", [0.0, 0.1])
def test_where_no_advantage_differs_momentum_alone_moves_nothing(
    learner: Callable[..., PolicyLearner],
    samples: list[TrainingSample],
    examples: GroupExamples,
    tiny_model: Path,
    kl_coef: float,
) -> None:
    reference = load_policy(tiny_model, dtype=torch.float32).requires_grad_(False).eval() if kl_coef else None
    one = learner(kl_coef=kl_coef, reference=reference)
    one.update(samples, examples)
    before = weights(one)
    figures = one.update([replace(sample, advantage=0.0) for sample in samples], examples)
    moved = not torch.equal(weights(one), before)
    assert (moved, one.version - VERSION - 1) == (bool(kl_coef), int(bool(kl_coef))), "a KL has a gradient of its own"
    assert figures["entropy"] is not None, "looked at all the same"


def test_the_mismatch_is_of_samples_of_the_current_version_alone(
    learner: Callable[..., PolicyLearner], samples: list[TrainingSample], examples: GroupExamples
) -> None:
    """A stale sample's logprobs differ rightly: that is no mismatch between server and learner."""

    def aged(sample: TrainingSample, by: float, version: int) -> TrainingSample:
        return replace(sample, logprobs=[logprob + by for logprob in sample.logprobs], policy_version=version)

    stale = [aged(sample, 0.5, VERSION - 1) for sample in samples[:4]]
    current = [aged(sample, 0.01, VERSION) for sample in samples[4:]]
    assert learner().update([*stale, *current], examples)["logprob_mismatch"] == pytest.approx(0.01, abs=1e-4)
    assert learner().update(stale, examples)["logprob_mismatch"] is None


def test_ratios_are_of_the_distribution_that_was_sampled_from(
    learner: Callable[..., PolicyLearner], samples: list[TrainingSample], examples: GroupExamples
) -> None:
    one = learner(temperature=2.0)
    one.model.eval()
    hot = [
        replace(
            sample,
            logprobs=response_logprobs(one.model, pack([sample.example], examples.inputs), 2.0).tolist(),
        )
        for sample in samples
    ]
    assert one.update(hot, examples)["logprob_mismatch"] < 1e-5
    assert learner(temperature=2.0).update(samples, examples)["logprob_mismatch"] > 1e-2


def test_an_update_that_is_not_finite_is_skipped_and_counted(
    learner: Callable[..., PolicyLearner], samples: list[TrainingSample], examples: GroupExamples
) -> None:
    one = learner()
    before = weights(one)
    figures = one.update([replace(samples[0], advantage=float("nan")), *samples[1:]], examples)
    assert torch.equal(weights(one), before)
    assert (figures["policy_skipped"], figures["policy_grad_norm"], one.version) == (1, None, VERSION)


@pytest.mark.parametrize(
    ("advantage", "tokens", "blamed"),
    [
        (float("nan"), 1, [0]),  # each sample is a micro-batch: its own loss tells
        (float("nan"), 100_000, [0, 1, 2, 3]),
        (float("inf"), 1, [0]),
        (3e38, 1, [0, 1, 2, 3]),  # every loss is finite, the gradient's norm is not
    ],
)
def test_who_is_to_blame_for_an_update_that_is_not_finite(
    learner: Callable[..., PolicyLearner],
    samples: list[TrainingSample],
    examples: GroupExamples,
    advantage: float,
    tokens: int,
    blamed: list[int],
) -> None:
    one = learner(micro_batch_tokens=tokens)
    one.update([replace(samples[0], advantage=advantage), *samples[1:]], examples)
    assert one.not_finite == blamed
    one.update(samples, examples)
    assert one.not_finite == []


def test_a_sampler_whose_logprobs_are_no_numbers_teaches_nothing(
    learner: Callable[..., PolicyLearner], samples: list[TrainingSample], examples: GroupExamples
) -> None:
    """Their loss is NaN and their gradient 0: of the other samples half an update would be made."""
    one = learner()
    before = weights(one)
    figures = one.update(
        [*samples[:-1], replace(samples[-1], logprobs=[float("nan")] * len(samples[-1].logprobs))], examples
    )
    assert (figures["policy_skipped"], figures["policy_grad_norm"]) == (1, None)
    assert torch.equal(weights(one), before)


def test_a_group_that_was_sampled_from_something_else_is_named_and_teaches_nothing(
    learner: Callable[..., PolicyLearner], samples: list[TrainingSample], examples: GroupExamples
) -> None:
    off = [
        replace(sample, logprobs=[value - 0.8 for value in sample.logprobs], policy_version=VERSION - 1)
        if sample.group == 1
        else sample
        for sample in samples
    ]
    silent = [replace(sample, advantage=0.0) if sample.group == 1 else sample for sample in samples]
    for values in ({"epochs": 1}, {"epochs": 2}, {"minibatches": 2}):
        one, other = learner(lr=1e-5, **values), learner(lr=1e-5, **values)
        figures = one.update(off, examples)
        assert list(one.mismatched) == [1]
        assert one.mismatched[1] == pytest.approx(0.8, abs=0.1)
        assert (figures["mismatched_groups"], one.all_mismatched) == (1, 1)
        other.update(silent, examples)
        assert (weights(one) - weights(other)).norm() < 1e-6 * weights(one).norm()
        one.update(samples, examples)
        assert (one.mismatched, one.all_mismatched) == ({}, 1)


def test_too_many_updates_in_a_row_that_are_not_finite_end_it_and_change_nothing(
    learner: Callable[..., PolicyLearner], samples: list[TrainingSample], examples: GroupExamples
) -> None:
    one = learner(optimizer={"lr": 1e-3, "max_skipped": 2})
    before = weights(one)
    bad = [replace(samples[2], advantage=float("inf")), *samples[3:]]
    one.update(bad, examples)
    with pytest.raises(NotFiniteError, match="2 updates in a row"):
        one.update(bad, examples)
    assert one.not_finite == [1, 2, 3]
    assert torch.equal(weights(one), before)


def gradient_of_update(one: PolicyLearner, samples: list[TrainingSample], examples: GroupExamples) -> torch.Tensor:
    """Of the update's only optimizer step, which is not made."""
    gradients: list[torch.Tensor] = []

    def keep(loss: float = 0.0) -> tuple[float, bool]:
        gradients.append(torch.cat([p.grad.flatten() for p in one.model.parameters() if p.grad is not None]))
        return 1.0, True

    one._optimizer.step = keep
    one.update(samples, examples)
    (gradient,) = gradients
    return gradient


def test_tokens_that_the_sampler_saw_otherwise_weigh_by_the_truncated_ratio(
    learner: Callable[..., PolicyLearner], samples: list[TrainingSample], examples: GroupExamples
) -> None:
    """-(1/G) Σ_i (1/|o_i|) Σ_t w_t Â_i log π_t, w = min(π_learner/π_sampler, cap); the ratio itself is 1."""
    generator = torch.Generator().manual_seed(1)
    shifts = [0.5 * torch.randn(len(sample.logprobs), generator=generator) for sample in samples]
    off = [
        replace(sample, logprobs=(torch.tensor(sample.logprobs) - shift).tolist())
        for sample, shift in zip(samples, shifts, strict=True)
    ]
    one = learner(importance_cap=1.2, max_mismatch=9)
    gradient = gradient_of_update(one, off, examples)
    one.model.zero_grad()
    logprobs = response_logprobs(one.model, pack([sample.example for sample in off], examples.inputs))
    weight = torch.cat(shifts).exp().clamp(max=1.2)
    assert 0.1 < float((weight == 1.2).float().mean()) < 0.9
    scale = torch.cat([torch.full((len(s.logprobs),), s.advantage / len(s.logprobs)) for s in off]) / len(off)
    (-(weight * scale * logprobs).sum()).backward()
    expected = torch.cat([p.grad.flatten() for p in one.model.parameters() if p.grad is not None])
    assert (gradient - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize("minibatches", [1, 2])
def test_with_importance_sampling_ratios_are_to_the_learner_at_the_start_of_the_step(
    learner: Callable[..., PolicyLearner], samples: list[TrainingSample], examples: GroupExamples, minibatches: int
) -> None:
    off = [replace(sample, logprobs=[logprob - 0.5 for logprob in sample.logprobs]) for sample in samples]
    still = {"lr": 1e-9, "minibatches": minibatches}
    assert learner(**still).update(off, examples)["ratio_max"] == pytest.approx(math.exp(0.5), rel=1e-3)
    figures = learner(importance_cap=2.0, **still).update(off, examples)
    assert figures["ratio_max"] == pytest.approx(1, abs=1e-4)
    assert figures["logprob_mismatch"] == pytest.approx(0.5, abs=1e-3)  # the sampler's is what is watched
    moving = learner(importance_cap=2.0, minibatches=minibatches).update(off, examples)
    assert (moving["ratio_max"] > 1.001) is (minibatches > 1)


def test_a_kl_to_the_reference_is_part_of_loss_and_gradient(
    learner: Callable[..., PolicyLearner], samples: list[TrainingSample], examples: GroupExamples, tiny_model: Path
) -> None:
    """0.1 × the mean over samples of the mean over tokens of r - 1 - log r, r = π_ref/π."""
    reference = load_policy(tiny_model, dtype=torch.float32).requires_grad_(False).eval()
    same = learner(kl_coef=0.1, reference=reference)
    assert same.update(samples, examples)["reference_kl"] == pytest.approx(0, abs=1e-6)
    assert learner().update(samples, examples)["reference_kl"] is None
    generator = torch.Generator().manual_seed(2)
    for parameter in reference.parameters():
        parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
    without, one = learner(), learner(kl_coef=0.1, reference=reference)
    gradient = gradient_of_update(one, samples, examples) - gradient_of_update(without, samples, examples)
    one.model.zero_grad()
    batch = pack([sample.example for sample in samples], examples.inputs)
    log_ratio = response_logprobs(reference, batch) - response_logprobs(one.model, batch)
    scale = torch.cat([torch.full((len(s.logprobs),), 1 / len(s.logprobs)) for s in samples]) / len(samples)
    (0.1 * (scale * (log_ratio.exp() - 1 - log_ratio)).sum()).backward()
    expected = torch.cat([p.grad.flatten() for p in one.model.parameters() if p.grad is not None])
    assert expected.norm() > 1e-2
    assert (gradient - expected).norm() < 1e-3 * expected.norm()  # a difference of two gradients


def test_a_loaded_learner_goes_on_as_the_saved_one(
    learner: Callable[..., PolicyLearner], samples: list[TrainingSample], examples: GroupExamples, tmp_path: Path
) -> None:
    one = learner(max_mismatch=9)  # an update of this size moves so small a model far
    one.update(samples, examples)
    write_tensors(tmp_path, one.state_dict())
    two = learner(max_mismatch=9)
    state = two.state_dict()
    read_tensors(tmp_path, state)
    two.load_state_dict(state, one.version)
    assert torch.equal(weights(two), weights(one))
    assert [one.update(samples, examples)["policy_version"], two.update(samples, examples)["policy_version"]] == [7, 7]
    torch.testing.assert_close(weights(two), weights(one), rtol=0, atol=1e-6)


def kept(count: int, *dropped: int) -> torch.Tensor:
    return torch.tensor([i not in dropped for i in range(count)])


def test_samples_keep_their_group_and_the_masked_ones_are_left_out(
    groups: list[pb.RolloutGroup], examples: GroupExamples
) -> None:
    prompts: Sequence[Example] = [examples.prompt(group) for group in groups]
    made, unplaceable = training_samples(groups, prompts, torch.arange(8.0), kept(8, 0, 5), examples)
    assert [(sample.advantage, sample.group) for sample in made] == [(1, 0), (2, 1), (3, 1), (4, 2), (6, 3), (7, 3)]
    assert unplaceable == 0
    assert made[0].example.response_ids == list(groups[0].samples[1].token_ids)
    assert made[0].logprobs == list(groups[0].samples[1].logprobs)


def test_of_a_sample_with_a_vision_token_what_led_to_it_is_learnt_from(
    groups: list[pb.RolloutGroup], examples: GroupExamples, learner: Callable[..., PolicyLearner]
) -> None:
    group = pb.RolloutGroup()
    group.CopyFrom(groups[0])
    whole, broken = group.samples
    broken.token_ids[3] = examples.inputs.image_token_id
    advantages = torch.tensor([0.5, -2.0])
    made, unplaceable = training_samples([group], [examples.prompt(group)], advantages, kept(2), examples)
    assert unplaceable == 0
    assert [sample.advantage for sample in made] == [0.5, -2.0]
    assert made[0].example.response_ids == list(whole.token_ids)
    assert (made[1].example.response_ids, made[1].logprobs) == (broken.token_ids[:3], broken.logprobs[:3])
    assert learner().update(made, examples)["trained_tokens"] == len(whole.token_ids) + 3

    broken.token_ids[0] = examples.inputs.image_token_id
    made, unplaceable = training_samples([group], [examples.prompt(group)], advantages, kept(2), examples)
    assert (len(made), unplaceable) == (1, 1), "nothing led to it"


def test_a_prompt_that_the_server_saw_otherwise_is_refused(
    groups: list[pb.RolloutGroup], examples: GroupExamples
) -> None:
    group = pb.RolloutGroup()
    group.CopyFrom(groups[0])
    del group.prompt_token_ids[-1]
    with pytest.raises(StreamError, match="other tokens than the learner builds"):
        examples.prompt(group)


@pytest.mark.parametrize("micro_batch_tokens", [1, 100_000])
def test_what_the_learner_thought_of_watched_groups_is_kept_token_by_token(
    learner: Callable[..., PolicyLearner],
    samples: list[TrainingSample],
    examples: GroupExamples,
    micro_batch_tokens: int,
) -> None:
    policy = learner(micro_batch_tokens=micro_batch_tokens)
    watched = policy.update(samples, examples, watch=2)
    assert sorted(policy.seen) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for sample in samples[:4]:  # the policy that sampled them is the learner's own
        view = policy.seen[sample.group, sample.number]
        assert view.logprobs == pytest.approx(sample.logprobs, abs=1e-4)
        assert len(view.entropies) == len(sample.logprobs)
        assert min(view.entropies) > 0
    unwatched = learner(micro_batch_tokens=micro_batch_tokens)
    same = unwatched.update(samples, examples)
    assert unwatched.seen == {}
    assert {name: value for name, value in same.items() if "seconds" not in name} == {
        name: value for name, value in watched.items() if "seconds" not in name
    }
