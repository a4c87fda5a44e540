"""Parts of a model that are not trained."""

from collections.abc import Sequence

from torch import nn

from prism.errors import ConfigError


def freeze(model: nn.Module, parts: Sequence[str]) -> None:
    """Take the gradient from every parameter in these modules (``model.visual``). What a push never has to write again.

    Raises ConfigError for a part that holds no parameter, and where nothing is left to train.
    """
    names = dict(model.named_parameters())
    for part in parts:
        inside = [name for name in names if f"{name}.".startswith(f"{part}.")]
        if not inside:
            top = sorted({name.rpartition(".layers.")[0] or name.rpartition(".")[0] for name in names})[:6]
            raise ConfigError(f"freeze: the model has no part {part!r}; it has {', '.join(top)}, …")
        for name in inside:
            names[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in names.values()):
        raise ConfigError(f"freeze: nothing is left to train beside {', '.join(parts)}")
