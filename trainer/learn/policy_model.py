"""The policy as the learner holds it: an ordinary Hugging Face vision-language model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForImageTextToText

from prism.config import RunConfig
from prism.errors import ConfigError
from prism.model.expert import compute_mixtures, refuse_other_family
from prism.model.folder import complete_folder
from prism.model.inputs import SAFELY, InputBuilder
from prism.model.packing import Batch, hidden_states
from prism.model.shared_prefix import ATTENTION
from prism.trainer.learn import ranks
from prism.trainer.learn.learner_model import learner_model

# Logits that exist at one time, however many tokens there are: 128 MiB in float32, 512 MiB on a GPU.
LOGITS = {"cpu": 2**25, "cuda": 2**27}
NO_CHANCE = -1e9  # a logit whose probability is 0, and, unlike an infinite one, whose share of the entropy is 0 as well


def load_policy(folder: Path | str, *, dtype: torch.dtype, device: str = "cpu") -> Any:
    """A model that takes packed rows alone. Raises ConfigError if there is none to load, or one of another family."""
    try:
        described = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
        refuse_other_family(described.model_type, folder)
        model: Any = AutoModelForImageTextToText.from_pretrained(
            str(folder), dtype=dtype, attn_implementation=ATTENTION, **SAFELY
        )
        return model.to(device)
    except (OSError, ValueError) as error:
        raise ConfigError(f"no model can be loaded from {folder}: {str(error)[:500]}") from None


def load_learner(folder: Path | str, config: RunConfig) -> Any:
    """The model as a run trains it, over all ranks. Raises ConfigError if there is none to load."""
    model = learner_model(lambda dtype: load_policy(folder, dtype=dtype), config)
    compute_mixtures(model, config.device)
    if config.compile:
        compile_head(model)
    return model


def compile_head(model: Any, backend: str = "inductor") -> None:
    """What is read off the logits through ``torch.compile``."""
    model.read_logits = torch.compile(read_logits, dynamic=True, backend=backend)


def load_reference(folder: Path | str, config: RunConfig) -> Any:
    """The same to compare with, never trained."""
    dtype = getattr(torch, config.dtype)

    def load(dtype: torch.dtype) -> Any:
        return load_policy(folder, dtype=dtype).requires_grad_(False).eval()

    return ranks.shard_model(load, config.device, dtype)


def save_policy(model: Any, folder: Path, inputs: InputBuilder, weights: dict[str, Tensor] | None = None) -> None:
    """An ordinary Hugging Face folder, with processor and all that its start held: what loads the start loads this.

    All ranks must call it; the first writes. ``weights``: what was gathered before, if not the model's own.
    """
    weights = ranks.full_weights(model) if weights is None else weights
    if ranks.is_first():
        write_policy(model, weights, folder)
        complete_folder(folder, inputs.start, inputs.processor, inputs.pixel_bounds)


def write_policy(model: Any, weights: dict[str, Tensor], folder: Path) -> None:
    """What ``ranks.full_weights`` gathered, with the model's configuration."""
    model.save_pretrained(folder, state_dict=weights)
    file = folder / "config.json"
    file.write_text(ranks.in_precision(model, file.read_text()))


@dataclass(frozen=True)
class ResponseTokens:
    """What the model thinks of the R response tokens of a batch, example after example, in float32 and nats."""

    logprobs: Tensor
    """[R]"""
    entropy: Tensor
    """[R] of the distribution each was drawn from; without a gradient."""


def response_logprobs(model: Any, batch: Batch, temperature: float = 1.0) -> Tensor:
    """Log-probabilities [R] of all response tokens, as ``response_tokens`` gives them."""
    return response_tokens(model, batch, temperature).logprobs


def response_tokens(model: Any, batch: Batch, temperature: float = 1.0, never: Sequence[int] = ()) -> ResponseTokens:
    """``temperature`` is the sampler's, and so are the tokens that are ``never`` sampled: the ratio compares the
    distributions that are sampled from.

    Logits are made for response tokens alone, a chunk at a time, and where there is more than one chunk made again in
    the backward pass: neither way does a tensor of all tokens × vocabulary exist.
    """
    return ranks.run_sharded(model, lambda: _response_tokens(model, batch, temperature, never))


def _response_tokens(model: Any, batch: Batch, temperature: float, never: Sequence[int]) -> ResponseTokens:
    states = hidden_states(model.model, batch)[batch.predicts]  # [R, H]
    size = max(1, LOGITS[states.device.type] // model.lm_head.out_features)  # tokens a chunk
    read = getattr(model, "read_logits", read_logits)
    masked = torch.tensor(never, dtype=torch.long, device=states.device) if never else None

    def of_chunk(chunk: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return read(model.lm_head(chunk), targets, temperature, masked)

    again = torch.is_grad_enabled() and len(states) > size
    parts = [
        checkpoint(of_chunk, *chunk, use_reentrant=False, preserve_rng_state=False) if again else of_chunk(*chunk)
        for chunk in zip(states.split(size), batch.targets.split(size), strict=True)
    ]
    logprobs, entropies = zip(*parts, strict=True)
    return ResponseTokens(torch.cat(logprobs), torch.cat(entropies))


def read_logits(
    logits: Tensor, targets: Tensor, temperature: float, masked: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Logits [C, V] and tokens [C]: log-probabilities of these [C], and the entropies [C], without a gradient.

    ``masked`` tokens [M] have no chance.
    """
    logits = logits.float() / temperature
    if masked is not None:
        logits = logits.index_fill(-1, masked, NO_CHANCE)
    normaliser = logits.logsumexp(-1)
    logprobs = logits.gather(-1, targets[:, None]).squeeze(-1) - normaliser
    with torch.no_grad():
        entropy = normaliser - (logits.softmax(-1) * logits).sum(-1)
    return logprobs, entropy
