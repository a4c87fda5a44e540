"""``published = "prism"``: a stage as the published scripts set it, and what stands in the file beside it."""

from pathlib import Path
from typing import Any

import pytest

from prism.config import (
    AlignConfig,
    RlvrConfig,
    RunConfig,
    SftConfig,
    as_toml,
    load_config,
    load_saved,
    published_keys,
    save_resolved,
)
from prism.errors import ConfigError

RUN = """
name = "published"
model = "Qwen3-VL-4B-Instruct"

[stages.sft]
kind = "sft"
published = "prism"
data = ["demonstrations.jsonl"]
steps = 100
batch = 16

[stages.align]
kind = "align"
published = "prism"
rollouts = { data = "teacher.jsonl" }
experts = { start = "Qwen3-VL-2B-4X-Moe-warmup-120k" }

[stages.rlvr]
kind = "rlvr"
published = "prism"
rollouts = { data = "prompts.jsonl" }

[evaluate]
data = "test.jsonl"
max_tokens = 64

[stack]
max_model_len = 10240
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(RUN)
    return path


def stages(config: RunConfig) -> tuple[SftConfig, AlignConfig, RlvrConfig]:
    sft, align, rlvr = config.stages.values()
    assert isinstance(sft, SftConfig)
    assert isinstance(align, AlignConfig)
    assert isinstance(rlvr, RlvrConfig)
    return sft, align, rlvr


def test_the_stages_are_as_in_the_published_scripts(file: Path) -> None:
    """Numbers as they stand in qwen3_vl_prism.sh and qwen3_vl_grpo_after_prism.sh, and as verl 0.6 has them."""
    sft, align, rlvr = stages(load_config(file))
    assert (sft.optimizer.lr, sft.optimizer.schedule, sft.optimizer.warmup_fraction) == (1e-5, "cosine", 0.1)
    assert (align.steps, rlvr.steps) == (1500, 1500)
    assert (align.rollouts.prompts, align.rollouts.n, align.rollouts.max_tokens) == (4, 16, 6144)
    assert (rlvr.rollouts.prompts, rlvr.rollouts.n, rlvr.rollouts.max_tokens) == (32, 16, 8192)
    for learner in (align.policy, align.experts, rlvr.policy):
        adamw = learner.optimizer
        assert (adamw.lr, adamw.schedule, adamw.warmup_fraction, adamw.weight_decay) == (1e-6, "constant", 0, 0.01)
        assert (adamw.betas, adamw.max_grad_norm) == ((0.9, 0.999), 1.0)
    for policy in (align.policy, rlvr.policy):
        assert (policy.average, policy.clip_low, policy.clip_high, policy.dual_clip) == ("tokens", 0.2, 0.2, 3.0)
        assert (policy.minibatches, policy.epochs) == (1, 1)
    assert (align.alpha, align.warmup_steps, align.experts.score_regularisation) == (0.5, 0, 0.001)
    assert (align.experts.rate_warmup, align.experts.dropout, align.experts.mismatch) == (0, 0.1, 0)
    assert align.experts.networks == ("discriminator",), "one network with one head"
    assert align.experts.mixture
    assert (align.experts.mixture.experts, align.experts.mixture.top_k, align.experts.mixture.noise) == (4, 2, 0.01)
    assert (rlvr.kl_coef, rlvr.dynamic_sampling, rlvr.overlong_buffer) == (0, False, 0)


def test_dapo_and_gspo_are_as_in_their_own_scripts(file: Path) -> None:
    *_, dapo = stages(load_config(file, ["stages.rlvr.loss=dapo"]))
    policy = dapo.policy
    assert (policy.average, policy.clip_low, policy.clip_high, policy.dual_clip) == ("tokens", 0.2, 0.28, 10.0)
    assert (dapo.dynamic_sampling, dapo.max_sampling_rounds, dapo.overlong_buffer) == (True, 10, 4096)
    assert policy.optimizer.weight_decay == 0.1
    assert policy.optimizer.warmup_fraction * dapo.steps == pytest.approx(10)
    *_, short = stages(load_config(file, ["stages.rlvr.loss=dapo", "stages.rlvr.steps=100"]))
    assert short.policy.optimizer.warmup_fraction * short.steps == pytest.approx(10), "steps, not a share"
    *_, gspo = stages(load_config(file, ["stages.rlvr.loss=gspo"]))
    policy = gspo.policy
    assert (policy.average, policy.clip_low, policy.clip_high, policy.dual_clip) == ("responses", 3e-4, 4e-4, None)
    assert (policy.optimizer.weight_decay, policy.optimizer.warmup_fraction) == (0.1, 0.05)
    with pytest.raises(ConfigError, match=r"stages\.rlvr: published: the published runs are of grpo, dapo, gspo"):
        load_config(file, ["stages.rlvr.loss=dr_grpo"])


def test_what_the_file_says_wins_and_is_said(file: Path) -> None:
    sets = ["stages.align.steps=40", "stages.align.experts.optimizer.lr=1e-5", "stages.align.rollouts.n=16"]
    align = load_config(file, sets).stages["align"]
    assert isinstance(align, AlignConfig)
    assert (align.steps, align.experts.optimizer.lr, align.experts.optimizer.weight_decay) == (40, 1e-5, 0.01)
    same, own = published_keys(align)
    assert own == {"steps": (40, 1500), "experts.optimizer.lr": (1e-5, 1e-6)}
    assert same["rollouts.n"] == 16, "the file says the same"
    assert same["policy.dual_clip"] == 3.0
    assert not same.keys() & own.keys()
    assert published_keys(align.model_copy(update={"published": None})) == ({}, {})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.rlvr.published=gad", "stages.rlvr.published: Input should be 'prism'"),
        ("stages.align.experts={}", "stages.align: warmup_steps: 0 is for experts that can judge from the first step"),
        ("stages.align.policy.dual_clip=1.1", "stages.align.policy: dual_clip: 1.1 must be above 1 + clip_high = 1.2"),
        (
            'stages.align.experts.start={perception="one",reasoning="other"}',
            "stages.align.experts: start: shared experts are one network: name one folder, or set shared = false",
        ),
        (
            "stages.align.experts.section=whole",
            "stages.align.experts: section: shared experts that are shown whole responses would learn each pair twice",
        ),
        ("stack.max_model_len=4096", "stages.align.rollouts.max_tokens: 6144 leaves no room"),
    ],
)
def test_what_contradicts_it_is_refused_by_key(file: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_config(file, [override])
    assert f"{file}: {message}" in str(refused.value)


def test_a_run_that_goes_on_has_the_same_settings(file: Path, tmp_path: Path) -> None:
    config = load_config(file, [f"runs_dir={tmp_path}", "stages.align.steps=40"])
    config.run_dir.mkdir()
    save_resolved(config)
    assert load_saved(config.run_dir) == config
    file.write_text(as_toml(config))
    assert load_config(file) == config


def test_dr_grpo_has_no_average(file: Path) -> None:
    values: dict[str, Any] = load_config(file).model_dump(mode="json")
    values["stages"]["rlvr"] |= {"published": None, "loss": "dr_grpo"}
    with pytest.raises(ValueError, match=r"policy\.average: Dr\. GRPO divides by a constant"):
        RunConfig.model_validate(values)
