"""AdamW under a schedule: one class that the learners share and checkpoints can hold."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from prism.config import OptimizerConfig


def lr_factor(config: OptimizerConfig, step: int, total: int) -> float:
    """The learning rate of 0-based ``step`` as a fraction of ``config.lr``.

    Warm-up climbs linearly from 1/(w+1); after it the schedule falls to ``final_lr_fraction`` at the last step.
    """
    warmup = round(config.warmup_fraction * total)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, total - warmup - 1))
    low = config.final_lr_fraction
    match config.schedule:
        case "constant":
            return 1.0
        case "linear":
            return 1.0 + (low - 1.0) * progress
        case "cosine":
            return low + (1.0 - low) * 0.5 * (1.0 + math.cos(math.pi * progress))


class Optimizer:
    """``step`` clips, updates and clears the gradients; ``total`` is the number of steps the schedule spans."""

    def __init__(self, parameters: Iterable[nn.Parameter], config: OptimizerConfig, total: int) -> None:
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self._adamw = torch.optim.AdamW(
            self._parameters, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
        )
        self._config, self._total = config, total
        self.steps = 0

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return self._config.lr * lr_factor(self._config, self.steps, self._total)

    def step(self) -> tuple[float, bool]:
        """The gradient norm before clipping, and whether the update was made: a norm that is not finite skips it."""
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters, self._config.max_grad_norm))
        finite = math.isfinite(norm)
        if finite:
            for group in self._adamw.param_groups:
                group["lr"] = self.lr
            self._adamw.step()
        self.steps += 1
        self._adamw.zero_grad(set_to_none=True)
        return norm, finite

    def state_dict(self) -> dict[str, Any]:
        return {"adamw": self._adamw.state_dict(), "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._adamw.load_state_dict(state["adamw"])
        self.steps = state["steps"]
