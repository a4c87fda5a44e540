"""A large file is looked at by two processes: what is found, and in which order it is told, is as by one."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from public_data import pictures

from prism.data import halves
from prism.data.checks import FitsUncounted
from prism.data.files.row_file import parse_line
from prism.data.rows import DataRow, read_rows
from prism.errors import DataError


class Overlong:
    """Refuses rows by the letters of their responses; ``fits`` is unsure of more than it refuses."""

    fits = FitsUncounted(800, "response")

    def __call__(self, row: DataRow, sizes: Sequence[Any]) -> None:
        if len(row.response or "") > 500:
            raise DataError(f"{len(row.response or '')} letters")


def demonstrations(folder: Path) -> Path:
    def row(number: int, **more: Any) -> str:
        said = [("user", f"<image>{number}?"), ("assistant", f"{number}."), ("user", "Sure?"), ("assistant", "Yes.")]
        messages = [{"role": role, "content": content} for role, content in said]
        return json.dumps({"id": number, "messages": messages, "images": ["pictures/red.png"], **more})

    rows = [row(i) for i in range(60)]
    bad = [row(60, images=[]), "{", row(61, images=["none.png"]), "", row(3), row(63, tools=[{"f": 1}])]
    told = [row(70 + i).replace("Yes.", "x" * length) for i, length in enumerate((300, 600))]
    each = [*rows[:5], *bad, *told, *rows[5:]]
    text = "\n".join(["\ufeff" + each[0], *each[1:], row(80), *(one.replace("6", "9") for one in bad + told), ""])
    file = folder / "rows.jsonl"
    file.write_text(text)
    pictures(folder)
    return file


@pytest.mark.parametrize("check", [None, Overlong()], ids=["alone", "with a check of its own"])
def test_two_processes_find_what_one_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check: Any) -> None:
    file = demonstrations(tmp_path)

    def read() -> Any:
        data = read_rows(file, "skip", ("response",), images="exist", check=check, every_turn=True)
        return [(row.id, row.response, row.image_paths) for row in data.rows], data.problems, data.bad_rows

    alone = read()
    begun: list[Any] = []
    start = halves.subprocess.Popen
    monkeypatch.setattr(halves, "SPLIT_BYTES", 1)
    monkeypatch.setattr(halves.os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(halves.subprocess, "Popen", lambda *a, **k: begun.append(start(*a, **k)) or begun[-1])
    assert read() == alone
    assert len(begun) == 1
    assert begun[0].returncode == 0
    assert alone[2] == (13 if check else 12)
    with pytest.raises(DataError, match=r"rows\.jsonl:6: images: 0 are given"):
        read_rows(file, "fail", images="exist", check=check)


def test_a_process_that_ends_early_is_no_end_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(halves, "SPLIT_BYTES", 1)
    monkeypatch.setattr(halves.os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(halves, "CHILD", "raise SystemExit(3)")
    with pytest.raises(DataError, match="ended early, with 3"):
        read_rows(demonstrations(tmp_path), "skip", images="exist")


@pytest.mark.parametrize(
    "text",
    [
        b'{"a": 1.0, "b": -0.0, "c": 0.1, "d": 2.2250738585072011e-308, "e": 1e400}',
        b'{"a": 123456789012345678901234567890, "b": -9223372036854775809}',
        b'{"a": NaN, "b": [Infinity, -Infinity], "c": null, "d": true}',
        rb'{"a": "\ud83d\ude42 \u00e9 \/ \"", "a": "twice", "": []}',
        '{"\u00e9": "\U0001f642"}'.encode(),
        b"[" * 500 + b"]" * 500,
        rb'{"a": "\ud83d"}',
        b'{"a": "\xff"}',
        b'{"a": 01}',
        b"{'a': 1}",
        b'{"a": 1}{',
        b"[" * 200_000,
        b"9" * 5000,
        b'{"a": "tab\there"}',
        b"",
    ],
)
def test_a_line_reads_as_pythons_own_parser_has_it(text: bytes) -> None:
    def said(parse: Callable[[bytes], Any]) -> str:
        try:
            return repr(parse(text))
        except (ValueError, RecursionError) as error:
            return repr(error)

    def pythons(text: bytes) -> Any:
        value = json.loads(text.decode())
        json.dumps(value, ensure_ascii=False).encode()
        return value

    assert said(parse_line) == said(pythons)
