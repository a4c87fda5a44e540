"""An expert's learner on a real model: teacher and student are told apart by their words alone."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from prism.blobs import BlobStore
from prism.config import ExpertLearnerConfig
from prism.data import open_image
from prism.expert_model import load_expert
from prism.expert_section import Section
from prism.inputs import Example, InputBuilder
from prism.v1 import rollout_pb2 as pb
from trainer.examples import GroupExamples
from trainer.expert_learner import ExpertLearner

MEASURED = (
    "loss",
    "grad_norm",
    "pair_accuracy",
    "gap",
    "teacher_score",
    "teacher_score_std",
    "student_score",
    "student_score_std",
    "length_correlation",
)
WRONG = "<caption>- a zero\n- b zero</caption><think>0+0=0</think><answer>0</answer>"
NO_FORMAT = "the answer is 7"


@pytest.fixture(scope="module")
def examples(tiny_model: Path, blobs: BlobStore) -> GroupExamples:
    return GroupExamples(InputBuilder(tiny_model), blobs)


@pytest.fixture(scope="module")
def prompts(examples: GroupExamples, teacher_prompts: list[pb.Prompt], blobs: BlobStore) -> list[Example]:
    return [
        examples.inputs.prompt(prompt.messages, [open_image(blobs.get(prompt.messages[0].parts[0].image_sha256))])
        for prompt in teacher_prompts
    ]


@pytest.fixture
def groups(teacher_prompts: list[pb.Prompt]) -> Callable[..., list[pb.RolloutGroup]]:
    def make(*texts: str, count: int = 4) -> list[pb.RolloutGroup]:
        """``count`` groups of these responses; "" stands for the teacher's own text."""
        return [
            pb.RolloutGroup(
                request=pb.RolloutRequest(prompt=prompt),
                samples=[pb.Sample(text=text or prompt.teacher) for text in texts],
            )
            for prompt in teacher_prompts[:count]
        ]

    return make


@pytest.fixture
def learner(tiny_model: Path) -> Callable[..., ExpertLearner]:
    def make(expert: Section = "perception", **values: Any) -> ExpertLearner:
        config = ExpertLearnerConfig.model_validate({"optimizer": {"lr": 1e-3}, "dropout": 0.0} | values)
        model = load_expert(tiny_model, seed=0, dropout=config.dropout, attention="eager")
        return ExpertLearner(expert, model, config, 50)

    return make


def weights(learner: ExpertLearner) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in learner.model.parameters()])


def figures(learner: ExpertLearner, groups: Sequence[pb.RolloutGroup], prompts: list[Example], examples: Any) -> Any:
    """Of one update, without the expert's name."""
    made = learner.update(groups, prompts[: len(groups)], examples.inputs)
    assert all(name.startswith(f"{learner.expert}_") for name in made)
    return {name.removeprefix(f"{learner.expert}_"): value for name, value in made.items()}


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


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("expert", ["perception", "reasoning"])
def test_the_same_text_on_both_sides_has_a_gap_of_exactly_nothing(
    learner: Callable[..., ExpertLearner],
    groups: Any,
    prompts: list[Example],
    examples: Any,
    expert: Section,
    count: int,
    dropout: float,
) -> None:
    made = figures(learner(expert, dropout=dropout), groups("", "", "", count=count), prompts, examples)
    assert made["gap"] == 0.0
    assert made["pair_accuracy"] == 0.0
    assert made["valid_pairs"] == 1.0
    assert made["teacher_score"] == pytest.approx(made["student_score"], abs=1e-6)


@pytest.mark.parametrize(("expert", "sees"), [("perception", (False, True)), ("reasoning", (True, False))])
def test_an_expert_sees_its_own_section_alone(
    learner: Callable[..., ExpertLearner],
    groups: Any,
    prompts: list[Example],
    examples: Any,
    expert: Section,
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


def test_an_update_does_not_depend_on_the_micro_batch(
    learner: Callable[..., ExpertLearner],
    groups: Any,
    prompts: list[Example],
    examples: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    results: list[tuple[Any, torch.Tensor]] = []
    for size in (1, 64):
        one = learner(micro_batch=size)
        gradients: list[torch.Tensor] = []

        def keep(one: ExpertLearner = one, gradients: list[torch.Tensor] = gradients) -> tuple[float, bool]:
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


def test_a_loaded_learner_goes_on_as_the_saved_one(
    learner: Callable[..., ExpertLearner], groups: Any, prompts: list[Example], examples: Any, tmp_path: Path
) -> None:
    one = learner()
    figures(one, groups(WRONG), prompts, examples)
    one.save(tmp_path, examples.inputs)
    two = learner()
    assert not torch.equal(weights(two), weights(one))
    two.load(tmp_path, one.version)
    assert torch.equal(weights(two), weights(one))
    assert torch.equal(
        torch.cat([p.detach().flatten() for p in load_expert(tmp_path, seed=9).parameters()]), weights(one)
    )
    after = [figures(each, groups(WRONG), prompts, examples) for each in (one, two)]
    assert after[0]["version"] == after[1]["version"] == 2
    torch.testing.assert_close(weights(two), weights(one), rtol=0, atol=1e-6)


def test_lengths_that_decide_the_score_are_noticed(
    learner: Callable[..., ExpertLearner], groups: Any, prompts: list[Example], examples: Any
) -> None:
    texts = [f"<caption>{'- a one ' * count}</caption><think>x</think><answer>1</answer>" for count in (1, 4, 9)]
    correlation = figures(learner(), groups(*texts), prompts, examples)["length_correlation"]
    assert -1 <= correlation <= 1
    assert figures(learner(), groups(WRONG), prompts, examples)["length_correlation"] is None
