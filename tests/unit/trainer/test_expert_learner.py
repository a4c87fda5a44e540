"""An expert's learner on a real model: teacher and student are told apart by their words alone."""

import asyncio
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from expert_updates import NO_FORMAT, WRONG, figures, weights
from torch import nn

from prism.data.blobs import BlobStore
from prism.errors import NotFiniteError
from prism.model.expert import ExpertOutput, load_expert, place, save_expert, upcycle
from prism.model.inputs import Example
from prism.model.packing import Batch, pack
from prism.services.experts.planner import Planner
from prism.services.experts.settings import ExpertSettings
from prism.services.experts.turns import in_turns
from prism.trainer.checkpoint.tensors import read_tensors, write_tensors
from prism.trainer.learn.expert_learner import ExpertLearner
from prism.trainer.learn.losses import bradley_terry, score_regularisation
from prism.wire.experts import ScoreItem, ScoreRequest
from prism.wire.messages import image_sha256s, to_json
from prism.wire.response import Expert, parse_response
from prism.wire.v1 import rollout_pb2 as pb

MEASURED = (
    "loss",
    "grad_norm",
    "pair_accuracy",
    "tie_share",
    "gap",
    "teacher_score",
    "teacher_score_std",
    "student_score",
    "student_score_std",
    "length_correlation",
    "length_correlation_both",
    "mismatch_accuracy",
    "mismatch_tie_share",
    "router_load",
    "router_load_max",
    "router_load_min",
)


class TokenCounter(nn.Module):
    """An expert that scores ``sign`` times the tokens of a response, and keeps what it was given."""

    mixture = None

    def __init__(self, sign: float = 1.0) -> None:
        super().__init__()
        self.score = nn.Linear(1, 1, bias=False)
        nn.init.constant_(self.score.weight, sign)
        self.seen: list[list[int]] = []

    def judge(self, batch: Batch, *, router_logits: bool = False) -> ExpertOutput:
        self.seen += [example.input_ids for example in batch.examples]
        lengths = torch.tensor([float(len(example.response_ids)) for example in batch.examples])
        return ExpertOutput(self.score.weight[0, 0] * lengths, ())


@pytest.mark.parametrize("texts", [(NO_FORMAT, NO_FORMAT), ()])
def test_without_a_valid_pair_nothing_is_learnt_and_nothing_is_measured(
    learner: Callable[..., ExpertLearner], groups: Any, prompts: list[Example], examples: Any, texts: tuple[str, ...]
) -> None:
    one = learner()
    before = weights(one)
    made = figures(one, groups(*texts), prompts, examples)
    assert {name: made[name] for name in MEASURED} == dict.fromkeys(MEASURED)
    assert (made["updated"], made["version"], one.version) == (0, 1, 1)
    assert made["valid_pairs"] == (0 if texts else None)
    assert torch.equal(weights(one), before)


def test_a_teacher_without_format_makes_no_pairs(
    learner: Callable[..., ExpertLearner], groups: Any, prompts: list[Example], examples: Any
) -> None:
    made = groups(WRONG, count=2)
    made[0].request.prompt.teacher = NO_FORMAT
    assert figures(learner(), made, prompts, examples)["valid_pairs"] == 0.5


def test_a_sample_that_was_cut_off_or_holds_a_picture_makes_no_pair(
    learner: Callable[..., ExpertLearner], groups: Any, prompts: list[Example], examples: Any
) -> None:
    (group,) = groups(WRONG, WRONG, WRONG, WRONG, count=1)
    group.samples[0].finish_reason = "length"
    group.samples[1].token_ids.extend([1, examples.inputs.image_token_id])
    group.samples[2].finish_reason = "stop"
    assert figures(learner(model=TokenCounter()), [group], prompts, examples)["valid_pairs"] == 0.5


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("expert", ["perception", "reasoning"])
def test_the_same_text_on_both_sides_has_a_gap_of_exactly_nothing(
    learner: Callable[..., ExpertLearner],
    groups: Any,
    prompts: list[Example],
    examples: Any,
    expert: Expert,
    count: int,
    dropout: float,
) -> None:
    made = figures(learner(expert, dropout=dropout), groups("", "", "", count=count), prompts, examples)
    assert made["gap"] == 0.0
    assert (made["pair_accuracy"], made["tie_share"]) == (None, 1.0)
    assert made["valid_pairs"] == 1.0
    assert made["teacher_score"] == pytest.approx(made["student_score"], abs=1e-6)


