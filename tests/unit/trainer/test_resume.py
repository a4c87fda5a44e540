"""A stage's checkpoints: what a save holds, in which order it is acknowledged, and how old ones resume."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from PIL import Image
from pydantic import BaseModel
from torch import Tensor

from prism.config import OptimizerConfig
from prism.data.rows import read_rows
from prism.errors import DataError, Superseded, WeightsError
from prism.trainer.checkpoint.folder import checkpoints, newest_checkpoint, save_checkpoint
from prism.trainer.checkpoint.resume import StageCheckpoints
from prism.trainer.checkpoint.saver import Checkpoints
from prism.trainer.checkpoint.tensors import write_tensors
from prism.trainer.flow.intake import Intake
from prism.trainer.learn.learner import Learner
from prism.trainer.learn.optimizer import Optimizer


class Settings(BaseModel):
    seed: int = 0


class Model(torch.nn.Linear):
    """Two weights and a configuration that is nothing."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__(2, 1, bias=False)
        self.config: Any = self

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir()


class Log:
    """Records what the intake is asked for, in order, with the checkpoints that are sealed then."""

    attempt = 3

    def __init__(self, root: Path, newest: bool = True) -> None:
        self.root, self.newest, self.calls = root, newest, list[Any]()

    def check_newest(self) -> None:
        self.calls.append(("newest?", len(checkpoints(self.root))))
        if not self.newest:
            raise Superseded("attempt 4 of run x, another process, has taken over; this one stops")

    def state(self) -> dict[str, Any]:
        self.calls.append("state")
        return {"position": 40, "consumed": [41]}

    def acknowledgement(self) -> Callable[[], None]:
        self.calls.append("finished")
        return lambda: self.calls.append(("acknowledged", len(checkpoints(self.root))))

    def restore(self, state: dict[str, Any]) -> None:
        self.calls.append(("restore", state["position"], state["consumed"]))

    def resume(self, version: int | None) -> int:
        self.calls.append(("resume", version))
        return 2


def learner(version: int = 0) -> Learner:
    model = Model()
    return Learner(
        model, Optimizer(model.named_parameters(), OptimizerConfig.model_validate({"lr": 0.1}), 100), version
    )


def update(one: Learner) -> Tensor:
    """One update from a random gradient; the weights after it."""
    one.model.weight.grad = torch.rand(1, 2)
    one._optimizer.step()
    return one.model.weight.detach().clone()


def stage(
    root: Path, learners: dict[str, Learner], intake: Log | None = None, said: list[str] | None = None
) -> StageCheckpoints:
    say = [].append if said is None else said.append
    return StageCheckpoints(Checkpoints(root, 2), Settings(), learners, say, cast(Intake | None, intake))


def test_a_stage_goes_on_bit_for_bit_where_it_was_saved(tmp_path: Path) -> None:
    torch.manual_seed(1)
    policy, expert, said = learner(5), learner(), list[str]()
    update(policy)
    policy.version, expert.version = 6, 9
    with stage(tmp_path, {"policy": policy, "perception": expert}, Log(tmp_path)) as saved:
        saved.save(4)
    expected = [update(policy), update(expert), update(policy)]

    torch.manual_seed(2)
    again, other, log = learner(5), learner(), Log(tmp_path)
    assert stage(tmp_path, {"policy": again, "perception": other}, log, said).resume() == 4
    assert (again.version, other.version) == (6, 9)
    assert all(torch.equal(*pair) for pair in zip([update(again), update(other), update(again)], expected, strict=True))
    assert log.calls == [("restore", 40, [41]), ("resume", 6)]
    assert said == ["resumed after step 4 at version 6, 2 groups taken over"]


def test_without_a_checkpoint_nothing_that_waits_is_taken_over(tmp_path: Path) -> None:
    log, said = Log(tmp_path), list[str]()
    assert stage(tmp_path, {"policy": learner()}, log, said).resume() == 0
    assert log.calls == [("resume", None)]
    assert said == []


def test_a_save_is_acknowledged_once_it_is_sealed(tmp_path: Path) -> None:
    log = Log(tmp_path)
    with stage(tmp_path, {"policy": learner()}, log) as saved:
        saved.save(1)
        deadline = time.monotonic() + 30
        while len(log.calls) < 4 and time.monotonic() < deadline:
            saved.poll()
        assert log.calls == ["state", "finished", ("newest?", 0), ("acknowledged", 1)]
        saved.save(2)
    assert log.calls[4:] == ["state", "finished", ("newest?", 1), ("acknowledged", 2)]


def test_an_attempt_that_is_no_longer_the_newest_seals_and_acknowledges_nothing(tmp_path: Path) -> None:
    with stage(tmp_path, {"policy": learner(1)}, Log(tmp_path)) as saved:
        saved.save(1)
    log = Log(tmp_path, newest=False)
    with (
        pytest.raises(Superseded, match="attempt 4 of run x, another process, has taken over; this one stops"),
        stage(tmp_path, {"policy": learner(2)}, log) as saved,
    ):
        saved.save(1)  # the newer one has passed this step already
    assert log.calls == ["state", "finished", ("newest?", 1)]
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert newest[1]["policy_version"] == 1
    assert [folder.name for folder in tmp_path.iterdir()] == ["000001"]


def test_of_two_errors_the_first_is_told(tmp_path: Path) -> None:
    def fail_after_a_save() -> None:
        with stage(tmp_path, {"policy": learner()}, Log(tmp_path, newest=False)) as saved:
            saved.save(1)
            raise KeyError

    with pytest.raises(KeyError):
        fail_after_a_save()


