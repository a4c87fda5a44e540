"""Jobs that ask others, with keys and money: what a person may change of a file, and what a worker gives them."""

import json
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from prism.config import EvaluationConfig, load_toml
from prism.curation.config import CurateConfig
from prism.errors import ConfigError
from prism.services.console.jobs.queue import Claimed
from prism.services.console.jobs.registry import Place, plan
from prism.services.console.jobs.start import start_in

CURATION = """
name = "file"
data = "{data}"
[teacher]
api = "openai"
url = "https://teacher.example/v1"
model = "oracle"
input_price = 1.0
output_price = 10.0
cap = 5.0
[terms]
name = "Terms 7"
licence = "CC-BY-4.0"
[verify]
caption = "none"
"""
EVALUATION = """
out = "elsewhere"
[server]
url = "https://others.example/v1"
key_variable = "PRISM_OTHERS_KEY"
[benchmarks.own]
path = "{data}"
"""
CURATE = {"config": "hard.toml", "name": "hard", "run": "demo", "accept_terms": "Ada"}
EVALUATE = {"config": "bench.toml", "out": "evaluations/sft"}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """With a run whose services are up, and a file of each kind."""
    runs, configs = tmp_path / "runs", tmp_path / "configs"
    (runs / "demo" / "data").mkdir(parents=True)
    configs.mkdir()
    (runs / "demo" / "stack.json").write_text(json.dumps({"policy_url": "http://127.0.0.1:9", "token": "the run's"}))
    (runs / "demo" / "data" / "rows.jsonl").write_text("{}\n")
    (configs / "hard.toml").write_text(CURATION.format(data="data/rows.jsonl"))
    (configs / "bench.toml").write_text(EVALUATION.format(data=runs / "demo" / "data" / "rows.jsonl"))
    return Place(runs, configs, tmp_path)


def started(place: Place, folder: Path, command: str, parameters: dict[str, Any]) -> tuple[list[str], dict[str, str]]:
    """Arguments and PRISM_* variables of the child."""
    wanted = plan(command, parameters, place)
    claimed = Claimed(1, 1, command, wanted.parameters, wanted.config, [], None)
    start = start_in(place)(claimed, folder)
    variables = {name: value for name, value in start.environment.items() if name.startswith("PRISM_")}
    return start.command[3:], variables


def test_a_curation_is_planned_from_its_file_into_a_folder_of_its_own(place: Place, tmp_path: Path) -> None:
    wanted = plan("curate", CURATE | {"steps": ["ask", "verify"], "overrides": ["teacher.concurrency=2"]}, place)
    assert (wanted.run, wanted.gpus, wanted.title) == ("hard", 0, "ask and verify for hard")
    assert wanted.config
    (tmp_path / "config.toml").write_text(wanted.config)
    config = load_toml(tmp_path / "config.toml", CurateConfig)
    assert (config.folder, config.run) == (place.runs / "hard", place.runs / "demo")
    assert (config.teacher.concurrency, config.teacher.cap, config.terms.accepted_by) == (2, 5, "Ada")


