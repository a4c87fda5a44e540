"""Each benchmark's public files, whichever way they are distributed: the same questions, the same pixels."""

import base64
import csv
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from prism.config import BenchmarkConfig
from prism.data.images import decode_image
from prism.errors import DataError
from prism.evaluation.benchmarks.base import Picture
from prism.evaluation.suite.questions import QuestionSet, blank
from tests.unit.prism.evaluation import benchmark_rows as rows


def read(kind: str, path: Path | list[str], **more: Any) -> QuestionSet:
    named = path if isinstance(path, list) else str(path)
    return QuestionSet(kind, kind, BenchmarkConfig.model_validate({"path": named} | more))


def pixels(questions: QuestionSet, number: int = 0) -> list[tuple[tuple[int, int], Any]]:
    """Size and first pixel of each picture of a question."""
    question = questions.questions[number]
    images = [decode_image(questions.picture(question, picture)) for picture in question.pictures]
    return [(image.size, image.getpixel((0, 0))) for image in images]


RED = ((8, 6), (255, 0, 0))


def test_mathvista_as_parquet_and_as_its_repository_has_it(tmp_path: Path) -> None:
    row = rows.mathvista("1", "8/11", "text", choices=["3/11", "8/11"])
    table = read("mathvista", rows.write_parquet(tmp_path / "data" / "testmini-00000-of-00001.parquet", [row]))
    without = {name: value for name, value in row.items() if name not in ("decoded_image", "pid")}
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.jpg").write_bytes(rows.png(form="PNG"))
    (tmp_path / "testmini.json").write_text(json.dumps({"1": without}, indent=1))
    repository = read("mathvista", tmp_path / "testmini.json")
    for questions in (table, repository):
        (question,) = questions.questions
        assert (question.id, question.gold, question.kind) == ("1", "8/11", "choice")
        assert question.text == row["query"]  # the official prompt
        assert question.asked.endswith("What is 1?\n(A) 3/11\n(B) 8/11")
        assert question.categories["skills"] == ("statistical reasoning", "arithmetic reasoning")
        assert pixels(questions) == [RED]


def test_precision_is_whole_though_nulls_made_its_column_one_of_floats(tmp_path: Path) -> None:
    some = [rows.mathvista("1", "1.5", "float", precision=1.0), rows.mathvista("2", "3", "integer")]
    questions = read("mathvista", rows.write_parquet(tmp_path / "x.parquet", some))
    assert [question.kind for question in questions.questions] == ["float:1", "integer"]


def test_mathverse_as_parquet_and_tsv(tmp_path: Path) -> None:
    row = rows.mathverse(1, 1, "Vision Only", "B")
    table = read("mathverse", rows.write_parquet(tmp_path / "testmini.parquet", [row]))
    cells: dict[str, Any] = row | {"metadata": json.dumps(row["metadata"])}
    cells["image"] = base64.b64encode(rows.png("red", (8, 6), "TIFF")).decode()
    assert len(cells["image"]) > 256
    with (tmp_path / "MathVerse.tsv").open("w", newline="") as file:
        writer = csv.DictWriter(file, cells.keys(), delimiter="\t")
        writer.writeheader()
        writer.writerow(cells)
    for questions in (table, read("mathverse", tmp_path / "MathVerse.tsv")):
        (question,) = questions.questions
        assert question.categories["problem_version"] == ("Vision Only",)
        assert question.categories["subject"] == ("Plane Geometry",)
        assert question.options == ("40°", "50°", "80°", "100°")
        assert pixels(questions) == [RED]


