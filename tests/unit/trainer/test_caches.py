"""What learners keep of prompts is bounded by bytes, pixels included, whatever the number of rows."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from prism.config import RunConfig, load_config
from prism.data.blobs import BlobStore
from prism.data.rows import read_rows
from prism.model.inputs import Example, InputBuilder
from prism.trainer.flow.demonstrations import Demonstrations
from prism.trainer.flow.examples import GroupExamples
from prism.trainer.stages import context, sft
from prism.wire.v1 import rollout_pb2 as pb


def pixel_bytes(examples: Iterable[Example]) -> int:
    return sum(example.pixel_values.nbytes for example in examples if example.pixel_values is not None)


def group(prompt: pb.Prompt, ids: list[int]) -> pb.RolloutGroup:
    """Of which only the prompt matters."""
    return pb.RolloutGroup(request=pb.RolloutRequest(prompt=prompt), prompt_token_ids=ids)


def test_prompts_of_groups_are_kept_within_bytes(
    tiny_model: Path, blobs: BlobStore, teacher_prompts: list[pb.Prompt]
) -> None:
    inputs = InputBuilder(tiny_model)
    unbounded = GroupExamples(inputs, blobs)
    groups = [group(prompt, ids_of(unbounded, prompt)) for prompt in teacher_prompts]
    examples = [unbounded.prompt(one) for one in groups]
    largest = max(pixel_bytes([example]) for example in examples)
    for cache_bytes in (largest // 8, largest + largest // 8, 2 * largest + largest // 8):
        bounded = GroupExamples(inputs, blobs, cache_bytes=cache_bytes)
        for each in groups:
            bounded.prompt(each)
        kept = list(bounded._prompts.values())
        assert pixel_bytes(kept) <= cache_bytes < pixel_bytes(kept) + 2 * largest
        if kept:
            assert bounded.prompt(groups[-1]) is kept[-1]


def ids_of(examples: GroupExamples, prompt: pb.Prompt) -> list[int]:
    from prism.data.images import decode_image
    from prism.wire.messages import image_sha256s

    images = [decode_image(examples._blobs.get(name)) for name in image_sha256s(prompt.messages)]
    return examples.inputs.prompt(prompt.messages, images).input_ids


def test_demonstrations_are_kept_within_bytes(demo_folder: Path, tiny_model: Path) -> None:
    file, inputs = read_rows(demo_folder / "data" / "public.jsonl", "fail"), InputBuilder(tiny_model)

    def kept(cache_bytes: int) -> list[Example]:
        data = Demonstrations([file], "response", inputs, cache_bytes=cache_bytes, on_bad_row="fail", say=print)
        data.batch([0, 1, 2, 3], ahead=[])
        return list(data._cache.values())

    everything = kept(2**30)
    assert len(everything) == 4
    largest = max(pixel_bytes([example]) for example in everything)
    for cache_bytes in (largest // 8, largest + largest // 8, 2 * largest + largest // 8):
        assert pixel_bytes(kept(cache_bytes)) <= cache_bytes < pixel_bytes(kept(cache_bytes)) + 2 * largest


@pytest.fixture
def config(demo_folder: Path) -> RunConfig:
    sizes = ["stages.sft.cache_gib=0.25", "stages.align.rollouts.cache_gib=0.5"]
    file = json.dumps(str(demo_folder / "data" / "public.jsonl"))
    return load_config(Path("configs/demo.toml"), [*sizes, f"stages.sft.data=[{file}]"])


def test_the_bounds_are_the_configurations(
    config: RunConfig, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = InputBuilder(tiny_model)
    stage: Any = config.stages["sft"]
    console: Any = context.ranks.console()
    assert sft._open_data(config, stage, inputs, console)._cache.maxsize == 2**28
    for name in ("REDIS_URL", "POLICY_URL", "PERCEPTION_URL", "REASONING_URL", "GRADER_URL"):
        monkeypatch.setenv(f"PRISM_{name}", "redis://nowhere" if name == "REDIS_URL" else "http://nowhere")
    monkeypatch.setenv("PRISM_TOKEN", "t" * 16)
    monkeypatch.setenv("PRISM_BLOBS", str(tmp_path))
    for name in ("newest_attempt", "next_attempt"):
        monkeypatch.setattr(context, name, lambda *_: 1)
    assert context.open_context(config, "align", tiny_model).examples._prompts.maxsize == 2**29