def test_a_teachers_key_goes_to_a_curation_and_nowhere_else(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TEACHER_KEY", "CURATION_JUDGE_KEY", "OTHERS_KEY", "TOKEN", "DATABASE_URL"):
        monkeypatch.setenv(f"PRISM_{name}", name)
    monkeypatch.delenv("PRISM_SECRETS_DIR", raising=False)
    arguments, variables = started(place, tmp_path, "curate", CURATE | {"steps": ["card"]})
    assert arguments == ["curate", "--wait-for-lock=60", "--", str(tmp_path / "config.toml"), "card"]
    assert variables == {"PRISM_TEACHER_KEY": "TEACHER_KEY", "PRISM_CURATION_JUDGE_KEY": "CURATION_JUDGE_KEY"}
    arguments, variables = started(place, tmp_path, "evaluate", EVALUATE)
    assert arguments == ["evaluate", "run", "--", str(tmp_path / "config.toml")]
    assert variables == {"PRISM_OTHERS_KEY": "OTHERS_KEY"}
    (place.runs / "answers.jsonl").write_text("{}")
    _, variables = started(place, tmp_path, "grade", {"file": "answers.jsonl", "out": "verdicts.jsonl"})
    assert variables == {}


def test_an_evaluation_of_a_run_asks_its_policy_with_its_token(place: Place, tmp_path: Path) -> None:
    arguments, variables = started(place, tmp_path, "evaluate", EVALUATE | {"run": "demo"})
    server = ["--set=server.url=http://127.0.0.1:9/v1", "--set=server.model=policy"]
    assert arguments[2:5] == [*server, "--set=server.key_variable=PRISM_TOKEN"]
    assert variables["PRISM_TOKEN"] == "the run's"
    assert "the run's" not in " ".join(arguments)  # which others can read
    config = load_toml(tmp_path / "config.toml", EvaluationConfig, [one[6:] for one in arguments[2:5]])
    assert (config.out, config.server.url) == (place.runs / "evaluations" / "sft", "http://127.0.0.1:9/v1")


@pytest.mark.parametrize(
    "override",
    [
        "teacher.url=https://evil.example",
        'teacher.url="https:\\u002f\\u002fevil.example"',
        "teacher = { url = 'https://evil.example' }",
        'teacher.proxy="http://evil.example"',
        "teacher.cap=1000",
        "'teacher'.'cap'=1000",
        "teacher.input_price=0",
        "teacher.image_tokens=1",
        "database=sqlite:////etc/x",
        'data=["/etc/passwd"]',
        "verify.labelled=/etc/passwd",
        "runs_dir=/etc",
        "mine.n",
        "mine.n=nan",
        "teacher.patience_seconds=inf",
        "no.such=1",
    ],
)
def test_where_keys_and_money_go_stands_in_the_file_alone(place: Place, override: str) -> None:
    with pytest.raises(ConfigError):
        plan("curate", CURATE | {"overrides": [override]}, place)


@pytest.mark.parametrize(
    ("command", "changed", "said"),
    [
        ("curate", {"config": "../hard.toml"}, "no configuration"),
        ("curate", {"config": "bench.toml"}, "bench.toml"),
        ("curate", {"accept_terms": " "}, "Terms 7"),
        ("curate", {"run": "idle"}, "does not exist"),
        ("curate", {"name": "demo"}, "exists already"),
        ("curate", {"name": "../x"}, "name"),
        ("curate", {"name": "demo", "resume": True}, "no curation that could go on"),
        ("evaluate", {"out": "demo"}, "exists already"),
        ("evaluate", {"out": "demo", "resume": True}, "no evaluation that could go on"),
        ("curate", {"steps": ["train"]}, "steps"),
        ("evaluate", {"out": "../x"}, "out"),
        ("evaluate", {"out": ".console/x"}, "out"),
        ("evaluate", {"overrides": ["server.url=https://evil.example"]}, "numbers and switches"),
        ("evaluate", {"overrides": ["sampling.n=many"]}, "numbers and switches"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(
    place: Place, command: str, changed: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        plan(command, {"curate": CURATE, "evaluate": EVALUATE}[command] | changed, place)


def test_data_that_is_not_there_is_refused(place: Place) -> None:
    (place.runs / "demo" / "data" / "rows.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"rows\.jsonl"):
        plan("curate", CURATE, place)
    with pytest.raises(ConfigError, match=r"rows\.jsonl"):
        plan("evaluate", EVALUATE, place)


def test_a_run_is_tracked_and_a_model_uploaded(place: Place, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no run"):
        plan("track", {"run": "demo", "to": ["tensorboard"]}, place)
    (place.runs / "demo" / "config.json").write_text("{}")
    arguments, _ = started(place, tmp_path, "track", {"run": "demo", "to": ["tensorboard", "mlflow"]})
    assert arguments == ["track", "--to=tensorboard", "--to=mlflow", "--", str(place.runs / "demo")]
    (place.runs / "model").mkdir()
    upload = {"model": "model", "repo": "me/model", "evaluations": ["e"]}
    with pytest.raises(ConfigError, match="no exported model"):
        plan("upload", upload, place)
    (place.runs / "model" / "config.json").write_text("{}")
    (place.runs / "e").mkdir()
    with pytest.raises(ConfigError, match="no figures"):
        plan("upload", upload, place)
    (place.runs / "e" / "result.json").write_text("{}")
    arguments, _ = started(place, tmp_path, "upload", upload)
    folders = [str(place.runs / "e"), str(place.runs / "model")]
    assert arguments == ["upload", f"--evaluation={folders[0]}", "--private", "--", folders[1], "me/model"]
    with pytest.raises(ConfigError, match="repo"):
        plan("upload", upload | {"repo": "--endpoint=x/y"}, place)


def test_the_form_takes_several_lines_and_says_what_there_is(client: TestClient, place: Place) -> None:
    client.app.state.console.place = place  # pyright: ignore[reportFunctionMemberAccess, reportAttributeAccessIssue]
    page = client.get("/jobs/new/curate?run=demo").text
    assert '<option value="hard.toml">' in page
    assert 'value="bench.toml"' not in page
    assert 'value="demo" required' in page
    lines = {"overrides": "mine.n=4\r\nteacher.concurrency=many\r\n"}
    refused = client.post("/jobs/new/curate", data=CURATE | lines)
    assert refused.status_code == 422
    assert "mine.n=4\nteacher.concurrency=many</textarea>" in refused.text
    lines = {"overrides": "teacher.concurrency=4\r\nverify.concurrency=2\r\n"}
    client.post("/jobs/new/curate", data=CURATE | lines | {"steps": ["mine", "ask"]})
    [job] = client.get("/api/v1/jobs").json()
    assert job["parameters"]["steps"] == ["mine", "ask"]
    assert job["parameters"]["overrides"] == ["teacher.concurrency=4", "verify.concurrency=2"]
    assert 'href="/curations/hard"' in client.get(f"/jobs/{job['id']}").text
