"""``prism experts upcycle``: a mixture-of-experts expert as a folder, written whole or not at all."""

from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape

from prism.errors import ConfigError
from prism.files import sealed_folder
from prism.model.expert import save_expert, upcycle
from prism.model.inputs import InputBuilder


def upcycle_folder(
    model: str, out: Path, *, experts: int, top_k: int, noise: float, seed: int, dtype: str, console: Console
) -> None:
    """Raises ConfigError if ``out`` exists or ``model`` is no dense Qwen3-VL, WeightsError if its files hold none."""
    refuse_existing(out)
    with console.status(f"upcycling {escape(model)}"):
        inputs = InputBuilder(model)
        mixture = upcycle(model, experts=experts, top_k=top_k, noise=noise, seed=seed, dtype=getattr(torch, dtype))
        with sealed_folder(out, aside(out)) as folder:
            save_expert(mixture, folder, inputs)
    parameters = sum(parameter.numel() for parameter in mixture.parameters())
    console.print(
        f"{escape(str(out))}: {experts} experts for each MLP, {top_k} for each token, noise {noise:g}, "
        f"{parameters / 1e6:,.1f}M parameters"
    )


def refuse_existing(out: Path) -> None:
    if out.exists():
        raise ConfigError(f"{out} exists already: choose another folder, or delete it first")


def aside(out: Path) -> Path:
    """Where ``out`` is written: ``out``.partial may hold the checkpoints of a warm-up."""
    return out.with_name(f".{out.name}.partial")
