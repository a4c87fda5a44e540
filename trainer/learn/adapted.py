"""Learners as adapters over one frozen base in memory: the policy, both experts, and for free the policy as it began.

A learner's model computes with its own adapter whenever it computes at all, since all of its passes go through
``ranks.run_sharded``; learners take turns. The base is held in the precision it computes in, over ranks too.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prism.config import LoraConfig, MixtureConfig, RunConfig
from prism.files import write_json
from prism.model.adapters.layers import (
    activator,
    adapter_config,
    adapter_parameters,
    add_adapter,
    base_name,
    mixtures_of,
    peft_settings,
)
from prism.model.adapters.merging import HEAD, PREFIX, Adapter
from prism.model.adapters.mixture import as_experts
from prism.model.expert import (
    CLASSES,
    ExpertModel,
    compute_mixtures,
    expert_over,
    load_expert,
    mixture_config,
    save_expert,
)
from prism.model.inputs import InputBuilder
from prism.trainer.learn import ranks
from prism.trainer.learn.learner_model import learner_model
from prism.trainer.learn.policy_model import compile_head, load_policy, save_policy
from prism.wire.weights import ADAPTER, ADAPTER_CONFIG

POLICY = "policy"
ADAPTER_FOLDER = "adapter"


@dataclass(frozen=True)
class Adapted:
    """What a learner's model says of itself in its attribute ``adapted``."""

    name: str
    base: str
    """The folder or hub model whose weights are frozen."""
    config: dict[str, Any]
    """Of its adapter, as ``adapter_config.json`` has it."""


@dataclass(frozen=True)
class Wanted:
    """An adapter over a base."""

    lora: LoraConfig
    mixture: MixtureConfig | None = None
    dropout: float = 0.0
    """Before an expert's head."""


def load_adapted(folder: Path | str, config: RunConfig, wanted: Mapping[str, Wanted]) -> dict[str, Any]:
    """A model for each name, ``policy`` or an expert's, all over the one model in ``folder``. All ranks must call it.

    Raises ConfigError if there is no model, or none with such layers.
    """
    models: dict[str, Any] = {}

    def load(dtype: torch.dtype) -> Any:
        policy = POLICY in wanted
        root = load_policy(folder, dtype=dtype) if policy else load_expert(folder, seed=config.seed, dtype=dtype)
        root.requires_grad_(False)
        compute_mixtures(root, config.device)
        for number, (name, one) in enumerate(wanted.items()):
            models[name] = root
            if name != POLICY:
                models[name] = expert_over(root, seed=config.seed, dropout=one.dropout)
            settings = peft_settings(root, one.lora, one.mixture)
            add_adapter(root, name, one.lora, one.mixture, seed=config.seed + number)
            routed = (one.mixture.experts, one.mixture.top_k) if one.mixture else None
            made = adapter_config(settings, str(folder), routed, head=name != POLICY)
            models[name].adapted = Adapted(name, str(folder), made)
        root.heads = nn.ModuleDict({name: expert.score for name, expert in models.items() if name != POLICY})
        for head in root.heads.values():
            head.requires_grad_(True)
        return root

    root = learner_model(load, config, held=getattr(torch, config.dtype))
    if POLICY in wanted and config.compile:
        compile_head(root)
    activate, run = activator(root), getattr(root, "run_sharded", None)
    for name, model in models.items():
        model.shares = (root,)
        model.run_sharded = _with(root, activate, name, run)
        if name != POLICY:
            model.adapter_mixtures = mixtures_of(root, name)
    return models


def load_policy_adapter(folder: Path | str, config: RunConfig, lora: LoraConfig) -> Any:
    """The policy alone."""
    return load_adapted(folder, config, {POLICY: Wanted(lora)})[POLICY]


def _with(
    root: Any, activate: Callable[[str | None], None], name: str, run: Callable[..., Any] | None
) -> Callable[..., Any]:
    def run_sharded(forward: Callable[[], Any]) -> Any:
        activate(name)
        root.active = name
        return run(forward) if run else forward()

    return run_sharded


class WithoutAdapter:
    """A policy as its base is, to compare with: it takes no memory."""

    def __init__(self, model: Any) -> None:
        """``model``: of ``load_adapted``; over ranks, its passes are made by all."""
        self.model, self.lm_head, self.shares = model.model, model.lm_head, model.shares
        activate, own = activator(model.shares[0]), model.run_sharded

        def run_sharded(forward: Callable[[], Any]) -> Any:
            def without() -> Any:
                activate(None)
                return forward()

            return own(without)

        self.run_sharded = run_sharded


