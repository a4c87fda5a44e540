"""Mixtures of adapters: several to each MLP, of which a router picks a few for every token, over the one dense MLP.

Method: MixLoRA, arXiv 2404.15159. What the frozen layers compute of a token is shared by all experts, so a mixture
costs little more than one adapter. Experts are told apart by masks over their low-rank states: no token is gathered, so
shapes never depend on the routing, and every expert takes part in every pass, as shards over ranks and compiled
layers want it. Merged, it is the mixture of experts that transformers knows as ``qwen3_vl_moe``.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prism.model.adapters.merging import Adapter

ROUTER_STD = 0.02
NAME = ".mixture."


class AdapterMixture(nn.Module):
    """E experts' adapters of one MLP, of width r each; all are one matrix, expert after expert."""

    gate_A: nn.Linear
    gate_B: nn.Linear
    up_A: nn.Linear
    up_B: nn.Linear
    down_A: nn.Linear
    down_B: nn.Linear

    def __init__(self, mlp: Any, experts: int, top_k: int, rank: int, scale: float) -> None:
        super().__init__()
        hidden, width = mlp.hidden_size, mlp.intermediate_size
        like: dict[str, Any] = {
            "bias": False,
            "dtype": mlp.gate_proj.weight.dtype,
            "device": mlp.gate_proj.weight.device,
        }
        self.experts, self.top_k, self.rank, self.scale = experts, top_k, rank, scale
        self.router = nn.Linear(hidden, experts, **like)
        for layer, inputs, outputs in (("gate", hidden, width), ("up", hidden, width), ("down", width, hidden)):
            self.add_module(f"{layer}_A", nn.Linear(inputs, experts * rank, **like))  # as PEFT begins
            back = nn.Linear(experts * rank, outputs, **like)
            nn.init.zeros_(back.weight)
            self.add_module(f"{layer}_B", back)
        nn.init.normal_(self.router.weight, std=ROUTER_STD)
        self.keeps_logits = False
        self.logits: Tensor | None = None
        """[T, E] of the last pass, if it was to keep them."""

    def mix(self, mlp: Any, x: Tensor) -> Tensor:
        """[…, H] -> […, H]: the weighted sum of what each token's experts make of it."""
        logits = self.router(x)
        if self.keeps_logits:
            self.logits = logits.flatten(0, -2)
        weights, chosen = F.softmax(logits, -1, dtype=torch.float32).topk(self.top_k, -1)  # […, k]
        weights = (weights / weights.sum(-1, keepdim=True)).to(x.dtype)
        gate, up = mlp.gate_proj(x), mlp.up_proj(x)
        gate_low, up_low = self.gate_A(x), self.up_A(x)  # […, E · r]
        mixed: Any = 0.0
        low: Any = 0.0
        for weight, expert in zip(weights.split(1, -1), chosen.split(1, -1), strict=True):
            of_expert = self._mask(expert, x.dtype)
            gated = gate + self.scale * self.gate_B(gate_low * of_expert)
            raised = up + self.scale * self.up_B(up_low * of_expert)
            states = weight * (mlp.act_fn(gated) * raised)  # […, I]
            mixed = mixed + states
            low = low + self.down_A(states) * of_expert
        return mlp.down_proj(mixed) + self.scale * self.down_B(low)

    def _mask(self, expert: Tensor, dtype: torch.dtype) -> Tensor:
        """[…, 1] -> […, E · r]: 1 where a low-rank state is the expert's."""
        owner = torch.arange(self.experts * self.rank, device=expert.device) // self.rank
        return (owner == expert).to(dtype)


def add_mixture(model: nn.Module, name: str, experts: int, top_k: int, rank: int, scale: float) -> list[Any]:
    """Give every dense MLP of the language model the mixture ``name``; it computes once it is ``activate``d."""
    layers: Any = model.get_submodule("model.language_model.layers")
    for layer in layers:
        if not hasattr(layer.mlp, "mixtures"):
            layer.mlp.mixtures, layer.mlp.mixture = nn.ModuleDict(), None
            layer.mlp.forward = MethodType(_forward, layer.mlp)
        layer.mlp.mixtures[name] = AdapterMixture(layer.mlp, experts, top_k, rank, scale)
    return [layer.mlp.mixtures[name] for layer in layers]


def _forward(mlp: Any, x: Tensor) -> Tensor:
    return type(mlp).forward(mlp, x) if mlp.mixture is None else mlp.mixtures[mlp.mixture].mix(mlp, x)


@contextmanager
def kept_logits(mixtures: list[AdapterMixture]) -> Iterator[None]:
    """Of what is computed in here, not of what the backward pass computes again."""
    for mixture in mixtures:
        mixture.keeps_logits = True
    try:
        yield
    finally:
        for mixture in mixtures:
            mixture.keeps_logits, mixture.logits = False, None


def as_experts(dense: Mapping[str, Tensor], adapter: Adapter, experts: int) -> dict[str, Tensor]:
    """The tensors of the ``qwen3_vl_moe`` that a dense model with this adapter, attention merged already, computes as.

    By the names and in the layout of transformers' module, as ``prism.model.expert.upcycle`` makes them.
    """
    tensors = dict(dense)
    for key in [name for name in adapter.tensors if name.endswith(".mixture.router.weight")]:
        mlp = key.removesuffix(".mixture.router.weight")
        found: dict[str, Tensor] = {}
        for layer in ("gate", "up", "down"):
            weight = tensors.pop(f"{mlp}.{layer}_proj.weight")
            a, b = (adapter.tensors[f"{mlp}.mixture.{layer}_{side}.weight"].float() for side in "AB")
            of_experts = zip(a.chunk(experts), b.chunk(experts, 1), strict=True)
            merged = [weight.float().to(a.device) + adapter.scale * (b @ a) for a, b in of_experts]
            found[layer] = torch.stack(merged).to(weight.dtype)  # [E, outputs, inputs]
        tensors[f"{mlp}.experts.gate_up_proj"] = torch.cat([found["gate"], found["up"]], 1)
        tensors[f"{mlp}.experts.down_proj"] = found["down"]
        tensors[f"{mlp}.gate.weight"] = adapter.tensors[key]
    return tensors