def test_mathvision_by_lines_with_pictures_by_path(tmp_path: Path) -> None:
    row = rows.mathvision("1", "C", ["A", "B", "C", "D", "E"])
    other = rows.mathvision("2", "B", ["3", "4", "5", "6", "7"])
    lines = [{name: value for name, value in one.items() if name != "decoded_image"} for one in (row, other)]
    path = rows.write_lines(tmp_path / "data" / "test.jsonl", lines)
    (tmp_path / "images").mkdir()
    for one in lines:
        (tmp_path / one["image"]).write_bytes(rows.png())
    questions = read("mathvision", path, image_root=tmp_path)
    assert pixels(questions, 1) == [RED]
    bare, listed = questions.questions
    prompt = 'Please solve the problem step by step and put your answer in one "\\boxed{}".'
    assert bare.text.startswith(prompt)
    assert bare.text.endswith("How many are there in 1? <image1>")  # the options are in the picture
    assert listed.text.endswith("(A) 3\n(B) 4\n(C) 5\n(D) 6\n(E) 7")
    with pytest.raises(DataError, match=r"lies outside|No such file"):
        pixels(read("mathvision", path))


def test_wemath_as_an_array_with_pictures_by_path(tmp_path: Path) -> None:
    some = [rows.wemath("3", key) | {"image_path": "3.png"} for key in ("2steps_1", "2steps_2", "2steps_multi")]
    some += [rows.wemath("3", "3steps_1") | {"image_path": "3.png"}]  # another group, of the same number
    (tmp_path / "testmini.json").write_text(json.dumps(some))
    (tmp_path / "3.png").write_bytes(rows.png())
    questions = read("wemath", tmp_path / "testmini.json")
    assert [question.cluster for question in questions.questions] == ["2steps:3"] * 3 + ["3steps:3"]
    assert questions.questions[0].options == ("3", "4", "5", "No correct answer")
    assert "<Thought process>: <<your thought process>> <Answer>: <<your option>>" in questions.questions[0].text
    assert pixels(questions) == [RED]


def test_mmmus_pictures_stand_where_the_text_has_them(tmp_path: Path) -> None:
    """In whichever order: one harness sorts them, so that the tenth comes before the second."""
    colours = {f"image_{i}": rows.picture(colour) for i, colour in enumerate(("red", "lime", "blue"), 1)}
    row = rows.mmmu(
        "validation_Art_1", "B", ["<image 1>", "none, <image 3>"], question="Is <image 2> like <image 1>?", **colours
    )
    questions = read("mmmu", rows.write_parquet(tmp_path / "validation-00000-of-00001.parquet", [row]))
    (question,) = questions.questions
    assert question.parts == (
        "Is ",
        Picture("image_2"),
        " like ",
        Picture("image_1"),
        "?\nA. <image 1>\nB. none, ",
        Picture("image_3"),
        "\n\nAnswer with the option's letter from the given choices directly.",
    )
    assert [colour for _, colour in pixels(questions)] == [(0, 255, 0), (255, 0, 0), (0, 0, 255)]
    assert question.options == ("<image 1>", "none, <image 3>")  # a list as Python writes it
    assert question.categories["discipline"] == ("Art and Design",)
    assert question.categories["img_type"] == ("Diagrams", "Tables")
    with pytest.raises(DataError, match="names image_2, which is not there"):
        read("mmmu", rows.write_parquet(tmp_path / "y.parquet", [rows.mmmu("a_b_1", "B", ["<image 2>", "x"])]))


def test_options_of_mmmu_are_read_and_not_run(tmp_path: Path) -> None:
    row = rows.mmmu("validation_Art_1", "A", ["x"]) | {"options": "[open('owned', 'w')]"}
    with pytest.raises(DataError, match="are no list"):
        read("mmmu", rows.write_parquet(tmp_path / "x.parquet", [row]))


def test_mmmu_pros_halves_are_told_apart(tmp_path: Path) -> None:
    standard = rows.write_parquet(
        tmp_path / "standard (10 options)" / "x.parquet", [rows.mmmu_pro("test_History_1", "J")]
    )
    vision = rows.write_parquet(tmp_path / "vision" / "x.parquet", [rows.mmmu_pro("test_History_1", "J", vision=True)])
    questions = read("mmmu-pro", [str(standard), str(vision)])
    first, second = questions.questions
    assert (first.id, second.id, first.cluster) == ("standard:test_History_1", "vision:test_History_1", second.cluster)
    assert first.text.endswith("J. option j\n\nAnswer with the option letter from the given choices directly.")
    assert second.text.startswith("Answer with the option letter")
    assert "option a" not in second.text  # the question and its options are in the picture
    assert [pixels(questions, i)[0][1] for i in (0, 1)] == [(255, 0, 0), (0, 0, 255)]


