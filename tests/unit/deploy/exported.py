"""The metrics that PRISM's own code exports, read from where they are defined."""

from dataclasses import dataclass
from types import ModuleType

from prometheus_client.metrics import MetricWrapperBase

from prism.services.experts import metrics as experts
from prism.services.grader import metrics as grader
from prism.services.policy import metrics as policy
from prism.services.rollouts import metrics as rollouts
from prism.trainer.run import recorder as trainer

MODULES = {"policy": policy, "experts": experts, "grader": grader, "rollouts": rollouts, "trainer": trainer}
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}


@dataclass(frozen=True)
class Exported:
    service: str
    name: str
    """As queries name it, but for a histogram's suffixes."""
    kind: str
    labels: tuple[str, ...]
    help: str

    @property
    def series(self) -> set[str]:
        return {f"{self.name.removesuffix('_total')}{suffix}" for suffix in SUFFIXES[self.kind]}


def exported() -> list[Exported]:
    return [metric for service, module in MODULES.items() for metric in _of(service, module)]


def _of(service: str, module: ModuleType) -> list[Exported]:
    found: list[Exported] = []
    for value in vars(module).values():
        if isinstance(value, MetricWrapperBase):
            (described,) = value.describe()
            name = f"{described.name}_total" if described.type == "counter" else described.name
            labels = tuple(value._labelnames)
            found.append(Exported(service, name, described.type, labels, described.documentation))
    return sorted(found, key=lambda metric: metric.name)


def table() -> str:
    """The table of docs/metrics.md."""
    rows = [
        f"| `{metric.name}` | {metric.service} | {metric.kind} | {', '.join(metric.labels) or '–'} | {metric.help} |"
        for metric in exported()
    ]
    return "\n".join(["| metric | of | kind | labels | what |", "|---|---|---|---|---|", *rows]) + "\n"
