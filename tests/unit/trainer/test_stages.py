"""Whole stages over real streams, checkpoints and pushes: their order, kills and resumes bit for bit, bad days."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import torch
from rich.console import Console
from safetensors.torch import load_file
from stage_services import ADMIN_TOKEN, DATA_TOKEN, Event, Journal, Killed, ScriptedWorker, WeightServers

from prism.config import MixtureConfig, RunConfig
from prism.data.blobs import BlobStore
from prism.errors import NotFiniteError, PrismError
from prism.model.expert import load_expert, save_expert
from prism.model.inputs import InputBuilder
from prism.streams.keys import StreamNames, parse_group
from prism.trainer.checkpoint.folder import checkpoints
from prism.trainer.run.make_experts import upcycle_folder
from prism.trainer.stages import align, rlvr
from prism.wire.response import EXPERTS
from prism.wire.v1 import rollout_pb2 as pb

POLICY = "policy"
LEARNERS = {"rlvr": (POLICY,), "align": (POLICY, *EXPERTS)}
COUNT = 3  # groups a step
Stage = Callable[..., Journal]


@pytest.fixture(scope="module")
def inputs(tiny_model: Path) -> InputBuilder:
    return InputBuilder(tiny_model)


@pytest.fixture
def stage(
    tiny_model: Path, demo_folder: Path, inputs: InputBuilder, redis_url: str, redis_client: redis.Redis, tmp_path: Path
) -> Iterator[Stage]:
    """Runs a stage in a folder of its own under ``tmp_path``, as often as it is called; servers live as long as a run.

    The attempt's journal comes back, be it that it was ``killed_at`` something.
    """
    servers: dict[str, WeightServers] = {}

    def run(
        kind: str,
        name: str,
        *,
        killed_at: Event | None = None,
        spoilt_from: int = 1000,
        spoil: Callable[[pb.RolloutGroup], None] = lambda group: None,
        staleness: int = 0,
        evaluate: dict[str, Any] | None = None,
        **values: Any,
    ) -> Journal:
        data = str(demo_folder / "data" / "teacher.jsonl")
        rollouts = {"data": data, "prompts": COUNT, "n": 3, "max_tokens": 64, "staleness": staleness}
        policy = {"optimizer": {"lr": 1e-3, "max_skipped": 2}, "max_mismatch": 99}  # the worker makes logprobs up
        settings: dict[str, Any] = {"kind": kind, "steps": 4, "checkpoint_every": 2, "rollouts": rollouts}
        if kind == "align":
            experts = {"optimizer": {"lr": 1e-3}, "mixture": {}}
            settings |= {"warmup_steps": 1, "warmup_prompts": COUNT, "experts": experts}
        config = RunConfig.model_validate(
            {
                "name": name,
                "runs_dir": tmp_path,
                "model": str(tiny_model),
                "stages": {"it": settings | {"policy": policy} | values},
                "evaluate": {"data": "x", "max_tokens": 8} | (evaluate or {}),
                "stack": {"max_model_len": 256},
            }
        )
        if name not in servers:
            config.run_dir.mkdir()
            servers[name] = WeightServers(config.run_dir / "weights")
            if (settings | values).get("experts", {}).get("mixture") is not None:
                # A process of its own would make it, with its own imports of torch.
                made = config.run_dir / "experts" / "it" / "mixture"
                options: dict[str, Any] = MixtureConfig.model_validate({}).model_dump()
                options |= {"seed": config.seed, "dtype": config.dtype, "console": Console(quiet=True)}
                upcycle_folder(str(tiny_model), made, **options)
        urls = {f"{model}_url": f"{servers[name].url}/{model}" for model in (POLICY, *EXPERTS, "grader")}
        tokens = {"token": DATA_TOKEN, "admin_token": ADMIN_TOKEN}
        blobs = str(tmp_path / "blobs")
        endpoints = urls | tokens | {"redis_url": redis_url, "blobs": blobs}
        (config.run_dir / "stack.json").write_text(json.dumps(endpoints))

        journal = servers[name].journal = Journal(config.run_dir / "checkpoints" / "it", killed_at)
        worker = ScriptedWorker(redis_url, name, servers[name], inputs, BlobStore(blobs))
        worker.spoilt_from, worker.spoil = spoilt_from, spoil
        module: Any = {"rlvr": rlvr, "align": align}[kind]
        with pytest.MonkeyPatch.context() as patch, worker:
            journal.watch(redis_client, patch)
            try:
                module.train(config, "it", config.stages["it"], tiny_model, config.run_dir / "out")
            except Killed:
                assert killed_at
            except PrismError:
                journal.look()
                raise
            else:
                assert not killed_at, "never came so far"
        journal.look()
        return journal

    yield run
    for server in servers.values():
        server.close()


def figures(folder: Path) -> dict[int, dict[str, Any]]:
    """Of each step, the last that was written, without times and attempts."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    left_out = ("time", "attempt")
    return {
        line["step"]: {name: value for name, value in line.items() if "seconds" not in name and name not in left_out}
        for line in lines
    }


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{file.parent.name}/{name}": tensor
        for file in sorted((folder / "out").rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def step_positions(step: int) -> list[int]:
    """Of a step, counted from 0, in a run that loses nothing and asks for nothing twice."""
    return list(range(step * COUNT, (step + 1) * COUNT))


def state(folder: Path) -> dict[str, Any]:
    return json.loads((checkpoints(folder / "checkpoints" / "it")[-1] / "state.json").read_text())


def groups_left(client: redis.Redis, run: str) -> dict[int, int]:
    """Policy versions of the groups in the stream, by position."""
    entries: Any = client.xrange(StreamNames(run).rollouts)
    groups = [parse_group(fields[b"group"]) for _, fields in entries]
    return {group.request.position: group.policy_version for group in groups}


def pending(client: redis.Redis, run: str) -> dict[str, int]:
    """Groups that each learner was given and has not acknowledged."""
    found: Any = client.xinfo_groups(StreamNames(run).rollouts)
    return {info["name"].decode(): info["pending"] for info in found}


@pytest.mark.parametrize(
    ("kind", "staleness", "order"),
    [
        ("rlvr", 0, "v0 step0 v1 step1 v2 step2 v3"),
        ("rlvr", 1, "v0 step0 step1 v1 step2 v2 v3"),
        ("align", 0, "v0 step0 step1 v1 step2 v2"),  # its first step warms the experts up
    ],
    ids=["rlvr", "rlvr-ahead", "align"],
)
def test_weights_go_out_before_groups_are_asked_for_and_groups_are_kept_until_their_checkpoint_is_sealed(
    stage: Stage, kind: str, staleness: int, order: str, redis_client: redis.Redis, tmp_path: Path
) -> None:
    journal, learners = stage(kind, "it", steps=3 if kind == "rlvr" else 2, staleness=staleness), LEARNERS[kind]
    first_pushed = journal.of("pushed", "asked")[: len(learners)]  # at once, in any order
    assert sorted(first_pushed, key=str) == sorted((Event("pushed", learner, 0) for learner in learners), key=str)
    expected = {f"step{step}": Event("asked", positions=tuple(step_positions(step))) for step in range(3)}
    expected |= {f"v{version}": Event("pushed", POLICY, version) for version in range(4)}
    of_policy = [event for event in journal.of("pushed", "asked") if event.whose not in EXPERTS]
    assert of_policy == [expected[name] for name in order.split()]

    first, rest = (*step_positions(0), *step_positions(1)), tuple(step_positions(2))
    kept = journal.of("sealed", "acknowledged")
    assert kept == [
        Event("sealed", number=2),
        *(Event("acknowledged", learner, positions=first) for learner in learners),
        Event("sealed", number=3),
        *(Event("acknowledged", learner, positions=rest) for learner in learners),
    ]
    assert {name: state(tmp_path / "it")[name] for name in ("position", "consumed")} == {"position": 9, "consumed": []}
    assert pending(redis_client, "it") == dict.fromkeys(learners, 0)
    names = StreamNames("it")
    assert [redis_client.xlen(stream) for stream in (names.prompts, names.rollouts, names.dead)] == [0, 0, 0]


@pytest.mark.parametrize("killed_at", ["asked", "acknowledged"])
def test_after_a_kill_groups_are_taken_over_and_every_position_is_trained_once(
    stage: Stage, killed_at: str, redis_client: redis.Redis, tmp_path: Path
) -> None:
    """Killed in the middle of step 4, and between checkpoint 2 and its acknowledgement."""
    in_checkpoint = (*step_positions(0), *step_positions(1))
    moments = {
        "asked": Event("asked", positions=tuple(step_positions(3))),
        "acknowledged": Event("acknowledged", POLICY, positions=in_checkpoint),
    }
    killed = stage("rlvr", "it", killed_at=moments[killed_at])
    assert killed.of("sealed") == [Event("sealed", number=2)]
    assert {name: state(tmp_path / "it")[name] for name in ("position", "consumed")} == {"position": 6, "consumed": []}
    left = groups_left(redis_client, "it")
    if killed_at == "acknowledged":
        assert left.keys() >= set(in_checkpoint)
    else:
        assert left.keys() >= set(step_positions(2)), "trained on, but in no checkpoint"

    resumed = stage("rlvr", "it")
    assert resumed.of("pushed", "asked")[0] == Event("pushed", POLICY, 2)
    # What the checkpoint's weights or earlier ones sampled counts; later weights are this attempt's to make.
    taken_over = {position for position, version in left.items() if position >= 6 and version <= 2}
    assert taken_over <= set(step_positions(2))
    assert resumed.positions("asked") == [position for position in range(6, 12) if position not in taken_over]
    trained_on = [position for _, step in sorted(figures(tmp_path / "it").items()) for position in step["positions"]]
    assert trained_on == list(range(12))
    assert pending(redis_client, "it") == {POLICY: 0}
    assert groups_left(redis_client, "it") == {}


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("rlvr", {}),
        ("rlvr", {"loss": "gspo", "kl_coef": 0.1}),
        ("align", {}),
    ],
)
def test_a_stage_that_was_killed_ends_bit_for_bit_as_one_that_was_not(
    stage: Stage, kind: str, values: dict[str, Any], tmp_path: Path
) -> None:
    stage(kind, "whole", **values)
    in_step_4 = Event("asked", positions=tuple(step_positions(3)))
    stage(kind, "killed", killed_at=in_step_4, **values)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert [folder.name for folder in checkpoints(killed / "checkpoints" / "it")] == ["000002"]
    resumed = stage(kind, "killed", **values)
    assert not set(step_positions(2)) & set(resumed.positions("asked")), "taken over"
    assert figures(killed) == figures(whole)
    assert len(figures(whole)) == (4 if kind == "rlvr" else 5)
    ours, theirs = tensors(killed), tensors(whole)
    assert ours.keys() == theirs.keys()
    assert len({name.split("/")[0] for name in ours}) == len(LEARNERS[kind])
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    last = figures(whole)[max(figures(whole))]
    assert last["policy_grad_norm"] > 0
    assert (last["reference_kl"] is not None) is ("kl_coef" in values)
    if "kl_coef" in values:
        assert figures(whole)[1]["reference_kl"] == 0  # still the model it started from
        assert last["reference_kl"] > 0


