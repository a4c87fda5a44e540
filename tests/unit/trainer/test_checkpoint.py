"""Checkpoints: whole or not at all, and never silently damaged."""

import json
import os
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from prism.errors import CheckpointError, WeightsError
from prism.trainer.checkpoint.folder import checkpoints, newest_checkpoint, save_checkpoint
from prism.trainer.checkpoint.saver import Checkpoints
from prism.trainer.checkpoint.tensors import random_state, read_tensors, set_random_state, write_tensors


def writing(content: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "policy").mkdir()
        (folder / "policy" / "model.safetensors").write_bytes(content)

    return write


def save(root: Path, step: int, *, keep: int = 2, write: Callable[[Path], None] | None = None) -> Path:
    state: dict[str, Any] = {"step": step, "policy_version": step + 5}
    return save_checkpoint(root, step, state, write or writing(b"weights %d" % step), keep=keep)


def test_a_checkpoint_comes_back_with_its_state_and_files(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "none") is None
    folder = save(tmp_path, 40)
    assert newest_checkpoint(tmp_path) == (folder, {"step": 40, "policy_version": 45})
    assert (folder / "policy" / "model.safetensors").read_bytes() == b"weights 40"


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 100, 1000):
        save(tmp_path, step, keep=2)
    assert [folder.name for folder in checkpoints(tmp_path)] == ["000100", "001000"]
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert newest[1]["step"] == 1000


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(28, "No space left on device"), CheckpointError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (ZeroDivisionError(), ZeroDivisionError),
    ],
)
def test_a_write_that_fails_leaves_what_was_there(
    tmp_path: Path, error: BaseException, raised: type[BaseException]
) -> None:
    old = save(tmp_path, 10)

    def fail(folder: Path) -> None:
        writing(b"half")(folder)
        raise error

    with pytest.raises(raised):
        save(tmp_path, 20, write=fail)
    assert list(tmp_path.iterdir()) == [old]
    assert newest_checkpoint(tmp_path) == (old, {"step": 10, "policy_version": 15})


@pytest.fixture
def no_room() -> Iterator[None]:
    """No file may grow beyond 64 KiB, which fails writers as a full disk does: in the middle."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, before)


@pytest.mark.parametrize("writer", ["safetensors", "torch"])
def test_without_room_the_old_checkpoint_stays_and_what_to_do_is_said(
    tmp_path: Path, no_room: None, writer: str
) -> None:
    old = save(tmp_path, 10)
    tensors = {"weight": torch.zeros(2**16)}

    def write(folder: Path) -> None:
        if writer == "torch":
            torch.save(tensors, folder / "optimizer.pt")
        else:
            save_file(tensors, folder / "model.safetensors")

    with pytest.raises(CheckpointError, match=r"step 20 could not be written.*Earlier ones are untouched"):
        save(tmp_path, 20, write=write)
    assert list(tmp_path.iterdir()) == [old]
    assert newest_checkpoint(tmp_path) == (old, {"step": 10, "policy_version": 15})


def test_a_write_that_was_killed_is_ignored_and_written_over(tmp_path: Path) -> None:
    old = save(tmp_path, 10)
    partial = tmp_path / "000020.partial"
    partial.mkdir()
    writing(b"half")(partial)
    (tmp_path / "000030").mkdir()  # without its manifest a folder is not a checkpoint
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert newest[0] == old
    assert (save(tmp_path, 20) / "policy" / "model.safetensors").read_bytes() == b"weights 20"


def test_a_step_that_is_passed_again_replaces_its_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 10)
    folder = save(tmp_path, 10, write=writing(b"again"))
    assert (folder / "policy" / "model.safetensors").read_bytes() == b"again"
    assert newest_checkpoint(tmp_path) is not None


@pytest.mark.parametrize("content", [b"weights 4O", b"", None])
@pytest.mark.parametrize("name", ["policy/model.safetensors", "state.json"])
def test_damage_is_found_and_named_with_the_way_out(tmp_path: Path, name: str, content: bytes | None) -> None:
    save(tmp_path, 30)
    folder = save(tmp_path, 40)
    if content is not None:
        (folder / name).write_bytes(content)
    else:
        (folder / name).unlink()
    with pytest.raises(WeightsError, match=rf"000040 is damaged at {name}: delete the folder"):
        newest_checkpoint(tmp_path)


def test_a_manifest_that_cannot_be_read_is_damage_too(tmp_path: Path) -> None:
    (save(tmp_path, 40) / "manifest.json").write_bytes(b'{"state.js')
    with pytest.raises(WeightsError, match=r"000040 is damaged at manifest\.json"):
        newest_checkpoint(tmp_path)


def test_the_manifest_names_every_file(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    assert set(json.loads((folder / "manifest.json").read_text())) == {"policy/model.safetensors", "state.json"}


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power cut a name without its bytes would be a damaged checkpoint, with the one before it deleted."""
    synced: set[int] = set()
    before_name: list[set[int]] = []
    fsync, rename = os.fsync, os.rename

    def noted_fsync(opened: int) -> None:
        fsync(opened)
        synced.add(os.fstat(opened).st_ino)

    def noted_rename(source: Path, target: Path) -> None:
        if Path(target) == tmp_path / "000040":
            before_name.append(set(synced))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "rename", noted_rename)
    folder = save(tmp_path, 40)
    files = {str(file.relative_to(folder)): file.stat().st_ino for file in folder.rglob("*") if file.is_file()}
    assert files.keys() == {"policy/model.safetensors", "state.json", "manifest.json"}
    (on_disk,) = before_name
    assert [name for name, inode in files.items() if inode not in on_disk] == []


