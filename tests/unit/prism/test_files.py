"""Files that last: a writer that is killed before, or in the middle of, any step leaves old or new, never half."""

import contextlib
import json
import os
import re
import signal
import stat
import threading
import traceback
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from prism import files
from prism.config import RunConfig, load_config
from prism.errors import DataError
from prism.files import append_json, cut_torn_tail, read_jsonl, sealed_folder, write_json, write_text
from prism.trainer.checkpoint.folder import newest_checkpoint, save_checkpoint
from prism.trainer.run.compare import _share_first_stage
from prism.trainer.run.recorder import Recorder
from prism.trainer.run.result import finish_stage, next_attempt, stage_folder, stage_result
from prism.wire.weights import MANIFEST, newest_sealed, seal

STEPS = ("open", "write", "fsync", "fchmod", "mkdir", "rename", "replace", "unlink", "rmdir")  # of ``os``
LARGE = "x" * 100_000

Seen = Callable[[str, tuple[Any, ...]], None]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill takes nothing that was written: here it matters when a sync is asked for alone."""
    monkeypatch.setattr(os, "fsync", lambda opened: None)


def interpose(set_attribute: Callable[[Any, str, Any], None], seen: Seen) -> None:
    """``seen(name, arguments)`` before each system call that a writer of files makes."""

    def watched(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watch(*arguments: Any, **options: Any) -> Any:
            seen(name, arguments)
            return call(*arguments, **options)

        return watch

    for name in STEPS:
        set_attribute(os, name, watched(name, getattr(os, name)))
    set_attribute(files, "_exchange", watched("exchange", files._exchange))


def survives(action: Callable[[], object], last: int) -> bool:
    """Whether ``action`` comes to its end in a process that is killed before step ``last``: a write is torn there."""
    if child := os.fork():
        _, status = os.waitpid(child, 0)
        assert os.WIFEXITED(status) or os.WTERMSIG(status) == signal.SIGKILL
        assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0
        return os.WIFEXITED(status)
    try:
        steps, lock, write = count(1), threading.Lock(), os.write

        def kill_at_last(name: str, arguments: tuple[Any, ...]) -> None:
            with lock:
                if next(steps) == last:
                    if name == "write":
                        write(arguments[0], arguments[1][: len(arguments[1]) // 2])
                    os.kill(os.getpid(), signal.SIGKILL)

        interpose(setattr, kill_at_last)
        action()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def killed_at_every_step(
    tmp_path: Path, prepare: Callable[[Path], object], action: Callable[[Path], object], look: Callable[[Path], object]
) -> list[Any]:
    """What ``look`` sees after a kill at each step of ``action``, equal sights once; the last one is of no kill.

    Whatever a kill has left, ``action`` then works, and leads to what is seen without a kill.
    """
    sights: list[Any] = []
    ends: list[Any] = []
    for last in count(1):
        folder = tmp_path / str(last)
        folder.mkdir()
        prepare(folder)
        ended = survives(lambda folder=folder: action(folder), last)
        if (sight := look(folder)) not in sights:
            sights.append(sight)
        if ended:
            assert last > 5, "the steps were not seen"
            assert all(end == sight for end in ends)
            return sights
        action(folder)
        ends.append(look(folder))
    raise AssertionError


def read(file: Path) -> str | None:
    return file.read_text() if file.exists() else None


@pytest.mark.parametrize("old", [None, "old"])
def test_a_file_is_old_or_new(tmp_path: Path, old: str | None) -> None:
    def prepare(folder: Path) -> None:
        if old:
            write_text(folder / "file", old)

    sights = killed_at_every_step(
        tmp_path, prepare, lambda folder: write_text(folder / "file", LARGE), lambda folder: read(folder / "file")
    )
    assert sights == [old, LARGE]


def fill(target: Path, text: str) -> None:
    with sealed_folder(target) as folder:
        (folder / "inner").mkdir()
        (folder / "one").write_text(text)
        write_text(folder / "inner" / "two", text)


def contents(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*") if file.is_file()}


OLD, NEW = ({"one": text, "inner/two": text} for text in ("old", LARGE))


def test_a_folder_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    sights = killed_at_every_step(
        tmp_path, lambda _: None, lambda folder: fill(folder / "a", LARGE), lambda folder: contents(folder / "a")
    )
    assert sights == [{}, NEW]
    assert [path.name for path in (tmp_path / "1").iterdir()] == ["a"], "what the kill left is gone"


def test_a_folder_that_is_replaced_is_old_or_new(tmp_path: Path) -> None:
    sights = killed_at_every_step(
        tmp_path,
        lambda folder: fill(folder / "a", "old"),
        lambda folder: fill(folder / "a", LARGE),
        lambda folder: contents(folder / "a"),
    )
    assert sights == [OLD, NEW]


def test_where_names_cannot_be_exchanged_the_old_folder_is_aside_for_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(one: Path, other: Path) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(files, "_exchange", refuse)

    def look(folder: Path) -> object:
        return contents(folder / "a") or {"aside": contents(folder / "a.old")}

    sights = killed_at_every_step(
        tmp_path, lambda folder: fill(folder / "a", "old"), lambda folder: fill(folder / "a", LARGE), look
    )
    assert sights == [OLD, {"aside": OLD}, NEW]


def test_an_appended_line_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    def prepare(folder: Path) -> None:
        append_json(folder / "lines", {"line": 1})

    def look(folder: Path) -> list[int]:
        return [record["line"] for record in read_jsonl(folder / "lines")]

    def action(folder: Path) -> None:
        if look(folder) == [1]:
            append_json(folder / "lines", {"line": 2, "text": LARGE})

    assert killed_at_every_step(tmp_path, prepare, action, look) == [[1], [1, 2]]


def test_a_torn_line_is_cut_off_before_the_next(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    assert read_jsonl(file) == []
    assert not cut_torn_tail(file)
    append_json(file, {"a": 1}, {"b": 2})
    assert not cut_torn_tail(file)
    whole = file.read_text()
    for torn in ('{"c', '{"c": 3}', "\0\0\0"):
        file.write_text(whole + torn)
        assert read_jsonl(file) == [{"a": 1}, {"b": 2}]
        assert cut_torn_tail(file)
        assert file.read_text() == whole
        file.write_text(whole + torn)
        append_json(file, {"d": 4})
        assert read_jsonl(file) == [{"a": 1}, {"b": 2}, {"d": 4}]
    file.write_text('{"c')
    assert cut_torn_tail(file)
    assert file.read_bytes() == b""
    assert not cut_torn_tail(file)


@pytest.mark.parametrize("line", ['{"half', "[]", "{" * 100_000])
def test_a_broken_line_in_the_middle_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "lines"
    file.write_text('{"a": 1}\n\n' + line + '\n{"b": 2}\n')
    with pytest.raises(DataError, match=rf"{file}:3: not (a )?JSON"):
        read_jsonl(file)


def test_a_secret_is_never_readable_by_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[int] = []

    def look(name: str, arguments: tuple[Any, ...]) -> None:
        if name in ("write", "fsync", "replace"):
            modes.extend(stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir())

    file = tmp_path / "secret"
    before = os.umask(0)
    try:
        with monkeypatch.context() as patch:
            interpose(patch.setattr, look)
            write_json(file, {"token": "x"}, mode=0o600)
        assert modes
        assert set(modes) == {0o600}
        os.umask(0o077)
        for mode in (0o444, 0o400, 0o600):  # one that its owner cannot write to is replaced, too
            write_text(file, "x", mode=mode)
            assert stat.S_IMODE(file.stat().st_mode) == mode
    finally:
        os.umask(before)


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(name: str, arguments: tuple[Any, ...]) -> None:
        if name == "fsync":
            raise OSError(28, "No space left on device")

    write_text(tmp_path / "file", "old")
    with monkeypatch.context() as patch:
        interpose(patch.setattr, no_room)
        for write in (lambda: write_text(tmp_path / "file", "new"), lambda: fill(tmp_path / "a", "new")):
            with pytest.raises(OSError, match="No space left"):
                write()
    assert contents(tmp_path) == {"file": "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# What a power cut leaves cannot be tried: that everything is synced before its name shows, and the name after, can.


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Syncs and renames, in order, by their paths in ``tmp_path``; temporary names as NAME.partial."""
    made: list[str] = []

    def short(path: Any) -> str:
        return re.sub(r"\.[0-9a-f]{32}\.partial", ".partial", os.path.relpath(path, tmp_path))

    def record(name: str, arguments: tuple[Any, ...]) -> None:
        if name == "fsync":
            made.append(f"sync {short(os.readlink(f'/proc/self/fd/{arguments[0]}'))}")
        elif name in ("rename", "replace", "exchange"):
            made.append(f"{name} {short(arguments[0])} {short(arguments[1])}")

    interpose(monkeypatch.setattr, record)
    return made


