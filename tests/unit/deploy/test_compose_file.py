"""docker-compose.yml against images, settings and the demo's configuration."""

import re

import pytest
from deployment import (
    DOCKERFILE,
    ELSEWHERE,
    ROOT,
    SETTINGS,
    TARGETS,
    compose,
    default,
    image,
    known_variables,
    required_variables,
)

from prism.services.console.settings import ConsoleSettings, WorkerSettings

SERVICES = compose()
GPU = compose("docker-compose.gpu.yml")
SECRETS = {"PRISM_TOKEN", "PRISM_ADMIN_TOKEN", "PRISM_REDIS_URL"}  # files that `prism secrets` writes
OURS = {name: service for name, service in SERVICES.items() if "build" in service}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_service_gets_the_variables_it_reads(name: str) -> None:
    given = set(SERVICES[name]["environment"])
    assert given - ELSEWHERE <= known_variables(name)
    by_image = set(image(SERVICES[name]["image"]).environment)
    assert required_variables(name) <= given | by_image | SECRETS
    assert set(GPU.get(name, {}).get("environment", {})) <= known_variables(name)


@pytest.mark.parametrize("name", OURS)
def test_a_service_is_built_from_the_target_its_image_is_named_after(name: str) -> None:
    build = OURS[name]["build"]
    assert ROOT / build["context"] / build["dockerfile"] == DOCKERFILE
    assert build["target"] == OURS[name]["image"].split(":")[0].removeprefix("prism-")
    assert build["target"] in TARGETS
    assert default(build["labels"]["org.opencontainers.image.version"]) == default(OURS[name]["image"]).split(":")[1]
    gpu = GPU.get(name, {"image": OURS[name]["image"]})
    assert (build | gpu.get("build", {}))["target"] == gpu["image"].split(":")[0].removeprefix("prism-")


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_may_do_little_and_is_published_on_this_machine_alone(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    for port in service.get("ports", []):
        assert default(port).startswith("127.0.0.1:")
        assert not default(port).endswith(":8001"), "the admin port is for the inner network"


def test_redis_workers_and_trainer_are_reached_from_inside_alone() -> None:
    internal = {name for name, network in compose(part="networks").items() if network.get("internal")}
    for name in ("redis", "rollouts", "trainer"):
        assert set(SERVICES[name]["networks"]) <= internal
        assert "ports" not in SERVICES[name]
    assert SERVICES["redis"]["networks"] == ["inside"]


@pytest.mark.parametrize("name", ["policy", "perception", "reasoning", "grader"])
def test_what_is_published_is_the_data_port_of_the_image(name: str) -> None:
    (published,) = SERVICES[name]["ports"]
    assert default(published).split(":")[-1] == image(SERVICES[name]["image"]).environment["PRISM_PORT"]


def test_no_secret_has_a_default() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    assert set(re.findall(r"\$\{(PRISM_[A-Z_]*(?:TOKEN|PASSWORD)):-\}", text)) == {
        "PRISM_TOKEN",
        "PRISM_ADMIN_TOKEN",
        "PRISM_REDIS_PASSWORD",
        "PRISM_DATABASE_PASSWORD",
    }
    assert not re.search(r"\$\{PRISM_[A-Z_]*(TOKEN|PASSWORD):-[^}]", text)


def waits_for(name: str) -> dict[str, str]:
    needed: dict[str, dict[str, str]] = SERVICES[name].get("depends_on", {})
    return {other: condition["condition"] for other, condition in needed.items()}


def test_everyone_waits_for_health_and_not_for_time() -> None:
    assert "sleep" not in (ROOT / "docker-compose.yml").read_text()
    servers = ("redis", "policy", "perception", "reasoning", "grader", "rollouts")
    assert waits_for("trainer") == dict.fromkeys(servers, "service_healthy")
    for name in ("policy", "perception", "reasoning", "rollouts"):
        assert waits_for(name)["prepare"] == waits_for(name)["secrets"] == "service_completed_successfully"


def volumes(name: str) -> dict[str, list[str]]:
    return {part[1]: part for part in (volume.split(":") for volume in SERVICES[name].get("volumes", []))}


CONSOLES = {"console": ConsoleSettings, "jobs": WorkerSettings}


@pytest.mark.parametrize("name", CONSOLES)
def test_console_and_workers_share_a_database_that_nobody_else_reaches(name: str) -> None:
    service = SERVICES[name]
    read = {f"PRISM_{field.upper()}" for field in CONSOLES[name].model_fields}
    assert set(service["environment"]) - ELSEWHERE <= read
    assert service["environment"].items() >= {"PRISM_RUNS": "/runs", "PRISM_STATE_DIR": "/state"}.items()
    assert "database" in service["networks"]
    assert [other for other, one in SERVICES.items() if "database" in one.get("networks", [])] == [
        "postgres",
        *CONSOLES,
    ]
    assert compose(part="networks")["database"] == {"internal": True}
    assert "ports" not in SERVICES["postgres"]
    assert waits_for(name) == {"secrets": "service_completed_successfully", "postgres": "service_healthy"}
    assert {"/runs": ["runs", "/runs"], "/state": ["console-state", "/state"]}.items() <= volumes(name).items()
    assert "PRISM_JOBS" not in service["environment"], "jobs are offered: there is a worker"
    (port,) = SERVICES["console"]["ports"]
    assert default(port) == "127.0.0.1:8110:8000"


@pytest.mark.parametrize("name", SETTINGS)
def test_only_who_makes_a_run_writes_to_it(name: str) -> None:
    for target, parts in volumes(name).items():
        writable = parts[-1] != "ro"
        assert writable == (target == "/state" or (parts[0] in ("runs", "trainer-tmp") and name == "trainer"))


def test_prometheus_scrapes_every_service() -> None:
    text = (ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text()
    for name in SETTINGS:
        port = image(SERVICES[name]["image"]).environment["PRISM_PORT"]
        assert f'"{name}:{port}"' in text or (f"names: [{name}]" in text and f"port: {port}" in text)
