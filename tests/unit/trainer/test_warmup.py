"""``prism experts warmup``: pairs in, an expert as a folder out, through an interruption if need be."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from prism import cli
from prism.errors import ConfigError, DataError
from prism.model.expert import load_expert
from prism.trainer.run.make_experts import upcycle_folder
from prism.trainer.run.recorder import Recorder
from prism.trainer.stages.warmup import WarmupConfig, _refuse_other_settings

WRONG = "<caption>- a zero\n- b zero</caption><think>0+0=0</think><answer>0</answer>"
FAST = ("--batch=3", "--lr=2e-3", "--checkpoint-every=2", "--epochs=2")


@pytest.fixture(scope="module")
def mixture(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from rich.console import Console

    out = tmp_path_factory.mktemp("experts") / "mixture"
    upcycle_folder(
        str(tiny_model), out, experts=4, top_k=2, noise=0.01, seed=0, dtype="float32", console=Console(quiet=True)
    )
    return out


@pytest.fixture(scope="module")
def pairs(demo_folder: Path) -> Path:
    """The demo's 8 teacher rows with a policy's response each; one breaks the format."""
    file = demo_folder / "data" / "teacher.jsonl"
    rows = [json.loads(line) | {"response": WRONG} for line in file.read_text().splitlines()]
    rows[2]["response"] = "seven"
    out = file.with_name("pairs.jsonl")
    out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return out


def warm_up(*arguments: Any) -> Any:
    return CliRunner().invoke(cli.app, ["experts", "warmup", *FAST, *map(str, arguments)])


def test_both_experts_in_one_learn_both_sections(mixture: Path, pairs: Path, tmp_path: Path) -> None:
    result = warm_up(mixture, pairs, tmp_path / "out", "--expert=discriminator")
    assert result.exit_code == 0, result.output
    assert "the discriminator, both experts in one, warmed up on 16 rows" in " ".join(result.output.split())
    last = json.loads((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["perception_pair_accuracy"] == last["reasoning_pair_accuracy"] == 1.0
    assert json.loads((tmp_path / "out" / "warmup.json").read_text())["expert"] == "discriminator"
    assert load_expert(tmp_path / "out", strict=True).mixture == (4, 2)
    whole = warm_up(mixture, pairs, tmp_path / "whole", "--expert=discriminator", "--section=whole")
    assert "would learn each pair twice" in str(whole.exception) + whole.output


def test_an_expert_learns_and_goes_on_bit_for_bit_after_an_interruption(
    mixture: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    result = warm_up(mixture, pairs, whole, "--expert=perception")
    assert result.exit_code == 0, result.output
    assert "1 of 8 rows break the response format" in result.output
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]  # 16 pairs in threes
    assert lines[-1]["perception_pair_accuracy"] == 1.0
    assert lines[-1]["perception_loss"] < lines[0]["perception_loss"]
    assert sum(lines[0]["perception_router_load"]) == pytest.approx(1)
    assert load_expert(whole, strict=True).mixture == (4, 2)
    assert json.loads((whole / "warmup.json").read_text())["pairs_sha256"]

    step = Recorder.step

    def power_cut(self: Recorder, number: int, *arguments: Any, **options: Any) -> None:
        step(self, number, *arguments, **options)
        if number == 5:
            raise OSError("power cut")

    with monkeypatch.context() as patched:
        patched.setattr(Recorder, "step", power_cut)
        assert isinstance(warm_up(mixture, pairs, broken, "--expert=perception").exception, OSError)
    assert not broken.exists()
    torch.manual_seed(99)
    other = warm_up(mixture, pairs, broken, "--expert=perception", "--margin=0.5").exception
    assert isinstance(other, ConfigError)
    assert "broken.partial was begun with other settings (learner)" in str(other)
    result = warm_up(mixture, pairs, broken, "--expert=perception")
    assert "resumed after step 4" in result.output
    expected, resumed = load_file(whole / "model.safetensors"), load_file(broken / "model.safetensors")
    assert expected.keys() == resumed.keys()
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "whole"]


def test_experts_of_either_section_start_from_dense_models_too(tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "reasoning"
    assert warm_up(tiny_model, pairs, out, "--expert=reasoning").exit_code == 0
    assert load_expert(out, strict=True).mixture is None
    line = json.loads((out / "metrics.jsonl").read_text().splitlines()[0])
    assert line["reasoning_router_load"] is None


def test_an_expert_can_be_warmed_up_on_texts_alone(tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    """As a run whose experts are shown no pictures learns; then nothing can be learnt of what belongs to which."""
    out, options = tmp_path / "blind", ("--expert=perception", "--no-pictures", "--section=whole")
    assert warm_up(tiny_model, pairs, out, *options).exit_code == 0
    before, after = load_file(tiny_model / "model.safetensors"), load_file(out / "model.safetensors")
    seeing = [name for name in before if name.startswith("model.visual.")]
    assert seeing
    assert all(torch.equal(before[name], after[name]) for name in seeing)
    refused = warm_up(tiny_model, pairs, tmp_path / "no", *options, "--mismatch=1").exception
    assert isinstance(refused, ConfigError)
    assert "pictures: grounding and mismatch teach which response belongs to a picture" in str(refused)


def test_mistakes_are_said_before_anything_is_trained(
    tiny_model: Path,
    pairs: Path,
    demo_folder: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    out = tmp_path / "expert"

    def refused(kind: type[Exception], match: str, *arguments: Any) -> None:
        error = warm_up(*arguments, "--expert=perception").exception
        assert isinstance(error, kind)
        assert match in str(error)

    out.mkdir()
    refused(ConfigError, "exists already", tiny_model, pairs, out)
    out.rmdir()
    refused(DataError, "does not exist", tiny_model, tmp_path / "nowhere.jsonl", out)
    refused(DataError, "no usable row", tiny_model, demo_folder / "data" / "prompts.jsonl", out)
    refused(ConfigError, "learner.optimizer.lr: Input should be greater than 0", tiny_model, pairs, out, "--lr=0")
    refused(ConfigError, "on a GPU the learners' attention", tiny_model, pairs, out, "--device=cuda")
    broken = pairs.with_name("broken.jsonl")
    rows = [json.loads(line) | {"response": "seven"} for line in pairs.read_text().splitlines()]
    broken.write_text("".join(json.dumps(row) + "\n" for row in rows))
    refused(DataError, "nothing to learn", tiny_model, broken, out)
    elsewhere = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"  # which names its images by their whole paths
    elsewhere.write_text(broken.read_text().replace('"images/', f'"{pairs.parent}/images/'))
    refused(DataError, "lies outside", tiny_model, elsewhere, out)
    refused(DataError, "nothing to learn", tiny_model, elsewhere, out, f"--image-root={pairs.parent}")
    assert "Missing option '--expert'" in CliRunner().invoke(cli.app, ["experts", "warmup", "a", "b", "c"]).output
    assert not list(tmp_path.iterdir())


def test_settings_of_an_earlier_release_are_the_same_but_for_keys_that_came_since(tmp_path: Path) -> None:
    pairs, file = tmp_path / "pairs.jsonl", tmp_path / "settings.json"
    pairs.write_text("{}")
    learner = {"optimizer": {"lr": 1e-5, "warmup_fraction": 0.1}}
    values = {"model": "m", "pairs": pairs, "expert": "perception", "epochs": 1, "batch": 1, "learner": learner}
    values |= {"checkpoint_every": 1, "on_bad_row": "skip", "seed": 0, "device": "cpu", "dtype": "float32"}
    config = WarmupConfig.of(**values)
    _refuse_other_settings(config, tmp_path)
    before = json.loads(file.read_text())
    del before["learner"]["rate_warmup"]
    file.write_text(json.dumps(before))
    _refuse_other_settings(config, tmp_path)
    for changed in (before["learner"] | {"dropout": 0.5}, before["learner"] | {"of_another_release": 1}):
        file.write_text(json.dumps(before | {"learner": changed}))
        with pytest.raises(ConfigError, match=r"other settings \(learner\)"):
            _refuse_other_settings(config, tmp_path)
