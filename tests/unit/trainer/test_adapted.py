"""Learners as adapters over one frozen base, against PEFT's own way on unpacked rows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.nn import functional as F
from transformers import AutoModelForImageTextToText

from bench.padded import collate, load_stock
from bench.padded import response_logprobs as padded_logprobs
from prism.config import ExpertLearnerConfig, LoraConfig, MixtureConfig, PolicyLearnerConfig, RunConfig
from prism.data.blobs import BlobStore
from prism.data.images import decode_image
from prism.errors import ConfigError
from prism.model.expert import load_expert, upcycle
from prism.model.inputs import Example, InputBuilder
from prism.model.packing import pack
from prism.trainer.learn import ranks
from prism.trainer.learn.adapted import (
    POLICY,
    Wanted,
    WithoutAdapter,
    adapter_tensors,
    learning,
    load_adapted,
    save_learnt,
)
from prism.trainer.learn.expert_learner import ExpertLearner
from prism.trainer.learn.learner_model import compile_layers
from prism.trainer.learn.losses import Algorithm, LossOptions
from prism.trainer.learn.policy_learner import PolicyLearner, TrainingSample
from prism.trainer.learn.policy_model import load_policy, response_logprobs, save_policy
from prism.wire.response import EXPERTS
from prism.wire.v1 import rollout_pb2 as pb

LORA = LoraConfig(rank=4, alpha=6)
MIXED = MixtureConfig(experts=3, top_k=2)


@pytest.fixture(scope="module")
def config(tiny_model: Path) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "adapted",
            "model": str(tiny_model),
            "stages": {"sft": {"kind": "sft", "data": ["x"], "steps": 1, "batch": 1, "optimizer": {"lr": 1e-3}}},
            "evaluate": {"data": "x", "max_tokens": 8},
            "stack": {"max_model_len": 512},
        }
    )


@pytest.fixture(scope="module")
def inputs(tiny_model: Path) -> InputBuilder:
    return InputBuilder(tiny_model)


@pytest.fixture(scope="module")
def rows(inputs: InputBuilder, teacher_prompts: list[pb.Prompt], blobs: BlobStore) -> list[Example]:
    """Three responses to one prompt, which they share, and one to another; images included."""
    made: list[Example] = []
    for prompt, lengths in zip(teacher_prompts, ((60, 20, 7), (30,)), strict=False):
        image = decode_image(blobs.get(prompt.messages[0].parts[0].image_sha256))
        built = inputs.prompt(prompt.messages, [image])
        made += [inputs.with_text(built, prompt.teacher[:length]) for length in lengths]
    return made


def shaken(model: Any, seed: int = 5) -> Any:
    """With adapters that compute something: as they begin they compute nothing."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in learning(model).values():
            parameter.add_(torch.randn(parameter.shape, generator=random) * 0.05)
    return model


def in_peft(model: Any, stock: Any) -> Any:
    """PEFT's own model with the same adapter, over transformers' own attention."""
    tensors = adapter_tensors(model)
    wrapped: Any = peft.get_peft_model(stock, peft.LoraConfig(**model_settings(model)))
    peft.set_peft_model_state_dict(wrapped, {name: t.clone() for name, t in tensors.items() if "lora" in name})
    return wrapped


def model_settings(model: Any) -> dict[str, Any]:
    return {name: model.adapted.config[name] for name in ("r", "lora_alpha", "target_modules")}


