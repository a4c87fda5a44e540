"""``prism run --dry-run``: says what a run would take, refuses what it would refuse, changes nothing."""

import json
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from rich.filesize import decimal

from bench.learner.workload import SIZES
from configs.demo import task
from configs.demo.model import save_shape
from prism import cli
from prism.config import MixtureConfig, OptimizerConfig, load_config
from prism.errors import ConfigError
from prism.model.expert import upcycle
from prism.model.inputs import InputBuilder
from prism.model.packing import pack
from prism.stack.ports import free_port
from prism.trainer.learn.optimizer import Optimizer
from prism.trainer.learn.policy_model import LOGITS, load_policy, response_logprobs
from prism.trainer.run import pipeline, placement
from prism.trainer.run.estimate import checkpoint_bytes, expert_size, learners_memory, policy_size
from prism.trainer.run.placement import disk_of, learners_of
from prism.wire.v1 import rollout_pb2 as pb

DEMO = Path("configs/demo.toml").resolve()


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where runs lie; none of them can start a process."""
    shutil.copytree("configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess.Popen, "__init__", refuse)
    return tmp_path / "runs"


@pytest.fixture
def made(runs: Path, demo_folder: Path) -> Path:
    """The demo's folder after its preparation."""
    shutil.copytree(demo_folder, runs / "demo")
    return runs / "demo"


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(folder.rglob("*"))}


