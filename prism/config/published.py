"""``published = "prism"``: what the scripts of the published runs set, under what the file says itself.

Read off the scripts (github.com/XIAO4579/PRISM, ``scripts/train/experiment/*.sh``) and, where they are silent, off the
defaults of the verl 0.6 that they start (``trainer/config``); for SFT off the README, whose LLaMA-Factory file is not
published. docs/training.md says where script and README differ: the script is taken.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import model_validator

from prism.config.strict import ConfigModel

STEPS = 1500
WARM_UP_STEPS = 10  # of DAPO's script
VERL_ADAMW = {"lr": 1e-6, "schedule": "constant", "warmup_fraction": 0.0, "betas": [0.9, 0.999], "max_grad_norm": 1.0}
ON_POLICY = {"minibatches": 1, "epochs": 1}
VERL_PPO = {
    "optimizer": VERL_ADAMW | {"weight_decay": 0.01},
    "clip_low": 0.2,
    "clip_high": 0.2,
    "dual_clip": 3.0,
    "average": "tokens",
    **ON_POLICY,
}

SFT = {
    "optimizer": {"lr": 1e-5, "schedule": "cosine", "final_lr_fraction": 0.0, "warmup_fraction": 0.1},
    "target": "response",
}
ALIGN = {
    "steps": STEPS,
    "rollouts": {"prompts": 4, "n": 16, "temperature": 1.0, "max_tokens": 6144, "staleness": 0},
    "policy": VERL_PPO,
    "experts": {
        "shared": True,
        "optimizer": VERL_ADAMW | {"weight_decay": 0.01},
        "rate_warmup": 0,
        "mixture": {"experts": 4, "top_k": 2, "noise": 0.01},
        "dropout": 0.1,
        "score_regularisation": 0.001,
        "label_smoothing": 0.0,
        "margin": 0.0,
        "mismatch": 0.0,
        "skip_above_accuracy": 1.0,
        "load_balance": 0.01,
        "load_balance_online": 0.0,
    },
    "warmup_steps": 0,
    "alpha": 0.5,
}
RLVR = {
    "steps": STEPS,
    "rollouts": {"prompts": 32, "n": 16, "temperature": 1.0, "max_tokens": 8192, "staleness": 0},
    "kl_coef": 0.0,
}
RLVR_BY_LOSS: dict[str, dict[str, Any]] = {
    "grpo": {
        "policy": VERL_PPO,
        "dynamic_sampling": False,
        "overlong_buffer": 0,
    },
    "dapo": {
        "policy": {
            "optimizer": VERL_ADAMW | {"weight_decay": 0.1},
            "clip_low": 0.2,
            "clip_high": 0.28,
            "dual_clip": 10.0,
            "average": "tokens",
            **ON_POLICY,
        },
        "dynamic_sampling": True,
        "max_sampling_rounds": 10,
        "overlong_buffer": 4096,
    },
    "gspo": {
        "policy": {
            "optimizer": VERL_ADAMW | {"weight_decay": 0.1, "warmup_fraction": 0.05},
            "clip_low": 3e-4,
            "clip_high": 4e-4,
            "average": "responses",
            **ON_POLICY,
        },
        "dynamic_sampling": False,
        "overlong_buffer": 0,
    },
}


class Publishable(ConfigModel):
    """A stage that can be set as it was in the published runs."""

    published: Literal["prism"] | None = None
    """Sets the stage as in the published runs: sizes of groups, rates, clips, penalties, steps. A key that stands in
    the file beside it wins, and `prism run --dry-run` prints both. None by default: what suits 1,500 steps on eight
    GPUs suits no other size."""

    @model_validator(mode="before")
    @classmethod
    def _as_published(cls, given: Any) -> Any:
        if not isinstance(given, Mapping) or given.get("published") != "prism":
            return given
        return merged(_values(given), given)


def published_keys(stage: Publishable) -> tuple[dict[str, Any], dict[str, tuple[Any, Any]]]:
    """Of a stage that names a published run, by dotted key: what is as published; what the file says otherwise, with
    the published value second. Nothing of both for a stage that names none."""
    if stage.published is None:
        return {}, {}
    own = stage.model_dump(mode="json")
    same: dict[str, Any] = {}
    other: dict[str, tuple[Any, Any]] = {}
    for key, value in _flat(_values(own)):
        found: Any = own
        for part in key.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        if found == value:
            same[key] = value
        else:
            other[key] = (found, value)
    return same, other


def _values(given: Mapping[str, Any]) -> dict[str, Any]:
    """Raises ValueError for a stage of which none was published."""
    match given.get("kind"):
        case "sft":
            return SFT
        case "align":
            return ALIGN
        case _:
            loss = given.get("loss", "grpo")
            if loss not in RLVR_BY_LOSS:
                raise ValueError(f"published: the published runs are of {', '.join(RLVR_BY_LOSS)}; none is of {loss}")
            values = RLVR | {"loss": loss} | RLVR_BY_LOSS[loss]
            if loss != "dapo":
                return values
            steps = given.get("steps", STEPS)
            share = WARM_UP_STEPS / steps if isinstance(steps, int) and steps > WARM_UP_STEPS else 0.0
            return merged(values, {"policy": {"optimizer": {"warmup_fraction": share}}})


def merged(below: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Both, table by table; ``over`` wins."""
    made = dict(below)
    for key, value in over.items():
        before = made.get(key)
        made[key] = merged(before, value) if isinstance(before, Mapping) and isinstance(value, Mapping) else value
    return made


def _flat(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value