def assert_same_gradients(ours: dict[str, Tensor], wrapped: Any) -> None:
    theirs = {n.replace(".default", ""): p.grad for n, p in wrapped.named_parameters() if p.grad is not None}
    ours = {f"base_model.model.{name}": gradient for name, gradient in ours.items()}
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert gradient.norm() > 0, name
        assert (ours[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


def gradients(model: Any) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in learning(model).items() if parameter.grad is not None}


@pytest.mark.parametrize(
    ("lora", "checkpointing"),
    [(LORA, False), (LORA.model_copy(update={"vision": True, "targets": ["q_proj", "down_proj"]}), True)],
)
def test_a_policy_has_pefts_losses_and_gradients(
    tiny_model: Path,
    config: RunConfig,
    rows: list[Example],
    inputs: InputBuilder,
    lora: LoraConfig,
    *,
    checkpointing: bool,
) -> None:
    config = config.model_copy(update={"gradient_checkpointing": checkpointing})
    models = load_adapted(tiny_model, config, {POLICY: Wanted(lora)} | dict.fromkeys(EXPERTS, Wanted(LORA)))
    model = shaken(models[POLICY]).train()
    wrapped = in_peft(model, load_stock(tiny_model))
    ours = response_logprobs(model, pack(rows, inputs))
    theirs = padded_logprobs(wrapped.base_model.model, rows, inputs)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    weights = torch.linspace(-1, 1, len(ours))
    for logprobs in (ours, theirs):
        (logprobs * weights).sum().backward()
    assert_same_gradients(gradients(model), wrapped)
    assert not any(p.grad is not None for expert in EXPERTS for p in learning(models[expert]).values())


def test_an_expert_has_pefts_scores_and_gradients(
    tiny_model: Path, config: RunConfig, rows: list[Example], inputs: InputBuilder
) -> None:
    models = load_adapted(tiny_model, config, {POLICY: Wanted(LORA)} | dict.fromkeys(EXPERTS, Wanted(LORA)))
    for seed, name in enumerate(models):
        shaken(models[name], seed)
    model = models["reasoning"].train()
    stock = load_stock(tiny_model)
    wrapped = in_peft(model, stock)
    head = model.score.weight.detach().clone().requires_grad_(True)
    states = wrapped.base_model.model.model(**collate(rows, inputs), use_cache=False).last_hidden_state
    last = torch.tensor([len(example.input_ids) - 1 for example in rows])
    theirs = F.linear(states[torch.arange(len(rows)), last], head)[:, 0]
    ours = ranks.run_sharded(model, lambda: model(pack(rows, inputs)))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    for scores in (ours, theirs):
        F.logsigmoid(scores[0] - scores[1:]).sum().neg().backward()
    own = gradients(model)
    torch.testing.assert_close(own.pop("score.weight"), head.grad, rtol=1e-4, atol=1e-6)
    assert_same_gradients(own, wrapped)


def test_learners_share_one_base_which_nothing_changes(
    tiny_model: Path,
    config: RunConfig,
    rows: list[Example],
    inputs: InputBuilder,
    groups: Callable[..., list[pb.RolloutGroup]],
    prompts: list[Example],
) -> None:
    """The policy's and both experts' updates move what is their own; without adapters the policy is as it began."""
    models = load_adapted(tiny_model, config, {POLICY: Wanted(LORA)} | dict.fromkeys(EXPERTS, Wanted(LORA)))
    policy, stock = models[POLICY], load_policy(tiny_model, dtype=torch.float32)
    assert models["perception"].model is models["reasoning"].model is policy.model
    learners = policy_learner(policy), *(expert_learner(name, models[name]) for name in EXPERTS)
    sizes = [sum(weight.numel() for weight in each.state_dict()["weights"].values()) for each in learners]
    assert sum(sizes) < sum(parameter.numel() for parameter in stock.parameters()) / 3
    batch = pack(rows, inputs)
    before = response_logprobs(WithoutAdapter(policy), batch)
    states = [snapshot(each) for each in learners]
    update_policy(learners[0], rows)
    texts = ("", "<caption>- a</caption><think>b</think><answer>c</answer>")
    for moved, expert in enumerate(learners[1:], 1):
        found = [snapshot(each) for each in learners]
        assert [not same(a, b) for a, b in zip(states, found, strict=True)] == [n < moved for n in range(3)]
        expert.update(groups(*texts, count=3), prompts[:3], inputs)
    assert not torch.equal(response_logprobs(policy, batch), before)
    torch.testing.assert_close(response_logprobs(WithoutAdapter(policy), batch), before, rtol=0, atol=0)
    torch.testing.assert_close(response_logprobs(stock, batch), before, rtol=0, atol=0)


def policy_learner(model: Any) -> PolicyLearner:
    settings = PolicyLearnerConfig.model_validate({"optimizer": {"lr": 1e-2}, "max_mismatch": 100})
    options = LossOptions(max_length=100)
    return PolicyLearner(model, settings, Algorithm.GRPO, options, temperature=1, updates=9, version=0)


def expert_learner(name: Any, model: Any, **values: Any) -> ExpertLearner:
    settings = ExpertLearnerConfig.model_validate({"optimizer": {"lr": 1e-2}, "dropout": 0.0} | values)
    return ExpertLearner(name, model, settings, 9)


def update_policy(learner: PolicyLearner, rows: list[Example]) -> None:
    samples = [
        TrainingSample(example, [-3.0] * len(example.response_ids), (-1.0) ** number, number // 2, 0)
        for number, example in enumerate(rows)
    ]
    learner.update(samples, _Inputs(InputBuilder(learner.model.adapted.base)))  # pyright: ignore[reportArgumentType]


class _Inputs:
    def __init__(self, inputs: InputBuilder) -> None:
        self.inputs = inputs


def snapshot(learner: Any) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in learning(learner.model).items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("mixture", [None, MIXED])
def test_what_is_saved_computes_what_the_learner_does(
    tiny_model: Path,
    config: RunConfig,
    rows: list[Example],
    inputs: InputBuilder,
    tmp_path: Path,
    mixture: MixtureConfig | None,
) -> None:
    """Merged, as transformers loads it, and a mixture of adapters as transformers' mixture of experts."""
    wanted = {POLICY: Wanted(LORA), "perception": Wanted(LORA, mixture)}
    models = {name: shaken(model).eval() for name, model in load_adapted(tiny_model, config, wanted).items()}
    batch = pack(rows, inputs)
    for name, model in models.items():
        save_learnt(model, tmp_path / name, inputs)
    with torch.no_grad():
        policy = AutoModelForImageTextToText.from_pretrained(tmp_path / POLICY).eval()
        ours = response_logprobs(models[POLICY], batch)
        torch.testing.assert_close(padded_logprobs(policy, rows, inputs), ours, rtol=0, atol=1e-5)
        expert = load_expert(tmp_path / "perception", strict=True).eval()
        assert expert.mixture == ((3, 2) if mixture else None)
        scores = ranks.run_sharded(models["perception"], lambda: models["perception"](batch))
        torch.testing.assert_close(expert(batch), scores, rtol=0, atol=1e-5)
    assert not torch.equal(response_logprobs(load_policy(tiny_model, dtype=torch.float32), batch), ours)


def test_a_mixture_of_adapters_begins_as_the_dense_model_and_learns_with_balanced_routers(
    tiny_model: Path,
    config: RunConfig,
    inputs: InputBuilder,
    rows: list[Example],
    groups: Callable[..., list[pb.RolloutGroup]],
    prompts: list[Example],
) -> None:
    model = load_adapted(tiny_model, config, {"reasoning": Wanted(LORA, MIXED)})["reasoning"]
    batch = pack(rows, inputs)
    with torch.no_grad():
        dense = load_expert(tiny_model, seed=config.seed)(batch)
        torch.testing.assert_close(ranks.run_sharded(model, lambda: model(batch)), dense, rtol=0, atol=1e-5)
    learner = expert_learner("reasoning", model, load_balance=0.5)
    routers = {name: p.detach().clone() for name, p in learning(model).items() if name.endswith("router.weight")}
    texts = ("", "<caption>- a</caption><think>b</think><answer>c</answer>")
    figures = learner.update(groups(*texts, count=3), prompts[:3], inputs, warming_up=True)
    assert len(figures["reasoning_router_load"]) == 3
    assert sum(figures["reasoning_router_load"]) == pytest.approx(1)
    assert len(routers) == model.config.text_config.num_hidden_layers
    now = learning(model)
    assert not any(torch.equal(routers[name], now[name]) for name in routers)


def test_compiled_layers_compute_the_same_without_a_break(
    tiny_model: Path, config: RunConfig, rows: list[Example], inputs: InputBuilder
) -> None:
    """Each adapter's layers are one program more, however many layers there are."""
    plain, compiled = (load_adapted(tiny_model, config, {"perception": Wanted(LORA, MIXED)}) for _ in range(2))
    torch.compiler.reset()
    counters.clear()
    compile_layers(ranks.root_of(compiled["perception"]), backend="eager")
    batch = pack(rows, inputs)
    found: list[Tensor] = []
    for model in (shaken(plain["perception"]), shaken(compiled["perception"])):
        scores = ranks.run_sharded(model, lambda model=model: model.judge(batch, router_logits=True).scores)
        (scores * torch.linspace(-1, 1, len(scores))).sum().backward()
        found.append(torch.cat([scores.detach(), *(gradient.flatten() for gradient in gradients(model).values())]))
    assert (found[0] - found[1]).norm() <= 1e-5 * found[0].norm()
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] <= 2


def test_a_mixture_of_experts_is_a_policy_whose_attention_learns(
    tiny_model: Path, config: RunConfig, rows: list[Example], inputs: InputBuilder, tmp_path: Path
) -> None:
    """As Qwen3-VL-30B-A3B is one: loaded, packed, trained as adapters over experts that stay as they are, saved."""
    upcycled = upcycle(tiny_model, experts=3, top_k=2, noise=0.05)
    described = upcycled.config
    made: Any = AutoModelForImageTextToText.from_config(described, dtype=torch.float32)
    tensors = {name: t for name, t in upcycled.state_dict().items() if name != "score.weight"}
    made.load_state_dict(tensors, strict=False)
    made.tie_weights()
    save_policy(made, tmp_path / "moe", inputs)
    model = shaken(load_adapted(tmp_path / "moe", config, {POLICY: Wanted(LORA)})[POLICY])
    assert model.adapted.config["target_modules"] == ["k_proj", "o_proj", "q_proj", "v_proj"]
    wrapped = in_peft(model, load_stock(tmp_path / "moe"))
    ours = response_logprobs(model, pack(rows, inputs))
    theirs = padded_logprobs(wrapped.base_model.model, rows, inputs)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    before = snapshot(learner := policy_learner(model))
    update_policy(learner, rows)
    assert not same(before, snapshot(learner))
    save_learnt(model, tmp_path / "saved", inputs)
    with torch.no_grad():
        saved = padded_logprobs(load_stock(tmp_path / "saved").eval(), rows, inputs)
        torch.testing.assert_close(saved, response_logprobs(model.eval(), pack(rows, inputs)), rtol=0, atol=1e-5)
    with pytest.raises(ConfigError, match="made over dense MLPs"):
        load_adapted(tmp_path / "moe", config, {"reasoning": Wanted(LORA, MIXED)})


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (Wanted(LORA.model_copy(update={"targets": ["q_prj"]})), "no layer 'q_prj'; it has down_proj"),
        (Wanted(LORA.model_copy(update={"targets": ["up_proj"]}), MIXED), "a layer of attention"),
    ],
)
def test_layers_that_are_not_there_are_refused_by_name(
    tiny_model: Path, config: RunConfig, wanted: Wanted, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        load_adapted(tiny_model, config, {"perception": wanted})
