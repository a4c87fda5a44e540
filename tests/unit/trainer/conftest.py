"""An expert's learner on a small model, and groups for it to learn from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prism.config import ExpertLearnerConfig
from prism.data.blobs import BlobStore
from prism.data.images import decode_image
from prism.model.expert import load_expert, upcycle
from prism.model.inputs import Example, InputBuilder
from prism.trainer.flow.examples import GroupExamples
from prism.trainer.learn.expert_learner import ExpertLearner
from prism.wire.response import Expert
from prism.wire.v1 import rollout_pb2 as pb


@pytest.fixture(scope="module")
def examples(tiny_model: Path, blobs: BlobStore) -> GroupExamples:
    return GroupExamples(InputBuilder(tiny_model), blobs)


@pytest.fixture(scope="module")
def prompts(examples: GroupExamples, teacher_prompts: list[pb.Prompt], blobs: BlobStore) -> list[Example]:
    return [
        examples.inputs.prompt(prompt.messages, [decode_image(blobs.get(prompt.messages[0].parts[0].image_sha256))])
        for prompt in teacher_prompts
    ]


@pytest.fixture
def groups(teacher_prompts: list[pb.Prompt]) -> Callable[..., list[pb.RolloutGroup]]:
    def make(*texts: str, count: int = 4) -> list[pb.RolloutGroup]:
        """``count`` groups of these responses; "" stands for the teacher's own text."""
        return [
            pb.RolloutGroup(
                request=pb.RolloutRequest(prompt=prompt),
                samples=[pb.Sample(text=text or prompt.teacher) for text in texts],
            )
            for prompt in teacher_prompts[:count]
        ]

    return make


@pytest.fixture
def learner(tiny_model: Path) -> Callable[..., ExpertLearner]:
    def make(expert: Expert = "perception", model: Any = None, **values: Any) -> ExpertLearner:
        config = ExpertLearnerConfig.model_validate({"optimizer": {"lr": 1e-3}, "dropout": 0.0} | values)
        if config.mixture:
            model = upcycle(tiny_model, **config.mixture.model_dump())
            model.dropout.p = config.dropout
        model = model or load_expert(tiny_model, seed=0, dropout=config.dropout)
        return ExpertLearner(expert, model, config, 50)

    return make
