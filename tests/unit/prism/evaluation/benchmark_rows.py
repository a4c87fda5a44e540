"""Rows of each benchmark, built after the columns of its public files; pictures are small and of one colour."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import pyarrow
from PIL import Image
from pyarrow import parquet


def png(colour: str = "red", size: tuple[int, int] = (8, 6), form: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, form)
    return out.getvalue()


def picture(colour: str = "red", size: tuple[int, int] = (8, 6)) -> dict[str, Any]:
    """As `datasets` writes one into Parquet."""
    return {"bytes": png(colour, size), "path": f"{colour}.png"}


def mathvista(pid: str, answer: str, answer_type: str, **more: Any) -> dict[str, Any]:
    choices = more.pop("choices", None)
    hint = "Hint: Please answer the question and provide the final value at the end.\n"
    return {
        "pid": pid,
        "question": f"What is {pid}?",
        "image": f"images/{pid}.jpg",
        "decoded_image": picture(),
        "choices": choices,
        "unit": None,
        "precision": more.pop("precision", None),
        "answer": answer,
        "question_type": "multi_choice" if choices else "free_form",
        "answer_type": answer_type,
        "metadata": {
            "category": "math-targeted-vqa",
            "context": "bar chart",
            "grade": "high school",
            "language": "english",
            "skills": ["statistical reasoning", "arithmetic reasoning"],
            "source": "FigureQA",
            "split": "testmini",
            "task": "figure question answering",
        },
        "query": f"{hint}Question: What is {pid}?",
    } | more


def mathverse(sample: int, problem: int, version: str, answer: str, *, choice: bool = True) -> dict[str, Any]:
    listed = "\nChoices:\nA:40°\nB:50°\nC:80°\nD:100°" if choice else ""
    asked = f"As shown in the figure, what is angle {problem}?{listed}"
    only = version == "Vision Only"
    cot = "Please first conduct reasoning, and then answer the question.\nQuestion: "
    return {
        "sample_index": str(sample),
        "problem_index": str(problem),
        "problem_version": version,
        "question": "" if only else asked,
        "image": picture(),
        "answer": answer,
        "question_type": "multi-choice" if choice else "free-form",
        "metadata": {"split": "testmini", "source": "GeoQA", "subject": "Plane Geometry", "subfield": "Angle"},
        "query_wo": "directly" if only else f"Directly.\nQuestion: {asked}",
        "query_cot": "According to the question shown in the image, reason first." if only else cot + asked,
        "question_for_eval": asked,
    }


def mathvision(name: str, answer: str, options: list[str], **more: Any) -> dict[str, Any]:
    return {
        "id": name,
        "question": f"How many are there in {name}? <image1>",
        "options": options,
        "image": f"images/{name}.jpg",
        "decoded_image": picture(),
        "answer": answer,
        "solution": None,
        "level": 3,
        "subject": "counting",
    } | more


def wemath(name: str, key: str, answer: str = "B") -> dict[str, Any]:
    return {
        "ID": name,
        "split": "testmini",
        "knowledge concept": "Area of Rectangles",
        "question": f"How large is {name} in {key}?",
        "option": "A. 3; B. 4; C. 5; D. No correct answer",
        "answer": answer,
        "image_path": picture(),
        "key": key,
        "question number": 7,
    }


def mmmu(name: str, answer: str, options: list[str], **more: Any) -> dict[str, Any]:
    return {
        "id": name,
        "question": "What does <image 1> show?",
        "options": str(options),
        "explanation": "",
        **{f"image_{i}": picture() if i == 1 else None for i in range(1, 8)},
        "img_type": "['Diagrams', 'Tables']",
        "answer": answer,
        "topic_difficulty": "Medium",
        "question_type": "multiple-choice" if options else "open",
        "subfield": "Managerial Accounting",
    } | more


TEN = [f"option {letter}" for letter in "abcdefghij"]


def mmmu_pro(name: str, answer: str, *, vision: bool = False) -> dict[str, Any]:
    if vision:
        return {"id": name, "image": picture("blue"), "options": str(TEN), "answer": answer, "subject": "History"}
    row = mmmu(name, answer, TEN) | {"subject": "History"}
    return {key: value for key, value in row.items() if key not in ("subfield", "question_type")}


def hallusion(category: str, group: int, figure: int, number: int, gold: str, **more: Any) -> dict[str, Any]:
    seen = not (category == "VS" and figure == 0)
    return {
        "category": category,
        "subcategory": "figure" if category == "VD" else "chart",
        "visual_input": "1" if seen else "0",
        "set_id": str(group),
        "figure_id": str(figure),
        "sample_note": "note",
        "question_id": str(number),
        "question": f"Is line {number} of figure {figure} longer? Give the answer.",
        "gt_answer_details": "Line 1 is longer." if gold == "1" else "They are of one length.",
        "gt_answer": gold,
        "filename": f"./{category}/figure/{group}_{figure}.png" if seen else None,
        "image": picture() if seen else None,
    } | more


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def as_read(row: dict[str, Any]) -> dict[str, Any]:
    """The row as a reader of Parquet gives it: nothing that is null, pictures as data URIs."""

    def uri(value: Any) -> Any:
        if isinstance(value, dict) and "bytes" in value:
            return f"data:image/png;base64,{base64.b64encode(value['bytes']).decode()}"
        return value

    return {name: uri(value) for name, value in row.items() if value is not None}
