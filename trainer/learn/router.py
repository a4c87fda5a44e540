"""The routers of a mixture-of-experts expert: the loss that balances their load, and the load that is watched."""

from typing import Any

import torch

from prism.model import torchvision_cpu
from prism.model.expert import ExpertOutput
from prism.trainer.learn import ranks

torchvision_cpu.install()

from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import load_balancing_loss_func  # noqa: E402


def load_balance(judged: ExpertOutput, mixture: tuple[int, int]) -> torch.Tensor:
    """[]: experts × Σ_e (assignments to e a token) × (mean probability of e), over all layers' tokens.
    A prompt's tokens count once, however many responses share it: they are routed once.

    It is ``top_k`` where the load is even and grows from there. Source: Switch Transformers, arXiv 2101.03961, eq. 4-6.
    It is no sum over tokens: of micro-batches each is balanced by itself, as is usual.
    """
    experts, top_k = mixture
    logits: Any = judged.router_logits  # its signature says one layer, it takes all
    loss = load_balancing_loss_func(logits, experts, top_k)
    assert isinstance(loss, torch.Tensor)
    return loss


class RouterLoad:
    """Counts which experts tokens are sent to; a prompt that responses share is sent once."""

    def __init__(self, mixture: tuple[int, int] | None) -> None:
        self._mixture = mixture
        self._counts: torch.Tensor | None = None  # [layers, experts]

    def add(self, judged: ExpertOutput) -> None:
        if self._mixture is None:
            return
        experts, top_k = self._mixture
        counts = torch.stack(
            [
                logits.detach().topk(top_k).indices.flatten().bincount(minlength=experts)
                for logits in judged.router_logits
            ]
        ).cpu()
        self._counts = counts if self._counts is None else self._counts + counts

    def figures(self) -> dict[str, list[float] | float | None]:
        """Each expert's share of assignments, which sum to 1, in the mean over layers; and the largest and the smallest
        share of an expert in any one layer, where a collapse shows that the mean hides. None for a dense expert.

        Over what all ranks added."""
        counted = [counts for counts in ranks.gathered(self._counts) if counts is not None]
        if not counted:
            return {"router_load": None, "router_load_max": None, "router_load_min": None}
        counts = torch.stack(counted).sum(0)
        shares = counts.double() / counts.sum(1, keepdim=True)  # [layers, experts]
        return {
            "router_load": shares.mean(0).tolist(),
            "router_load_max": shares.max().item(),
            "router_load_min": shares.min().item(),
        }
