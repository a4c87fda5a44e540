"""The Helm chart, rendered by Helm's engine: valid objects, and nothing that drifts from images and settings."""

import json
import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from deployment import (
    CHART,
    ELSEWHERE,
    PRESETS,
    SETTINGS,
    TARGETS,
    compose,
    image,
    known_variables,
    of_kind,
    pod_specs,
    render,
    required_variables,
)
from helm_python.chart import Chart, lint
from helm_python.errors import HelmError

from prism.cli.train import END_SECONDS
from prism.services.console.settings import ConsoleSettings, WorkerSettings
from prism.settings import load_settings

OPERATORS = {"ServiceMonitor", "PrometheusRule", "ScaledObject", "TriggerAuthentication", "HTTPRoute"}
"""Kinds that Kubernetes itself has no schema for."""

NETWORK = [{"ipBlock": {"cidr": "10.1.0.0/16"}}]
SWITCHES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "cuda": {"device": "cuda", "policy": {"gpus": 4, "replicas": 2, "vllmFlags": "--gpu-memory-utilization=0.5"}},
    "hub": {"model": {"hub": "Qwen/Qwen3-VL-2B-Instruct", "tokenSecret": "hub"}},
    "inline": {"run": {"name": "mine", "config": 'name = "mine"\n', "overrides": ["stages.align.steps=3"]}},
    "no-trainer": {"trainer": {"enabled": False}},
    "external-redis": {
        "redis": {"bundled": False, "address": "redis.example:6380", "to": NETWORK},
        "secrets": {"existing": "mine"},
    },
    "hpa": {"rollouts": {"autoscaling": {"kind": "hpa"}}, "grader": {"autoscaling": {"enabled": True}}},
    "keda": {"rollouts": {"autoscaling": {"kind": "keda", "max": 5}}},
    "monitoring": {"monitoring": {"serviceMonitors": True, "rules": True, "dashboards": True, "labels": {"a": "b"}}},
    "ingress": {
        "scoring": {"ingress": {"enabled": True, "host": "example.org", "className": "nginx", "tlsSecret": "t"}}
    },
    "gateway": {"scoring": {"gateway": {"enabled": True, "host": "example.org", "parents": [{"name": "public"}]}}},
    "no-policies": {"networkPolicy": {"enabled": False}},
    "nodes": {"device": "cuda", "trainer": {"nodes": 2, "gpus": 8}, "model": {"hub": "a/b"}},
    "broadcast": {"device": "cuda", "trainer": {"push": "broadcast"}},
    "bucket": {"blobs": {"url": "s3://bucket/images", "secret": "bucket", "port": 9000, "to": NETWORK}},
    "tracing": {"tracing": {"endpoint": "http://collector.monitoring:4318", "to": [{"namespaceSelector": {}}]}},
    "console": {"console": {"enabled": True, "publicUrl": "https://prism.example.org", "from": NETWORK}},
    "console-elsewhere": {
        "console": {"enabled": True, "workers": {"replicas": 0}, "database": {"bundled": False, "to": NETWORK}},
        "secrets": {"existing": "mine"},
    },
    "volume": {"storage": {"existingClaim": "mine"}},
    "placement": {
        "policy": {"nodeSelector": {"a": "b"}, "tolerations": [{"key": "gpu", "operator": "Exists"}], "spread": True},
        "image": {"registry": "registry.example/prism/", "tag": "1", "pullSecrets": ["pull"]},
        "grader": {"env": {"PRISM_WORKERS": 4}},
    },
} | {file.stem: yaml.safe_load(file.read_text()) for file in PRESETS}
OTHERS = ("redis", "postgres")
"""Whose images are not ours."""
RENDERED = {name: render(values) for name, values in SWITCHES.items()}
each_switch = pytest.mark.parametrize("objects", RENDERED.values(), ids=RENDERED)


