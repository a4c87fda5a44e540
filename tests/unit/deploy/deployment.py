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
DOCKERFILE = ROOT / "deploy" / "docker" / "Dockerfile"
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


@cache
def stages() -> dict[str, list[str]]:
    """Each stage of the Dockerfile: its instructions, FROM first, comments left out and continued lines joined."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", "")
    found = ["FROM " + part for part in re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]]
    return {stage.split()[3]: [line for line in stage.splitlines() if line] for stage in found}


@dataclass(frozen=True)
class Image:
    """A target of the Dockerfile: the instructions of the stages that it stands on, and its own."""

    lines: list[str]

    def arguments(self, instruction: str) -> list[str]:
        return [line.split(" ", 1)[1] for line in self.lines if line.startswith(f"{instruction} ")]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    @property
    def environment(self) -> dict[str, str]:
        return dict(pair.split("=", 1) for line in self.arguments("ENV") for pair in line.split())

    @property
    def ports(self) -> set[int]:
        return {int(port) for line in self.arguments("EXPOSE") for port in line.split()}

    @property
    def user(self) -> int:
        return int(self.arguments("USER")[-1].split(":")[0])


@cache
def target(name: str) -> Image:
    lines = stages()[name]
    base = lines[0].split()[1]
    return Image([*target(base).lines, *lines] if base in stages() else lines)


TARGETS = [name for name, lines in stages().items() if any(line.startswith("CMD ") for line in lines)]
"""Those that are images: a stage that says what it runs."""


def image(name: str) -> Image:
    """``prism-grader``, with or without a registry and a tag, is the target grader."""
    return target(name.rsplit("/", 1)[-1].split(":")[0].removeprefix("prism-"))


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


def compose(name: str = "docker-compose.yml", part: str = "services") -> dict[str, Any]:
    """The services of one compose file, or another part of it."""
    return yaml.safe_load((ROOT / name).read_text())[part]


def default(text: str) -> str:
    """What compose makes of ``${NAME:-default}`` without an .env file."""
    return re.sub(r"\$\{[A-Z_]+:-([^}]*)\}", r"\1", str(text))
