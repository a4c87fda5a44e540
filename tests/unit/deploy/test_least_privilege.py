"""Each part gets the secrets that it uses and no other, and the grader, which reads hostile text, can call nobody."""

import io
import os
from pathlib import Path
from typing import Any

import pytest
from deployment import SETTINGS, compose, default, image, pod_specs, render
from rich.console import Console

from prism.config import LIMITS_FILE, LimitsConfig, load_config
from prism.services.grader.app import create_app
from prism.services.grader.settings import GraderSettings
from prism.settings import load_settings
from prism.stack.local import SECRETS, Stack
from prism.stack.secret_files import write_secrets

TOKEN, ADMIN, REDIS = "prism_token", "prism_admin_token", "prism_redis_url"
USES = {
    "policy": {TOKEN, ADMIN},
    "perception": {TOKEN, ADMIN},
    "reasoning": {TOKEN, ADMIN},
    "grader": {TOKEN},
    "rollouts": {TOKEN, REDIS},
    "trainer": {TOKEN, ADMIN, REDIS},
    "redis": {"password.conf"},
    "test": {TOKEN},  # `helm test`
    "console": {"prism_database_url"},
    "jobs": {"prism_database_url"},
    "postgres": {"password"},
}
SERVICES = compose()
each_service = pytest.mark.parametrize("name", SETTINGS)


@pytest.fixture
def shares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `prism secrets` has for each service; no variable of this process gets through."""
    for name in [name for name in os.environ if name.startswith("PRISM_")]:
        monkeypatch.delenv(name)
    write_secrets(tmp_path / "all", tmp_path / "shares", "redis:6379", "postgres:5432")
    return tmp_path / "shares"


def mounts(name: str) -> dict[str, str]:
    """Where a compose service has which volume."""
    parts = (volume.split(":") for volume in SERVICES[name].get("volumes", []))
    return {part[1]: part[0] for part in parts}


def share_of(name: str, shares: Path) -> Path | None:
    """The folder that compose gives to a service as its secrets."""
    folders = {volume: Path(target).name for target, volume in mounts("secrets").items() if "/shares/" in target}
    (found,) = [folders[volume] for volume in mounts(name).values() if volume in folders] or [None]
    return shares / found if found else None


@pytest.mark.parametrize("name", SERVICES)
def test_compose_mounts_the_secrets_that_a_service_uses(name: str, shares: Path) -> None:
    folder = share_of(name, shares) if name != "secrets" else None
    found = {file.name for file in folder.iterdir()} if folder else set()
    assert found == USES.get(name, set())
    assert ("secrets" in mounts(name).values()) is (name == "secrets"), "the volume that has them all"


@each_service
def test_a_service_starts_without_the_others_secrets(
    name: str, shares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").touch()
    given = image(SERVICES[name]["image"]).environment | SERVICES[name]["environment"]
    for variable, value in given.items():
        monkeypatch.setenv(variable, default(value))
    monkeypatch.setenv("PRISM_SECRETS_DIR", str(share_of(name, shares)))
    if "PRISM_MODEL" in given:
        monkeypatch.setenv("PRISM_MODEL", str(tmp_path))
        LimitsConfig().write(tmp_path)
        monkeypatch.setenv("PRISM_RUN_LIMITS", str(tmp_path / LIMITS_FILE))
    for kind in SETTINGS[name]:
        more: dict[str, Any] = {"expert": name} if name in ("perception", "reasoning") else {}
        settings = load_settings(kind, **more)
        known = {f"prism_{field}" for field in kind.model_fields if getattr(settings, field) is not None}
        assert known & {TOKEN, ADMIN, REDIS} <= USES[name]
        if isinstance(settings, GraderSettings):
            create_app(settings)


@pytest.mark.parametrize("existing", ["", "mine"])
def test_the_chart_mounts_the_secrets_that_a_container_uses(existing: str) -> None:
    pods = pod_specs(render({"secrets": {"existing": existing}, "console": {"enabled": True}}))
    assert pods.keys() == USES.keys()
    for component, pod in pods.items():
        sources = {volume["name"]: volume["secret"] for volume in pod["volumes"] if "secret" in volume}
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            mounted = {mount["name"] for mount in container["volumeMounts"]} & sources.keys()
            files = {item["path"] for source in mounted for item in sources[source]["items"]}
            works = container in pod["containers"]
            assert files == (USES[component] if works else set()), container["name"]


def test_a_local_service_is_started_with_the_secrets_that_it_uses(
    shares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in SECRETS:  # of the process that starts them all
        monkeypatch.setenv(name, f"of-everyone-{name.lower()}")
    monkeypatch.setenv("PRISM_REDIS_URL", "redis://elsewhere:1/0")
    config = load_config(Path("configs/demo.toml"), [f"runs_dir={tmp_path}"])
    stack = Stack(config, tmp_path, Console(file=io.StringIO()))
    started: dict[str, dict[str, str]] = {}

    def start(command: list[str], environment: dict[str, str], output: object, withheld: tuple[str, ...]) -> None:
        started[command[-1]] = {k: v for k, v in os.environ.items() if k not in withheld} | environment

    monkeypatch.setattr("prism.stack.local.start_process", start)
    for service in stack.services:
        stack._spawn(service)
    assert started.keys() == USES.keys() - {"trainer", "redis", "test", "console", "jobs", "postgres"}
    for name, environment in started.items():
        judge = {"prism_judge_token"} if name == "grader" else set()
        assert {variable.lower() for variable in SECRETS if variable in environment} == USES[name] | judge


def test_the_grader_is_reached_by_those_who_ask_it_and_reaches_no_service() -> None:
    networks = compose(part="networks")
    own, outside = SERVICES["grader"]["networks"]
    assert networks[own] == {"internal": True}
    assert networks[outside]["driver_opts"] == {"com.docker.network.bridge.enable_ip_masquerade": "false"}
    assert [name for name, service in SERVICES.items() if outside in service.get("networks", [])] == ["grader"]
    beside = {name for name, service in SERVICES.items() if own in service.get("networks", [])} - {"grader"}
    ask, watch = {"rollouts", "trainer"}, {"prometheus", "jaeger"}
    assert beside == ask | watch
    for name in ask | {"redis"}:  # they have what lies there, and nothing from outside
        assert all(networks[network] == {"internal": True} for network in SERVICES[name]["networks"])