def test_the_chart_passes_helms_lint() -> None:
    for preset in ({}, *(yaml.safe_load(file.read_text()) for file in PRESETS)):
        result = lint(CHART, preset)
        assert not result["errors"]
        assert not [message for message in result["messages"] if message["severity"] > 1]
    assert {file.stem for file in PRESETS} == {"values-single-gpu", "values-8gpu", "values-multi-node"}


@each_switch
def test_every_object_fits_kubernetes_schema(objects: list[dict[str, Any]]) -> None:
    for item in objects:
        if item["kind"] not in OPERATORS:
            kubernetes_validate.validate(item, "1.35", strict=True)
    names = [(item["kind"], item["metadata"]["name"]) for item in objects]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    "values",
    [
        {"polcy": {}},
        {"policy": {"replica": 2}},
        {"device": "gpu"},
        {"grader": {"env": {"WORKERS": "2"}}},
        {"grader": {"env": {"PRISM_TOKEN": "in plain sight"}}},
        {"run": {"name": "With Spaces"}},
        {"rollouts": {"autoscaling": {"kind": "cron"}}},
        {"redis": {"bundled": False}},
        {"console": {"enabled": True, "database": {"bundled": False}}},
        {"console": {"enabled": True, "database": {"bundled": False}}, "secrets": {"existing": "mine"}},
        {"console": {"env": {"PRISM_DATABASE_URL": "in plain sight"}}},
        {"redis": {"bundled": False}, "secrets": {"existing": "mine"}},
        {"redis": {"bundled": False, "address": "redis.example:6380"}, "secrets": {"existing": "mine"}},
        {"blobs": {"url": "s3://bucket/images"}},
        {"tracing": {"endpoint": "http://collector.monitoring:4318"}},
        {"networkPolicy": {"dns": []}},
        {"redis": {"maxMemory": "0"}},
        {"scoring": {"ingress": {"enabled": True}}},
        {"trainer": {"nodes": 0}},
        {"trainer": {"push": "nccl"}},
        {"blobs": {"url": "/runs/blobs"}},
        {"tracing": {"endpoint": "collector:4318"}},
    ],
    ids=json.dumps,
)
def test_what_cannot_be_meant_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(HelmError):
        render(values)


def test_the_schema_knows_every_value_and_no_other() -> None:
    """Strict at every level that has keys of its own."""

    def check(values: dict[str, Any], schema: dict[str, Any], path: str) -> None:
        if "properties" not in schema:
            return
        assert schema["additionalProperties"] is False, path
        assert set(values) == set(schema["properties"]) - {"global"}, path
        for key, value in values.items():
            if isinstance(value, dict):
                check(value, schema["properties"][key], f"{path}.{key}")

    with Chart.load(CHART) as chart:
        assert chart.schema
        check(chart.values, chart.schema, "")


@each_switch
def test_pods_are_restricted(objects: list[dict[str, Any]]) -> None:
    for component, pod in pod_specs(objects).items():
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False, "a Service named prism would set PRISM_PORT"
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert "requests" in container["resources"]
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            claimed = {volume["name"] for volume in pod["volumes"]}
            assert mounted <= claimed | ({"data"} if component in OTHERS else set())
            if component not in OTHERS:
                assert pod["securityContext"]["runAsUser"] == image(container["image"]).user


@each_switch
def test_images_are_those_that_are_built(objects: list[dict[str, Any]]) -> None:
    for component, pod in pod_specs(objects).items():
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            name = container["image"].rsplit("/", 1)[-1].split(":")[0]
            if component in OTHERS:
                assert container["image"] == compose()[component]["image"]
            else:
                assert name.removeprefix("prism-") in TARGETS
            if component in ("perception", "reasoning", "trainer"):
                cuda = any(part["name"] == "policy" and "policy-gpu" in part["image"] for part in policy(objects))
                assert container["image"].endswith("-cuda") is cuda


