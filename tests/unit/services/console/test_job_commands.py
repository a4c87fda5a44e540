"""A job's command is made from its schema: what a person gives can be no option, no program and no path outside."""

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from prism.config import load_config, save_resolved
from prism.errors import ConfigError
from prism.services.console.access.identity import new_token
from prism.services.console.app import create_app
from prism.services.console.jobs.registry import Assigned, Place, command_of, commands, plan
from prism.services.console.pages.forms import config_sections, overrides
from prism.services.console.settings import ConsoleSettings

RUN = {"config": "demo.toml", "name": "first"}


@pytest.fixture
def place(settings: ConsoleSettings) -> Place:
    return settings.place


def arguments(place: Place, name: str, parameters: dict[str, Any], folder: Path) -> list[str]:
    wanted = plan(name, parameters, place)
    command = command_of(name)
    assigned = Assigned(folder, folder / "config.toml" if wanted.config else None, [], 18100)
    return command.arguments(command.parameters.model_validate(wanted.parameters), place, assigned)


def test_a_run_is_planned_with_all_defaults_and_the_ports_it_needs(place: Place, tmp_path: Path) -> None:
    wanted = plan("run", RUN | {"overrides": ["stages.align.steps=3", "stack.rollout_workers=2"]}, place)
    assert (wanted.run, wanted.gpus, wanted.ports) == ("first", 0, 7)
    assert wanted.config
    (tmp_path / "config.toml").write_text(wanted.config)
    config = load_config(tmp_path / "config.toml")
    assert config.name == "first"
    assert config.runs_dir == place.runs
    assert config.stages["align"].steps == 3
    given = arguments(place, "run", RUN, tmp_path)
    assert given == ["run", f"{tmp_path}/config.toml", "--set=stack.base_port=18100", "--wait-for-lock=60"]


def test_a_name_that_is_taken_is_refused_unless_it_goes_on(place: Place) -> None:
    (place.runs / "first").mkdir()
    with pytest.raises(ConfigError, match="exists already"):
        plan("run", RUN, place)
    assert plan("run", RUN | {"resume": True}, place).run == "first"


def test_a_run_may_start_from_anothers_configuration(place: Place) -> None:
    config = load_config(place.configs / "demo.toml", ["seed=7"]).model_copy(update={"runs_dir": place.runs})
    save_resolved(config)
    wanted = plan("run", {"config": "run:demo", "name": "second"}, place)
    assert wanted.config
    assert "seed = 7" in wanted.config
    assert 'name = "second"' in wanted.config


@pytest.mark.parametrize(
    "override",
    [
        'prepare.script="evil.py"',
        "prepare.options.x=1",
        "runs_dir=elsewhere",
        'stack.policy_options.vllm_flags="--trust-remote-code"',
        "stack = { policy_options = { a = 'b' } }",
        "name=other",
        "stack.base_port=1",
        "evaluate.data=/etc/passwd",
        'evaluate.data="../../etc/passwd"',
        'stages.sft.data=["/etc/passwd"]',
        'stages.sft.data=["a.jsonl", "/etc/passwd"]',
        'stages.sft.data=[{ path = "/etc/passwd" }]',
        'stages.sft.data=[{ path = "\\u002fetc/passwd" }]',
        'stages.sft = { data = ["/etc/passwd"] }',
        "evaluate.data=~/secrets",
        "evaluate.data=s3://bucket/file",
        "model=/models/other",
        "no such thing",
        "seed=nine",
    ],
)
def test_overrides_that_would_lead_out_are_refused(place: Place, override: str) -> None:
    with pytest.raises(ConfigError):
        plan("run", RUN | {"overrides": [override]}, place)


@pytest.mark.parametrize("name", ["../x", "-x", "a/b", "a b", "", "x\n", ".hidden", "$(x)", "a\0b"])
def test_a_run_s_name_is_a_name(place: Place, name: str) -> None:
    with pytest.raises(ConfigError):
        plan("run", RUN | {"name": name}, place)


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../x.jsonl", "link.jsonl", "demo/../../x.jsonl", ".", "", "a\0b", "folder"]
)
def test_paths_stay_under_the_runs_folder(place: Place, tmp_path: Path, path: str) -> None:
    (tmp_path / "x.jsonl").write_text("{}")
    (place.runs / "demo").mkdir()
    (place.runs / "folder").mkdir()
    (place.runs / "link.jsonl").symlink_to(tmp_path / "x.jsonl")
    with pytest.raises(ConfigError):
        plan("grade", {"file": path, "out": "verdicts.jsonl"}, place)


