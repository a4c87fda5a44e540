"""A run's [limits] rule every service, whoever starts it: `prism prepare` writes them, compose and chart say where."""

import json
from pathlib import Path
from typing import Any

import pytest
from deployment import SETTINGS, compose, default, pod_specs, render
from typer.testing import CliRunner

from prism import cli
from prism.config import LIMITS_FILE, LimitedSettings, load_config
from prism.errors import ConfigError
from prism.settings import load_settings
from prism.stack.local import Stack
from prism.trainer.run.pipeline import is_prepared

LOOKING = {name for name, kinds in SETTINGS.items() if any(issubclass(kind, LimitedSettings) for kind in kinds)}
LONGEST = ["stack.max_model_len=300"]
LIMITS = ["limits.max_images=3", "limits.max_image_pixels=5000", "limits.min_pixels=1024", "limits.max_pixels=4096"]


def test_who_looks_at_images_reads_the_runs_limits() -> None:
    assert {"policy", "perception", "reasoning"} == LOOKING
    command = [default(part) for part in compose()["prepare"]["command"]]
    options = [part.removeprefix("--set=") for part in command if part.startswith("--set=")]
    written = load_config(Path(command[1]), options).run_dir / LIMITS_FILE
    for name, service in compose().items():
        given = service.get("environment", {}).get("PRISM_RUN_LIMITS")
        assert (default(given) if given else None) == (str(written) if name in LOOKING else None)
    pods = pod_specs(render({"run": {"name": "mine"}}))
    for name in SETTINGS:
        given = {item["name"]: item.get("value") for item in pods[name]["containers"][0]["env"]}
        assert given.get("PRISM_RUN_LIMITS") == ("/runs/mine/limits.json" if name in LOOKING else None)


def test_a_pod_waits_for_them_where_somebody_writes_them() -> None:
    def awaited(values: dict[str, Any], name: str) -> list[str]:
        arguments = pod_specs(render(values))[name]["initContainers"][0]["args"]
        return arguments[: arguments.index("--")]

    for name in LOOKING:
        assert awaited({}, name) == ["/runs/demo/model/config.json", "/runs/demo/limits.json"]
        assert awaited({"trainer": {"enabled": False}}, name) == ["/runs/demo/model/config.json"]


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings of a service as compose gives them, of a run that was prepared with other limits than usual."""
    (tmp_path / "config.json").touch()
    monkeypatch.setattr("prism.trainer.run.pipeline._run_script", lambda *_: None)
    overrides = [f"--set={text}" for text in (f"runs_dir={json.dumps(str(tmp_path))}", *LIMITS, *LONGEST)]
    assert CliRunner().invoke(cli.app, ["prepare", "configs/demo.toml", *overrides]).exit_code == 0
    folders = dict.fromkeys(("model", "weights_root", "state_dir"), tmp_path)
    tokens = {"token": "data-token-0123456789", "admin_token": "admin-token-0123456789"}
    return folders | tokens | {"port": 8000, "run_limits": tmp_path / "demo" / LIMITS_FILE, "expert": "perception"}


@pytest.mark.parametrize("name", sorted(LOOKING))
def test_one_setting_rules_every_part(name: str, service: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    (kind,) = SETTINGS[name]
    settings: Any = load_settings(kind, **service)
    assert (settings.max_images, settings.max_image_pixels, settings.pixel_bounds) == (3, 5000, (1024, 4096))
    monkeypatch.setenv("PRISM_MAX_IMAGES", "3")
    load_settings(kind, **service)
    monkeypatch.setenv("PRISM_MAX_IMAGES", "4")
    with pytest.raises(ConfigError, match=r"PRISM_MAX_IMAGES: 4 here, 3 in .*limits.json: set limits.max_images in"):
        load_settings(kind, **service)


@pytest.mark.parametrize("name", sorted(LOOKING))
def test_a_runs_longest_text_is_everyones(name: str, service: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    (kind,) = SETTINGS[name]
    settings: Any = load_settings(kind, **service)
    assert settings.max_model_len == 300
    monkeypatch.setenv("PRISM_MAX_MODEL_LEN", "256")
    with pytest.raises(ConfigError, match=r"PRISM_MAX_MODEL_LEN: 256 here, 300 in .*: set stack.max_model_len in"):
        load_settings(kind, **service)
    config = load_config(Path("configs/demo.toml"), [f"runs_dir={json.dumps(str(service['weights_root']))}", *LIMITS])
    assert not is_prepared(config), "of another length"
    with pytest.raises(ConfigError, match=r"policy_options.max_model_len: set stack.max_model_len instead"):
        load_config(Path("configs/demo.toml"), ['stack.policy_options={max_model_len="512"}'])


def test_experts_take_a_request_of_one_item_whatever_its_images(service: dict[str, Any]) -> None:
    (kind,) = SETTINGS["perception"]
    settings: Any = load_settings(kind, **service | {"run_limits": None, "max_images": 100})
    assert settings.limits["max_request_images"] == 100


def test_limits_that_nobody_wrote_are_named(service: dict[str, Any]) -> None:
    (kind,) = SETTINGS["policy"]
    with pytest.raises(ConfigError, match=r"PRISM_RUN_LIMITS: .*No such file.*`prism prepare` writes it"):
        load_settings(kind, **service | {"run_limits": "/nowhere/limits.json"})


def test_services_of_this_machine_get_the_same(tmp_path: Path) -> None:
    config = load_config(Path("configs/demo.toml"), [f"runs_dir={json.dumps(str(tmp_path))}", *LIMITS])
    expected = config.run_limits.environment()
    limits = {"PRISM_MIN_PIXELS", "PRISM_MAX_PIXELS", "PRISM_MAX_IMAGES", "PRISM_MAX_IMAGE_PIXELS"}
    assert limits | {"PRISM_MAX_MODEL_LEN"} <= expected.keys()
    for started in Stack(config, tmp_path, console=None).services:  # pyright: ignore[reportArgumentType]
        if started.name in LOOKING:
            assert expected.items() <= started.environment.items()
