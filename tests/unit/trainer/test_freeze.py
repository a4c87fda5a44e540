"""What is not to be trained is not, and is named as the model names it."""

from pathlib import Path

import pytest

from prism.errors import ConfigError
from prism.model.expert import load_expert
from prism.trainer.learn.freeze import freeze


def test_a_part_is_a_module_and_not_the_beginning_of_a_name(tiny_model: Path) -> None:
    model = load_expert(tiny_model)
    freeze(model, ["model.visual", "model.language_model.layers.1"])
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not any(name.startswith(("model.visual.", "model.language_model.layers.1.")) for name in trained)
    assert {"score.weight", "model.language_model.layers.0.mlp.up_proj.weight"} <= trained
    with pytest.raises(ConfigError, match=r"no part 'model\.vis'; it has .*model\.visual"):
        freeze(model, ["model.vis"])


def test_something_must_be_left_to_train(tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match="nothing is left to train beside model, score"):
        freeze(load_expert(tiny_model), ["model", "score"])
