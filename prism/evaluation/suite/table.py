"""Figures as people read them: on the terminal, and the paper's table as HTML, Markdown and CSV."""

import csv
import html
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.table import Table

from prism.evaluation.suite.figures import SCORERS, Scorer
from prism.evaluation.suite.results import Result
from prism.evaluation.suite.run import scorer_of

NONE = "–"


class Cell(NamedTuple):
    value: float | None
    stderr: float | None
    note: str
    """Why there is no value, or what is to be known about it."""

    @property
    def text(self) -> str:
        if self.value is None:
            return NONE
        return f"{100 * self.value:.1f}" + ("" if self.stderr is None else f" ± {100 * self.stderr:.1f}")


def score_cell(figures: dict[str, Any], view: str, scorer: Scorer) -> Cell:
    own = figures["views"].get(view, {}).get("scores", {}).get(scorer)
    if own is None:
        return Cell(None, None, "not measured")
    part = (
        f"of the first {figures['questions']} of {figures['of']} questions"
        if figures["questions"] < figures["of"]
        else ""
    )
    return Cell(own["headline"], own["stderr"], own["why"] or part)


def summary(result: Result) -> Table:
    """A row for each benchmark, scorers side by side, the blank pictures' score beside them."""
    table = Table("benchmark", "figure", title=f"{result['name']}: in %, ± one clustered standard error")
    scorers: list[Scorer] = [scorer for scorer in SCORERS if result["judge"] or scorer == "rule"]
    for scorer in scorers:
        table.add_column(scorer.replace("_", " "), no_wrap=True)
    for name in ("blank picture", "responses", "masked", "tokens"):
        table.add_column(name, no_wrap=True)
    for name, figures in result["benchmarks"].items():
        seen = figures["views"]["seen"]
        cells = [score_cell(figures, "seen", scorer) for scorer in scorers]
        blank = score_cell(figures, "blank", scorer_of(result))
        statuses = ", ".join(f"{n} {s}" for s, n in seen["statuses"].items() if n and s != "ok") or "none"
        tokens = f"{seen['tokens']['mean']:.0f}" if seen["tokens"] else NONE
        table.add_row(
            name,
            figures["headline"],
            *(cell.text for cell in cells),
            blank.text,
            str(seen["responses"]),
            statuses,
            tokens,
        )
        others = {metric for cell in seen["scores"].values() for metric in cell["metrics"]} - {figures["headline"]}
        for metric in sorted(others):
            values = [seen["scores"][scorer]["metrics"].get(metric, {}) for scorer in scorers]
            table.add_row("", metric, *(Cell(v.get("value"), v.get("stderr"), "").text for v in values))
        for k, passed in seen["scores"][scorer_of(result)]["pass_at"].items():
            table.add_row("", f"pass@{k}", *[""] * (len(scorers) - 1), Cell(passed["value"], passed["stderr"], "").text)
    return table


class PaperTable(NamedTuple):
    """A row for each evaluated model and, if it was measured, one for its blank pictures below; a column for each
    benchmark, and their mean where all are there."""

    scorer: str
    columns: list[str]
    rows: list[tuple[str, list[Cell]]]
    notes: list[str]


def paper_table(results: Sequence[tuple[str, Result]], scorer: Scorer | None = None) -> PaperTable:
    """``results`` by what their rows are called, in order; ``scorer`` by default the paper's if all have a judge."""
    if scorer is None:
        scorer = "rule_then_judge" if all(result["judge"] for _, result in results) else "rule"
    names = list(dict.fromkeys(name for _, result in results for name in result["benchmarks"]))
    titles = {name: result["benchmarks"][name]["title"] for _, result in results for name in result["benchmarks"]}
    titles = {name: name if title == "own" else title for name, title in titles.items()}
    rows: list[tuple[str, list[Cell]]] = []
    notes: list[str] = []
    for label, result in results:
        views = {view for figures in result["benchmarks"].values() for view in figures["views"]}
        for view, called in (("seen", label), ("blank", f"{label}, blank pictures")):
            if view not in views:
                continue
            cells: list[Cell] = []
            for name in names:
                figures = result["benchmarks"].get(name)
                cell = score_cell(figures, view, scorer) if figures else Cell(None, None, "not measured")
                cells.append(cell)
                if cell.note:
                    notes.append(f"{called}, {titles[name]}: {cell.note}")
            rows.append((called, [*cells, _mean(cells)]))
    return PaperTable(scorer.replace("_", " "), [*(titles[name] for name in names), "mean"], rows, notes)


def _mean(cells: Sequence[Cell]) -> Cell:
    """Of benchmarks with each other, which are independent; none where one is missing."""
    values = [cell.value for cell in cells if cell.value is not None]
    if not values or len(values) < len(cells):
        return Cell(None, None, "")
    errors = [cell.stderr for cell in cells if cell.stderr is not None]
    stderr = sum(error**2 for error in errors) ** 0.5 / len(cells) if len(errors) == len(cells) else None
    return Cell(sum(values) / len(values), stderr, "")


def caption(table: PaperTable) -> str:
    return f"In %, ± one clustered standard error; scored by {table.scorer}. {NONE}: no score."


def as_markdown(table: PaperTable) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    lines = [line(["", *table.columns]), line(["---"] * (len(table.columns) + 1))]
    lines += [line([label, *(cell.text for cell in cells)]) for label, cells in table.rows]
    return "\n".join([*lines, "", caption(table), *(f"- {note}" for note in table.notes)]) + "\n"


def as_csv(table: PaperTable) -> str:
    """Shares from 0 to 1, each with its standard error; empty where there is no score."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["model", *(part for name in table.columns for part in (name, f"{name} stderr"))])
    for label, cells in table.rows:
        numbers = (number for cell in cells for number in (cell.value, cell.stderr))
        writer.writerow([label, *("" if number is None else f"{number:.6f}" for number in numbers)])
    return out.getvalue()


def as_html(table: PaperTable) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("", *table.columns))
    body = "".join(
        f"<tr><th>{html.escape(label)}</th>"
        + "".join(f'<td title="{html.escape(cell.note)}">{html.escape(cell.text)}</td>' for cell in cells)
        + "</tr>"
        for label, cells in table.rows
    )
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in table.notes)
    style = (
        "body{font:15px/1.5 system-ui,sans-serif;margin:2rem}table{border-collapse:collapse}"
        "th,td{padding:.3rem .7rem;border-bottom:1px solid #ccc;text-align:right}th:first-child{text-align:left}"
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Benchmarks</title><style>{style}</style>'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        f"<p>{html.escape(caption(table))}</p><ul>{notes}</ul></html>\n"
    )
