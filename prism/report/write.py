"""The files: ``report.json`` and ``report.html``, ``comparison.html``. Written whole or not at all."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from prism.files import write_text
from prism.report.arms import METRICS, Comparison
from prism.report.charts import draw_waits, legend, said
from prism.report.comparison import load_comparison
from prism.report.dots import draw_dots
from prism.report.model import Report, build_report
from prism.report.panels import draw_panels, ended
from prism.report.reading import read_run
from prism.report.rollouts import rollouts, score, verdict
from prism.report.words import (
    EXPERTS,
    KINDS,
    LOOKS,
    alert,
    change,
    disentangled,
    percent,
    seconds,
)

TEMPLATES = Path(__file__).parent / "templates"


def write_report(run_dir: Path) -> Report:
    """Write ``run_dir/report.json`` and ``run_dir/report.html``. Raises DataError when the folder is no run."""
    run = read_run(run_dir)
    report = build_report(run)
    charts, empty = draw_panels(report)
    page = _render(
        "report.html",
        report=report,
        charts=charts,
        empty=empty,
        waits=[(each, draw_waits(each), legend(each), said(each)) for each in report.waits],
        rollouts=rollouts(run, report.rollouts),
        levels=levels(report),
        started=_clock(report.started),
    )
    write_text(run_dir / "report.json", report.model_dump_json(indent=1) + "\n")
    write_text(run_dir / "report.html", page)
    return report


def write_comparison(root: Path) -> Comparison:
    """Write ``root/comparison.html`` from ``root/comparison.json``. Raises DataError when that cannot be used."""
    comparison = load_comparison(root)
    page = _render(
        "comparison.html",
        comparison=comparison,
        metrics=METRICS,
        charts=draw_dots(comparison),
        links=_links(root, comparison),
    )
    write_text(root / "comparison.html", page)
    return comparison


def levels(report: Report) -> list[str]:
    """Levels of difficulty that any evaluation knows, numbers in their order."""
    names = {level for stage in report.stages if stage.evaluation for level in stage.evaluation.by_level}
    return sorted(names, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))


def _links(root: Path, comparison: Comparison) -> dict[str, str]:
    """Runs beneath ``root`` that have a report, to its address relative to ``root``."""
    links: dict[str, str] = {}
    for run_dir in {run.run_dir for arm in comparison.arms for run in arm.runs if run.run_dir}:
        for folder in (root / run_dir, Path(run_dir)):
            page = (folder / "report.html").resolve()
            if page.is_file() and page.is_relative_to(root.resolve()):
                links[run_dir] = quote(page.relative_to(root.resolve()).as_posix())
                break
    return links


def _render(template: str, **values: Any) -> str:
    # Whatever a model wrote is escaped: autoescape is on for every template and no template switches it off. The
    # charts alone are markup, and hold no text but their own.
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    filters = {"percent": percent, "seconds": seconds, "change": change, "ended": ended, "alert": alert}
    environment.filters |= filters | {"score": score, "verdict": verdict, "disentangled": disentangled}
    environment.globals |= {"kind_names": KINDS, "expert_names": EXPERTS, "looks_said": LOOKS}
    return environment.get_template(template).render(**values)


def _clock(time: float | None) -> str:
    if time is None:
        return ""
    try:
        return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (OverflowError, ValueError, OSError):
        return ""
