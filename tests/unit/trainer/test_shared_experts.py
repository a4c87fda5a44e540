"""Both experts as one network: what it learns, how a stage of it goes, resumes and is exported."""

import json
from pathlib import Path
from typing import Any

import pytest
import test_stages
import torch
from expert_updates import WRONG
from rich.console import Console
from safetensors.torch import load_file
from stage_services import Event
from test_stages import Stage, figures, state, step_positions

from prism.config import ExpertLearnerConfig
from prism.errors import WeightsError
from prism.model.expert import ExpertModel, load_expert, place, upcycle
from prism.model.inputs import Example
from prism.model.packing import pack
from prism.trainer.checkpoint.folder import checkpoints
from prism.trainer.learn.expert_learner import ExpertLearner
from prism.trainer.learn.losses import bradley_terry, score_regularisation
from prism.trainer.learn.optimizer import Optimizer
from prism.trainer.learn.router import load_balance
from prism.trainer.run.export import export
from prism.wire.response import EXPERTS, parse_response
from prism.wire.v1 import rollout_pb2 as pb

inputs, stage = test_stages.inputs, test_stages.stage  # fixtures
OTHER = "<caption>- one\n- two</caption><think>1+1=2, so it is two</think><answer>2</answer>"
SHARED = {"shared": True, "optimizer": {"lr": 1e-3}}


@pytest.fixture
def gradients(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """Those of each optimizer step, as it is given them."""
    found: list[dict[str, torch.Tensor]] = []
    model: list[ExpertModel] = []
    own_init, own_step = ExpertLearner.__init__, Optimizer.step

    def init(self: ExpertLearner, network: Any, held: ExpertModel, *given: Any) -> None:
        model.append(held)
        own_init(self, network, held, *given)

    def step(self: Optimizer, loss: float) -> Any:
        grads = {name: p.grad for name, p in model[-1].named_parameters() if p.grad is not None}
        found.append({name: grad.clone() for name, grad in grads.items()})
        return own_step(self, loss)

    monkeypatch.setattr(ExpertLearner, "__init__", init)
    monkeypatch.setattr(Optimizer, "step", step)
    return found


def loss_of(
    model: ExpertModel, expert: Any, groups: list[pb.RolloutGroup], prompts: list[Example], inputs: Any, balance: float
) -> torch.Tensor:
    """One section's, of all pairs at once, without what a learner does to compute it piece by piece."""
    teachers: list[torch.Tensor] = []
    students: list[torch.Tensor] = []
    shown: list[Example] = []
    for group, prompt in zip(groups, prompts, strict=True):
        texts = [group.request.prompt.teacher, *(sample.text for sample in group.samples)]
        shown += [inputs.with_text(prompt, parse_response(text).section(expert)) for text in texts]
    judged = model.judge(pack(shown, inputs, model.score.weight.device), router_logits=True)
    for of_group in judged.scores.split([1 + len(group.samples) for group in groups]):
        teachers += [of_group[:1].expand(len(of_group) - 1)]
        students += [of_group[1:]]
    ours, theirs = torch.cat(teachers), torch.cat(students)
    loss = bradley_terry(ours, theirs, total_pairs=len(ours))
    loss = loss + 0.01 * score_regularisation(judged.scores, total_scores=len(judged.scores))
    return loss + balance * load_balance(judged, model.mixture) if balance and model.mixture else loss


@pytest.mark.parametrize("mixture", [False, True])
@pytest.mark.parametrize("micro_batch_tokens", [16_384, 1])
def test_losses_and_gradients_are_the_sums_of_both_sections(
    tiny_model: Path,
    groups: Any,
    prompts: list[Example],
    examples: Any,
    gradients: list[dict[str, torch.Tensor]],
    monkeypatch: pytest.MonkeyPatch,
    micro_batch_tokens: int,
    mixture: bool,
) -> None:
    """In float64, each section's loss computed by itself. (The balance of a mixture's routers is of a pass's tokens: it
    is compared where there is one.)"""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # what is merged and returned in float32 elsewhere

    def load() -> ExpertModel:
        return place(upcycle(tiny_model) if mixture else load_expert(tiny_model, seed=0), "cpu").double()

    balance = 0.1 if micro_batch_tokens > 1 else 0.0
    settings = SHARED | {"dropout": 0.0, "score_regularisation": 0.01, "load_balance": balance}
    config = ExpertLearnerConfig.model_validate(settings | {"micro_batch_tokens": micro_batch_tokens})
    made = groups(WRONG, OTHER, count=3)
    expected, separate = load(), {}
    for expert in EXPERTS:
        loss = loss_of(expected, expert, made, prompts[:3], examples.inputs, balance)
        loss.backward()
        separate[expert] = loss.item()
    learner = ExpertLearner("discriminator", load(), config, 50)
    given = learner.update(made, prompts[:3], examples.inputs, warming_up=True)
    (found,) = gradients
    wanted = {name: p.grad for name, p in expected.named_parameters() if p.grad is not None}
    assert found.keys() == wanted.keys()
    for name, grad in wanted.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-6, atol=1e-9)
    assert separate["perception"] != pytest.approx(separate["reasoning"], rel=1e-5), "they are told apart"
    for expert in EXPERTS:
        assert given[f"{expert}_loss"] == pytest.approx(separate[expert], rel=1e-6)
        assert (given[f"{expert}_version"], given[f"{expert}_updated"]) == (1, 1)
        assert given[f"{expert}_grad_norm"] == given["perception_grad_norm"] > 0