def learning(model: Any) -> dict[str, nn.Parameter]:
    """What a learner's optimizer steps, by the names that its checkpoints have; a model's frozen parts among them where
    it has no adapter."""
    adapted: Adapted | None = getattr(model, "adapted", None)
    if adapted is None:
        return dict(model.named_parameters())
    own = adapter_parameters(ranks.root_of(model), adapted.name)
    return own | ({HEAD: model.score.get_parameter("weight")} if isinstance(model, ExpertModel) else {})


def adapter_tensors(model: Any) -> dict[str, Tensor]:
    """An adapter, and an expert's head, as ``ranks.full_weights`` gives a model's; by the names of its files."""
    return {PREFIX + name: tensor for name, tensor in ranks.gather_tensors(model, learning(model)).items()}


def write_adapter(model: Any, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """PEFT's folder, of what ``adapter_tensors`` gathered."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, folder / ADAPTER, {"format": "pt"})
    write_json(folder / ADAPTER_CONFIG, model.adapted.config)


def whole_weights(model: Any) -> dict[str, Tensor]:
    """``ranks.full_weights`` of the model that a learner makes: one with an adapter has it merged, by the names that it
    has without. A mixture of adapters becomes that of ``whole_model``."""
    adapted: Adapted | None = getattr(model, "adapted", None)
    if adapted is None:
        return ranks.full_weights(model)
    held = ranks.full_weights(ranks.root_of(model))
    own = {name.removeprefix(PREFIX): tensor for name, tensor in adapter_tensors(model).items()}
    if not held:
        return {}
    base = {named: tensor for name, tensor in held.items() if (named := base_name(name))}
    if isinstance(model, ExpertModel):
        base = {name: tensor for name, tensor in base.items() if name.startswith("model.")} | {HEAD: own.pop(HEAD)}
    return merge_whole(base, Adapter(own, adapted.config))


def save_learnt(model: Any, folder: Path, inputs: InputBuilder, *, adapter: bool = True) -> None:
    """What a learner made, as a model folder that others load; its adapter merged, and with ``adapter`` also by itself
    in ``adapter/``.

    All ranks must call it; the first writes.
    """
    weights = whole_weights(model)
    adapted = adapter and hasattr(model, "adapted")
    tensors = adapter_tensors(model) if adapted else {}
    if isinstance(model, ExpertModel):
        if ranks.is_first():
            write_expert(model, weights, folder, inputs)
    else:
        save_policy(model, folder, inputs, weights)
    if adapted and ranks.is_first():
        write_adapter(model, tensors, folder / ADAPTER_FOLDER)


def write_expert(model: ExpertModel, weights: dict[str, Tensor], folder: Path, inputs: InputBuilder) -> None:
    """What ``whole_weights`` gathered, with the model's configuration and the processor."""
    save_expert(whole_model(model), folder, inputs, weights)
    file = folder / "config.json"
    file.write_text(ranks.in_precision(model, file.read_text()))


def merge_whole(base: Mapping[str, Tensor], adapter: Adapter) -> dict[str, Tensor]:
    """All tensors of a model with its adapter merged; on the CPU where they are new."""
    changes = adapter.changes
    merged = {name: adapter.merged(name, t).cpu() if name in changes else t for name, t in base.items()}
    mixture = adapter.config.get("mixture")
    return as_experts(merged, adapter, mixture[0]) if mixture else merged


def whole_model(model: Any) -> Any:
    """The model that ``whole_weights`` are of, for its configuration: itself, or the mixture that its adapters make."""
    mixture = model.mixture if isinstance(model, ExpertModel) and model.adapter_mixtures else None
    if mixture is None:
        return model
    return unfilled_mixture(model.config, *mixture, ranks.computes_in(model))


def unfilled_mixture(config: Any, experts: int, top_k: int, dtype: torch.dtype) -> Any:
    """Of a dense expert's configuration; without weights."""
    with torch.device("meta"):
        return CLASSES["qwen3_vl_moe"]._from_config(mixture_config(config, experts, top_k), dtype=dtype)
