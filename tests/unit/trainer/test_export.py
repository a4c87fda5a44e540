"""``prism export``: what a run has, as a folder that anything loads."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from bench.padded import load_stock
from prism import cli
from prism.config import AlignConfig, OptimizerConfig, RunConfig, load_config, save_resolved
from prism.errors import ConfigError, WeightsError
from prism.files import append_json
from prism.model.expert import load_expert, save_expert
from prism.model.inputs import InputBuilder
from prism.model.packing import pack
from prism.trainer.checkpoint.folder import write_description
from prism.trainer.checkpoint.saver import Checkpoints
from prism.trainer.learn.optimizer import Optimizer
from prism.trainer.learn.policy_model import load_policy, save_policy
from prism.trainer.run.card import write_card
from prism.trainer.run.result import finish_stage
from prism.wire.messages import Message, from_json
from prism.wire.v1 import rollout_pb2 as pb

OPTIMIZER = OptimizerConfig.model_validate({"lr": 1e-3})


@pytest.fixture
def config(tmp_path: Path, tiny_model: Path) -> RunConfig:
    """A demo of which SFT is finished."""
    made = load_config(Path("configs/demo.toml"), [f"runs_dir={json.dumps(str(tmp_path))}", f"model={tiny_model}"])
    save_resolved(made)

    def train(folder: Path) -> dict[str, Any]:
        save_policy(policy(tiny_model, 1.0), folder, InputBuilder(tiny_model))
        return {"version": 0}

    finish_stage(made, "sft", "sft", train)
    return made


def policy(folder: Path, mark: float) -> Any:
    """A policy that can be told from others."""
    model = load_policy(folder, dtype=torch.float32)
    with torch.no_grad():
        model.model.language_model.norm.weight.fill_(mark)
    return model


def checkpoint(config: RunConfig, stage: str, step: int, folder: Path, mark: float, **state: Any) -> Path:
    expert = load_expert(folder)
    torch.nn.init.constant_(expert.score.weight, mark)

    models: dict[str, Any] = {"policy": policy(folder, mark)}
    models |= dict.fromkeys(("perception", "reasoning") if stage == "align" else (), expert)
    with Checkpoints(config.run_dir / "checkpoints" / stage, keep=2) as saved:
        tensors = {
            name: Optimizer(model.named_parameters(), OPTIMIZER, 1).state_dict() for name, model in models.items()
        }
        saved.save(
            step, {"step": step, "policy_version": 0} | state, tensors, partial(write_description, config, models)
        )
    return saved.root / f"{step:06d}"


def export(config: RunConfig, out: Path, *options: str) -> Any:
    return CliRunner().invoke(cli.app, ["export", str(config.run_dir), str(out), *options])


def user(text: str) -> list[pb.Message]:
    return from_json([Message.model_validate({"role": "user", "content": text})], str)


def mark(out: Path) -> float:
    return load_stock(out).model.language_model.norm.weight[0].item()


def test_the_newest_is_exported_result_or_checkpoint(config: RunConfig, tiny_model: Path, tmp_path: Path) -> None:
    made = export(config, tmp_path / "a")
    assert (made.exit_code, made.output.endswith("the policy of sft, finished\n")) == (0, True)
    assert mark(tmp_path / "a") == 1.0
    for step in (10, 20):
        checkpoint(config, "align", step, tiny_model, float(step))
    assert export(config, tmp_path / "b").output.endswith("the policy of align, after step 20\n")
    assert mark(tmp_path / "b") == 20.0
    assert InputBuilder(tmp_path / "b").text_ids("one") == InputBuilder(tiny_model).text_ids("one")
    names = {file.name for file in (tmp_path / "b").iterdir()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert not names & {"stage.json", "manifest.json", "tensors"}
    export(config, tmp_path / "c", "--stage=sft")
    assert mark(tmp_path / "c") == 1.0
    export(config, tmp_path / "d", "--model=reasoning")
    assert load_file(tmp_path / "d" / "model.safetensors")["score.weight"][0, 0] == 20.0
    load_expert(tmp_path / "d", strict=True)


def test_a_damaged_checkpoint_is_not_exported(config: RunConfig, tiny_model: Path, tmp_path: Path) -> None:
    folder = checkpoint(config, "rlvr", 10, tiny_model, 2.0)
    (folder / "tensors" / "rank-00000.safetensors").write_bytes(b"")
    assert isinstance(export(config, tmp_path / "out").exception, WeightsError)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_exported_is_said(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for out, options, words in (
        ("there", (), "exists already"),
        ("out", ("--stage=rlvr",), "holds no policy yet of rlvr"),
        ("out", ("--model=perception",), "holds no perception yet"),
        ("out", ("--stage=dpo",), "no stage 'dpo'"),
    ):
        error = export(config, tmp_path / out, *options).exception
        assert isinstance(error, ConfigError)
        assert words in str(error)
    nothing = CliRunner().invoke(cli.app, ["export", str(tmp_path / "there"), str(tmp_path / "out")])
    assert "no config.json" in str(nothing.exception)


@pytest.fixture
def published(tiny_model: Path, tmp_path: Path) -> Path:
    """A start as models are published: with a licence, a vocabulary, two ends of a text, and a card of its own."""
    folder = tmp_path / "published"
    shutil.copytree(tiny_model, folder)
    (folder / "LICENSE").write_text("the licence")
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "README.md").write_text("the card of another model")
    (folder / "evil.py").write_text("raise SystemExit")
    return folder


@pytest.mark.parametrize("kind", ["finished", "checkpoint"])
def test_an_export_holds_what_its_start_held_and_says_where_it_comes_from(
    tmp_path: Path, published: Path, kind: str
) -> None:
    config = load_config(Path("configs/demo.toml"), [f"runs_dir={json.dumps(str(tmp_path))}", f"model={published}"])
    save_resolved(config)
    data = [{"file": "public.jsonl", "bytes": 5, "sha256": "ab" * 32, "rows": 24, "bad_rows": 1}]
    if kind == "finished":

        def train(folder: Path) -> dict[str, Any]:
            save_policy(policy(published, 1.0), folder, InputBuilder(published))
            return {"version": 0, "steps": 80, "data": data}

        finish_stage(config, "sft", "sft", train)
        figures = {"stage": "sft", "questions": 40, "judged": 39, "accuracy": 0.375, "format_rate": None}
        append_json(config.run_dir / "evaluations.jsonl", figures)
    else:
        checkpoint(config, "sft", 10, published, 2.0, data=data)
    assert export(config, tmp_path / "out").exit_code == 0
    out = tmp_path / "out"
    for name in (
        "generation_config.json",
        "preprocessor_config.json",
        "tokenizer_config.json",
        "LICENSE",
        "merges.txt",
    ):
        assert (out / name).read_bytes() == (published / name).read_bytes(), name
    assert load_stock(out).generation_config.eos_token_id == [376, 377]
    assert not (out / "evil.py").exists()
    card = (out / "README.md").read_text()
    assert "another model" not in card
    assert f"| sft | public.jsonl | 24 | 1 | {'ab' * 32} |" in card
    assert f"| sft | sft | {80 if kind == 'finished' else 10} | 0 | none |" in card
    assert ("| accuracy | 0.375 |" if kind == "finished" else "| accuracy | not measured |") in card
    assert "| format rate | not measured |" in card
    # Earlier releases of transformers know these names alone, and would take a default for what they do not find.
    text = json.loads((out / "config.json").read_text())["text_config"]
    rope = dict(text["rope_parameters"])
    assert text["rope_theta"] == rope.pop("rope_theta") == 10_000.0
    assert text["rope_scaling"] == rope


@pytest.mark.parametrize("kind", ["finished", "checkpoint"])
def test_an_export_scales_images_as_it_was_trained_to(tmp_path: Path, published: Path, kind: str) -> None:
    """Whatever its start says, in the words of each release of transformers."""
    preprocessor = published / "preprocessor_config.json"
    preprocessor.write_text(json.dumps(json.loads(preprocessor.read_text()) | {"max_pixels": 9216}))
    where = [f"runs_dir={json.dumps(str(tmp_path))}", f"model={published}"]
    config = load_config(Path("configs/demo.toml"), [*where, "limits.min_pixels=1024", "limits.max_pixels=5120"])
    save_resolved(config)
    if kind == "finished":

        def train(folder: Path) -> dict[str, Any]:
            save_policy(policy(published, 1.0), folder, InputBuilder(published, config.limits.pixel_bounds))
            return {"version": 0, "steps": 80, "data": []}

        finish_stage(config, "sft", "sft", train)
    else:
        checkpoint(config, "sft", 10, published, 2.0)
    assert export(config, tmp_path / "out").exit_code == 0
    size = {"shortest_edge": 1024, "longest_edge": 5120}
    written = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert (written["size"], written["max_pixels"]) == (size, 5120)
    assert json.loads((tmp_path / "out" / "processor_config.json").read_text())["image_processor"]["size"] == size
    inputs = InputBuilder(tmp_path / "out")
    assert inputs.image_tokens(96, 96) == 4 < InputBuilder(published).image_tokens(96, 96)


@pytest.mark.parametrize("kind", ["finished", "checkpoint"])
def test_an_expert_has_licence_and_name_of_the_folder_it_started_from(
    config: RunConfig, other_size: Path, published: Path, tmp_path: Path, kind: str
) -> None:
    """The policy's start has a licence too, which holds for the policy alone."""
    start = tmp_path / "start"
    shutil.copytree(other_size, start)
    (start / "LICENSE").write_text("the licence of the experts' start")
    where = [f"runs_dir={json.dumps(str(tmp_path))}", f"model={published}"]
    config = load_config(Path("configs/demo.toml"), [*where, f"stages.align.experts.start={json.dumps(str(start))}"])
    save_resolved(config)
    (config.run_dir / "stages" / "sft" / "LICENSE").write_text("the licence")
    if kind == "finished":

        def train(folder: Path) -> dict[str, Any]:
            save_policy(policy(published, 1.0), folder, InputBuilder(published))
            save_expert(load_expert(other_size), folder / "experts" / "reasoning", InputBuilder(start))
            return {"version": 4, "expert_version": 4, "steps": 4, "data": []}

        finish_stage(config, "align", "align", train)
    else:
        checkpoint(config, "align", 10, other_size, 0.02)
    if kind == "finished":
        shutil.rmtree(start)  # what the result holds is enough
    assert export(config, tmp_path / "out", "--model=reasoning").exit_code == 0
    assert (tmp_path / "out" / "LICENSE").read_text() == "the licence of the experts' start"
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"It started from `{start}`" in card
    assert load_expert(tmp_path / "out", strict=True).config.text_config.hidden_size == 64