def test_an_update_is_skipped_by_the_pairs_of_both_sections(
    tiny_model: Path, groups: Any, prompts: list[Example], examples: Any
) -> None:
    """Every caption is told apart, and half of the reasoning: 3 of 4 pairs."""

    class Asked(ExpertLearner):
        def _judged(self, sequences: Any, inputs: Any) -> Any:
            judged = super()._judged(sequences, inputs)
            signs = torch.ones(len(sequences))
            if not inputs.tokenizer.decode(sequences[0].response_ids).startswith("<caption>"):
                signs = torch.tensor([1.0, 2.0, 0.0])
            else:
                signs[1:] = 0.0
            return type(judged)(judged.scores * 0 + signs, judged.router_logits)

    for above, updated in ((0.7, 0), (0.8, 1)):
        config = ExpertLearnerConfig.model_validate(SHARED | {"skip_above_accuracy": above})
        learner = Asked("discriminator", load_expert(tiny_model, seed=0), config, 50)
        given = learner.update(groups(WRONG, OTHER, count=1), prompts[:1], examples.inputs)
        assert (given["perception_pair_accuracy"], given["reasoning_pair_accuracy"]) == (1.0, 0.5)
        assert given["perception_updated"] == given["reasoning_updated"] == updated


@pytest.mark.parametrize("values", [{"mixture": {}}, {"lora": {"rank": 4}}], ids=["mixture", "adapters"])
def test_a_stage_has_one_learner_goes_on_bit_for_bit_and_is_exported(
    stage: Stage, tmp_path: Path, values: dict[str, Any]
) -> None:
    experts = {"experts": SHARED | values}
    whole = stage("align", "whole", **experts)
    pushed = [(event.whose, event.number) for event in whole.of("pushed") if event.whose in EXPERTS]
    assert sorted(pushed) == [(expert, version) for expert in EXPERTS for version in range(6)]
    assert sorted(path.name for path in (tmp_path / "whole" / "weights").iterdir()) == ["discriminator", "policy"]
    acknowledged = {event.whose for event in whole.of("acknowledged")}
    assert acknowledged == {"policy", "discriminator"}

    # Step 4's groups were scored by versions that the checkpoint of step 2 does not hold: they are asked for again.
    stage("align", "killed", killed_at=Event("asked", positions=tuple(step_positions(3))), **experts)
    assert state(tmp_path / "killed")["expert_versions"] == {"discriminator": 2}
    out = tmp_path / "exported"
    console = Console(quiet=True)
    (tmp_path / "killed" / "config.json").write_text(
        (checkpoints(tmp_path / "killed" / "checkpoints" / "it")[-1] / "config.json").read_text()
    )
    for expert in EXPERTS:
        export(tmp_path / "killed", out / expert, stage="it", model=expert, console=console)
    one, other = (load_file(out / expert / "model.safetensors") for expert in EXPERTS)
    assert all(torch.equal(one[name], tensor) for name, tensor in other.items())
    assert "it is one network with the other expert" in (out / "reasoning" / "README.md").read_text()
    stage("align", "killed", **experts)
    assert figures(tmp_path / "killed") == figures(tmp_path / "whole")
    assert (last := figures(tmp_path / "whole")[5])["perception_version"] == last["reasoning_version"] == 5
    assert last["served_perception_version"] == last["served_reasoning_version"] == 4
    assert last["reasoning_grad_norm"] == last["perception_grad_norm"] > 0
    results = [tmp_path / run / "out" / "experts" for run in ("whole", "killed")]
    assert [path.name for path in results[0].iterdir()] == ["discriminator"]
    ours, theirs = (load_file(folder / "discriminator" / "model.safetensors") for folder in results)
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    assert not torch.equal(ours["score.weight"], one["score.weight"]), "it learnt on"


def test_a_checkpoint_of_two_networks_is_refused_by_name(stage: Stage, tmp_path: Path) -> None:
    stage("align", "it", killed_at=Event("asked", positions=tuple(step_positions(3))))
    assert json.loads((checkpoints(tmp_path / "it" / "checkpoints" / "it")[-1] / "state.json").read_text())[
        "expert_versions"
    ] == {"perception": 2, "reasoning": 2}
    with pytest.raises(WeightsError, match=r"holds policy at version 1, perception at version 2.*trains policy, discr"):
        stage("align", "it", experts=SHARED | {"mixture": {}})
