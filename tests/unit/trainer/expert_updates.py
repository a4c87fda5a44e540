"""Updates of an expert's learner in tests, and what they measure."""

from collections.abc import Sequence
from typing import Any

import torch

from prism.model.inputs import Example
from prism.trainer.learn.expert_learner import ExpertLearner
from prism.wire.v1 import rollout_pb2 as pb

WRONG = "<caption>- a zero\n- b zero</caption><think>0+0=0</think><answer>0</answer>"
NO_FORMAT = "the answer is 7"


def weights(learner: ExpertLearner) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in learner.model.parameters()])


def figures(
    learner: ExpertLearner, groups: Sequence[pb.RolloutGroup], prompts: list[Example], examples: Any, **options: Any
) -> Any:
    """Of one update, without the expert's name."""
    made = learner.update(groups, prompts[: len(groups)], examples.inputs, **options)
    (expert,) = learner.experts
    assert all(name.startswith(f"{expert}_") for name in made)
    return {name.removeprefix(f"{expert}_"): value for name, value in made.items()}
