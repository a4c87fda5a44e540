"""Dashboards, alerts and their documentation name metrics that the code exports."""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from exported import exported, table

ROOT = Path(__file__).parents[3]
CHART = ROOT / "deploy" / "helm" / "prism"
DASHBOARDS = sorted((CHART / "dashboards").glob("*.json"))
RULES = [rule for group in yaml.safe_load((CHART / "rules.yml").read_text())["groups"] for rule in group["rules"]]
METRIC = re.compile(r"\b(?:prism_|vllm:)[a-z_]+")


def dashboard_queries() -> list[str]:
    boards: list[dict[str, Any]] = [json.loads(file.read_text()) for file in DASHBOARDS]
    return [target["expr"] for board in boards for panel in board["panels"] for target in panel["targets"]]


QUERIES = dashboard_queries() + [rule["expr"] for rule in RULES]


def test_the_table_is_that_of_the_code() -> None:
    assert (ROOT / "docs" / "metrics.md").read_text().endswith(table()), (
        "docs/metrics.md: its table is exported.table()"
    )


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_names_metrics_that_are_exported(query: str) -> None:
    ours = set().union(*(metric.series for metric in exported()))
    vllm = importlib.util.find_spec("vllm")  # found, not imported, which takes seconds
    assert vllm
    assert vllm.origin
    theirs = (Path(vllm.origin).parent / "v1/metrics/loggers.py").read_text()
    names = METRIC.findall(query)
    assert names
    for name in names:
        assert name in ours or f'"{name.removesuffix("_total")}"' in theirs, f"nothing exports {name}"


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_uses_labels_that_its_metrics_have(query: str) -> None:
    labels = {name: set(metric.labels) for metric in exported() for name in metric.series}
    by = {label.strip() for part in re.findall(r"by \(([^)]*)\)", query) for label in part.split(",")} - {
        "le",
        "instance",
    }
    names = [name for name in METRIC.findall(query) if name in labels]
    for name in names:
        assert by <= labels[name], f"{name} has no label {by - labels[name]}"
    for name, selector in re.findall(r"(prism_[a-z_]+)\{([^}]*)\}", query):
        assert set(re.findall(r"([a-z_]+)[=!]", selector)) <= labels[name]


def test_figures_are_those_that_learners_record() -> None:
    """A figure is a key of a dict in trainer/, maybe behind an expert's name."""
    written = " ".join(file.read_text() for file in (ROOT / "trainer").rglob("*.py"))
    for figure in {name for query in QUERIES for name in re.findall(r'figure="([a-z_]+)"', query)}:
        own = re.sub(r"(perception|reasoning)_", "", figure)
        known = f'"{own}"' in written or re.sub("perception|reasoning", "{expert}", figure) in written
        assert known, f"no learner records {figure}"


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)
def test_a_dashboard_fits_its_grid_and_names_no_data_source_of_ours(file: Path) -> None:
    board = json.loads(file.read_text())
    assert {panel["datasource"]["uid"] for panel in board["panels"]} == {"${datasource}"}
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]}
    assert len(places) == len(board["panels"]) == len({panel["id"] for panel in board["panels"]})
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in board["panels"])


def test_alerts_cover_what_must_not_pass_unseen() -> None:
    wanted = {"StaleRollouts", "LogprobMismatch", "ScoresFail", "GraderTimeouts", "ExpertSaturated", "DeadLetters"}
    wanted |= {"Collapse", "NothingLearnt"}
    assert {f"Prism{name}" for name in wanted} <= {rule["alert"] for rule in RULES}
    assert all(rule["annotations"].keys() == {"summary", "description"} for rule in RULES)
