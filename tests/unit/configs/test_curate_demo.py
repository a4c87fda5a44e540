"""The three configurations of ``make curate-demo``, and those of its small form, fit together."""

import pytest

from bench.curation.demo import ALIGN, CURATE, POLICY, SFT, SMALL
from prism.config import AlignConfig, load_config, load_toml
from prism.curation.config import CurateConfig


@pytest.mark.parametrize("options", [([], [], []), SMALL], ids=["whole", "small"])
def test_each_part_takes_what_the_one_before_it_made(options: tuple[list[str], list[str], list[str]]) -> None:
    sft, align = load_config(SFT, options[0]), load_config(ALIGN, options[2])
    curation = load_toml(CURATE, CurateConfig, options[1])
    stage = align.stages["align"]
    assert isinstance(stage, AlignConfig)
    assert curation.run == sft.run_dir
    assert str(align.model) == str(sft.run_dir / POLICY)
    assert str(stage.rollouts.data) == str(curation.folder / "align.jsonl")
    assert align.evaluate
    assert str(align.evaluate.data) == str(sft.run_dir / "data/validation.jsonl")
    assert curation.verify.labelled == sft.run_dir / "data/labelled.jsonl"
