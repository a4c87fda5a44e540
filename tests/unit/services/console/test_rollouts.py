"""Rollouts on pages: found by what they were like, shown as text, with their pictures."""

import io
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from prism.config import RolloutLogConfig
from prism.data.blobs import BlobStore
from prism.services.console.runs import rollouts
from prism.trainer.flow.rollout_log import RolloutLog
from prism.trainer.learn.policy_learner import TokenView
from prism.wire.v1 import rollout_pb2 as pb

NASTY = "<script>alert('model')</script>"
TEXT = "<caption>- a seven</caption><think>it is 7</think><answer>7</answer>"


def sample(accuracy: float | None, perception: float, reasoning: float, **more: Any) -> pb.Sample:
    scores = [
        pb.Score(expert=name, expert_version=3, status=pb.STATUS_OK, value=value)
        for name, value in (("perception", perception), ("reasoning", reasoning))
    ]
    verdict = pb.Verdict(status=pb.STATUS_OK, accuracy=accuracy, reward=accuracy) if accuracy is not None else None
    return pb.Sample(
        **({"text": TEXT, "token_ids": [1, 2], "logprobs": [-0.1, -2.0]} | more), scores=scores, verdict=verdict
    )


def group(name: str, image: str, *samples: pb.Sample) -> pb.RolloutGroup:
    parts = [pb.Part(image_sha256=image), pb.Part(text=f"What is in {name}?")]
    prompt = pb.Prompt(id=name, gold="7", teacher=TEXT, messages=[pb.Message(role="user", parts=parts)])
    return pb.RolloutGroup(request=pb.RolloutRequest(prompt=prompt), policy_version=4, worker="w", samples=samples)


@pytest.fixture
def run(client: TestClient, tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "demo"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"stage": "align", "step": 1, "time": 1.0}\n')
    png = io.BytesIO()
    Image.new("RGB", (28, 28), "red").save(png, "PNG")
    image = BlobStore(str(folder / "blobs")).put(png.getvalue())
    log = RolloutLog(folder, "align", RolloutLogConfig(groups=9), lambda ids: f"{NASTY}{ids[0]}", lambda _: None)
    groups = [
        group("plain", image, sample(1, 2, 2), sample(0, 1, 1)),
        group("alike", image, sample(1, 1, 1), sample(1, 1, 1)),
        group("hacked", image, sample(1, 1, 2), sample(0, 5, 1, text=NASTY)),
        group("long", image, sample(1, 1, 1, finish_reason="length"), sample(None, 2, 2)),
    ]
    advantages = [1.0, -1.0, 0.0, 0.0, 0.5, -0.5, 1.0, None]
    log.step(
        12, groups, version=5, attempt=1, advantages=advantages, views={(0, 0): TokenView([-0.9, -2.0], [0.0, 3.0])}
    )
    client.app.state.console.index.look()  # pyright: ignore[reportFunctionMemberAccess, reportAttributeAccessIssue]
    return folder


def test_groups_are_found_by_what_they_were_like(run: Path) -> None:
    found = {
        "": {"plain", "alike", "hacked", "long"},
        "wrong": {"plain", "hacked"},
        "flat": {"alike"},
        "truncated": {"long"},
        "disagree": {"hacked"},
        "hacking": {"hacked"},
    }
    for kind, names in found.items():
        assert {each.group.prompt_id for each in rollouts.search(run, kind, "")[0]} == names, kind


def test_full_text_looks_at_prompts_and_responses(run: Path) -> None:
    assert [each.group.prompt_id for each in rollouts.search(run, "", "what HACKED")[0]] == ["hacked"]
    assert len(rollouts.search(run, "", "it is 7")[0]) == 4
    assert rollouts.search(run, "", "no such words")[0] == []


def test_a_group_is_shown_with_its_picture_and_models_text_as_text(client: TestClient, run: Path) -> None:
    page = client.get("/rollouts/demo?stage=align&step=12&group=2").text
    assert "policy version 4, 1 behind" in page
    assert "liked and wrong" in page
    assert "teacher" in page
    assert NASTY not in page
    assert "&lt;script&gt;" in page
    [picture] = {part.split('"')[0] for part in page.split('src="/pictures/')[1:]}
    answer = client.get(f"/pictures/{picture}")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    assert client.get("/rollouts/demo").text.count("align, step 12") == 4
    assert client.get("/rollouts/demo?stage=align&step=11").status_code == 404
    assert client.get("/rollouts/demo?stage=..&step=12").status_code == 200  # no stage of it


def test_responses_of_several_policy_versions_say_which_tokens_are_whose(client: TestClient, run: Path) -> None:
    def versions(*runs: tuple[int, int]) -> dict[str, Any]:
        made = [pb.VersionRun(policy_version=version, tokens=tokens) for version, tokens in runs]
        tokens = sum(tokens for _, tokens in runs)
        return {"versions": made, "token_ids": [1] * tokens, "logprobs": [-0.1] * tokens}

    log = RolloutLog(run, "align", RolloutLogConfig(groups=9), lambda _: "x", lambda _: None)
    mixed = [versions((4, 312), (5, 529)), versions((5, 7)), versions((4, 3))]
    groups = [
        group("mixed", "0" * 64, *(sample(1, 1, 1, **more) for more in mixed)),
        group("one", "0" * 64, sample(1, 1, 1, **versions((4, 9)))),
    ]
    log.step(14, groups, version=6, attempt=1)
    page = client.get("/rollouts/demo?stage=align&step=14").text
    assert "policy version 4 to 5, 2 behind" in page
    assert "841 tokens, versions 4 (0–311), 5 (312–840)<" in page
    assert "7 tokens, version 5<" in page
    assert "3 tokens, version 4<" in page
    page = client.get("/rollouts/demo?stage=align&step=14&group=1").text
    assert "policy version 4, 2 behind" in page
    assert "9 tokens<" in page


def test_a_blob_that_is_no_picture_is_not_sent(client: TestClient, run: Path) -> None:
    page = BlobStore(str(run / "blobs")).put(b"<html><script>alert(1)</script>")
    assert client.get(f"/pictures/{page}?run=demo").status_code == 404
    assert client.get(f"/pictures/{'0' * 64}?run=demo").status_code == 404
    assert client.get("/pictures/..%2F..%2Fconfig.json?run=demo").status_code in (404, 422)


def test_tokens_are_painted_by_gap_entropy_and_advantage(run: Path) -> None:
    step = rollouts.read_step(run, "align", 12)
    assert step
    first, second = rollouts.strip(step.groups[0].samples[0])
    assert (first.gap, first.entropy, first.advantage) == ("t4", "", "p2")
    assert (second.gap, second.entropy) == ("", "t4")
    assert "log-probability -0.100, learner's -0.900" in first.said


def test_a_broken_file_is_no_step(client: TestClient, run: Path) -> None:
    (run / "rollouts" / "align" / "00000013.json.gz").write_bytes(b"\x1f\x8b half")
    (run / "rollouts" / "align" / "00000014.json.gz").write_bytes(b"")
    assert len(rollouts.search(run, "", "")[0]) == 4
    assert client.get("/rollouts/demo?stage=align&step=13").status_code == 404