def test_a_file_whose_name_is_an_option_stays_a_file(place: Place, tmp_path: Path) -> None:
    (place.runs / "--url=x").write_text("{}")
    given = arguments(place, "grade", {"file": "--url=x", "out": "v.jsonl", "extract": ["boxed"]}, tmp_path)
    assert given == [
        *("grade", "--kind=auto", "--extract=boxed", f"--out={place.runs}/v.jsonl", "--", f"{place.runs}/--url=x")
    ]


def test_every_command_describes_every_field_and_refuses_what_it_does_not_know(place: Place) -> None:
    for command in commands().values():
        properties = command.parameters.model_json_schema().get("properties", {})
        assert all(field.get("description") for field in properties.values()), command.name
        with pytest.raises(ConfigError, match=r"known key|is not set"):
            plan(command.name, {"no_such_field": 1}, place)


def test_jobs_over_the_api(client: TestClient) -> None:
    assert {"run", "grade", "export"} <= {command["name"] for command in client.get("/api/v1/commands").json()}
    refused = client.post("/api/v1/jobs", json={"command": "run", "parameters": RUN | {"overrides": ["seed=x"]}})
    assert refused.status_code == 422
    assert "seed" in refused.json()["detail"][0]["msg"]
    assert client.get("/api/v1/jobs").json() == []
    job = client.post("/api/v1/jobs", json={"command": "run", "parameters": RUN, "priority": 2}).json()
    assert (job["state"], job["title"], job["created_by"]) == ("queued", "run first", "admin")
    assert client.post(f"/api/v1/jobs/{job['id']}/cancel").json()["state"] == "cancelled"
    assert client.post(f"/api/v1/jobs/{job['id']}/cancel").status_code == 409
    assert client.post(f"/api/v1/jobs/{job['id']}/retry").json()["state"] == "queued"
    assert client.post(f"/api/v1/jobs/{job['id']}/priority?priority=9").json()["priority"] == 9
    assert [e["what"] for e in client.get(f"/api/v1/jobs/{job['id']}/events").json()] == [
        *("queued", "cancelled", "retried", "priority")
    ]
    assert client.get("/api/v1/jobs/9999").status_code == 404
    assert client.get("/api/v1/jobs/9999/log").status_code == 404


def test_a_console_without_workers_offers_no_jobs(settings: ConsoleSettings) -> None:
    with TestClient(create_app(settings.model_copy(update={"jobs": False}))) as client:
        token = new_token(client.app.state.console.store, "me", "admin", "test")  # pyright: ignore[reportFunctionMemberAccess, reportAttributeAccessIssue]
        client.headers["Authorization"] = f"Bearer {token}"
        page = client.get("/runs").text
        assert "/jobs" not in page
        refused = client.post("/api/v1/jobs", json={"command": "run", "parameters": RUN})
        assert refused.status_code == 422
        assert "no workers" in refused.text


def test_a_form_that_is_left_as_it_is_changes_nothing() -> None:
    """Whatever a key may be, false among words for one."""
    config = load_config(Path(__file__).parents[4] / "configs" / "demo.toml")
    keys = [key for section in config_sections(config) for key in section.keys]
    assert [key.name for key in keys if key.kind == "choice" and key.value not in key.choices] == []
    assert overrides(config, {f"key.{key.name}": [str(key.value)] for key in keys}) == ([], [])


def test_a_form_takes_folders_of_experts_and_a_published_run() -> None:
    """As one text, or a text for each expert once there are two."""
    file = Path(__file__).parents[4] / "configs" / "demo.toml"
    config = load_config(file)
    filled = {"key.stages.align.experts.start": ["warm/both"], "key.stages.rlvr.published": ["prism"]}
    sets, problems = overrides(config, filled)
    assert problems == []
    named = load_config(file, sets)
    assert named.model_dump()["stages"]["align"]["experts"]["start"] == {
        "perception": "warm/both",
        "reasoning": "warm/both",
    }
    assert named.model_dump()["stages"]["rlvr"]["policy"]["dual_clip"] == 3.0
    apart, problems = overrides(named, {"key.stages.align.experts.start.reasoning": ["warm/other"]})
    assert (apart, problems) == (['stages.align.experts.start.reasoning="warm/other"'], [])
    assert overrides(named, {f"key.{k.name}": [str(k.value)] for s in config_sections(named) for k in s.keys}) == (
        [],
        [],
    )