@pytest.mark.parametrize(("expert", "sees"), [("perception", (False, True)), ("reasoning", (True, False))])
def test_an_expert_sees_its_own_section_alone(
    learner: Callable[..., ExpertLearner],
    groups: Any,
    prompts: list[Example],
    examples: Any,
    expert: Expert,
    sees: Any,
) -> None:
    """One student differs from the teacher in its reasoning, one in its caption."""
    (group,) = groups("", "", count=1)
    teacher = group.request.prompt.teacher
    caption, rest = teacher.split("</caption>")
    group.samples[0].text = f"{caption}</caption><think>nothing</think><answer>0</answer>"
    group.samples[1].text = f"<caption>- nothing</caption>{rest}"
    for sample, differs in zip(group.samples, sees, strict=True):
        alone = pb.RolloutGroup(request=group.request, samples=[sample])
        assert (figures(learner(expert), [alone], prompts, examples)["gap"] != 0) is differs


def test_what_is_learnt_tells_teacher_from_student(
    learner: Callable[..., ExpertLearner], groups: Any, prompts: list[Example], examples: Any
) -> None:
    one = learner(optimizer={"lr": 3e-3})
    batch = groups(WRONG, NO_FORMAT, WRONG)
    history = [figures(one, batch, prompts, examples) for _ in range(12)]
    assert history[-1]["pair_accuracy"] == 1.0
    assert history[-1]["gap"] > history[0]["gap"] + 0.5
    assert history[-1]["loss"] < history[0]["loss"]
    assert history[-1]["valid_pairs"] == pytest.approx(2 / 3)
    assert history[-1]["gap"] == pytest.approx(history[-1]["teacher_score"] - history[-1]["student_score"], abs=1e-4)
    assert [made["version"] for made in history] == list(range(1, 13))


def test_a_tie_is_neither_won_nor_lost(
    learner: Callable[..., ExpertLearner], groups: Any, prompts: list[Example], examples: Any
) -> None:
    """A policy that says what the teacher says cannot be told from it, and hides no expert that tells all others."""
    short = "<caption>x</caption><think>x</think><answer>1</answer>"
    for sign, accuracy in ((1.0, 1.0), (-1.0, 0.0)):
        one = learner(model=TokenCounter(sign), skip_above_accuracy=0.9)
        made = figures(one, groups(short, "", "", count=2), prompts, examples)
        assert (made["pair_accuracy"], made["tie_share"], made["valid_pairs"]) == (accuracy, 2 / 3, 1.0)
        assert made["updated"] == (accuracy == 0.0), "skipped by the pairs that differ"
    # So of the pairs that grounding makes: two prompts to which the teacher says the same.
    batch = groups(count=2)
    batch[1].request.prompt.teacher = batch[0].request.prompt.teacher
    made = figures(learner(model=TokenCounter(), mismatch=1.0), batch, prompts, examples)
    assert (made["mismatch_accuracy"], made["mismatch_tie_share"], made["tie_share"]) == (None, 1.0, None)


