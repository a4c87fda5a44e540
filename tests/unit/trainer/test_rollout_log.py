"""Rollouts that are kept to be looked at: whole, bounded in bytes, spread over the run, and no reason to stop."""

import gzip
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from prism.config import RolloutLogConfig
from prism.trainer.flow.rollout_log import LONGEST, RolloutLog
from prism.trainer.learn.policy_learner import TokenView
from prism.wire.v1 import rollout_pb2 as pb


def group(text: str = "a response", tokens: int = 3) -> pb.RolloutGroup:
    part = pb.Part(image_sha256="ab" * 32)
    prompt = pb.Prompt(id="q1", gold="7", messages=[pb.Message(role="user", parts=[part, pb.Part(text="How many?")])])
    score = pb.Score(expert="perception", expert_version=4, status=pb.STATUS_OK, value=0.0)
    verdict = pb.Verdict(status=pb.STATUS_OK, accuracy=0.0, reward=0.0, extracted="8")
    samples = [
        pb.Sample(text=text, token_ids=range(tokens), logprobs=[-0.5] * tokens, scores=[score], verdict=verdict),
        pb.Sample(text=text, token_ids=range(tokens), logprobs=[float("-inf")] * tokens),
    ]
    return pb.RolloutGroup(request=pb.RolloutRequest(prompt=prompt, position=5), policy_version=2, samples=samples)


def open_log(folder: Path, said: list[str] | None = None, **config: Any) -> RolloutLog:
    say = (said if said is not None else []).append
    return RolloutLog(folder, "rlvr", RolloutLogConfig(**config), lambda ids: f"<{ids[0]}>", say)


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name.split(".")[0]) for path in (folder / "rollouts" / "rlvr").glob("*.json.gz"))


def read(folder: Path, step: int) -> dict[str, Any]:
    return json.loads(gzip.decompress((folder / "rollouts" / "rlvr" / f"{step:08d}.json.gz").read_bytes()))


def test_a_step_is_kept_with_all_that_is_known_of_it(tmp_path: Path) -> None:
    views = {(0, 0): TokenView([-0.25] * 3, [1.5] * 3)}
    log = open_log(tmp_path, groups=1)
    log.step(3, [group(), group()], version=3, attempt=2, advantages=[1.5, None, 0.0, 0.0], views=views)
    kept = read(tmp_path, 3)
    assert (kept["step"], kept["version"], kept["attempt"], len(kept["groups"])) == (3, 3, 2, 1)
    [found] = kept["groups"]
    assert (found["prompt_id"], found["gold"], found["policy_version"]) == ("q1", "7", 2)
    assert found["images"] == ["ab" * 32]
    first, second = found["samples"]
    assert first["tokens"] == ["<0>", "<1>", "<2>"]
    assert (first["logprobs"], first["learner_logprobs"], first["entropies"]) == ([-0.5] * 3, [-0.25] * 3, [1.5] * 3)
    # A value of 0 is a value; what was not set is not there.
    assert first["scores"] == [{"expert": "perception", "expert_version": 4, "status": "ok", "value": 0.0}]
    assert (first["verdict"]["accuracy"], first["verdict"]["extracted"]) == (0.0, "8")
    assert "format" not in first["verdict"]
    assert (second["verdict"], second["advantage"], second["learner_logprobs"]) == (None, None, None)
    assert second["logprobs"] == [None] * 3
    assert first["versions"] == []


def test_a_long_response_keeps_its_text_whole(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    log.step(1, [group(text="x" * 50_000, tokens=LONGEST + 10)], version=0, attempt=1)
    [found] = read(tmp_path, 1)["groups"]
    sample = found["samples"][0]
    assert len(sample["text"]) == 50_000
    assert (len(sample["tokens"]), sample["token_count"]) == (LONGEST, LONGEST + 10)


def test_what_is_kept_is_bounded_and_spread_over_the_run(tmp_path: Path) -> None:
    log = open_log(tmp_path, gib=20_000 / 2**30)
    for step in range(1, 401):
        log.step(step, [group()], version=0, attempt=1)
    kept = steps(tmp_path)
    assert sum(path.stat().st_size for path in (tmp_path / "rollouts").rglob("*.gz")) <= 20_000
    assert len(kept) > 10
    gaps = {after - before for before, after in pairwise(kept)}
    assert len(gaps) == 1  # as dense at the beginning as at the end
    again = open_log(tmp_path, gib=20_000 / 2**30)  # a resumed stage goes on as sparsely
    before = steps(tmp_path)
    again.step(kept[-1] + 1, [group()], version=0, attempt=2)
    assert steps(tmp_path) == before


def test_nothing_is_kept_where_nothing_is_asked_for_or_one_step_is_too_large(tmp_path: Path) -> None:
    open_log(tmp_path, groups=0).step(1, [group()], version=0, attempt=1)
    open_log(tmp_path, gib=1e-9).step(1, [group()], version=0, attempt=1)
    assert not steps(tmp_path)


def test_a_full_disk_is_told_once_and_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("prism.trainer.flow.rollout_log.write_bytes", full)
    said: list[str] = []
    log = open_log(tmp_path, said)
    for step in (1, 2):
        log.step(step, [group()], version=0, attempt=1)
    assert said == ["rollouts of step 1 could not be kept to be looked at: No space left on device"]