def before_and_after(calls: list[str], moment: str) -> tuple[set[str], list[str]]:
    assert calls.count(moment) == 1, calls
    at = calls.index(moment)
    return set(calls[:at]), calls[at + 1 :]


def test_a_file_is_synced_before_its_name_shows_and_its_folder_after(tmp_path: Path, calls: list[str]) -> None:
    write_text(tmp_path / "file", "new")
    assert calls == ["sync file.partial", "replace file.partial file", "sync ."]
    calls.clear()
    write_text(tmp_path / "deep" / "er" / "file", "new")
    assert calls[:2] == ["sync .", "sync deep"], "a new folder's name is on the disk too"


def test_a_folder_is_synced_before_its_name_shows_and_the_one_around_it_after(tmp_path: Path, calls: list[str]) -> None:
    for step in ("rename", "exchange"):
        fill(tmp_path / "a", "new")
        before, after = before_and_after(calls, f"{step} a.partial a")
        assert {f"sync a.partial{path}" for path in ("", "/one", "/inner", "/inner/two")} <= before
        assert after == ["sync ."]
        calls.clear()


def test_a_line_is_synced_at_once_or_before_the_next_folder_shows(tmp_path: Path, calls: list[str]) -> None:
    append_json(tmp_path / "lines", {"a": 1})
    assert calls == ["sync lines", "sync ."]
    calls.clear()
    append_json(tmp_path / "metrics", {"a": 1}, sync=False)
    assert calls == []
    fill(tmp_path / "a", "new")
    before, _ = before_and_after(calls, "rename a.partial a")
    assert {"sync metrics", "sync ."} <= before
    calls.clear()
    fill(tmp_path / "b", "new")
    assert "sync metrics" not in calls


