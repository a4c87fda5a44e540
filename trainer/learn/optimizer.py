"""AdamW under a schedule: one class that the learners share and checkpoints can hold."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from prism.config import OptimizerConfig
from prism.errors import NotFiniteError
from prism.trainer.learn.offload import Lending, Offload, OffloadedState

RATE_WARMUP_SHARE = 0.2  # of a short game's updates: held-out mismatch accuracy stayed at it, and fell without


def lr_factor(config: OptimizerConfig, step: int, total: int, rate_warmup: int = 0) -> float:
    """The learning rate of 0-based ``step`` as a fraction of ``config.lr``.

    Warm-up climbs linearly from 1/(w+1); after it the schedule falls to ``final_lr_fraction`` at the last step,
    to 0 a step later: at a rate of 0 the last step would learn nothing.
    Without a ``warmup_fraction``, w is ``rate_warmup``, an expert's, and at most RATE_WARMUP_SHARE of the steps.
    """
    own = config.warmup_fraction
    warmup = round(own * total) if own else min(rate_warmup, round(RATE_WARMUP_SHARE * total))
    if step < warmup:
        return (step + 1) / (warmup + 1)
    low = config.final_lr_fraction
    progress = min(1.0, (step - warmup) / max(1, total - warmup - (low > 0)))
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

    def __init__(
        self,
        named: Iterable[tuple[str, nn.Parameter]],
        config: OptimizerConfig,
        total: int,
        offload: Offload | None = None,
        rate_warmup: int = 0,
    ) -> None:
        """``named`` as ``named_parameters()`` gives them. With ``offload`` the state lies in host memory, and comes to
        the card to be worked with. ``rate_warmup`` as in ``lr_factor``."""
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
        self._chunks = self._split(offload.chunk_bytes if offload else math.inf)
        self._offloaded = [OffloadedState(self._movable(c), offload.room) for c in self._chunks] if offload else []
        self._lending = Lending()
        self._config, self._total, self._rate_warmup = config, total, rate_warmup
        self.steps = 0
        self._skipped = 0  # in a row

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return self._config.lr * lr_factor(self._config, self.steps, self._total, self._rate_warmup)

    def step(self, loss: float = 0.0) -> tuple[float, bool]:
        """The gradient norm before clipping, and whether the update was made: it is skipped if that or ``loss`` is not
        finite. (Where a loss is NaN its gradient need not be: a clamp gives none for NaN.)

        Raises NotFiniteError when ``max_skipped`` updates in a row were.
        """
        total = self._total_norm()
        norm = float(total.full_tensor() if isinstance(total, DTensor) else total)
        finite = math.isfinite(norm) and math.isfinite(loss)
        if finite:
            for group in self._adamw.param_groups:
                group["lr"] = self.lr
            gradients = [parameter.grad for parameter in self._parameters]
            if len(self._chunks) > 1:
                for parameter in self._parameters:  # AdamW steps what has a gradient
                    parameter.grad = None
            for number, chunk in enumerate(self._chunks):
                self._step_chunk(number, chunk, gradients, total)
        self.clear()
        self.steps += 1
        self._skipped = 0 if finite else self._skipped + 1
        if self._skipped >= self._config.max_skipped:
            raise NotFiniteError(
                f"{self._skipped} updates in a row had a loss or gradient that is not finite and were skipped: lower "
                "the learning rate, or look at what they learnt from"
            )
        return norm, finite

    def prepare(self) -> None:
        """Begin to bring to the card what the next step works with, if it is offloaded as a whole."""
        if len(self._offloaded) == 1:
            self._offloaded[0].fetch()

    def clear(self) -> None:
        """Forget the gradients: an update that is not wanted."""
        for tensor in (*self._parameters, *self._weights):
            tensor.grad = None
        for state in self._offloaded:
            state.drop()

    def lend(self, returned: Callable[[], object]) -> None:
        """Host memory is read by others until ``returned`` returns, which is waited for before it is written to."""
        self._lending.until(returned)

    @property
    def host_storages(self) -> set[int]:
        """The host memory of what is offloaded, by ``data_ptr`` of the storage."""
        return {state.storage for state in self._offloaded}

    def _total_norm(self) -> torch.Tensor:
        """Of all gradients in float32, which stay so if they are one chunk."""
        if len(self._chunks) == 1:
            if self._offloaded:
                self._offloaded[0].ready()  # a gradient lies where its weight does
            self._take_gradients(self._chunks[0])
            return get_total_norm(self._gradients(self._chunks[0]))
        norms: list[torch.Tensor] = []
        for chunk in self._chunks:
            found = (self._parameters[i].grad for i in chunk)
            norm = get_total_norm([gradient.float() for gradient in found if gradient is not None])
            norms.append(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        return torch.linalg.vector_norm(torch.stack(norms))

    @torch.no_grad()
    def _step_chunk(
        self, number: int, chunk: list[int], gradients: list[torch.Tensor | None], total: torch.Tensor
    ) -> None:
        """``gradients`` are all weights'; those of the chunk are let go."""
        state = self._offloaded[number] if self._offloaded else None
        if state:
            state.ready()
        if len(self._chunks) == 1:
            clip_grads_with_norm_([self._weights[i] for i in chunk], self._config.max_grad_norm, total)
        else:
            for i in chunk:
                found, gradients[i] = gradients[i], None
                self._weights[i].grad = None if found is None else found.float()
            factor = min(1.0, self._config.max_grad_norm / (float(total) + 1e-6))
            for gradient in self._gradients(chunk):
                gradient.mul_(factor)
        self._adamw.step()  # of those alone that have a gradient
        for i in chunk:
            if self._weights[i] is not self._parameters[i]:
                self._parameters[i].copy_(self._weights[i])
            self._weights[i].grad = None
        if state:
            self._lending.wait()
            state.send()

    def _take_gradients(self, chunk: list[int]) -> None:
        for i in chunk:
            weight, parameter = self._weights[i], self._parameters[i]
            if weight is not parameter and parameter.grad is not None:
                weight.grad, parameter.grad = parameter.grad.float(), None

    def _gradients(self, chunk: list[int]) -> list[torch.Tensor]:
        return [gradient for i in chunk if (gradient := self._weights[i].grad) is not None]

    def _split(self, chunk_bytes: float) -> list[list[int]]:
        """Places of the weights, in chunks whose states take about so much."""
        chunks: list[list[int]] = [[]]
        taken = 0.0
        for place, weight in enumerate(self._weights):
            size = 3 * (weight._local_tensor if isinstance(weight, DTensor) else weight).nbytes
            if chunks[-1] and taken + size > chunk_bytes:
                chunks.append([])
                taken = 0.0
            chunks[-1].append(place)
            taken += size
        return chunks

    def _movable(self, chunk: list[int]) -> list[torch.Tensor]:
        """The float32 copies, where the model computes with others, and AdamW's moments."""
        copies = [self._weights[i] for i in chunk if self._weights[i] is not self._parameters[i]]
        moments = [self._adamw.state[self._weights[i]][name] for i in chunk for name in ("exp_avg", "exp_avg_sq")]
        return [*copies, *moments]

    def state_dict(self) -> dict[str, Any]:
        """Weights, frozen ones too, and AdamW's moments by name, and how far it is: the very memory it works with, so
        that a checkpoint may be read into it. What is offloaded lies in host memory, complete.
        """
        for state in self._offloaded:
            state.settle()
        moments: dict[str, dict[str, torch.Tensor]] = {
            name: {key: moment.detach() for key, moment in self._adamw.state[weight].items()}
            for name, weight in zip(self._names, self._weights, strict=True)
        }
        weights = self._frozen | dict(zip(self._names, self._weights, strict=True))
        weights = {name: weight.detach() for name, weight in weights.items()}
        return {"weights": weights, "moments": moments, "steps": self.steps, "skipped": self._skipped}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was taken, the model's weights included."""
        self._lending.wait()
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