def test_a_damaged_checkpoint_is_refused_before_anything_is_taken_over(tmp_path: Path) -> None:
    with stage(tmp_path, {"policy": learner()}) as saved:
        saved.save(1)
    (tmp_path / "000001" / "state.json").write_text("{}")
    log = Log(tmp_path)
    with pytest.raises(WeightsError, match="delete the folder"):
        stage(tmp_path, {"policy": learner()}, log).resume()
    assert log.calls == []


ROLLOUTS = {"position": 40, "consumed": [41], "attempt": 2}
KINDS: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "sft": ({"step": 4, "policy_version": 5, "expert_versions": {}}, {"policy": 5}),
    "warm-up": ({"step": 4, "expert_versions": {"perception": 4}}, {"perception": 4}),
    "rlvr": ({"step": 4, "policy_version": 9, "expert_versions": {}, **ROLLOUTS}, {"policy": 9}),
    "align": (
        {"step": 4, "policy_version": 7, "expert_versions": {"perception": 4, "reasoning": 4}, **ROLLOUTS},
        {"policy": 7, "perception": 4, "reasoning": 4},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints_of_every_kind_of_stage_resume(tmp_path: Path, kind: str) -> None:
    """Their ``state.json`` and tensors are written out here, so that later releases go on from them too."""
    state, versions = KINDS[kind]
    rng = torch.Generator().manual_seed(8).get_state()

    def held(value: float) -> dict[str, Any]:
        moments = {"step": torch.tensor(3.0), "exp_avg": torch.zeros(1, 2), "exp_avg_sq": torch.ones(1, 2)}
        weights = {"weight": torch.full((1, 2), value)}
        return {"weights": weights, "moments": {"weight": moments}, "steps": 3, "skipped": 1}

    tensors = {name: held(float(number)) for number, name in enumerate(versions)} | {"rng": {"0": {"cpu": rng}}}
    save_checkpoint(tmp_path, 4, state, lambda folder: write_tensors(folder, tensors), keep=2)

    learners, log = {name: learner(5 if name == "policy" else 0) for name in versions}, Log(tmp_path)
    saved = stage(tmp_path, learners, log if "position" in state else None)
    assert saved.resume() == 4
    assert {name: one.version for name, one in learners.items()} == versions
    assert log.calls == ([("restore", 40, [41]), ("resume", versions["policy"])] if "position" in state else [])
    for number, one in enumerate(learners.values()):
        assert torch.equal(one.model.weight, torch.full((1, 2), float(number)))
        optimizer = one.state_dict()
        assert (optimizer["steps"], optimizer["skipped"], optimizer["moments"]["weight"]["step"]) == (3, 1, 3.0)
    assert torch.equal(torch.get_rng_state(), rng)

    with saved:
        saved.save(5)
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert newest[1].items() >= (state | {"step": 5} | ({"attempt": 3} if "attempt" in state else {})).items()


@pytest.mark.parametrize(
    ("versions", "words"),
    [
        ({}, "policy at version 1; this stage trains policy, perception, reasoning"),
        ({"perception": 3}, "perception at version 3; this stage trains"),
        ({"perception": 3, "reasoning": 4}, "perception at version 3, reasoning at version 4; this stage trains"),
    ],
)
def test_experts_of_other_versions_are_refused_before_anything_is_loaded(
    tmp_path: Path, versions: dict[str, int], words: str
) -> None:
    state = {"step": 4, "policy_version": 1, "expert_versions": versions, **ROLLOUTS}
    save_checkpoint(tmp_path, 4, state, lambda _: None, keep=2)
    log = Log(tmp_path)
    with pytest.raises(WeightsError, match=f"000004 holds .*{words}"):
        stage(tmp_path, {name: learner() for name in ("policy", "perception", "reasoning")}, log).resume()
    assert log.calls == []


def one_row(number: int) -> bytes:
    row = {"id": str(number), "messages": [{"role": "user", "content": [{"type": "image", "image": "a.png"}]}]}
    return json.dumps(row).encode() + b"\n"


@pytest.mark.parametrize("change", ["none", "moved", "grown", "changed", "cut", "other rows usable"])
def test_a_stage_goes_on_with_the_very_rows_it_began_with(tmp_path: Path, change: str) -> None:
    """The order of rows depends on their number: with one more every batch would be another."""
    file, image = tmp_path / "rows.jsonl", tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(image)
    content = b"".join(map(one_row, range(3)))
    file.write_bytes(content)

    def saved() -> StageCheckpoints:
        files = [read_rows(file, "skip", images="exist")]
        return StageCheckpoints(
            Checkpoints(tmp_path / "c", 2), Settings(), {"policy": learner()}, lambda _: None, files=files
        )

    with saved() as before:
        before.save(1)
    if change == "moved":
        (tmp_path / "elsewhere").mkdir()
        image.rename(tmp_path / "elsewhere" / "a.png")
        file = file.rename(tmp_path / "elsewhere" / "rows.jsonl")
    if change == "grown":
        file.write_bytes(content + one_row(3))
    if change == "changed":
        file.write_bytes(one_row(7) + content[len(one_row(7)) :])
    if change == "cut":
        file.write_bytes(content[: len(one_row(0))])
    if change == "other rows usable":
        newest = newest_checkpoint(tmp_path / "c")
        assert newest is not None
        state = newest[1] | {"data": [newest[1]["data"][0] | {"rows": 2}]}
        save_checkpoint(tmp_path / "c", 2, state, lambda _: None, keep=2)
    words = {
        "grown": rf"has grown .*3 rows then, 4 now.*head -c {len(content)} .*delete .* to begin the stage again",
        "changed": "has changed since .*put the old file back",
        "cut": r"has changed since .*3 rows then, 1 now",
        "other rows usable": "holds other usable rows .*2 rows then, 3 now",
    }
    if change not in words:
        assert saved().resume() == 1
        return
    with pytest.raises(DataError, match=words[change]):
        saved().resume()
