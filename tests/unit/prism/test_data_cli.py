"""``prism data``: what a file is, what its rows lack, and the same rows as PRISM's own."""

import json
from pathlib import Path

import pytest
from public_data import PUBLISHED, Published, array, lines, pictures, shown
from pyarrow import parquet
from typer.testing import CliRunner, Result

from prism.cli import app
from prism.data.mixture import Epochs, data_files
from prism.data.rows import read_rows
from prism.errors import DataError


def prism(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["data", *map(str, arguments)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pictures(tmp_path)
    return tmp_path


def test_check_says_what_a_file_is_and_names_every_row_that_is_refused(folder: Path) -> None:
    good = {"conversations": [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "Red."}]}
    rows = [good | {"image": "pictures/red.png", "id": i} for i in range(3)]
    file = array(folder / "llava.json", *rows, good, good | {"image": "none.png"}, indent=None)
    result = prism("check", file)
    assert (
        "llava (github.com/haotian-liu/LLaVA: docs/Finetune_Custom_Data.md, November 2026), JSON array" in result.output
    )
    assert "3 rows load, 2 are refused; each turn of the assistant is learnt from" in result.output
    assert f"refused {file}:1: row 4: images: 0 are given, 1 are asked for in the messages" in result.output
    assert f"refused {file}:1: row 5: image 'none.png': No such file or directory" in result.output
    assert "3 images, 1 in a row at most" in result.output
    assert "images of 64x64 to 64x64 pixels" in result.output
    assert "2 rows ask what another row asks" in result.output
    assert isinstance(result.exception, DataError), "the exit status says so"
    assert str(result.exception) == "2 rows are refused, 3 load"


def test_check_names_more_rows_than_a_run_remembers(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", {"problem": "?", "answer": 1}, *(["x"] * 1200))
    assert prism("check", file).output.count("refused ") == 1200


def test_check_of_good_rows_ends_well(folder: Path) -> None:
    result = prism("check", PUBLISHED["ms-swift"].write(folder), PUBLISHED["EasyR1"].write(folder))
    assert result.exit_code == 0, result.output
    assert "easyr1" in result.output
    assert "1 with gold" in result.output


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
@pytest.mark.parametrize("published", PUBLISHED.values(), ids=PUBLISHED.keys())
def test_what_is_converted_is_the_same_in_prisms_own_form(folder: Path, published: Published, ending: str) -> None:
    source = published.write(folder)
    out = folder / "elsewhere" / f"out{ending}"
    result = prism("convert", source, "--out", out)
    assert result.exit_code == 0, result.output
    data = read_rows(out, "fail")
    assert data.format == "prism"
    expected = published.rows
    assert [shown(row, data) for row in data.rows] == expected
    if published.golds:
        golds = [[row.gold, *row.equivalent_answers] for row in data.rows if row.gold is not None]
        assert golds == published.golds
    assert "exists already" in str(prism("convert", source, "--out", out).exception)


def test_a_converted_table_has_small_row_groups(tmp_path: Path) -> None:
    rows = ({"problem": f"{i}?", "answer": i} for i in range(200))
    assert prism("convert", lines(tmp_path / "a.jsonl", *rows), "--out", tmp_path / "a.parquet").exit_code == 0
    assert parquet.ParquetFile(tmp_path / "a.parquet").num_row_groups == 4


def test_pictures_below_the_new_file_stay_where_they_are(folder: Path) -> None:
    source = PUBLISHED["LLaVA"].write(folder)
    assert prism("convert", source, "--out", folder / "out.jsonl").exit_code == 0
    assert not (folder / "out.images").exists()
    assert '"image": "pictures/red.png"' in (folder / "out.jsonl").read_text()


def test_a_name_may_be_a_folder_a_pattern_or_a_described_data_set(folder: Path) -> None:
    (folder / "shards").mkdir()
    for i in range(3):
        lines(folder / "shards" / f"train-{i:05}-of-00003.jsonl", {"problem": f"{i}?", "answer": i})
    names = [path.name for path, _ in data_files(str(folder / "shards"), Path)]
    assert names == [f"train-{i:05}-of-00003.jsonl" for i in range(3)]
    assert len(data_files(str(folder / "shards" / "train-*.jsonl"), Path)) == 3
    (folder / "shards" / "test-00000-of-00001.jsonl").write_text("{}")
    with pytest.raises(DataError, match=r"several things \(test, train\)"):
        data_files(str(folder / "shards"), Path)
    (folder / "shards" / "train-00001-of-00003.jsonl").unlink()
    with pytest.raises(DataError, match="1 of 3 shards of train are missing"):
        data_files(str(folder / "shards" / "train-*"), Path)
    with pytest.raises(DataError, match="no data file matches"):
        data_files(str(folder / "none-*.jsonl"), Path)
    PUBLISHED["LLaMA-Factory, described"].write(folder)
    result = prism("check", folder / "dataset_info.json", "--dataset", "mllm_demo")
    assert "2 rows load, 0 are refused" in result.output
    with pytest.raises(DataError, match="describes identity, mllm_demo: name one"):
        data_files(str(folder / "dataset_info.json"), Path)


def test_an_epoch_sees_rows_as_often_as_their_weights_say() -> None:
    epochs = Epochs([(4, 0.5), (3, 2.0), (5, 1.4)], "1")
    seen = [sorted(epochs.order(epoch)) for epoch in range(10)]
    assert all(len(one) == len(epochs) == 2 + 6 + 7 for one in seen)
    times = [sum(one.count(row) for one in seen) for row in range(12)]
    assert times == [5] * 4 + [20] * 3 + [14] * 5
    assert sorted(seen[0][:2] + seen[1][:2]) == [0, 1, 2, 3], "half of the rows, and then the others"
    assert list(epochs.order(3)) == list(Epochs([(4, 0.5), (3, 2.0), (5, 1.4)], "1").order(3))


def test_files_without_weights_are_seen_in_the_order_that_they_always_were() -> None:
    """Resuming an older run goes on bit for bit."""
    assert list(Epochs([(7, 1.0), (5, 1.0)], "3").order(1)) == [7, 4, 0, 5, 11, 10, 3, 8, 1, 2, 6, 9]


def test_a_large_array_is_read_as_a_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a window of 64 bytes every letter falls on a border once."""
    monkeypatch.setattr("prism.data.files.array.CHUNK", 64)
    texts = [f'{i} "é\\{{[]}} \U0001f642 </image' + "x" * (i % 70) for i in range(300)]
    for indent in (None, 2):
        file = array(
            tmp_path / "a.json",
            *({"problem": text, "answer": i, "n": [i, 1.5e3, None]} for i, text in enumerate(texts)),
        )
        data = read_rows(file, "fail", ("gold",))
        assert [row.messages[0].content for row in data.rows] == texts, indent
        assert data.rows[-1].gold == "299"


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ('[{"a": 1},\n{"a": }]', 2, "row 2: Expecting value"),
        ('[{"a": 1},\n\n{"a": 1}', 3, "ends without ']'"),
        ('[{"a": 1}\n{"a": 1}]', 2, "']' is expected, not '{'"),
        ('[{"a": 1}]\n[]', 2, "follows the end"),
        ('[{"a": "1}]', 1, "row 1: Unterminated string"),
        ("[" * 100_000, 1, "recursion"),
    ],
)
def test_a_broken_array_is_refused_with_the_line(tmp_path: Path, text: str, line: int, said: str) -> None:
    file = tmp_path / "a.json"
    file.write_text(text)
    with pytest.raises(DataError, match=rf"a\.json:{line}: ") as refused:
        read_rows(file, "skip")
    assert said in str(refused.value)


def test_one_object_over_many_lines_is_no_file_of_rows(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"data": [1]}, indent=2))
    with pytest.raises(DataError, match="one JSON object over many lines"):
        read_rows(tmp_path / "a.json", "skip")
