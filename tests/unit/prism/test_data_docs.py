"""docs/data.md: the two lines that train on each format are a configuration that loads its files."""

import re
import shutil
import tomllib
from pathlib import Path

import pytest
from public_data import PUBLISHED, lines, pictures
from pydantic import TypeAdapter

from prism.config import DataNames
from prism.data.importers import FORMATS
from prism.data.mixture import data_files
from prism.data.rows import read_rows

PAGE = Path(__file__).parents[3] / "docs" / "data.md"
ROW = re.compile(r"^\| (?P<name>[^|]+) \| `(?P<kind>kind = [^`]+)`<br>`(?P<data>[^`]+)` \|", re.MULTILINE)
# The file of each row of the table, and where the page has it.
FILES = {
    "sharegpt": ("LLaMA-Factory, sharegpt", "data/mllm_demo.json"),
    "alpaca": ("LLaMA-Factory, alpaca", "data/alpaca_en_demo.json"),
    "LLaMA-Factory, by its description": ("LLaMA-Factory, described", "data/mllm_demo.json"),
    "ms-swift": ("ms-swift", "swift.jsonl"),
    "openai": ("OpenAI", "openai.jsonl"),
    "llava": ("LLaVA", "llava_v1_5_mix665k.json"),
    "trl": ("Hugging Face", "data/train-00000-of-00001.parquet"),
    "verl": ("verl", "geo3k/train.parquet"),
    "easyr1": ("EasyR1", "geometry3k/data/train-00000-of-00001.parquet"),
    "prism": ("", "demos.jsonl"),
}
SHOWN = {re.sub(r"`([^`]+)`.*", r"\1", found["name"]): found for found in ROW.finditer(PAGE.read_text())}


def test_the_page_shows_every_format() -> None:
    assert SHOWN.keys() == FILES.keys()
    assert SHOWN.keys() >= FORMATS.keys()


@pytest.mark.parametrize("name", FILES)
def test_the_two_lines_of_a_format_load_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    published, file = FILES[name]
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(tmp_path)
    given = tomllib.loads(f"{SHOWN[name]['kind']}\n{SHOWN[name]['data'].replace(', …', '')}")
    if published:
        pictures(tmp_path / "images" if name == "llava" else (tmp_path / file).parent)
        written = PUBLISHED[published].write((tmp_path / file).parent)
        if written != tmp_path / file:
            shutil.move(written, tmp_path / file)
        expected = PUBLISHED[published].format
    else:
        lines(tmp_path / file, {"id": "a", "messages": [{"role": "user", "content": "2 + 2?"}], "response": "4"})
        expected = name
    sft = given["kind"] == "sft"
    names = TypeAdapter[DataNames](DataNames).validate_python(given["data"] if sft else given["rollouts"]["data"])
    entries = data_files(names, Path)
    for path, entry in entries:
        need = ("response",) if sft else ("gold",)
        found = read_rows(path, "fail" if sft else "skip", need, entry=entry, every_turn=sft)
        assert found.format == expected
        assert len(found.rows) > 0
    assert [path.resolve() for path, _ in entries] == [tmp_path / file]
