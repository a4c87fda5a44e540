"""Runs as folders: what is refused, what is resumed, where a stage starts, and which arms are compared."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from prism.config import AlignConfig, GroundingConfig, RunConfig, load_config, load_saved
from prism.errors import ConfigError, ServiceError
from prism.evaluation.disentangle import disentangled_stages
from prism.evaluation.held_out import evaluated_stages
from prism.model.expert import load_expert
from prism.trainer.run import pipeline
from prism.trainer.run.compare import load_compare, stage_overrides, teacher_texts
from prism.trainer.run.expert_start import expert_start, served_experts
from prism.trainer.run.result import finish_stage, next_attempt, stage_result, start_of, start_version
from prism.trainer.stages.train import train_stage
from prism.wire.response import EXPERTS

DEMO = Path("configs/demo.toml")


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return load_config(DEMO, [f"runs_dir={json.dumps(str(tmp_path))}"])


def test_a_stage_starts_from_the_one_before_and_carries_its_version(config: RunConfig) -> None:
    assert start_of(config, "sft") == "model"  # not there yet: taken as a name
    (config.run_dir / "model").mkdir(parents=True)
    assert start_of(config, "sft") == config.run_dir / "model"
    finish_stage(config, "align", "align", lambda folder: {"version": 40, "steps": 40})
    start = start_of(config, "rlvr")
    assert start == config.run_dir / "stages" / "align"
    assert start_version(start) == 40
    assert start_version(config.run_dir / "model") == 0


def test_a_stage_that_fails_leaves_no_result(config: RunConfig) -> None:
    def fail(folder: Path) -> dict[str, Any]:
        (folder / "half.safetensors").write_bytes(b"x")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        finish_stage(config, "sft", "sft", fail)
    assert stage_result(config, "sft") is None


def test_attempts_count_up_across_starts(tmp_path: Path) -> None:
    assert [next_attempt(tmp_path) for _ in range(3)] == [1, 2, 3]


def test_a_torn_last_line_says_nothing_of_a_stage(tmp_path: Path) -> None:
    for name, stages in (("evaluations.jsonl", evaluated_stages), ("disentanglement.jsonl", disentangled_stages)):
        assert not stages(tmp_path)
        (tmp_path / name).write_text('{"stage": "sft"}\n{"stage": "align"}\n{"stage": "rl')
        assert set(stages(tmp_path)) == {"sft", "align"}


def test_results_of_other_settings_are_refused_by_key(config: RunConfig, tmp_path: Path) -> None:
    config.run_dir.mkdir(parents=True)
    pipeline.save_resolved(config)
    runs_dir = f"runs_dir={json.dumps(str(tmp_path))}"
    other = load_config(DEMO, [runs_dir, "stages.align.steps=41", "stack.base_port=9000"])
    pipeline.refuse_changed(other)  # nothing was made yet
    (config.run_dir / "stages").mkdir()
    with pytest.raises(ConfigError, match=r"other settings \(stages\.align\.steps\).*--fresh"):
        pipeline.refuse_changed(other)
    free = ["stack.base_port=9000", "stages.align.max_empty_steps=9", "stages.rlvr.max_flat_steps=50"]
    pipeline.refuse_changed(load_config(DEMO, [runs_dir, *free]))  # results do not depend on them


OLD_RUN = Path(__file__).with_name("old_run")  # a configuration, and config.json as 2ab6e66 wrote it


def old_run(tmp_path: Path, **changes: Any) -> RunConfig:
    """The run again, in a folder that holds its results, its config.json changed at dotted keys; None: not there."""
    config = load_config(OLD_RUN / "run.toml", [f"runs_dir={json.dumps(str(tmp_path))}"])
    (config.run_dir / "stages").mkdir(parents=True)
    saved = json.loads((OLD_RUN / "config.json").read_text())
    for key, value in changes.items():
        *parents, last = key.split(".")
        table = saved
        for parent in parents:
            table = table[parent]
        if value is None:
            del table[last]
        else:
            table[last] = value
    (config.run_dir / "config.json").write_text(json.dumps(saved))
    return config


def test_a_run_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    pipeline.refuse_changed(old_run(tmp_path))


def test_keys_that_have_come_since_with_a_default_are_no_change(tmp_path: Path) -> None:
    pipeline.refuse_changed(old_run(tmp_path, **{"compile": None, "stages.align.experts.mismatch": None}))


def test_what_an_earlier_version_was_told_otherwise_is_a_change(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"other settings \(stages\.align\.experts\.mismatch\)"):
        pipeline.refuse_changed(old_run(tmp_path, **{"stages.align.experts.mismatch": 1.0}))


@pytest.mark.parametrize("published", [None, "prism"])
def test_experts_of_a_run_from_before_they_could_be_shared_are_two_networks(
    tmp_path: Path, published: str | None
) -> None:
    """What ``published`` has come to set since is not what the run was begun with: it is refused by its name."""
    config = old_run(tmp_path)
    values = config.model_dump(mode="json")
    values["stages"]["align"]["published"] = published
    saved = json.loads(json.dumps(values))
    del saved["stages"]["align"]["experts"]["shared"]
    (config.run_dir / "config.json").write_text(json.dumps(saved))
    (before,) = [stage for stage in load_saved(config.run_dir).stages.values() if isinstance(stage, AlignConfig)]
    assert before.experts.networks == EXPERTS
    pipeline.refuse_changed(RunConfig.model_validate(values))
    values["stages"]["align"]["experts"]["shared"] = True
    with pytest.raises(ConfigError, match=r"other settings \(stages\.align\.experts\.shared\)"):
        pipeline.refuse_changed(RunConfig.model_validate(values))


def test_a_key_of_another_version_is_refused_by_name(tmp_path: Path) -> None:
    config = old_run(tmp_path, **{"stages.align.experts.mismatched": 1.0})
    with pytest.raises(
        ConfigError, match=r"stages\.align\.experts\.mismatched: is not a known key; did you mean mismatch"
    ):
        pipeline.refuse_changed(config)


def copy(model: Path, folder: Path) -> dict[str, Any]:
    shutil.copytree(model, folder, dirs_exist_ok=True)
    return {"version": 0}


def align_of(config: RunConfig) -> AlignConfig:
    stage = config.stages["align"]
    assert isinstance(stage, AlignConfig)
    return stage


def align_with(config: RunConfig, **experts: Any) -> AlignConfig:
    stage = align_of(config)
    return stage.model_copy(update={"experts": stage.experts.model_copy(update=experts)})


def test_learners_and_services_take_the_same_mixture_made_once(config: RunConfig, tiny_model: Path) -> None:
    assert served_experts(config) is None, "alignment's own start is not there yet"
    finish_stage(config, "sft", "sft", lambda folder: copy(tiny_model, folder))
    folder = config.run_dir / "experts" / "align" / "mixture"
    mixed = align_with(config, grounding=None)
    assert expert_start(config, "align", mixed, "reasoning") == folder
    assert load_expert(folder, strict=True).mixture == (4, 2)
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert expert_start(config, "align", mixed, "perception") == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == made
    dense = align_with(config, grounding=None, mixture=None)
    assert expert_start(config, "align", dense, "perception") == config.run_dir / "stages" / "sft"


def test_experts_are_grounded_on_the_teachers_text_before_the_game(
    config: RunConfig, tiny_model: Path, demo_folder: Path
) -> None:
    shutil.copytree(demo_folder / "data", config.run_dir / "data")
    finish_stage(config, "sft", "sft", lambda folder: copy(tiny_model, folder))
    frozen = ["model.visual", "model.language_model.layers.0"]
    config.stages["align"] = align_with(
        config, grounding=GroundingConfig(epochs=1, batch=4), freeze=frozen, section="whole"
    )
    folders = served_experts(config)
    assert folders
    assert folders == {expert: config.run_dir / "experts" / "align" / expert for expert in EXPERTS}
    before = load_expert(config.run_dir / "experts" / "align" / "mixture", strict=True).state_dict()
    for expert, folder in folders.items():
        grounded = load_expert(folder, strict=True)
        assert grounded.mixture == (4, 2)
        same = {name for name, tensor in grounded.state_dict().items() if torch.equal(tensor, before[name])}
        kept = {name for name in before if f"{name}.".startswith(tuple(f"{part}." for part in frozen))}
        assert kept <= same, "what the game freezes stays as it is"
        assert not any(name.startswith("model.language_model.layers.1.") for name in same)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [line[f"{expert}_pair_accuracy"] for line in lines] == [None, None]  # 8 rows in fours, no student
        assert all(line[f"{expert}_updated"] for line in lines)
        assert json.loads((folder / "warmup.json").read_text())["learner"]["section"] == "whole", "as the game's"


def test_a_mixture_that_cannot_be_made_stops_the_run(config: RunConfig) -> None:
    finish_stage(config, "sft", "sft", lambda folder: {})
    with pytest.raises(ConfigError, match="mixture could not be made"):
        served_experts(config)
    assert not (config.run_dir / "experts" / "align").exists()


def test_experts_are_measured_after_alignment_alone_and_only_if_asked_for(config: RunConfig) -> None:
    (config.run_dir / "stages").mkdir(parents=True)
    for name in config.stages:
        finish_stage(config, name, name, lambda folder: {"version": 1})
    with (config.run_dir / "evaluations.jsonl").open("w") as file:
        file.writelines(json.dumps({"stage": name}) + "\n" for name in config.stages)
    pending = {name: pipeline._is_pending(config, name) for name in config.stages}
    assert pending == {"sft": False, "align": True, "rlvr": False}
    unasked = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"disentangle": None})})
    assert not pipeline._is_pending(unasked, "align")
    (config.run_dir / "disentanglement.jsonl").write_text(json.dumps({"stage": "align"}) + "\n")
    assert not pipeline._is_pending(config, "align")


def test_a_preparation_that_fails_is_the_users_to_mend(config: RunConfig) -> None:
    broken = config.model_copy(update={"prepare": config.prepare and config.prepare.model_copy(
        update={"options": {"no-such-option": 1}})})  # fmt: skip
    with pytest.raises(ConfigError, match=r"prepare\.py failed"):
        pipeline.prepare(broken, Console(quiet=True))


def test_a_stage_wants_what_comes_before_it(config: RunConfig) -> None:
    with pytest.raises(ConfigError, match="`prism prepare` makes the run's model and data"):
        train_stage(config, "sft")
    with pytest.raises(ConfigError, match="starts from the result of align"):
        train_stage(config, "rlvr")
    with pytest.raises(ConfigError, match="no stage 'alignn': the configuration has sft, align, rlvr"):
        train_stage(config, "alignn")


def test_services_must_be_found_before_a_stage_that_needs_them(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prism.clients.endpoints import load_endpoints

    for name in ("REDIS_URL", "TOKEN", "POLICY_URL"):
        monkeypatch.delenv(f"PRISM_{name}", raising=False)
    with pytest.raises(ConfigError, match="PRISM_POLICY_URL: is not set"):
        load_endpoints(config.run_dir / "stack.json")


def test_a_trainer_that_dies_is_named_with_what_to_do() -> None:
    with pytest.raises(ServiceError, match="stage align ended with status 3; the same command goes on"):
        pipeline.train_in_process(["/bin/sh", "-c", "exit 3"], "align", None)


def test_the_demos_arms_have_equal_policy_steps_and_share_their_sft(tmp_path: Path) -> None:
    compare = load_compare(Path("configs/demo-compare.toml"))
    base = Path("configs") / compare.base
    configs = {name: load_config(base, [*stage_overrides(base, arm), *arm.set]) for name, arm in compare.arms.items()}
    assert {name: list(config.stages) for name, config in configs.items()} == {
        "baseline": ["sft", "rlvr"],
        "control": ["sft", "teacher", "rlvr"],
        "prism": ["sft", "align", "rlvr"],
    }
    steps = {sum(stage.steps for stage in list(config.stages.values())[1:]) for config in configs.values()}
    assert len(steps) == 1
    assert len({config.stages["sft"].model_dump_json() for config in configs.values()}) == 1


def test_teacher_texts_are_counted_once_and_never_beyond_the_file(config: RunConfig) -> None:
    data = config.run_dir / "data"
    data.mkdir(parents=True)
    (data / "teacher.jsonl").write_text("{}\n" * 50)
    assert teacher_texts(config) == 50


def test_an_arm_of_unknown_stages_is_refused() -> None:
    compare = load_compare(Path("configs/demo-compare.toml"))
    arm = compare.arms["prism"].model_copy(update={"stages": ["sft", "alignment"]})
    with pytest.raises(ConfigError, match="nobody describes: alignment"):
        stage_overrides(DEMO, arm)
