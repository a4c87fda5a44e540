"""An adapter's tensors as files hold them, and the weights that they become when they are merged. (No PEFT.)

An adapter's files are those of PEFT: ``adapter_config.json`` and ``adapter_model.safetensors``, whose names are a
layer's, ``.lora_A.weight`` [rank, inputs] and ``.lora_B.weight`` [outputs, rank]. An expert's hold its head beside them
and, where its adapters are mixtures, ``mlp.mixture.…``, which PEFT does not know (``prism.model.adapters.mixture``).
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from prism.errors import WeightsError
from prism.wire.weights import ADAPTER, ADAPTER_CONFIG

PREFIX = "base_model.model."
HEAD = "score.weight"
A, B = ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True)
class Adapter:
    tensors: Mapping[str, Tensor]
    """By the names of the model's own layers."""
    config: Mapping[str, Any]
    """PEFT's."""

    @property
    def scale(self) -> float:
        return float(self.config["lora_alpha"]) / int(self.config["r"])

    @property
    def changes(self) -> set[str]:
        """Names of the weights that merging changes."""
        return {name.removesuffix(A) + ".weight" for name in self.tensors if name.endswith(A)}

    def merged(self, name: str, weight: Tensor) -> Tensor:
        """The weight of this name with what the adapter adds, rounded once; itself where that is nothing."""
        layer = name.removesuffix(".weight")
        if (a := self.tensors.get(layer + A)) is None:
            return weight
        b = self.tensors[layer + B]
        added = b.to(weight.device, torch.float32) @ a.to(weight.device, torch.float32)
        return torch.add(weight.float(), added, alpha=self.scale).to(weight.dtype)


def read_adapter(folder: Path) -> Adapter:
    """Raises WeightsError for files that hold none."""
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_bytes())
        with safe_open(folder / ADAPTER, "pt") as file:
            tensors = {name.removeprefix(PREFIX): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        adapter = Adapter(tensors, config)
        complete = all(name[: -len(A)] + B in tensors for name in tensors if name.endswith(A)) and adapter.scale > 0
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError, SafetensorError) as error:
        raise WeightsError(f"the adapter in {folder} cannot be read: {str(error)[:500]}") from None
    if not complete:
        raise WeightsError(f"the adapter in {folder} is not whole")
    return adapter


def merged_tensors(
    folder: Path, adapter: Adapter, device: torch.device | str = "cpu", *, changed: bool = False
) -> Iterator[tuple[str, Tensor]]:
    """The model's tensors in ``folder`` with the adapter merged, one after another, those that it changes on
    ``device``; with ``changed`` these alone."""
    changes = adapter.changes
    for file in sorted(path for path in folder.glob("*.safetensors") if path.name != ADAPTER):
        with safe_open(file, "pt") as held:
            for name in held.keys():  # noqa: SIM118
                if name in changes:
                    yield name, adapter.merged(name, held.get_tensor(name).to(device))
                elif not changed:
                    yield name, held.get_tensor(name)
