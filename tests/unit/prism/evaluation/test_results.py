"""What is made of evaluations that have ended: samples to look at, comparisons, the paper's table."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from prism.cli import app
from prism.config import EvaluationConfig
from prism.errors import ConfigError
from prism.evaluation.suite.compare import compare
from prism.evaluation.suite.results import read_result
from prism.evaluation.suite.show import as_page, select
from prism.evaluation.suite.table import NONE, as_csv, as_html, as_markdown, paper_table, summary
from tests.unit.prism.evaluation import benchmark_rows as rows
from tests.unit.prism.evaluation.fake_server import FakeServer, is_blank, pictures_of, text_of
from tests.unit.prism.evaluation.test_evaluate import SILENT, config, run, vista

VERSIONS = ("Text Dominant", "Text Lite", "Vision Intensive", "Vision Dominant", "Vision Only")


def everything(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """A file of each of the seven."""
    four = {
        "mathvista": [rows.mathvista("1", "14", "integer"), rows.mathvista("2", "B", "text", choices=["A", "B"])],
        "mathverse": [rows.mathverse(i, 0, version, "B") for i, version in enumerate(VERSIONS)],
        "mathvision": [rows.mathvision("1", "B", list("ABCDE")), rows.mathvision("2", "14", [])],
        "wemath": [rows.wemath("1", key) for key in ("2steps_1", "2steps_2", "2steps_multi")],
        "mmmu": [rows.mmmu("validation_Math_1", "B", ["1", "2"]), rows.mmmu("validation_Math_2", "14", [])],
        "mmmu-pro": [rows.mmmu_pro("test_History_1", "B")],
        "hallusionbench": [rows.hallusion("VD", 0, figure, 0, "1") for figure in (0, 1)],
    }
    paths = {name: [str(rows.write_parquet(tmp_path / f"{name}.parquet", some))] for name, some in four.items()}
    vision = rows.write_parquet(tmp_path / "vision.parquet", [rows.mmmu_pro("test_History_1", "B", vision=True)])
    paths["mmmu-pro"].append(str(vision))
    return {name: {"path": path} for name, path in paths.items()}


def right(body: dict[str, Any]) -> str:
    text = text_of(body)
    if "longer?" in text:
        return "Yes."
    number = "What is 1?" in text or "in 2?" in text or "single word" in text
    return f"<caption>- it is</caption><think>as it is</think><answer>{'14' if number else 'B'}</answer>"


def test_all_seven_in_one_command(fake: FakeServer, tmp_path: Path) -> None:
    fake.answer = lambda body: "<answer>A</answer>" if is_blank(body) else right(body)
    settings = config(fake, tmp_path, tmp_path).model_dump(mode="json") | {
        "benchmarks": everything(tmp_path), "baseline": True, "max_masked": 1.0
    }  # fmt: skip
    result = run(EvaluationConfig.model_validate(settings))
    headlines = {
        name: figures["views"]["seen"]["scores"]["rule"]["headline"] for name, figures in result["benchmarks"].items()
    }
    assert headlines == dict.fromkeys(settings["benchmarks"], 1.0)
    verse = result["benchmarks"]["mathverse"]["views"]["seen"]["scores"]["rule"]
    assert (verse["metrics"]["accuracy"]["units"], verse["metrics"]["accuracy"]["clusters"]) == (5, 1)
    assert set(verse["categories"]["problem_version"]) == set(VERSIONS)
    assert result["benchmarks"]["mathvista"]["views"]["blank"]["scores"]["rule"]["headline"] == 0.0
    assert summary(result).row_count > 7
    seen, blank = paper_table([("RLVR", result)]).rows  # what the text alone is worth stands below every score
    assert (seen[0], blank[0]) == ("RLVR", "RLVR, blank pictures")
    assert [cell.text for cell in seen[1][:2]] == ["100.0 ± 0.0", "100.0"]
    assert [cell.text for cell in blank[1][1:3]] == ["0.0", "0.0 ± 0.0"]


def two(fake: FakeServer, tmp_path: Path, **more: Any) -> tuple[Path, Path]:
    """Evaluations of which the second has a question more right, of ten."""
    path = vista(10, tmp_path)
    folders = tmp_path / "sft", tmp_path / "rlvr"
    for folder, wrong in zip(folders, (("1", "2"), ("2",)), strict=True):
        fake.answer = lambda body, wrong=wrong: "13" if text_of(body)[-2] in wrong else "14"
        run(config(fake, path, tmp_path, out=folder, **more))
    return folders


def test_two_checkpoints_are_compared_question_by_question(fake: FakeServer, tmp_path: Path) -> None:
    first, second = two(fake, tmp_path)
    note, (comparison,) = compare(first, second)
    assert note == ""
    assert comparison.paired.difference == pytest.approx(0.1)
    assert (comparison.paired.first_only, comparison.paired.second_only, comparison.paired.p_mcnemar) == (0, 1, 1.0)
    done = CliRunner().invoke(app, ["evaluate", "compare", str(first), str(second)], env={"COLUMNS": "200"})
    assert "+10.0" in done.output


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda result: result["benchmarks"]["mathvista"].update(prompt_version="0"), "prompt_version differ"),
        (lambda result: result["benchmarks"].clear(), "no benchmark in common"),
        (
            lambda result: result["benchmarks"]["mathvista"]["views"]["seen"]["scores"]["rule"].update(why="too few"),
            "too few",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(fake: FakeServer, tmp_path: Path, change: Any, problem: str) -> None:
    first, second = two(fake, tmp_path)
    result = read_result(second)
    change(result)
    (second / "result.json").write_text(json.dumps(result))
    with pytest.raises(ConfigError, match=problem):
        compare(first, second)
    with pytest.raises(ConfigError, match="no judge was asked"):
        compare(first, first, "judge")
    with pytest.raises(ConfigError, match="has not ended there"):
        compare(first, tmp_path / "nowhere")


def test_the_papers_table(fake: FakeServer, tmp_path: Path) -> None:
    first, second = two(fake, tmp_path)
    results = [("Instruct | base", read_result(first)), ("<RLVR>", read_result(second))]
    masked = read_result(first)
    masked["benchmarks"]["mathvista"]["views"]["seen"]["scores"]["rule"] |= {
        "headline": None, "stderr": None, "why": "9.0% of responses are masked"
    }  # fmt: skip
    table = paper_table([*results, ("failed", masked)])
    assert table.columns == ["MathVista", "mean"]
    markdown = as_markdown(table)
    assert "| Instruct \\| base | 80.0 ± 13.3 | 80.0 ± 13.3 |" in markdown
    assert f"| failed | {NONE} | {NONE} |" in markdown
    assert "- failed, MathVista: 9.0% of responses are masked" in markdown
    lines = list(csv.DictReader(io.StringIO(as_csv(table))))
    assert [line["MathVista"] for line in lines] == ["0.800000", "0.900000", ""]
    page = as_html(table)
    assert "&lt;RLVR&gt;" in page
    assert "9.0% of responses are masked" in page
    out = tmp_path / "table"
    arguments = ["evaluate", "table", f"SFT={first}", str(second), "--out", str(out)]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert (tmp_path / "table.md").read_text().splitlines()[2].startswith("| SFT | 80.0 ± 13.3")
    assert (tmp_path / "table.html").exists()
    assert (tmp_path / "table.csv").exists()


def test_samples_are_opened_with_picture_response_extraction_and_verdict(fake: FakeServer, tmp_path: Path) -> None:
    _, folder = two(fake, tmp_path)
    (wrong,) = select(folder, right=False)
    page = as_page([wrong], folder)
    sent = next(body for body in fake.requests if text_of(body).endswith("What is 2?"))
    assert page.count("<img") == len(pictures_of(sent)) == 1
    assert "data:image/png;base64," in page
    for text in ("mathvista 2, sample 0", "What is 2?", "<dd>13</dd>", "<dd>wrong</dd>", "8×6", "prompt 1, scorer 1"):
        assert text in page
    runner = CliRunner()
    shown = runner.invoke(app, ["evaluate", "show", str(folder), "--wrong"]).output
    assert "mathvista 2" in shown
    assert "mathvista 3" not in shown
    assert [one.sample.question for one in select(folder, ids=["3"])] == ["3"]
    assert list(select(folder, status="failed")) == []
    with pytest.raises(ConfigError, match=r"no samples of mmmu \(but mathvista\)"):
        list(select(folder, "mmmu"))


def test_a_response_is_shown_and_never_run(fake: FakeServer, tmp_path: Path) -> None:
    fake.answer = lambda _: "<script>alert(1)</script> [red]14"
    settings = config(fake, vista(1, tmp_path), tmp_path)
    run(settings)
    page = as_page(list(select(settings.out)), settings.out)
    assert "<script>" not in page
    assert "[red]14" in CliRunner().invoke(app, ["evaluate", "show", str(settings.out)]).output
    assert SILENT.quiet


def test_the_graders_kinds_compare_a_file_of_ones_own(fake: FakeServer, tmp_path: Path) -> None:
    lines = [
        {"id": "a", "messages": [{"role": "user", "content": "Half?"}], "gold": "1/2", "kind": "number"},
        {"id": "b", "messages": [{"role": "user", "content": "Which?"}], "gold": "B", "kind": "choice"},
    ]
    path = rows.write_lines(tmp_path / "own.jsonl", lines)
    fake.answer = lambda body: "The answer is 0.5." if text_of(body) == "Half?" else "\\boxed{A}"
    file = tmp_path / "evaluation.toml"
    file.write_text(f'out = "{tmp_path / "out"}"\n[server]\nurl = "{fake.url}"\n[benchmarks.own]\npath = "{path}"\n')
    done = CliRunner().invoke(app, ["evaluate", str(file)], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    result = read_result(tmp_path / "out")
    assert result["benchmarks"]["own"]["views"]["seen"]["scores"]["rule"]["headline"] == 0.5
    assert "blank" not in result["benchmarks"]["own"]["views"]  # there is no picture to blank
