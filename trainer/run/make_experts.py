"""``prism experts upcycle``: a mixture-of-experts expert as a folder, written whole or not at all."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape

from prism.errors import ConfigError
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
        write_whole(out, lambda folder: save_expert(mixture, folder, inputs))
    parameters = sum(parameter.numel() for parameter in mixture.parameters())
    console.print(
        f"{escape(str(out))}: {experts} experts for each MLP, {top_k} for each token, noise {noise:g}, "
        f"{parameters / 1e6:,.1f}M parameters"
    )


def refuse_existing(out: Path) -> None:
    if out.exists():
        raise ConfigError(f"{out} exists already: choose another folder, or delete it first")


def write_whole(out: Path, write: Callable[[Path], None]) -> None:
    """``write(folder)`` into a folder beside ``out``, which becomes it in one rename."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        partial.chmod(0o755)  # a temporary folder is private, a model is not
        write(partial)
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