# The writers themselves.


def config_of(folder: Path) -> RunConfig:
    return load_config(Path("configs/demo.toml"), [f"runs_dir={json.dumps(str(folder))}"])


def finish(folder: Path, version: int, steps: int = 5) -> None:
    def train(output: Path) -> dict[str, Any]:
        (output / "model.safetensors").write_text(f"weights {version}")
        return {"version": version, "steps": steps}

    finish_stage(config_of(folder), "sft", "sft", train)


def finished(folder: Path, name: str = "sft") -> object:
    result = stage_result(config_of(folder), name)
    return result and (result["version"], read(stage_folder(config_of(folder), name) / "model.safetensors"))


def test_a_stage_is_finished_or_not(tmp_path: Path) -> None:
    sights = killed_at_every_step(tmp_path, lambda _: None, lambda folder: finish(folder, 7), finished)
    assert sights == [None, (7, "weights 7")]


def test_a_stage_that_is_finished_again_is_the_old_one_or_the_new(tmp_path: Path) -> None:
    sights = killed_at_every_step(
        tmp_path, lambda folder: finish(folder, 7), lambda folder: finish(folder, 8), finished
    )
    assert sights == [(7, "weights 7"), (8, "weights 8")]


def test_a_first_stage_is_shared_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prism.trainer.run.compare.prepare", lambda config, console: None)

    def share(folder: Path) -> None:
        source, target = config_of(folder), config_of(folder / "other")
        _share_first_stage(source, target, None)  # type: ignore[arg-type]

    sights = killed_at_every_step(
        tmp_path, lambda folder: finish(folder, 7), share, lambda folder: finished(folder / "other")
    )
    assert sights == [None, (7, "weights 7")]


def test_an_attempt_is_counted_or_not(tmp_path: Path) -> None:
    def attempt(folder: Path) -> object:
        with contextlib.suppress(FileNotFoundError):
            return json.loads((folder / "attempt.json").read_text())
        return None

    def prepare(folder: Path) -> None:
        assert (next_attempt(folder), next_attempt(folder)) == (1, 2)

    def action(folder: Path) -> None:
        if attempt(folder) == {"attempt": 2}:
            next_attempt(folder)

    assert killed_at_every_step(tmp_path, prepare, action, attempt) == [{"attempt": 2}, {"attempt": 3}]


def checkpoint(folder: Path, step: int, text: str) -> None:
    def write(output: Path) -> None:
        (output / "policy").mkdir()
        (output / "policy" / "weights").write_text(text)

    save_checkpoint(folder / "checkpoints", step, {"step": step}, write, keep=1)


def newest(folder: Path) -> tuple[int, str] | None:
    found = newest_checkpoint(folder / "checkpoints")  # which checks every sha256
    return found and (found[1]["step"], (found[0] / "policy" / "weights").read_text())


@pytest.mark.parametrize("step", [20, 10])
def test_the_newest_checkpoint_is_the_one_before_or_the_new_one(tmp_path: Path, step: int) -> None:
    sights = killed_at_every_step(
        tmp_path,
        lambda folder: checkpoint(folder, 10, "old"),
        lambda folder: checkpoint(folder, step, LARGE),
        newest,
    )
    assert sights == [(10, "old"), (step, LARGE)]


def test_a_checkpoint_and_the_steps_it_contains_are_synced_before_it_counts(tmp_path: Path, calls: list[str]) -> None:
    recorder = Recorder(tmp_path, "sft", 20)
    recorder.step(10, {"loss": 0.5})
    assert calls == []
    checkpoint(tmp_path, 10, "weights")
    before, after = before_and_after(calls, "rename checkpoints/000010.partial checkpoints/000010")
    names = ("", "/policy", "/policy/weights", "/state.json", "/manifest.json")
    assert {"sync metrics.jsonl", *(f"sync checkpoints/000010.partial{name}" for name in names)} <= before
    assert after == ["sync checkpoints"]


def test_weights_are_synced_before_their_manifest_names_them(tmp_path: Path, calls: list[str]) -> None:
    folder = tmp_path / "policy" / "1"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_text("weights")
    made = seal(tmp_path, "policy/1", model="policy", version=1, attempt=1)
    before, after = before_and_after(calls, f"replace policy/1/{MANIFEST}.partial policy/1/{MANIFEST}")
    assert {"sync policy/1", "sync policy/1/model.safetensors", f"sync policy/1/{MANIFEST}.partial"} <= before
    assert after == ["sync policy/1"]
    assert newest_sealed(tmp_path / "policy") == made