def dry_run(
    *overrides: str,
    config: str = "configs/demo.toml",
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> tuple[int, str, str]:
    """Exit status, what was printed, what was refused. Checks that nothing was written."""
    settings = [
        part for override in (f"stack.base_port={free_port(in_a_row=8)}", *overrides) for part in ("--set", override)
    ]
    monkeypatch.setattr(sys, "argv", ["prism", "run", config, "--dry-run", *settings])
    before = tree(Path.cwd())
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert tree(Path.cwd()) == before
    out, err = capsys.readouterr()
    assert isinstance(left.value.code, int)
    return left.value.code, out, err


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    return partial(dry_run, monkeypatch=monkeypatch, capsys=capsys)


def test_it_says_what_the_run_would_take(made: Path, plan: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    status, out, refused = plan("stages.sft.steps=3")
    assert (status, refused) == (0, "")
    for said in (
        "runs/demo/data/public.jsonl: 24 of 24 rows usable, images opened",
        "192 examples, 8.00 epochs of 24 rows",
        "6,080 responses to 1,600 prompts, 200.00 epochs of 8 rows",  # 20 x 48 of the warm-up, 40 x 16 x 8
        "4 questions after each stage",
        "policy:      1.5M parameters",
        "2 of 3.1M parameters each",
        "sft: supervised fine-tuning, 3 steps of 64; starts at step 0",
        "grader ",
    ):
        assert said in out
    again = tmp_path_factory.mktemp("again") / "again.toml"
    again.write_text(out)  # the plan stands in comments
    base_port = load_config(again).stack.base_port
    expected = load_config(DEMO, ["stages.sft.steps=3", f"stack.base_port={base_port}"])
    assert load_config(again) == expected


def test_it_says_what_experts_start_from_and_what_a_published_run_sets(
    made: Path, other_size: Path, plan: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    start = f"stages.align.experts.start={json.dumps(str(other_size))}"
    status, out, refused = plan(start, "stages.rlvr.published=prism")
    assert (status, refused) == (0, "")
    mixture = expert_size(other_size, MixtureConfig.model_validate({}), []).parameters
    assert f"2 of {mixture / 1e6:,.1f}M parameters each, from {other_size}" in out
    assert f"perception and reasoning {decimal(4 * mixture)} of weights each" in out
    said = " ".join(out.replace("\n# ", "\n").split())
    assert "published: rlvr as in the runs of prism: rollouts.temperature = 1.0" in said
    assert "policy.dual_clip = 3.0, " in said
    assert "but the configuration says steps = " in said
    assert "rollouts.prompts = 16 (published: 32)" in said
    again = tmp_path_factory.mktemp("again") / "again.toml"
    again.write_text(out)
    assert load_config(again).stages["align"].model_dump()["experts"]["start"]["reasoning"] == str(other_size)
    adapters = [f"stages.align.{each}.lora={{rank=4}}" for each in ("policy", "experts")]
    apart = "their adapters are over another model than the policy's"
    assert apart in plan(start, *adapters)[1]
    grounding = "stages.align.experts.grounding.epochs=1"
    assert apart in plan(*adapters, grounding)[1]


def test_starts_that_do_not_fit_are_refused_by_dry_run_and_run_before_anything_starts(
    made: Path, other_size: Path, plan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = ["stages.align.experts.start=nowhere/warm", f"stages.rlvr.rollouts.data={json.dumps('data/prompts.jsonl')}"]
    why = "stages.align.experts.start.perception: nowhere/warm is no folder; download a hub model first"
    status, _, refused = plan(*start)
    assert status == 1
    assert why in " ".join(refused.split())
    monkeypatch.setattr(pipeline, "prepare", lambda *_: None)
    with pytest.raises(ConfigError, match="nowhere/warm is no folder"):
        pipeline.run(load_config(DEMO, start), DEMO, [], Console(quiet=True))
    assert not (made / "checkpoints").exists()


def test_what_is_finished_and_what_goes_on(made: Path, plan: Any) -> None:
    shutil.copytree(made / "model", made / "stages" / "sft")
    (made / "stages" / "sft" / "stage.json").write_text(json.dumps({"version": 0}))
    (made / "checkpoints" / "align" / "000030").mkdir(parents=True)
    (made / "checkpoints" / "align" / "000030" / "manifest.json").write_text("{}")
    status, out, _ = plan()
    assert status == 0
    assert "finished at version 0, to be measured" in out
    assert "goes on after step 30" in out
    assert "model:       runs/demo/stages/sft" in out
    assert "public.jsonl: " not in out  # is not read again


def test_what_a_preparation_has_yet_to_make_is_unknown(runs: Path, plan: Any) -> None:
    status, out, refused = plan()
    assert (status, refused) == (0, "")
    assert "configs/demo/prepare.py is called first: it has not made anything yet" in out
    assert "data/public.jsonl: not there yet; its rows are known once `prism prepare` has made it" in out
    assert "model: not there yet" in out
    assert "25,600 examples" in out
    assert not runs.exists()


def test_bad_rows_are_named_as_by_the_run(made: Path, plan: Any) -> None:
    rows = made / "data" / "public.jsonl"
    rows.write_text(rows.read_text() + "no row\n")
    status, out, _ = plan()
    assert status == 0
    assert "24 of 25 rows usable" in out
    assert f"skipped {rows.relative_to(Path.cwd())}:25: " in out
    status, _, refused = plan("on_bad_row=fail")
    assert status == 1
    assert "public.jsonl:25: " in refused


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("prepare.script=nowhere.py", "prepare.script: nowhere.py does not exist"),
        ("stages.align.policy.freeze=['model.eyes']", "freeze: the model has no part 'model.eyes'"),
        (
            "model=/no",
            "model: /no is no folder; download a hub model first: hf download NAME --local-dir /no",
        ),
    ],
)
def test_what_a_run_would_refuse_is_refused(made: Path, plan: Any, override: str, message: str) -> None:
    status, _, refused = plan(override)
    assert status == 1
    assert message in refused


def test_data_that_nobody_makes_must_be_there(made: Path, runs: Path, plan: Any) -> None:
    text = (Path("configs") / "demo.toml").read_text()
    alone, count = re.subn(r"\[prepare\]\n(.+\n)+", "", text)
    assert count == 1
    Path("configs/demo.toml").write_text(alone)
    (made / "data" / "prompts.jsonl").unlink()
    status, _, refused = plan()
    assert status == 1
    assert "data file data/prompts.jsonl does not exist" in refused


def test_a_taken_port_is_refused(made: Path, plan: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, _, refused = plan(f"stack.base_port={port - 3}")
    assert status == 1
    assert f"port {port}, meant for the reasoning service, is in use" in refused


def test_a_disk_that_is_too_small_is_refused_by_dry_run_and_run(
    made: Path, plan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, out, _ = plan()
    assert status == 0
    assert "disk:        about " in out
    free = 10**8
    monkeypatch.setattr(placement.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    status, _, refused = plan()
    assert status == 1
    assert "the disk of runs/demo has 100.0 MB left, the run needs about " in refused
    assert "more. What helps: another runs_dir, smaller keep_checkpoints or push.keep_gib" in refused
    monkeypatch.setattr(pipeline, "prepare", lambda *_: None)
    with pytest.raises(ConfigError, match=r"the disk of runs/demo has 100\.0 MB left"):
        pipeline.run(load_config(DEMO), DEMO, [], Console(quiet=True))
    assert not (made / "checkpoints").exists()
    free = 10**12
    assert plan()[0] == 0


@pytest.mark.parametrize(
    ("preset", "shape"), [(path.name, path.stem[:11]) for path in sorted(Path("configs").glob("qwen3-vl-*.toml"))]
)
def test_presets_fit_cards_of_80_gb(
    runs: Path, plan: Any, monkeypatch: pytest.MonkeyPatch, preset: str, shape: str
) -> None:
    save_shape(runs.parent / "model", task.corpus(), task.TAGS, SIZES[shape])
    monkeypatch.setattr(placement.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**12))
    monkeypatch.setattr(placement, "card_bytes", dict)  # no cards are here: their size is a setting
    starts: list[str] = []
    game: Any = load_config(Path(f"configs/{preset}")).stages["align"]
    if game.experts.start:
        save_shape(runs.parent / "expert", task.corpus(), task.TAGS, SIZES["qwen3-vl-2b"])
        starts.append(f"stages.align.experts.start={runs.parent / 'expert'}")
    model = f"model={runs.parent / 'model'}"
    status, out, refused = plan(model, *starts, "stack.card_gib=79.6", config=f"configs/{preset}")
    assert (status, refused) == (0, "")
    assert re.search(r"card 0: about \d+\.\d GB of 85\.5 GB: ", out)


def test_what_a_run_has_on_disk_at_most_and_what_is_there(made: Path) -> None:
    config = load_config(DEMO, ["push.keep_gib=1"])
    stages = {"rlvr": config.stages["rlvr"], "sft": config.stages["sft"]}
    size = policy_size(made / "model", [])
    checkpoint, weights = checkpoint_bytes(config, [size]), 4 * size.parameters
    disk = disk_of(config, made / "model", stages, 1)
    assert disk.parts == {
        "checkpoints": (2 + 1 + 1) * checkpoint,  # 4 of RLVR, of which two stay; 1 of SFT; one is being written
        "results": 2 * weights,
        "pushed weights": (3 + 1) * weights,
    }
    frozen = policy_size(made / "model", ["model.visual"]).frozen
    few = load_config(DEMO, [f"push.keep_gib={2 * weights / 2**30}", "stages.rlvr.policy.freeze=['model.visual']"])
    pushed = disk_of(few, made / "model", {"rlvr": few.stages["rlvr"]}, 1).parts["pushed weights"]
    assert pushed == 4 * frozen + 3 * (weights - 4 * frozen), "two versions fit, and what is frozen is linked"
    assert disk.there == 0
    (made / "weights" / "policy").mkdir(parents=True)
    (made / "weights" / "policy" / "a").write_bytes(b"x" * 1000)
    (made / "weights" / "policy" / "b").hardlink_to(made / "weights" / "policy" / "a")
    (made / "checkpoints" / "align").mkdir(parents=True)
    (made / "checkpoints" / "align" / "a").write_bytes(b"x")  # of a stage that is finished
    assert disk_of(config, made / "model", stages, 1).there == 1000
    assert replace(disk, free=disk_total(disk) - 1).problem
    assert replace(disk, free=disk_total(disk)).problem is None
    assert replace(disk, free=disk_total(disk) - 1, there=1).problem is None


def test_adapters_have_megabytes_on_disk_beside_links_and_merged_results(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora, mixture = "{rank=4}", "{experts=3,top_k=2}"
    sets = [f"stages.align.{each}.lora={lora}" for each in ("policy", "experts")]
    config = load_config(DEMO, [*sets, f"stages.align.experts.mixture={mixture}", "push.keep_gib=1"])
    stage: Any = config.stages["align"]
    grounded = bool(stage.experts.grounding)
    policy, expert, _ = (size for size, _ in learners_of(config, stage, made / "model"))
    disk = disk_of(config, made / "model", {"align": stage}, 1)
    assert disk.parts["checkpoints"] == 3 * checkpoint_bytes(config, [policy, expert, expert])
    assert disk.parts["checkpoints"] == 3 * 12 * (policy.trained + 2 * expert.trained)
    assert disk.parts["pushed weights"] == 4 * 4 * (policy.trained + 2 * expert.trained), "the base is linked"
    whole = expert_size(made / "model", stage.experts.mixture, []).parameters
    results = policy.parameters + 2 * (whole + expert.trained) + 2 * grounded * expert.frozen
    assert disk.parts["results"] == 4 * results
    alone = config.model_copy(update={"stages": {"align": stage}})
    assert disk_of(alone, made / "model", alone.stages, 1).parts == disk.parts
    monkeypatch.setattr(placement, "on_one_disk", lambda *_: False)
    assert disk_of(config, made / "model", {"align": stage}, 1).parts == disk.parts, "it starts from the run's own"
    pushed = disk_of(alone, made / "model", alone.stages, 1).parts["pushed weights"] - disk.parts["pushed weights"]
    assert pushed == 4 * (policy.frozen + 2 * (not grounded) * expert.frozen), "copied once"


def test_it_says_that_offloaded_states_are_not_copied_for_a_checkpoint(made: Path, plan: Any) -> None:
    copied, not_copied = "a copy waits in memory while one is written", "written from host memory, where the state lies"
    for sets, words, others in (([], copied, not_copied), (["offload=optimizer"], not_copied, copied)):
        _, out, _ = plan(*sets)
        assert words in out
        assert others not in out
    out = plan("offload=idle")[1]
    assert not_copied in out
    assert copied in out, "of SFT's one learner nothing is offloaded"


def disk_total(disk: placement.Disk) -> int:
    return int(sum(disk.parts.values()))


def test_changed_settings_are_refused(made: Path, plan: Any) -> None:
    (made / "stages").mkdir()
    saved = load_config(DEMO).model_dump_json()
    (made / "config.json").write_text(saved.replace('"seed":0', '"seed":1'))
    status, _, refused = plan()
    assert status == 1
    assert "was begun with other settings (seed)" in refused


def test_models_are_sized_without_their_weights(tiny_model: Path) -> None:
    policy = load_policy(tiny_model, dtype=torch.float32)
    assert policy_size(tiny_model, []).parameters == sum(p.numel() for p in policy.parameters())
    mixture = upcycle(tiny_model)
    assert expert_size(tiny_model, MixtureConfig.model_validate({}), []).parameters == sum(
        p.numel() for p in mixture.parameters()
    )
    frozen = policy_size(tiny_model, ["model.visual"])
    assert frozen.frozen == sum(p.numel() for p in policy.model.visual.parameters())
    with pytest.raises(ConfigError, match="no model can be loaded"):
        policy_size(tiny_model / "nowhere", [])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_estimates_are_near_what_torch_holds(tiny_model: Path, dtype: str) -> None:
    """Optimizer and checkpoint exactly, activations within a fifth."""
    config = load_config(DEMO).model_copy(update={"dtype": dtype})
    model = load_policy(tiny_model, dtype=getattr(torch, dtype)).train()
    inputs = InputBuilder(tiny_model)
    prompt = inputs.prompt([pb.Message(role="user", parts=[pb.Part(text="one two " * 40)])], [])
    batch = pack([inputs.with_text(prompt, "three four " * 30)], inputs)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = response_logprobs(model, batch).sum()
    activations = sum(t.untyped_storage().nbytes() for key, t in kept.items() if key not in weights)
    size = policy_size(tiny_model, [])
    memory = learners_memory(config, [(size, batch.tokens)])
    logits = min(LOGITS["cpu"], batch.tokens * size.vocabulary)
    assert memory.activations - 12 * logits == pytest.approx(activations, rel=0.2)
    optimizer = Optimizer(model.named_parameters(), OptimizerConfig.model_validate({"lr": 1e-3}), 1)
    loss.backward()
    optimizer.step()
    state = optimizer.state_dict()
    moments = [t for of in state["moments"].values() for t in of.values() if t.dim()]
    held = sum(t.nbytes for t in moments)
    copies = sum(t.nbytes for t in state["weights"].values()) if dtype == "bfloat16" else 0
    assert memory.optimizer == held + copies
    assert checkpoint_bytes(config, [size]) == held + sum(t.nbytes for t in state["weights"].values())
