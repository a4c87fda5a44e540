"""What an expert learns beside its pairs: which response belongs to a prompt, and routers that share their work."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from expert_updates import WRONG, figures

from prism.model.expert import ExpertModel, ExpertOutput, place, upcycle
from prism.model.inputs import Example
from prism.model.packing import Batch, pack
from prism.trainer.learn.expert_learner import ExpertLearner, _Pairs, _with_mismatches


def test_mismatched_pairs_teach_to_look_at_the_prompt(
    learner: Callable[..., ExpertLearner], groups: Any, prompts: list[Example], examples: Any
) -> None:
    """Teacher and student say the same: only that a response belongs to its prompt can be learnt."""
    one = learner(mismatch=1.0, optimizer={"lr": 3e-3})
    batch = groups("", count=8)
    history = [figures(one, batch, prompts, examples) for _ in range(25)]
    assert history[-1]["mismatch_accuracy"] > 0.8
    assert history[-1]["loss"] < history[0]["loss"]
    assert history[-1]["gap"] == 0.0
    alone = figures(learner(mismatch=1.0), groups(WRONG, count=1), prompts, examples)
    assert alone["mismatch_accuracy"] is None, "one prompt has no other"


def test_mismatched_pairs_need_the_teachers_text_alone(
    learner: Callable[..., ExpertLearner], groups: Any, prompts: list[Example], examples: Any
) -> None:
    batch = groups("", count=8)
    for group in batch:
        del group.samples[:]
    one = learner(mismatch=1.0, optimizer={"lr": 3e-3})
    history = [figures(one, batch, prompts, examples) for _ in range(25)]
    assert history[-1]["mismatch_accuracy"] > 0.8
    assert (history[-1]["pair_accuracy"], history[-1]["valid_pairs"], history[-1]["updated"]) == (None, None, 1)
    idle = figures(learner(), batch, prompts, examples)
    assert (idle["loss"], idle["updated"]) == (None, 0), "without mismatches there is nothing to learn"


def test_a_mismatch_is_the_text_of_the_prompt_most_alike(examples: Any, prompts: list[Example]) -> None:
    """Same question about another picture of its size, where there is one; each text once as such."""
    inputs = examples.inputs
    pairs = [_Pairs(i, inputs.with_text(prompt, f"- text {i}"), []) for i, prompt in enumerate(prompts)]
    assert prompts[0].pixel_values is not None
    twin = replace(prompts[0], pixel_values=prompts[0].pixel_values + 1)
    made = _with_mismatches([*pairs, _Pairs(len(pairs), inputs.with_text(twin, "- twin"), [])], inputs)
    texts = [inputs.tokenizer.decode(p.mismatched.response_ids[:-1]) for p in made if p.mismatched]
    assert sorted(texts) == sorted([f"- text {i}" for i in range(len(prompts))] + ["- twin"])
    assert texts[0] == "- twin" or texts[-1] == "- text 0"
    assert all(p.mismatched and p.mismatched.pixel_values is p.teacher.pixel_values for p in made)


def test_a_warm_up_balances_the_routers_and_is_not_skipped(
    learner: Callable[..., ExpertLearner], groups: Any, prompts: list[Example], examples: Any
) -> None:
    values = {"mixture": {"experts": 3, "top_k": 2}, "skip_above_accuracy": 0.9, "optimizer": {"lr": 3e-3}}
    one = learner(**values)
    online = figures(learner(**values), groups(WRONG), prompts, examples)
    warm = figures(one, groups(WRONG), prompts, examples, warming_up=True)
    # 2 is the least: two assignments a token, spread evenly.
    assert 0.01 * 2 <= warm["loss"] - online["loss"] < 0.01 * 4
    heavy = learner(**values, load_balance_online=0.5)
    assert figures(heavy, groups(WRONG), prompts, examples)["loss"] > online["loss"] + 1
    history = [figures(one, groups(WRONG), prompts, examples, warming_up=True) for _ in range(15)]
    assert history[-1]["pair_accuracy"] == 1.0
    assert all(made["updated"] for made in history)


@torch.no_grad()
def test_experts_one_by_one_compute_what_grouped_ones_do(
    tiny_model: Path, prompts: list[Example], examples: Any
) -> None:
    model = upcycle(tiny_model, noise=0.05).eval()
    batch = pack([examples.inputs.with_text(prompt, WRONG) for prompt in prompts], examples.inputs)
    grouped = model(batch)
    assert model.config.text_config._experts_implementation == "grouped_mm"
    place(model, "cpu")
    assert model.config.text_config._experts_implementation == "eager"
    torch.testing.assert_close(model(batch), grouped, rtol=0, atol=1e-5)


def test_router_load_counts_tokens_layer_by_layer(
    learner: Callable[..., ExpertLearner],
    groups: Any,
    prompts: list[Example],
    examples: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judged: list[ExpertOutput] = []
    judge = ExpertModel.judge

    def keep(self: ExpertModel, batch: Batch, *, router_logits: bool = False) -> ExpertOutput:
        judged.append(judge(self, batch, router_logits=router_logits))
        assert [len(logits) for logits in judged[-1].router_logits] == [batch.tokens] * 4
        return judged[-1]

    monkeypatch.setattr(ExpertModel, "judge", keep)
    made = figures(learner(mixture={}), groups(WRONG), prompts, examples)
    counts = torch.zeros(4, 4)  # [layers, experts]
    for one in judged:
        for layer, logits in enumerate(one.router_logits):
            for token in logits:
                counts[layer, token.argsort(descending=True)[:2]] += 1
    shares = counts / counts.sum(1, keepdim=True)
    assert made["router_load"] == pytest.approx(shares.mean(0).tolist())
    assert sum(made["router_load"]) == pytest.approx(1)
    assert (made["router_load_max"], made["router_load_min"]) == pytest.approx(
        (shares.max().item(), shares.min().item())
    )