def policy(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return pod_specs(objects)["policy"]["containers"]


@each_switch
def test_a_service_gets_the_variables_it_reads(objects: list[dict[str, Any]]) -> None:
    for component, pod in pod_specs(objects).items():
        if component not in SETTINGS:
            continue
        (container,) = pod["containers"]
        given = {variable["name"] for variable in container["env"]}
        secrets = next(volume["secret"] for volume in pod["volumes"] if volume["name"] == "secrets")
        files = {item["path"].upper() for item in secrets["items"]}
        assert given - ELSEWHERE <= known_variables(component)
        assert files <= known_variables(component)
        assert required_variables(component) <= given | files | set(image(container["image"]).environment)
        assert not given & {"PRISM_TOKEN", "PRISM_ADMIN_TOKEN", "PRISM_REDIS_URL"}, "secrets come by reference"


@each_switch
def test_ports_are_those_that_images_listen_on(objects: list[dict[str, Any]]) -> None:
    pods = pod_specs(objects)
    ports: dict[str, dict[str, int]] = {}
    for component in {*SETTINGS, "console"} & pods.keys():
        (container,) = pods[component]["containers"]
        made = image(container["image"])
        ports[component] = {
            port["name"]: port["containerPort"] for port in container["ports"] if port["name"] != "rendezvous"
        }
        expected = {"http": int(made.environment["PRISM_PORT"])}
        if component in ("policy", "perception", "reasoning"):
            expected["admin"] = int(made.environment["PRISM_ADMIN_PORT"])
        assert ports[component] == expected
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            if component != "trainer":
                assert container[probe]["httpGet"]["port"] == "http"
                assert container[probe]["httpGet"]["path"] in ("/healthz", "/readyz")
    for service in of_kind(objects, "Service"):
        component = service["spec"]["selector"]["app.kubernetes.io/component"]
        for port in service["spec"]["ports"]:
            if component not in OTHERS and port["name"] != "rendezvous":
                assert port["port"] == ports[component][port["targetPort"]]
        admin = "admin" in {port["name"] for port in service["spec"]["ports"]}
        assert admin == service["metadata"]["name"].endswith("-replicas")


@each_switch
def test_urls_name_services_that_are_there(objects: list[dict[str, Any]]) -> None:
    services = {service["metadata"]["name"]: service for service in of_kind(objects, "Service")}
    for component, pod in pod_specs(objects).items():
        for variable in (item for container in pod["containers"] for item in container.get("env", [])):
            if variable["name"].endswith("_URL") and component != "console":  # its own, which people see
                host, port = re.findall(r"^http://([a-z-]+):(\d+)$", variable["value"])[0]
                assert int(port) in {item["port"] for item in services[host]["spec"]["ports"]}
                pushed = component == "trainer" and not host.endswith("grader")
                assert host.endswith("-replicas") is pushed, "weights go to every replica, requests to any"


def peers(rules: list[dict[str, Any]], port: int, side: str) -> set[str]:
    """Components that a policy's rules admit at ``port``."""
    return {
        peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"]
        for rule in rules
        if port in {entry["port"] for entry in rule["ports"]}
        for peer in rule.get(side, [])
        if "podSelector" in peer
    }


def test_who_may_reach_whom() -> None:
    policies = {item["metadata"]["name"].removeprefix("prism-"): item["spec"] for item in of_kind(
        RENDERED["defaults"], "NetworkPolicy")}  # fmt: skip
    assert policies.keys() == {*SETTINGS, "redis", "test"}
    assert policies["grader"]["egress"] == policies["policy"]["egress"] == policies["redis"]["egress"] == []
    for name, spec in policies.items():
        assert spec["policyTypes"] == ["Ingress", "Egress"]
        admitted = {"trainer"} if name in ("policy", "perception", "reasoning") else set()
        assert peers(spec["ingress"], 8001, "from") == admitted, "only the trainer reaches admin routes"
    assert peers(policies["redis"]["ingress"], 6379, "from") == {"rollouts", "trainer"}
    for source, spec in policies.items():  # what one may send to, must let it in
        for port in (8000, 8001, 6379):
            for target in peers(spec["egress"], port, "to"):
                assert source in peers(policies[target]["ingress"], port, "from")


@pytest.mark.parametrize(("name", "database"), [("console", "postgres"), ("console-elsewhere", None)])
def test_the_console_reaches_its_database_and_nothing_else(name: str, database: str | None) -> None:
    objects = RENDERED[name]
    policies = {item["metadata"]["name"].removeprefix("prism-"): item["spec"] for item in of_kind(
        objects, "NetworkPolicy")}  # fmt: skip
    own = ["console", "jobs"] if database else ["console"]  # without workers
    assert policies.keys() - {*SETTINGS, "redis", "test"} == {*own, *([database] if database else [])}
    for component, kind in zip(own, (ConsoleSettings, WorkerSettings), strict=False):
        *dns, to_database = policies[component]["egress"]
        assert [{port["port"] for port in rule["ports"]} for rule in dns] == [{53}]
        if database:
            assert peers([to_database], 5432, "to") == {database}
        else:
            assert to_database == {"to": NETWORK, "ports": [{"port": 5432, "protocol": "TCP"}]}
        (container,) = pod_specs(objects)[component]["containers"]
        given = {variable["name"]: variable["value"] for variable in container["env"]}
        assert given.keys() - ELSEWHERE <= {f"PRISM_{field.upper()}" for field in kind.model_fields}
        settings = load_settings(kind, **{key.removeprefix("PRISM_").lower(): value for key, value in given.items()
                                          if key not in ELSEWHERE})  # fmt: skip
        assert (settings.runs, settings.state_dir) == (Path("/runs"), Path("/state"))
        mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
        assert mounts["/state"] == {"name": "runs", "mountPath": "/state", "subPath": ".console"}
        if isinstance(settings, ConsoleSettings):
            assert settings.jobs is (database is not None)
    if database:
        assert peers(policies[database]["ingress"], 5432, "from") == {"console", "jobs"}
        assert (policies["jobs"]["ingress"], policies[database]["egress"]) == ([], [])
        assert NETWORK[0] in policies["console"]["ingress"][0]["from"]
        (secret,) = of_kind(objects, "Secret")
        password = secret["stringData"]["prism_database_password"]
        assert len(password) == 40
        assert (
            secret["stringData"]["prism_database_url"] == f"postgresql://prism:{password}@prism-postgres:5432/console"
        )


def test_a_policy_server_has_time_to_start_and_to_recover() -> None:
    (container,) = policy(RENDERED["values-8gpu"])
    startup, living = container["startupProbe"], container["livenessProbe"]
    assert startup["failureThreshold"] * startup["periodSeconds"] == 1800
    assert living["failureThreshold"] * living["periodSeconds"] >= 900, (
        "its supervisor restarts it within PRISM_START_DEADLINE"
    )


def test_gpus_go_to_those_who_compute() -> None:
    wanted = {"policy": 1, "perception": 1, "reasoning": 1, "trainer": 4}
    for component, pod in pod_specs(RENDERED["values-8gpu"]).items():
        limits = pod["containers"][0]["resources"].get("limits", {})
        assert limits.get("nvidia.com/gpu") == wanted.get(component)
    (container,) = policy(RENDERED["values-multi-node"])
    assert {"name": "PRISM_VLLM_FLAGS", "value": "--tensor-parallel-size=4"} in container["env"]


def test_a_trainer_of_several_nodes_is_numbered_pods_that_find_the_first() -> None:
    objects = RENDERED["nodes"]
    (job,) = of_kind(objects, "Job")
    assert (job["spec"]["completionMode"], job["spec"]["completions"], job["spec"]["parallelism"]) == ("Indexed", 2, 2)
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 8
    assert "--attach" in container["args"]
    given = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert (given["PRISM_NODES"], given["PRISM_NODE_PROCESSES"]) == ("2", "8")
    for first in pod["initContainers"]:  # both pods start them: the first prepares, the other waits
        assert {v["name"] for v in first["env"]} >= {"PRISM_NODES", "PRISM_NODE_RANK", "PRISM_RENDEZVOUS"}
    # The first pod's name is that of its Job and 0; the headless Service of its subdomain resolves it.
    (service,) = [item for item in of_kind(objects, "Service") if item["metadata"]["name"] == pod["subdomain"]]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True, "ranks meet before any pod is ready"
    (port,) = service["spec"]["ports"]
    assert given["PRISM_RENDEZVOUS"] == f"{job['metadata']['name']}-0.{pod['subdomain']}:{port['port']}"
    assert service["spec"]["selector"].items() <= job["spec"]["template"]["metadata"]["labels"].items()
    (policy,) = [p for p in of_kind(objects, "NetworkPolicy") if p["metadata"]["name"] == "prism-trainer"]
    for side, rules in (("from", policy["spec"]["ingress"]), ("to", policy["spec"]["egress"])):
        open_to = [rule[side] for rule in rules if "ports" not in rule]
        assert open_to == [[{"podSelector": {"matchLabels": service["spec"]["selector"]}}]], "NCCL chooses its ports"


@each_switch
def test_the_trainers_of_two_revisions_take_turns(objects: list[dict[str, Any]]) -> None:
    for job in of_kind(objects, "Job"):
        if "trainer" in job["metadata"]["name"]:
            assert job["spec"]["podReplacementPolicy"] == "Failed"
            pod = job["spec"]["template"]["spec"]
            (waits,) = [a for a in pod["containers"][0]["args"] if a.startswith("--wait-for-lock=")]
            grace = pod["terminationGracePeriodSeconds"]
            assert int(waits.partition("=")[2]) >= 2 * grace, "until the old one was killed, and more"
            assert grace > END_SECONDS + 10, "that `prism run` gives its stage"


def test_one_pod_trains_without_a_rendezvous() -> None:
    (job,) = of_kind(RENDERED["defaults"], "Job")
    names = {variable["name"] for variable in job["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert "completionMode" not in job["spec"]
    assert not names & {"PRISM_NODES", "PRISM_RENDEZVOUS"}


def test_weights_are_broadcast_where_trainer_and_servers_reach_each_other() -> None:
    servers = ["policy", "perception", "reasoning"]
    for name, transport, extra in (("defaults", "file", []), ("broadcast", "broadcast", servers)):
        (job,) = of_kind(RENDERED[name], "Job")
        pod = job["spec"]["template"]["spec"]
        for container in (
            *pod["containers"],
            pod["initContainers"][-1],
        ):  # a run that was prepared otherwise is refused
            assert f"--set=push.transport={transport}" in container["args"]
        whole = {
            (item["metadata"]["name"].removeprefix("prism-"), way, peer)
            for item in of_kind(RENDERED[name], "NetworkPolicy")
            for way, side in (("ingress", "from"), ("egress", "to"))
            for rule in item["spec"][way]
            if "ports" not in rule
            for peer in [rule[side][0]["podSelector"]["matchLabels"]["app.kubernetes.io/component"]]
        }
        pairs = [pair for server in extra for pair in ((server, "trainer"), ("trainer", server))]
        assert whole == {(a, way, b) for way in ("ingress", "egress") for a, b in pairs}


def test_images_can_lie_in_a_bucket() -> None:
    pods = pod_specs(RENDERED["bucket"])
    for component in ("perception", "reasoning", "rollouts", "trainer"):
        (container,) = pods[component]["containers"]
        assert {"name": "PRISM_BLOBS", "value": "s3://bucket/images"} in container["env"]
        assert container["envFrom"] == [{"secretRef": {"name": "bucket"}}]
        (policy,) = [
            item for item in of_kind(RENDERED["bucket"], "NetworkPolicy")
            if item["metadata"]["name"] == f"prism-{component}"
        ]  # fmt: skip
        assert {"to": NETWORK, "ports": [{"port": 9000, "protocol": "TCP"}]} in policy["spec"]["egress"]


def test_every_part_sends_its_traces() -> None:
    objects = RENDERED["tracing"]
    for component in SETTINGS:
        (container,) = pod_specs(objects)[component]["containers"]
        endpoint = {"name": "OTEL_EXPORTER_OTLP_ENDPOINT", "value": "http://collector.monitoring:4318"}
        assert endpoint in container["env"]
        (policy,) = [p for p in of_kind(objects, "NetworkPolicy") if p["metadata"]["name"] == f"prism-{component}"]
        out = policy["spec"]["egress"]
        assert {"to": [{"namespaceSelector": {}}], "ports": [{"port": 4318, "protocol": "TCP"}]} in out
        assert sum(53 in {port["port"] for port in rule["ports"]} for rule in out) == 1, "names resolve"


def test_autoscalers_own_the_number_of_replicas() -> None:
    for name, kind in (("hpa", "HorizontalPodAutoscaler"), ("keda", "ScaledObject")):
        (scaler,) = [item for item in of_kind(RENDERED[name], kind) if item["metadata"]["name"] == "prism-rollouts"]
        assert scaler["spec"]["scaleTargetRef"]["name"] == "prism-rollouts"
        (deployment,) = [
            item for item in of_kind(RENDERED[name], "Deployment") if item["metadata"]["name"] == "prism-rollouts"
        ]
        assert "replicas" not in deployment["spec"]


def test_keda_watches_the_stream_that_workers_read() -> None:
    from prism.streams.keys import StreamNames

    (scaler,) = of_kind(RENDERED["keda"], "ScaledObject")
    assert scaler["spec"]["triggers"][0]["metadata"]["stream"] == StreamNames("demo").prompts


def test_secrets_are_made_up_unless_they_are_named() -> None:
    (secret,) = of_kind(RENDERED["defaults"], "Secret")
    values = secret["stringData"]
    assert len({values["prism_token"], values["prism_admin_token"], values["prism_redis_password"]}) == 3
    assert min(map(len, values.values())) >= 16
    assert values["prism_redis_url"] == f"redis://:{values['prism_redis_password']}@prism-redis:6379/0"
    assert values != of_kind(render(), "Secret")[0]["stringData"]
    assert not of_kind(RENDERED["external-redis"], "Secret", "StatefulSet")[1:], "no Redis of its own"


def test_dashboards_and_alerts_are_the_files_that_compose_mounts() -> None:
    objects = RENDERED["monitoring"]
    (rules,) = of_kind(objects, "PrometheusRule")
    assert rules["spec"] == yaml.safe_load((CHART / "rules.yml").read_text())
    (boards,) = [item for item in of_kind(objects, "ConfigMap") if "grafana_dashboard" in item["metadata"]["labels"]]
    files: list[Path] = sorted((CHART / "dashboards").iterdir())
    assert boards["data"] == {file.name: file.read_text() for file in files}
    assert len(of_kind(objects, "ServiceMonitor")) == len(SETTINGS)


def test_notes_say_what_to_do_next() -> None:
    with Chart.load(CHART) as chart:
        notes = chart.render(name="trial", namespace="ours")["prism/templates/NOTES.txt"]
    assert "helm test trial -n ours" in notes
    assert "job/trial-prism-trainer-1" in notes
    assert "svc/trial-prism-perception" in notes


def test_nothing_sleeps_for_ever() -> None:
    assert "sleep" not in "".join(file.read_text() for file in (CHART / "templates").rglob("*.*"))
