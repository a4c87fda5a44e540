"""Who waits for whom, from the lines of a run whose times are known."""

import json
from pathlib import Path
from typing import Any

import pytest

from prism.report.model import load_report
from prism.report.waits import JUDGES, LEARNER, SERVER, WORKERS, united
from prism.report.write import write_report

BEGAN = 1_000.0
FIGURES = {"wait_seconds": 2.0, "perception_update_seconds": 1.0, "reasoning_update_seconds": 0.5,
           "policy_update_seconds": 1.5, "push_seconds": 0.5, "step_seconds": 6.0}  # fmt: skip


def write_run(folder: Path, steps: int = 4, *, times: bool = True) -> Path:
    """Steps of six seconds, one after another, the last with a look of three behind it. Each step's two groups are
    sampled in its first two seconds and judged in half a second more."""
    folder.mkdir()
    config = {"name": "run", "stages": {"align": {"kind": "align", "steps": steps - 1, "warmup_steps": 1}}}
    (folder / "config.json").write_text(json.dumps(config))
    lines: list[dict[str, Any]] = []
    of_groups: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        start, last = BEGAN + 6 * (step - 1), step == steps
        line = {"stage": "align", "step": step, "time": start + (9 if last else 6), "warmup": step == 1} | FIGURES
        lines.append(line | ({"looks_seconds": 3.0} if last else {}))
        groups = [[start, start + 1.5, start + 2.5], [start + 0.5, start + 2.0, start + 2.5]]
        of_groups.append({"stage": "align", "step": step, "groups": groups})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if times:
        (folder / "timeline.jsonl").write_text("".join(json.dumps(line) + "\n" for line in of_groups))
    return folder


def test_a_step_is_told_part_by_part(tmp_path: Path) -> None:
    (found,) = load_report(write_run(tmp_path / "run")).waits
    assert (found.stage, found.step, found.seconds) == ("align", 4, 6.0)
    parts = {part.name: part for part in found.parts}
    learner = [(span.does, span.start, span.end) for span in parts[LEARNER].spans]
    assert learner == [
        ("waiting", 0.0, 2.0),
        ("perception update", 2.0, 3.0),
        ("reasoning update", 3.0, 3.5),
        ("policy update", 3.5, 5.0),
        ("push", 5.0, 5.5),
        ("other", 5.5, 6.0),
    ]
    served = {name: [(s.start, s.end) for s in parts[name].spans] for name in (SERVER, JUDGES, WORKERS)}
    assert served == {SERVER: [(0.0, 2.0)], JUDGES: [(1.5, 2.5)], WORKERS: [(0.0, 2.5)]}
    busy = {name: part.busy for name, part in parts.items()}
    assert busy == pytest.approx({LEARNER: 4 / 6, SERVER: 2 / 6, JUDGES: 1 / 6, WORKERS: 2.5 / 6})


def test_what_is_asked_for_ahead_counts_where_it_was_made(tmp_path: Path) -> None:
    """The last step's groups, a step behind: they were made while the one before was learnt from."""
    run = write_run(tmp_path / "run")
    lines = [json.loads(line) for line in (run / "timeline.jsonl").read_text().splitlines()]
    lines[-1]["groups"] = [[each - 3.0 for each in group] for group in lines[-1]["groups"]]
    (run / "timeline.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (found,) = load_report(run).waits
    (server,) = (part for part in found.parts if part.name == SERVER)
    assert server.spans == []
    assert server.busy == pytest.approx((2 + 2) / 12)  # of the steps 3 and 4, both made in the time of step 3


def test_the_page_shows_it(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    write_report(run)
    page = (run / "report.html").read_text()
    assert 'id="waits-align"' in page
    assert "policy server asked 33 % of the time" in page
    assert "learner at work 67 % of the time" in page
    assert json.loads((run / "report.json").read_text())["waits"][0]["step"] == 4


def test_a_run_of_before_has_no_such_picture(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", times=False)
    report = write_report(run)
    assert report.waits == []
    assert not [problem for problem in report.problems if "timeline" in problem]
    assert "Who waits for whom" not in (run / "report.html").read_text()


def test_groups_of_older_workers_have_no_times(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    groups = {"stage": "align", "step": 1, "groups": [[-1.0, -0.5, 0.0]]}
    (run / "timeline.jsonl").write_text(json.dumps(groups) + "\n")
    assert load_report(run).waits == []


def test_intervals_are_united() -> None:
    assert united([(3, 4), (0, 2), (1, 2.5), (9, 12), (-5, -1)], 0.5, 10) == [(0.5, 2.5), (3, 4), (9, 10)]
