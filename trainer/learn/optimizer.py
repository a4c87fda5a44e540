"""AdamW under a schedule: one class that the learners share and checkpoints can hold."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from prism.config import OptimizerConfig
from prism.errors import NotFiniteError


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
    """``step`` clips, updates and clears the gradients; ``total`` is the number of steps the schedule spans.

    Updates are made to float32 weights: beside a parameter of fewer bits one is kept, or small steps would be lost.
    AdamW's moments exist from the start: memory that is too small for them is so at once, not at a first checkpoint.
    """

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig, total: int) -> None:
        """``named`` as ``named_parameters()`` gives them."""
        given = dict(named)
        learning = {name: parameter for name, parameter in given.items() if parameter.requires_grad}
        self._names, self._parameters = list(learning), list(learning.values())
        self._frozen = {name: parameter for name, parameter in given.items() if name not in learning}
        self._weights = [p if p.dtype == torch.float32 else p.detach().float() for p in self._parameters]
        self._adamw = torch.optim.AdamW(
            self._weights, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
        )
        for weight in self._weights:  # as AdamW begins
            self._adamw.state[weight] = {
                "step": torch.zeros((), dtype=torch.float32, device=weight.device),
                "exp_avg": torch.zeros_like(weight),
                "exp_avg_sq": torch.zeros_like(weight),
            }
        self._config, self._total = config, total
        self.steps = 0
        self._skipped = 0  # in a row

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return self._config.lr * lr_factor(self._config, self.steps, self._total)

    def step(self, loss: float = 0.0) -> tuple[float, bool]:
        """The gradient norm before clipping, and whether the update was made: it is skipped if that or ``loss`` is not
        finite. (Where a loss is NaN its gradient need not be: a clamp gives none for NaN.)

        Raises NotFiniteError when ``max_skipped`` updates in a row were.
        """
        for weight, parameter in self._copies():
            weight.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None
        total = torch.nn.utils.clip_grad_norm_(self._weights, self._config.max_grad_norm)
        norm = float(total.full_tensor() if isinstance(total, DTensor) else total)
        finite = math.isfinite(norm) and math.isfinite(loss)
        if finite:
            for group in self._adamw.param_groups:
                group["lr"] = self.lr
            self._adamw.step()
            with torch.no_grad():
                for weight, parameter in self._copies():
                    parameter.copy_(weight)
        self.steps += 1
        self._adamw.zero_grad(set_to_none=True)
        self._skipped = 0 if finite else self._skipped + 1
        if self._skipped >= self._config.max_skipped:
            raise NotFiniteError(
                f"{self._skipped} updates in a row had a loss or gradient that is not finite and were skipped: lower "
                "the learning rate, or look at what they learnt from"
            )
        return norm, finite

    def clear(self) -> None:
        """Forget the gradients: an update that is not wanted."""
        for parameter in self._parameters:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Weights, frozen ones too, and AdamW's moments by name, and how far it is: the very tensors it works with, so
        that a checkpoint may be read into them.
        """
        named = zip(self._names, self._weights, strict=True)
        moments: dict[str, dict[str, torch.Tensor]] = {name: dict(self._adamw.state[weight]) for name, weight in named}
        weights = self._frozen | dict(zip(self._names, self._weights, strict=True))
        weights = {name: weight.detach() for name, weight in weights.items()}
        return {"weights": weights, "moments": moments, "steps": self.steps, "skipped": self._skipped}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was taken, the model's weights included."""
        own = self.state_dict()
        for name, weight in own["weights"].items():
            weight.copy_(state["weights"][name])
            for key, moment in own["moments"].get(name, {}).items():
                moment.copy_(state["moments"][name][key])
        for weight, parameter in self._copies():
            parameter.copy_(weight)
        self.steps, self._skipped = state["steps"], state["skipped"]

    def _copies(self) -> list[tuple[torch.Tensor, nn.Parameter]]:
        """The float32 weights that are not the parameters themselves, and what they stand for."""
        pairs = zip(self._weights, self._parameters, strict=True)
        return [(weight, parameter) for weight, parameter in pairs if weight is not parameter]