def behind(root: Path) -> Checkpoints:
    return Checkpoints(root, keep=2)


def no_files(folder: Path) -> None: ...


def test_what_is_saved_behind_the_loop_is_as_it_was_when_it_was_asked_for(tmp_path: Path) -> None:
    """Sealed and acknowledged by a later poll alone; the next one waits for it."""
    weight, sealed = torch.ones(1000), list[int]()
    go_on = threading.Event()
    with behind(tmp_path) as saved:
        saved.save(1, {"step": 1}, {"weight": weight}, lambda _: assert_set(go_on), lambda: sealed.append(1))
        weight += 1
        saved.poll()
        assert (checkpoints(tmp_path), sealed) == ([], [])
        go_on.set()
        saved.save(2, {"step": 2}, {"weight": weight}, no_files, lambda: sealed.append(2))
        assert sealed == [1]
    assert sealed == [1, 2]
    for folder, value in zip(checkpoints(tmp_path), (1, 2), strict=True):
        tensors = {"weight": torch.zeros(1000)}
        read_tensors(folder, tensors)
        assert torch.equal(tensors["weight"], torch.full((1000,), float(value)))


@pytest.mark.parametrize("by", ["wait", "save", "end"])
def test_nothing_is_acknowledged_before_the_checkpoint_is_sealed_however_long_that_takes(
    tmp_path: Path, by: str
) -> None:
    sealed_then: list[list[str]] = []
    go_on = threading.Event()
    with behind(tmp_path) as saved:
        saved.save(
            1,
            {},
            {"weight": torch.ones(1)},
            lambda _: assert_set(go_on),
            lambda: sealed_then.append([folder.name for folder in checkpoints(tmp_path)]),
        )
        threading.Timer(0.2, go_on.set).start()
        if by == "wait":
            saved.wait()
        if by == "save":
            saved.save(2, {}, {"weight": torch.ones(1)}, no_files)
    assert sealed_then == [["000001"]]


def assert_set(event: threading.Event) -> None:
    assert event.wait(30)


@pytest.mark.parametrize("when", ["poll", "wait", "save", "end"])
def test_a_save_that_fails_behind_the_loop_is_said_at_the_next_opportunity(
    tmp_path: Path, no_room: None, when: str
) -> None:
    old, sealed = save(tmp_path, 1), list[int]()
    tensors = {"weight": torch.zeros(2**16)}

    def loop() -> None:
        with behind(tmp_path) as saved:
            saved.save(2, {}, tensors, no_files, lambda: sealed.append(2))
            while when == "poll":
                saved.poll()
            if when == "wait":
                saved.wait()
            if when == "save":
                saved.save(3, {}, tensors, no_files)

    with pytest.raises(CheckpointError, match=r"step 2 could not be written.*Earlier ones are untouched"):
        loop()
    assert sealed == []
    assert list(tmp_path.iterdir()) == [old]


def test_a_loop_that_fails_still_seals_what_it_saved(tmp_path: Path) -> None:
    def loop() -> None:
        with behind(tmp_path) as saved:
            saved.save(1, {"step": 1}, {"weight": torch.ones(1)}, no_files)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        loop()
    assert [folder.name for folder in checkpoints(tmp_path)] == ["000001"]


def test_random_generators_go_on(tmp_path: Path) -> None:
    write_tensors(tmp_path, {"rng": random_state("cpu"), "step": 3})
    expected = torch.rand(4)
    tensors = {"rng": random_state("cpu"), "step": 0}
    read_tensors(tmp_path, tensors)
    set_random_state(tensors["rng"])
    assert tensors["step"] == 3
    assert torch.equal(torch.rand(4), expected)


def test_large_states_are_written_in_several_files_which_all_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prism.trainer.checkpoint.tensors.FILE_BYTES", 1000)
    sizes = (300, 100, 100, 40, 1, 250)  # floats
    given = {f"weight{place}": torch.randn(size) for place, size in enumerate(sizes)}
    with behind(tmp_path) as saved:
        saved.save(1, {}, {"policy": given, "steps": 3}, no_files)
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert len(list((newest[0] / "tensors").iterdir())) == 4
    found = {"policy": {name: torch.zeros_like(tensor) for name, tensor in given.items()}, "steps": 0}
    read_tensors(newest[0], found)
    torch.testing.assert_close(found, {"policy": given, "steps": 3}, rtol=0, atol=0)
