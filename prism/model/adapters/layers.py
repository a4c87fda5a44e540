"""Adapters (LoRA, arXiv 2106.09685) over one frozen model, as many as learn or score beside each other: PEFT's layers,
each with every adapter's matrices, of which one adapter at a time computes, or none.

The policy and both experts are such adapters of one base. What the base computes with none is the model as it was.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from prism.config import LoraConfig, MixtureConfig
from prism.errors import ConfigError
from prism.model import torchvision_cpu
from prism.model.adapters.merging import A, B
from prism.model.adapters.mixture import NAME as MIXTURE
from prism.model.adapters.mixture import AdapterMixture, add_mixture

torchvision_cpu.install()

from peft import LoraConfig as PeftConfig  # noqa: E402  (its transformers must find torchvision's operators declared)
from peft import inject_adapter_in_model  # noqa: E402
from peft.tuners.lora import LoraLayer  # noqa: E402

MLP = ("gate_proj", "up_proj", "down_proj")
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", *MLP)
VISION = ("attn.qkv", "attn.proj", "mlp.linear_fc1", "mlp.linear_fc2")


def add_adapter(model: Any, name: str, config: LoraConfig, mixture: MixtureConfig | None = None, seed: int = 0) -> None:
    """Give ``model``, all of whose own parameters should be frozen, one adapter more, which computes nothing yet: its
    ``lora_B`` are 0. With ``mixture`` that of the MLPs is one of several.

    Raises ConfigError for a layer that the model does not have, and for a mixture over one.
    """
    settings = peft_settings(model, config, mixture)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        install(model, name, settings, (mixture.experts, mixture.top_k) if mixture else None)
    for parameter in adapter_parameters(model, name).values():
        parameter.requires_grad_(True)


def install(model: Any, name: str, settings: dict[str, Any], mixture: Sequence[int] | None = None) -> None:
    """The layers of an adapter with PEFT's ``settings``; of a ``mixture``, (experts, top_k), those of all MLPs too.

    Raises ValueError for layers that the model does not have.
    """
    inject_adapter_in_model(PeftConfig(**settings), model, name)
    del model.peft_config  # it would be taken for a model of one adapter
    if mixture:
        experts, top_k = mixture
        add_mixture(model, name, experts, top_k, settings["r"], settings["lora_alpha"] / settings["r"])


def remove(model: nn.Module, name: str) -> None:
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module._active_adapter = [""]
            module.delete_adapter(name)
    for module in model.modules():
        mixtures: Any = getattr(module, "mixtures", {})
        if name in mixtures:
            del mixtures[name]


def peft_settings(model: Any, config: LoraConfig, mixture: MixtureConfig | None = None) -> dict[str, Any]:
    """What PEFT's configuration is made of. Raises ConfigError."""
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | LoraLayer)]

    def there(target: str) -> bool:
        return any(f".{name}".endswith(f".{target}") for name in layers)

    targets = list(config.targets or filter(there, TARGETS))
    if missing := [target for target in targets if not there(target)]:
        known = sorted(
            {name.rpartition(".")[2] for name in layers if ".language_model." in name and "lora_" not in name}
        )
        raise ConfigError(f"lora.targets: the model has no layer {missing[0]!r}; it has {', '.join(known)}")
    if mixture:
        if not all(there(target) for target in MLP):
            raise ConfigError("experts.mixture: with lora a mixture is made over dense MLPs, and this model has none")
        targets = [target for target in targets if target not in MLP]
        if not targets:
            raise ConfigError("lora.targets: beside a mixture, which all MLPs become, name a layer of attention")
    if config.vision:
        targets += VISION
    alpha = int(config.alpha) if config.alpha == int(config.alpha) else config.alpha
    return {"r": config.rank, "lora_alpha": alpha, "lora_dropout": config.dropout, "target_modules": targets}


def adapter_parameters(model: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """An adapter's own, by the names that its files have without their prefix."""
    found: dict[str, nn.Parameter] = {}
    for path, module in model.named_modules():
        if isinstance(module, LoraLayer) and name in module.lora_A:
            a: Any = module.lora_A[name]
            b: Any = module.lora_B[name]
            found |= {path + A: a.weight, path + B: b.weight}
        elif isinstance(module, AdapterMixture) and path.endswith(f".mixtures.{name}"):
            mlp = path.removesuffix(f".mixtures.{name}")
            found |= {f"{mlp}{MIXTURE}{key}": parameter for key, parameter in module.named_parameters()}
    return found


def activator(model: nn.Module) -> Callable[[str | None], None]:
    """What makes the adapter of this name compute from now on, and no other; with None the base alone."""
    layers: list[Any] = [module for module in model.modules() if isinstance(module, LoraLayer)]
    mlps: list[Any] = [module for module in model.modules() if hasattr(module, "mixtures")]

    def activate(name: str | None) -> None:
        for layer in layers:
            # PEFT's own way takes the gradients from all others, which a shard over ranks does not stand.
            layer._active_adapter = [name or ""]
        for mlp in mlps:
            mlp.mixture = name if name in mlp.mixtures else None

    return activate


def mixtures_of(model: nn.Module, name: str) -> list[AdapterMixture]:
    return [m for path, m in model.named_modules() if isinstance(m, AdapterMixture) and path.endswith(f".{name}")]


def base_name(name: str) -> str | None:
    """The name that a tensor of a model with adapters has in the model without; None for an adapter's own."""
    if any(part in name for part in (".lora_", ".mixtures.")) or name.startswith("heads."):
        return None
    return name.replace(".base_layer.", ".")


def adapter_config(
    settings: dict[str, Any], base: str, mixture: tuple[int, int] | None = None, *, head: bool = False
) -> dict[str, Any]:
    """The content of ``adapter_config.json``. ``mixture``: (experts, top_k), which PEFT does not know."""
    config = PeftConfig(**settings, base_model_name_or_path=base, inference_mode=True)
    written = {key: value for key, value in config.to_dict().items() if value is not None}
    written["target_modules"] = sorted(settings["target_modules"])
    written["peft_type"] = "LORA"
    return written | ({"modules_to_save": ["score"]} if head else {}) | ({"mixture": list(mixture)} if mixture else {})