def test_hallusionbench_with_and_without_a_figure(tmp_path: Path) -> None:
    some = [rows.hallusion("VS", 2, 0, 0, "1"), rows.hallusion("VS", 2, 1, 0, "0")]
    table = read("hallusionbench", rows.write_parquet(tmp_path / "image.parquet", some))
    array = [{name: value for name, value in row.items() if name != "image"} for row in some]
    (tmp_path / "HallusionBench.json").write_text(json.dumps(array))
    (tmp_path / "VS" / "figure").mkdir(parents=True)
    (tmp_path / "VS" / "figure" / "2_1.png").write_bytes(rows.png())
    for questions in (table, read("hallusionbench", tmp_path / "HallusionBench.json")):
        none, seen = questions.questions
        assert (none.pictures, none.gold, seen.gold) == ((), "yes", "no")
        assert seen.text == "Is line 0 of figure 1 longer? Give the answer."  # the bare question
        assert (none.cluster, seen.cluster) == ("VS_chart_2_0", "VS_chart_2_1")
        assert none.place["group"] == seen.place["group"] == "VS_chart_2_0"
        assert pixels(questions, 1) == [RED]


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(rows.png())
    content = [
        {"type": "text", "text": "What is in "},
        {"type": "image", "image": "a.png"},
        {"type": "text", "text": "?"},
    ]
    row = {
        "id": "q1",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}],
        "gold": ["B", "red"],
        "kind": "choice",
        "options": {"choices": ["blue", "red"]},
        "meta": {"level": 3, "cluster": "a"},
    }
    questions = read("own", rows.write_lines(tmp_path / "own.jsonl", [row]))
    (question,) = questions.questions
    assert question.turns == (
        ("system", ("Be brief.",)),
        ("user", ("What is in ", Picture("0"), "?")),
    )
    assert (question.gold, question.golds, question.cluster) == ("B", ("red",), "a")
    assert question.categories == {"level": ("3",)}
    assert pixels(questions) == [RED]


def test_pictures_are_sent_as_they_are(tmp_path: Path) -> None:
    """One harness encodes them again as JPEG, which is not what the model was trained on."""
    noise = Image.effect_noise((40, 30), 90).convert("RGB")
    noise.save(tmp_path / "a.png")
    row = rows.mathvision("1", "3", [], image="a.png") | {"decoded_image": None}
    questions = read("mathvision", rows.write_lines(tmp_path / "x.jsonl", [row]))
    sent = questions.picture(questions.questions[0], Picture("image"))
    assert decode_image(sent).tobytes() == noise.tobytes()
    assert decode_image(blank(sent)).size == (40, 30)
    assert set(decode_image(blank(sent)).tobytes()) == {255}


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("gone.parquet", None, "does not exist: download"),
        ("x.jsonl", '{"pid": 1}\n{"pid": 1}\n', "x.jsonl:1: column 'answer_type' is missing"),
        ("x.jsonl", "[]\n", "hold no question"),
        ("x.jsonl", '{"pid": \n', "x.jsonl:1: "),
    ],
)
def test_files_that_cannot_be_used_are_refused_by_name(
    tmp_path: Path, name: str, content: str | None, problem: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=problem):
        read("mathvista", tmp_path / name)


def test_a_gold_answer_that_is_neither_yes_nor_no_is_refused(tmp_path: Path) -> None:
    path = rows.write_parquet(tmp_path / "x.parquet", [rows.hallusion("VD", 0, 1, 0, "2")])
    with pytest.raises(DataError, match="gt_answer '2' is neither 0 nor 1"):
        read("hallusionbench", path)


def test_a_question_that_stands_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="question 1 stands twice"):
        read("mathvista", rows.write_parquet(tmp_path / "x.parquet", [rows.mathvista("1", "3", "integer")] * 2))