def test_the_first_updates_of_a_game_move_little(
    learner: Callable[..., ExpertLearner], groups: Any, prompts: list[Example], examples: Any
) -> None:
    """AdamW's first step is the rate itself in every weight: by default it begins near 0, by choice at once."""

    def moved(**values: Any) -> float:
        one = learner(**values)
        before = weights(one)
        assert figures(one, groups(WRONG, count=1), prompts, examples)["updated"]
        return float((weights(one) - before).abs().max())

    rate, updates = 1e-3, 50
    assert moved() == pytest.approx(rate / (updates // 5 + 1), rel=1e-3)
    assert moved(rate_warmup=4) == pytest.approx(rate / 5, rel=1e-3)
    assert moved(rate_warmup=0) == pytest.approx(rate, rel=1e-3)


def test_an_update_is_skipped_above_the_accuracy_asked_for(
    learner: Callable[..., ExpertLearner], groups: Any, prompts: list[Example], examples: Any
) -> None:
    one = learner(optimizer={"lr": 3e-3}, skip_above_accuracy=0.9)
    history = [figures(one, groups(WRONG), prompts, examples) for _ in range(12)]
    learnt = [bool(made["updated"]) for made in history]
    assert learnt == [made["pair_accuracy"] <= 0.9 for made in history]
    assert not learnt[-1]
    before = weights(one)
    made = figures(one, groups(WRONG), prompts, examples)
    assert torch.equal(weights(one), before)
    assert (made["updated"], made["grad_norm"], made["version"]) == (0, None, 13)


def test_a_frozen_expert_learns_in_its_warm_up_alone(
    learner: Callable[..., ExpertLearner], groups: Any, prompts: list[Example], examples: Any
) -> None:
    frozen, free = learner(frozen=True), learner()
    warm = [figures(one, groups(WRONG), prompts, examples, warming_up=True) for one in (frozen, free)]
    assert [(made["updated"], made["version"]) for made in warm] == [(1, 1), (1, 1)]
    before = weights(frozen)
    kept, learnt = (figures(one, groups(WRONG), prompts, examples) for one in (frozen, free))
    assert torch.equal(weights(frozen), before)
    assert (kept["updated"], kept["version"], kept["grad_norm"]) == (0, 1, None)
    assert (learnt["updated"], learnt["version"]) == (1, 2)
    assert {name: kept[name] for name in ("loss", "gap", "pair_accuracy")} == pytest.approx(
        {name: learnt[name] for name in ("loss", "gap", "pair_accuracy")}
    ), "what is measured stays"
    assert all(parameter.grad is None for parameter in frozen.model.parameters())


@pytest.mark.parametrize("values", [{}, {"mismatch": 1.0, "mixture": {}}], ids=["dense", "mixture"])
def test_an_update_does_not_depend_on_the_micro_batch(
    learner: Callable[..., ExpertLearner],
    groups: Any,
    prompts: list[Example],
    examples: Any,
    monkeypatch: pytest.MonkeyPatch,
    values: Any,
) -> None:
    results: list[tuple[Any, torch.Tensor]] = []
    for tokens in (1, 100_000):
        one = learner(micro_batch_tokens=tokens, **values)
        gradients: list[torch.Tensor] = []

        def keep(_: float, one: ExpertLearner = one, gradients: list[torch.Tensor] = gradients) -> tuple[float, bool]:
            gradients.append(torch.cat([p.grad.flatten() for p in one.model.parameters() if p.grad is not None]))
            return 1.0, True

        monkeypatch.setattr(one._optimizer, "step", keep)
        batch = groups(WRONG, NO_FORMAT, "")
        batch[1].samples.append(pb.Sample(text=WRONG.replace("zero", "one")))
        results.append((figures(one, batch, prompts, examples), gradients[0]))
    (first, first_gradient), (second, second_gradient) = results
    torch.testing.assert_close(second_gradient, first_gradient, rtol=0, atol=1e-5)
    for name in set(MEASURED) - {"grad_norm"}:
        assert second[name] == pytest.approx(first[name], abs=1e-5), name


@pytest.mark.parametrize("mixture", [False, True])
def test_a_group_in_one_row_scores_and_learns_as_its_sequences_alone(
    tiny_model: Path, prompts: list[Example], examples: Any, mixture: bool
) -> None:
    model = place(upcycle(tiny_model, noise=0.05), "cpu") if mixture else load_expert(tiny_model)
    inputs = examples.inputs
    texts = (WRONG, "<caption>- a one</caption>", "<think>1+1=2</think><answer>2</answer>")
    group = [inputs.with_text(prompt, text) for prompt in prompts[:2] for text in texts]

    def learnt(scores: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model.zero_grad()
        loss = bradley_terry(scores[[0, 0, 3, 3]], scores[[1, 2, 4, 5]]) + score_regularisation(scores)
        loss.backward()
        return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    together, alone = model(pack(group, inputs)), torch.cat([model(pack([one], inputs)) for one in group])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    (loss, gradients), (expected_loss, expected) = learnt(together), learnt(alone)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=0)
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (gradients[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


@pytest.mark.parametrize("fatal", [False, True])
def test_an_update_that_is_not_finite_is_skipped_and_its_groups_are_named(
    learner: Callable[..., ExpertLearner], groups: Any, prompts: list[Example], examples: Any, fatal: bool
) -> None:
    one = learner(optimizer={"lr": 1e-3, "max_skipped": 1 if fatal else 2})
    torch.nn.init.constant_(one.model.score.weight, float("nan"))
    made = groups(WRONG)
    made[1].samples[0].text = NO_FORMAT
    before = weights(one)
    if fatal:
        with pytest.raises(NotFiniteError):
            figures(one, made, prompts, examples)
    else:
        assert figures(one, made, prompts, examples)["updated"] == 0
    assert one.not_finite == [0, 2, 3]
    assert torch.equal(weights(one).nan_to_num(), before.nan_to_num())


def load(learner: ExpertLearner, folder: Path, version: int) -> None:
    state = learner.state_dict()
    read_tensors(folder, state)
    learner.load_state_dict(state, version)


def test_a_loaded_learner_goes_on_as_the_saved_one(
    learner: Callable[..., ExpertLearner], groups: Any, prompts: list[Example], examples: Any, tmp_path: Path
) -> None:
    one = learner()
    figures(one, groups(WRONG), prompts, examples)
    save_expert(one.model, tmp_path, examples.inputs)
    write_tensors(tmp_path, one.state_dict())
    two = learner()
    assert not torch.equal(weights(two), weights(one))
    load(two, tmp_path, one.version)
    assert torch.equal(weights(two), weights(one))
    assert torch.equal(
        torch.cat([p.detach().flatten() for p in load_expert(tmp_path, seed=9).parameters()]), weights(one)
    )
    after = [figures(each, groups(WRONG), prompts, examples) for each in (one, two)]
    assert after[0]["version"] == after[1]["version"] == 2
    torch.testing.assert_close(weights(two), weights(one), rtol=0, atol=1e-6)


def test_a_resumed_mixture_goes_on_bit_for_bit(
    learner: Callable[..., ExpertLearner], groups: Any, prompts: list[Example], examples: Any, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    one = learner(mixture={}, dropout=0.1, mismatch=1.0)
    figures(one, groups(WRONG), prompts, examples, warming_up=True)
    write_tensors(tmp_path, one.state_dict())
    random_state = torch.get_rng_state()
    expected = figures(one, groups(WRONG), prompts, examples)
    two = learner(mixture={"noise": 0.5}, dropout=0.1, mismatch=1.0)
    load(two, tmp_path, 1)
    torch.set_rng_state(random_state)
    made = figures(two, groups(WRONG), prompts, examples)
    assert {k: v for k, v in made.items() if k != "update_seconds"} == {
        k: v for k, v in expected.items() if k != "update_seconds"
    }
    assert torch.equal(weights(two), weights(one))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_an_expert_that_counts_tokens_is_caught(
    learner: Callable[..., ExpertLearner], groups: Any, prompts: list[Example], examples: Any, sign: float
) -> None:
    texts = [f"<caption>{'- a one ' * count}</caption><think>x</think><answer>1</answer>" for count in (1, 4, 9)]
    made = figures(learner(model=TokenCounter(sign)), groups(*texts), prompts, examples)
    assert made["length_correlation"] == pytest.approx(sign)
    assert made["length_correlation_both"] == pytest.approx(sign)
    # Students of one length tell nothing; beside teachers of another they do.
    made = figures(learner(model=TokenCounter(sign)), groups(WRONG), prompts, examples)
    assert made["length_correlation"] is None
    assert made["length_correlation_both"] == pytest.approx(sign)
    # All alike: no data.
    made = figures(learner(model=TokenCounter(sign)), groups("", ""), prompts, examples)
    assert made["length_correlation_both"] is None


def test_score_means_and_spreads_are_of_each_side(
    learner: Callable[..., ExpertLearner], groups: Any, prompts: list[Example], examples: Any
) -> None:
    batch = groups(WRONG, WRONG + "\n", count=2)  # white space around a response is not judged
    made = figures(learner(model=TokenCounter()), batch, prompts, examples)

    def tokens(text: str) -> int:
        return len(examples.inputs.text_ids(parse_response(text).section("perception"))) + 1

    teachers = [tokens(group.request.prompt.teacher) for group in batch]
    assert made["teacher_score"] == sum(teachers) / 2
    assert made["teacher_score_std"] == abs(teachers[0] - teachers[1]) / 2
    assert (made["student_score"], made["student_score_std"]) == (tokens(WRONG), 0.0)
    assert made["gap"] == sum(teachers) / 2 - tokens(WRONG)


def test_the_loss_is_the_sum_of_its_parts(
    learner: Callable[..., ExpertLearner], groups: Any, prompts: list[Example], examples: Any
) -> None:
    """-(1-ε) log σ(gap - m) - ε log σ(-gap - m), plus the mean square of all scores."""
    values = {"label_smoothing": 0.1, "margin": 0.5, "score_regularisation": 0.01}
    one = learner(model=TokenCounter(0.01), **values)
    made = figures(one, groups(WRONG, count=1), prompts, examples)
    gap, scores = made["gap"], [made["teacher_score"], made["student_score"]]
    pair = 0.9 * math.log1p(math.exp(-(gap - 0.5))) + 0.1 * math.log1p(math.exp(gap + 0.5))
    assert made["loss"] == pytest.approx(pair + 0.01 * sum(s * s for s in scores) / 2, rel=1e-5)


@pytest.mark.parametrize("expert", ["perception", "reasoning"])
def test_what_is_learnt_from_is_what_is_served(
    learner: Callable[..., ExpertLearner],
    groups: Any,
    prompts: list[Example],
    examples: Any,
    blobs: BlobStore,
    tiny_model: Path,
    tmp_path: Path,
    expert: Expert,
) -> None:
    """The same token ids for one text: from the teacher's side, from the student's, and from the service."""
    counter = TokenCounter()
    (group,) = groups(WRONG, count=1)
    as_student = pb.RolloutGroup(request=group.request, samples=[pb.Sample(text=group.request.prompt.teacher)])
    as_student.request.prompt.teacher = WRONG
    figures(learner(expert, model=counter), [group], prompts, examples)
    figures(learner(expert, model=counter), [as_student], prompts, examples)
    assert counter.seen[:2] == counter.seen[:1:-1]

    tokens = {"token": "t" * 16, "admin_token": "a" * 16}
    settings = ExpertSettings.model_validate(
        {"port": 1, "model": tiny_model, "weights_root": tmp_path, "state_dir": tmp_path, "expert": expert} | tokens
    )
    messages = group.request.prompt.messages
    (sha256,) = image_sha256s(messages)
    item = ScoreItem(messages=to_json(messages), responses=[as_student.samples[0].text, WRONG])
    sources: dict[str, Any] = {"sha256:" + sha256: blobs.get(sha256)}
    planner = Planner(settings, examples.inputs)
    with ThreadPoolExecutor(1) as thread:
        steps = planner.plan(ScoreRequest(items=[item]), planner.measure(sources))
        (plan,) = asyncio.run(in_turns(thread, steps))
    assert plan.group is not None
    assert [plan.group.prompt.input_ids + list(response) for response in plan.group.responses] == counter.seen[:2]
    assert plan.group.prompt.pixel_values is not None
    assert prompts[0].pixel_values is not None
    assert torch.equal(plan.group.prompt.pixel_values, prompts[0].pixel_values)


def test_a_long_section_is_never_truncated(
    learner: Callable[..., ExpertLearner], groups: Any, prompts: list[Example], examples: Any
) -> None:
    counter = TokenCounter()
    long = f"<caption>{'- a one ' * 3000}</caption><think>x</think><answer>1</answer>"
    made = figures(learner(model=counter), groups(long, count=1), prompts, examples)
    section = examples.inputs.text_ids(parse_response(long).section("perception"))
    assert len(section) > 6000
    assert counter.seen[1] == [*prompts[0].input_ids, *section, examples.inputs.end_token_id]
    assert made["valid_pairs"] == 1.0
