"""Memory, /tmp and calls to what lies outside: each has a bound, in compose and in the chart."""

from typing import Any

import pytest
from deployment import PRESETS, compose, default, of_kind, pod_specs, render
from kubernetes_validate import validate
from yaml import safe_load

OUTSIDE = [{"ipBlock": {"cidr": "10.1.0.0/16"}}]
EVERYTHING: dict[str, Any] = {
    "device": "cuda",
    "model": {"hub": "a/b"},
    "secrets": {"existing": "mine"},
    "redis": {"bundled": False, "address": "redis.example:6380", "to": OUTSIDE},
    "blobs": {"url": "s3://bucket/images", "to": OUTSIDE},
    "tracing": {"endpoint": "http://collector:4318", "to": OUTSIDE},
    "trainer": {"nodes": 2, "gpus": 8, "push": "broadcast"},
    "console": {"enabled": True},
}
RENDERED = {"defaults": render(), "everything": render(EVERYTHING)} | {
    file.stem: render(safe_load(file.read_text())) for file in PRESETS
}
SERVICES = compose()
GIB = {"Mi": 2**-10, "Gi": 1, "m": 2**-10, "g": 1, "mb": 2**-10, "gb": 1}

each_rendering = pytest.mark.parametrize("objects", RENDERED.values(), ids=RENDERED)


def gib(quantity: str) -> float:
    number = quantity.rstrip("MGimgb")
    return float(number) * GIB[quantity.removeprefix(number)]


@each_rendering
def test_the_memory_of_every_container_is_limited(objects: list[dict[str, Any]]) -> None:
    for pod in pod_specs(objects).values():
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            limits, requests = container["resources"]["limits"], container["resources"]["requests"]
            assert gib(limits["memory"]) >= gib(requests["memory"])


def test_a_limit_of_ones_own_is_taken() -> None:
    pods = pod_specs(render({"policy": {"resources": {"limits": {"memory": "9Gi"}}}}))
    assert pods["policy"]["containers"][0]["resources"]["limits"] == {"memory": "9Gi"}


@each_rendering
def test_an_empty_folder_has_a_limit(objects: list[dict[str, Any]]) -> None:
    for component, pod in pod_specs(objects).items():
        sizes = [volume["emptyDir"]["sizeLimit"] for volume in pod["volumes"] if "emptyDir" in volume]
        assert all(gib(size) > 0 for size in sizes)
        assert len(sizes) == {"policy": 2, "trainer": 2, "jobs": 2, "redis": 0}.get(component, 1)


@each_rendering
def test_a_call_to_the_outside_has_an_address(objects: list[dict[str, Any]]) -> None:
    """The hub alone has none, for who downloads from it."""
    for policy in of_kind(objects, "NetworkPolicy"):
        validate(policy, "1.35", strict=True)
        for rule in policy["spec"]["egress"]:
            assert rule["to"], "an empty list is anywhere"
            if {"ipBlock": {"cidr": "0.0.0.0/0"}} in rule["to"]:
                assert policy["metadata"]["name"] == "prism-trainer"
                assert [port["port"] for port in rule["ports"]] == [443]


def test_the_hub_can_be_given_an_address_and_what_is_open_is_told() -> None:
    from deployment import CHART
    from helm_python.chart import Chart

    def notes(values: dict[str, Any]) -> str:
        with Chart.load(CHART) as chart:
            return chart.render(values=values, name="prism", namespace="ours")["prism/templates/NOTES.txt"]

    open_hub, narrow = {"model": {"hub": "a/b"}}, {"model": {"hub": "a/b", "to": OUTSIDE}}
    (policy,) = [p for p in of_kind(render(narrow), "NetworkPolicy") if p["metadata"]["name"] == "prism-trainer"]
    assert "0.0.0.0/0" not in str(policy)
    assert {"to": OUTSIDE, "ports": [{"port": 443, "protocol": "TCP"}]} in policy["spec"]["egress"]
    assert "port 443 of any host" in notes(open_hub)
    assert "port 443 of any host" not in notes(narrow)


def test_a_redis_that_is_full_refuses_and_drops_nothing() -> None:
    (redis,) = pod_specs(RENDERED["defaults"])["redis"]["containers"]
    for arguments, limit in (
        (redis["args"], redis["resources"]["limits"]["memory"]),
        (SERVICES["redis"]["command"], default(SERVICES["redis"]["mem_limit"])),
    ):
        given = {arguments[at]: default(arguments[at + 1]) for at in range(1, len(arguments), 2)}
        assert given["--maxmemory-policy"] == "noeviction"
        assert 2 * gib(given["--maxmemory"]) < gib(limit), "a copy while its file is rewritten"


@pytest.mark.parametrize("name", SERVICES)
def test_a_composed_service_has_a_limit_and_unpacks_to_a_disk(name: str) -> None:
    service = SERVICES[name]
    assert gib(default(service["mem_limit"])) > 0
    if name in ("prepare", "trainer"):
        assert service["tmpfs"] == []
        assert "trainer-tmp:/tmp" in service["volumes"]
    else:
        assert service["tmpfs"]
        assert all("size=" in tmpfs for tmpfs in service["tmpfs"])