def test_an_experts_card_loads_it_with_transformers_alone(config: RunConfig, tiny_model: Path, tmp_path: Path) -> None:
    checkpoint(config, "align", 10, tiny_model, 0.02)
    export(config, tmp_path / "out", "--model=perception")
    card = (tmp_path / "out" / "README.md").read_text()
    snippet = card.split("```python\n")[1].split("```")[0]
    snippet = snippet.replace('folder = "."', f"folder = {str(tmp_path / 'out')!r}")
    known: dict[str, Any] = {}
    exec(snippet, known)  # noqa: S102
    inputs = InputBuilder(tmp_path / "out")
    prompt = inputs.prompt(user("What is 2 + 2?"), [])
    batch = pack([inputs.with_text(prompt, known["response"])], inputs)
    expected = load_expert(tmp_path / "out", strict=True).eval()(batch)
    assert known["score"] == pytest.approx(expected.item(), rel=1e-4)


def test_an_experts_card_says_what_it_is_shown(config: RunConfig, tiny_model: Path, tmp_path: Path) -> None:
    align = config.stages["align"]
    assert isinstance(align, AlignConfig)
    experts = align.experts.model_copy(update={"section": "whole", "pictures": False})
    config.stages["align"] = align.model_copy(update={"experts": experts})
    checkpoint(config, "align", 10, tiny_model, 0.02)
    write_card(tmp_path, config, "align", "perception", "from a checkpoint", {})
    card = (tmp_path / "README.md").read_text()
    assert "`PRISM_EXPERT_PICTURES=false PRISM_EXPERT_SECTION=whole PRISM_MODEL=FOLDER prism serve perception`" in card
    assert "It scores\nthe whole text (shown without the prompt's pictures) of a response" in card
    assert 'response = "<caption>- 2 and 2</caption><think>2 + 2 = 4</think><answer>4</answer>"' in card


@pytest.mark.parametrize("of_tokenizer", [True, False])
def test_a_missing_chat_template_is_taken_from_the_tokenizer_or_said(
    tiny_model: Path, tmp_path: Path, of_tokenizer: bool
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    if not of_tokenizer:
        with pytest.raises(ConfigError, match=r"holds no chat template: add chat_template\.jinja"):
            InputBuilder(folder)
        return
    settings = folder / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"chat_template": template}))
    message = user("one")
    assert InputBuilder(folder).prompt(message, []) == InputBuilder(tiny_model).prompt(message, [])
