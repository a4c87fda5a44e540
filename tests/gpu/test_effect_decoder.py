"""The study's decoder on a GPU, where a step is a CUDA graph: it says what the same steps say without one."""

from pathlib import Path

import pytest
import torch

from bench.effect.loop.sampling import Sampler
from bench.effect.loop.setting import Prompts
from configs.effect.plan import load_plan
from configs.effect.prepare import prepare
from prism.model.inputs import Example, InputBuilder
from prism.model.packing import pack
from prism.trainer.learn.policy_model import load_policy, response_tokens

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_a_graph_says_what_its_steps_say(tmp_path: Path) -> None:
    prepare(tmp_path, load_plan(), "toy")
    inputs = InputBuilder(tmp_path / "model")
    prompts: list[Example] = []
    for split in ("inside", "grid4"):
        rows = Prompts(tmp_path / "data" / f"test-{split}.jsonl", inputs)
        prompts += [rows.prompt(place) for place in range(3)]
    on_card = Sampler(tmp_path / "model", inputs, torch.float32, "cuda", 64)
    beside = Sampler(tmp_path / "model", inputs, torch.float32, "cpu", 64)
    for _ in range(2):  # the second time in memory that the first has filled
        greedy = on_card.sample(prompts, 1, max_tokens=40, temperature=0.0, seed=0)
        expected = beside.sample(prompts, 1, max_tokens=40, temperature=0.0, seed=0)
        same = [a.token_ids == b.token_ids for (a,), (b,) in zip(greedy, expected, strict=True)]
        assert sum(same) >= len(same) - 1  # of random weights: two tokens may be as likely to the last digit

    model = load_policy(tmp_path / "model", dtype=torch.float32, device="cuda").eval()
    drawn = on_card.sample(prompts, 4, max_tokens=40, temperature=0.7, seed=1)
    assert drawn != on_card.sample(prompts, 4, max_tokens=40, temperature=0.7, seed=2)
    assert drawn == on_card.sample(prompts, 4, max_tokens=40, temperature=0.7, seed=1)
    for prompt, group in zip(prompts, drawn, strict=True):
        assert len({tuple(sample.token_ids) for sample in group}) == 4
        batch = pack([inputs.with_ids(prompt, sample.token_ids) for sample in group], inputs, "cuda")
        with torch.no_grad():
            found = response_tokens(model, batch, 0.7, on_card.never).logprobs.tolist()
        assert [p for sample in group for p in sample.logprobs] == pytest.approx(
            found, abs=2e-3
        )  # flex attention, TF32