def test_experts_of_another_size_with_heads_play_from_the_first_step_and_go_on_bit_for_bit(
    stage: Stage, tiny_model: Path, other_size: Path, inputs: InputBuilder, tmp_path: Path
) -> None:
    folders = {expert: tmp_path / f"trained-{expert}" for expert in EXPERTS}
    for seed, folder in enumerate(folders.values()):
        save_expert(load_expert(other_size, seed=seed), folder, inputs)
        (folder / "LICENSE").write_text("of the experts")
    start = {expert: str(folder) for expert, folder in folders.items()}
    values = {"experts": {"optimizer": {"lr": 1e-3}, "start": start}, "warmup_steps": 0}
    stage("align", "whole", **values)
    stage("align", "killed", killed_at=Event("asked", positions=tuple(step_positions(3))), **values)
    stage("align", "killed", **values)
    whole, killed = figures(tmp_path / "whole"), figures(tmp_path / "killed")
    assert whole == killed
    assert [line["warmup"] for line in whole.values()] == [False] * 4
    assert all(line["policy_grad_norm"] is not None for line in whole.values())
    for expert, folder in folders.items():
        before = load_file(folder / "model.safetensors")
        after, again = (load_file(tmp_path / run / "out" / "experts" / expert / "model.safetensors")
                        for run in ("whole", "killed"))  # fmt: skip
        assert {name: t.shape for name, t in after.items()} == {name: t.shape for name, t in before.items()}
        assert all(torch.equal(again[name], tensor) for name, tensor in after.items())
        moved = (after["score.weight"] - before["score.weight"]).abs().max()
        assert 0 < moved < 0.01, "it went on from the head that it was given"
        assert (tmp_path / "whole" / "out" / "experts" / expert / "LICENSE").read_text() == "of the experts"


