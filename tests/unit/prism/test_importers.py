"""Files of public data load as they are: each picture in its place, each turn learnt from as by its own tool."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from public_data import PUBLISHED, Published, array, data_url, lines, pictures, png, shown, table

from prism.config import DataConfig
from prism.data.rows import read_rows
from prism.errors import DataError

FILES = pytest.mark.parametrize("published", PUBLISHED.values(), ids=PUBLISHED.keys())
DEMONSTRATIONS = {name: published for name, published in PUBLISHED.items() if published.learnt}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pictures(tmp_path)
    return tmp_path


@FILES
def test_a_published_file_loads_with_the_right_pictures_in_the_right_places(folder: Path, published: Published) -> None:
    file = published.write(folder)
    data = read_rows(file, "fail", ("response",) if published.learnt else (), every_turn=published.learnt)
    assert data.format == published.format
    assert [shown(row, data) for row in data.rows] == published.rows
    assert len({row.id for row in data.rows}) == len(data.rows)
    again = pickle.loads(pickle.dumps(data))  # noqa: S301  (our own)
    assert [row.id for row in again.rows] == [row.id for row in data.rows]


@pytest.mark.parametrize("published", DEMONSTRATIONS.values(), ids=DEMONSTRATIONS.keys())
def test_its_last_turn_alone_is_learnt_from_where_one_says_so(folder: Path, published: Published) -> None:
    entry = DataConfig(path="x", turns="last")
    data = read_rows(published.write(folder), "fail", ("response",), entry=entry, every_turn=True)
    following = [*published.rows[1:], []]  # the turns of one row begin alike
    last = [one for one, after in zip(published.rows, following, strict=True) if after[: len(one) - 1] != one[:-1]]
    assert [shown(row, data) for row in data.rows] == last


@FILES
def test_reinforcement_learning_takes_its_gold_answers_and_its_history_as_prompt(
    folder: Path, published: Published
) -> None:
    file = published.write(folder)
    if published.golds is None:
        with pytest.raises(DataError, match="gold is missing"):
            read_rows(file, "skip", ("gold",))
        return
    data = read_rows(file, "skip", ("gold",))
    assert [[row.gold, *row.equivalent_answers] for row in data.rows] == published.golds


def test_history_is_prompt_where_no_demonstration_is_needed(folder: Path) -> None:
    turns = [("user", "<image>a"), ("assistant", "b"), ("user", "c")]
    row = {"messages": [{"role": r, "content": c} for r, c in turns], "images": ["pictures/red.png"], "solution": "7"}
    data = read_rows(lines(folder / "a.jsonl", row), "fail", ("gold",))
    assert [shown(row, data) for row in data.rows] == [["user: [red]a", "assistant: b", "user: c"]]


@pytest.mark.parametrize("kind", ["reasoning", 7, ["number"], {"type": "number"}])
def test_what_public_data_calls_a_kind_may_be_anything(folder: Path, kind: Any) -> None:
    file = lines(folder / "a.jsonl", {"problem": "2 + 2?", "answer": 4, "kind": kind})
    assert read_rows(file, "fail", ("gold",)).rows[0].kind == "auto"


def test_the_picture_that_is_shown_may_stand_there_in_another_form_too(folder: Path) -> None:
    row = {"problem": "<image>?", "answer": 4, "images": ["pictures/red.png"], "decoded_image": "pictures/red.png"}
    data = read_rows(lines(folder / "a.jsonl", row | {"image_2": None}), "fail", ("gold",))
    assert [shown(row, data) for row in data.rows] == [["user: [red]?"]]


def test_rows_that_share_an_id_and_differ_are_told_apart_by_content(folder: Path) -> None:
    data = read_rows(PUBLISHED["LLaVA"].write(folder), "fail", ("response",))
    text, first, second = (row.id for row in data.rows)
    assert text == "t"
    assert first.startswith("7-")
    assert second.startswith("7-")
    assert first != second


def test_an_id_is_made_from_content_whatever_holds_it(folder: Path) -> None:
    rows = [
        {"problem": "<image>Find x.", "answer": 3, "images": ["pictures/red.png"]},
        {"problem": "2 + 2?", "answer": 4},
    ]
    files = [
        lines(folder / "a.jsonl", *rows),
        array(folder / "a.json", *rows),
        table(folder / "a.parquet", *rows),
    ]
    ids = [[row.id for row in read_rows(file, "fail", ("gold",)).rows] for file in files]
    assert ids[0] == ids[1] == ids[2]
    assert all(len(one) == 16 for one in ids[0])
    other = read_rows(lines(folder / "b.jsonl", rows[0] | {"problem": "<image>Find y."}), "fail").rows[0].id
    assert other not in ids[0]


@pytest.mark.parametrize(
    ("given", "name"), [(3, "3"), (3.0, "3"), (3.5, "3.5"), ("3.0", "3.0"), ("  ", None), (None, None)]
)
def test_ids_may_be_numbers_and_integers_that_a_table_made_floats(folder: Path, given: Any, name: str | None) -> None:
    row = {"id": given, "problem": "2 + 2?", "answer": 4}
    found = read_rows(lines(folder / "a.jsonl", row), "fail").rows[0].id
    assert found == name if name else len(found) == 16


def test_golds_that_a_column_with_nulls_made_floats_are_integers_again(folder: Path) -> None:
    file = table(
        folder / "a.parquet", *({"problem": "?", "answer": answer, "id": i} for i, answer in enumerate([3.0, None]))
    )
    data = read_rows(file, "skip", ("gold",))
    assert [row.gold for row in data.rows] == ["3"]


@pytest.mark.parametrize("key", ["equivalent_answers", "extra_info", "reward_model"])
def test_several_golds_are_found_where_a_format_has_them(folder: Path, key: str) -> None:
    others: Any = ["seven"] if key == "equivalent_answers" else {"equivalent_answers": ["seven"]}
    row = {"problem": "?", "answer": "7", key: others}
    assert [(r.gold, r.equivalent_answers) for r in read_rows(lines(folder / "a.jsonl", row), "fail").rows] == [
        ("7", ["seven"])
    ]


def test_a_byte_order_mark_is_no_part_of_a_row(folder: Path) -> None:
    row = json.dumps({"instruction": "2 + 2?", "output": "4"}).encode()
    for name, text in (("a.jsonl", row + b"\n"), ("a.json", b"[" + row + b"]")):
        (folder / name).write_bytes(b"\xef\xbb\xbf" + text)
        assert len(read_rows(folder / name, "fail", ("response",)).rows) == 1
    (folder / "a.jsonl").write_bytes(row.decode().encode("utf-16"))
    with pytest.raises(DataError, match="UTF-16"):
        read_rows(folder / "a.jsonl", "fail")


def test_columns_by_other_names_are_named(folder: Path) -> None:
    file = table(
        folder / "a.parquet", {"question": "Colour?", "picture": {"bytes": png("red"), "path": None}, "final": "red"}
    )
    entry = DataConfig(path="x", columns={"prompt": "question", "images": "picture", "gold": "final"})
    data = read_rows(file, "fail", ("gold",), entry=entry)
    assert [shown(row, data) for row in data.rows] == [["user: [red]Colour?"]]
    with pytest.raises(DataError, match="picture: an image that would not be shown"):
        read_rows(file, "fail", entry=DataConfig(path="x", columns={"prompt": "question"}))


def test_a_described_data_set_is_named_where_several_describe_its_file(folder: Path) -> None:
    array(folder / "a.json", {"q": "2 + 2?", "r": "4", "other": "5"})
    known = {
        name: {"file_name": "a.json", "columns": {"prompt": "q", "response": column}}
        for name, column in (("right", "r"), ("wrong", "other"))
    }
    (folder / "dataset_info.json").write_text(json.dumps(known))
    with pytest.raises(DataError, match=r"describes a\.json as right, wrong.*name one as dataset"):
        read_rows(folder / "a.json", "fail")
    for name, answer in (("right", "4"), ("wrong", "5")):
        data = read_rows(folder / "a.json", "fail", ("response",), entry=DataConfig(path="x", dataset=name))
        assert data.rows[0].response == answer
    with pytest.raises(DataError, match="describes no data set 'none'"):
        read_rows(folder / "a.json", "fail", entry=DataConfig(path="x", dataset="none"))


def test_pictures_stay_in_the_folder_of_their_file_unless_another_is_named(folder: Path) -> None:
    inside = folder / "rows"
    inside.mkdir()
    (inside / "link.png").symlink_to(folder / "pictures" / "red.png")
    (inside / "pictures").symlink_to(folder / "pictures")
    (inside / "own.png").write_bytes(png("blue"))
    (inside / "alias.png").symlink_to("own.png")
    absolute = str(folder / "pictures" / "red.png")
    outside = ["../pictures/red.png", "link.png", "pictures/red.png", absolute, f"file://{absolute}"]

    def rows(name: str, *names: str) -> Path:
        return lines(
            inside / name, *({"problem": f"<image>{i}", "answer": 1, "images": [n]} for i, n in enumerate(names))
        )

    assert len(read_rows(rows("a.jsonl", "own.png", "alias.png", data_url("red")), "fail").rows) == 3
    for images in ("exist", "decode"):
        with pytest.raises(DataError, match="lies outside of"):
            read_rows(rows("b.jsonl", *outside), "skip", images=images)
        data = read_rows(
            rows("b.jsonl", *outside), "fail", images=images, entry=DataConfig(path="x", image_root=folder)
        )
        assert {shown(row, data)[0][:11] for row in data.rows} == {"user: [red]"}
    with pytest.raises(DataError, match=r"d\.jsonl:1: image 'none.png': No such file or directory$"):
        read_rows(rows("d.jsonl", "none.png"), "skip")
    elsewhere = DataConfig(path="x", image_root=folder / "pictures")
    assert len(read_rows(rows("c.jsonl", "red.png"), "fail", entry=elsewhere).rows) == 1
