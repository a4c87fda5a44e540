"""What images, compose and chart say, as data: for tests that hold them against each other and against the code."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from helm_python.chart import Chart
from pydantic_settings import BaseSettings

from prism.clients.endpoints import Endpoints
from prism.services.experts.settings import ExpertSettings
from prism.services.grader.settings import GraderSettings
from prism.services.policy.settings import PolicySettings
from prism.services.rollouts.settings import RolloutSettings
from prism.trainer.run.launch import Launch

ROOT = Path(__file__).parents[3]
CHART = ROOT / "deploy" / "helm" / "prism"
DOCKERFILES = sorted((ROOT / "deploy" / "docker").glob("*.Dockerfile"))
PRESETS = sorted(CHART.glob("values-*.yaml"))

SETTINGS: dict[str, tuple[type[BaseSettings], ...]] = {
    "policy": (PolicySettings,),
    "perception": (ExpertSettings,),
    "reasoning": (ExpertSettings,),
    "grader": (GraderSettings,),
    "rollouts": (RolloutSettings, Endpoints),
    "trainer": (Endpoints, Launch),
}
"""What each long-running part reads from its environment."""
GIVEN = {"expert"}  # by the command, `serve perception`
ELSEWHERE = {  # read before any settings class
    *("PRISM_SECRETS_DIR", "PRISM_RUN", "PRISM_LOG_LEVEL", "PRISM_LOG_FORMAT"),
    "OTEL_EXPORTER_OTLP_ENDPOINT",
}


@dataclass(frozen=True)
class Image:
    """A Dockerfile, as far as others depend on it."""

    text: str

    @property
    def environment(self) -> dict[str, str]:
        lines = re.findall(r"^ENV (.+)$", self.text, re.MULTILINE)
        return dict(pair.split("=", 1) for line in lines for pair in line.split())

    @property
    def ports(self) -> set[int]:
        return {int(port) for line in re.findall(r"^EXPOSE (.+)$", self.text, re.MULTILINE) for port in line.split()}

    @property
    def user(self) -> int:
        (uid,) = re.findall(r"^USER (\d+):\d+$", self.text, re.MULTILINE)
        return int(uid)


@cache
def image(name: str) -> Image:
    """``prism-grader``, with or without a registry and a tag, is made by grader.Dockerfile."""
    kind = name.rsplit("/", 1)[-1].split(":")[0].removeprefix("prism-")
    return Image((ROOT / "deploy" / "docker" / f"{kind}.Dockerfile").read_text())


def known_variables(component: str) -> set[str]:
    return {f"PRISM_{name.upper()}" for kind in SETTINGS[component] for name in kind.model_fields}


def required_variables(component: str) -> set[str]:
    fields = [item for kind in SETTINGS[component] for item in kind.model_fields.items()]
    return {f"PRISM_{name.upper()}" for name, field in fields if field.is_required() and name not in GIVEN}


def render(values: dict[str, Any] | None = None, release: str = "prism") -> list[dict[str, Any]]:
    """The chart's objects. Raises what Helm raises."""
    with Chart.load(CHART) as chart:
        files = chart.render(values=values or {}, name=release, namespace="ours")
    documents = (yaml.safe_load_all(text) for path, text in files.items() if not path.endswith(".txt"))
    return [item for document in documents for item in document if item]


def of_kind(objects: list[dict[str, Any]], *kinds: str) -> list[dict[str, Any]]:
    return [item for item in objects if item["kind"] in kinds]


def pod_specs(objects: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The pod of each component."""
    found: dict[str, dict[str, Any]] = {}
    for item in of_kind(objects, "Deployment", "StatefulSet", "Job", "Pod"):
        spec = item["spec"] if item["kind"] == "Pod" else item["spec"]["template"]["spec"]
        found[item["metadata"]["labels"]["app.kubernetes.io/component"]] = spec
    return found


def compose(*names: str) -> dict[str, Any]:
    """The services of one compose file."""
    (name,) = names or ("docker-compose.yml",)
    return yaml.safe_load((ROOT / name).read_text())["services"]


def default(text: str) -> str:
    """What compose makes of ``${NAME:-default}`` without an .env file."""
    return re.sub(r"\$\{[A-Z_]+:-([^}]*)\}", r"\1", str(text))