def test_a_frozen_part_is_not_trained_nor_written_again(stage: Stage, tiny_model: Path, tmp_path: Path) -> None:
    before = load_file(tiny_model / "model.safetensors")
    stage("rlvr", "frozen", policy={"optimizer": {"lr": 1e-3}, "max_mismatch": 99, "freeze": ["model.visual"]})
    after = load_file(tmp_path / "frozen" / "out" / "model.safetensors")
    equal = {name for name, tensor in after.items() if torch.equal(tensor, before[name])}
    assert equal == {name for name in after if name.startswith("model.visual.")}


def test_frozen_experts_are_pushed_when_they_are_warmed_up_and_judge_on(
    stage: Stage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frozen = {"optimizer": {"lr": 1e-3}, "mixture": {}, "frozen": True}
    journal = stage("align", "frozen", experts=frozen, steps=3, warmup_steps=2)
    pushed = [(event.whose, event.number) for event in journal.of("pushed")]
    assert sorted(one for one in pushed if one[0] in EXPERTS) == [(e, version) for e in EXPERTS for version in (0, 2)]
    assert [number for whose, number in pushed if whose == POLICY] == [0, 1, 2, 3]
    lines = figures(tmp_path / "frozen")
    assert [lines[step]["perception_version"] for step in range(1, 6)] == [1, 2, 2, 2, 2]
    assert [lines[step]["perception_updated"] for step in range(1, 6)] == [1, 1, 0, 0, 0]
    assert lines[5]["served_perception_version"] == 2
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("whether the experts look at pictures is not measured") == 1, "its held-out data is not there"
    assert "looks_asked" not in lines[2]
    assert "what the perception expert is shown could not be asked" in said, "these servers hold no model"


def test_updates_that_are_not_finite_end_the_stage_with_checkpoint_and_groups_kept(
    stage: Stage, tmp_path: Path
) -> None:
    six = {"steps": 6, "checkpoint_every": 3}
    with pytest.raises(NotFiniteError, match="2 updates in a row"):
        stage("rlvr", "spoilt", spoilt_from=4, **six)
    run = tmp_path / "spoilt"
    assert [folder.name for folder in checkpoints(run / "checkpoints" / "it")] == ["000003"]
    assert [file.name for file in sorted((run / "not-finite").iterdir())] == ["it-000005.jsonl", "it-000006.jsonl"]
    assert len((run / "not-finite" / "it-000005.jsonl").read_text().splitlines()) == 3
    assert figures(run)[5]["policy_skipped"] == 1
    assert figures(run)[5]["policy_loss"] is None
    assert 6 not in figures(run)
    # With good rollouts the same command goes on from the checkpoint and ends as if nothing had been.
    stage("rlvr", "whole", **six)
    stage("rlvr", "spoilt", **six)
    mended, whole = tensors(run), tensors(tmp_path / "whole")
    assert all(torch.equal(mended[name], tensor) for name, tensor in whole.items())
