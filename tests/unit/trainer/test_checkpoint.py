"""Checkpoints: whole or not at all, and never silently damaged."""

import json
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from prism.errors import CheckpointError, WeightsError
from trainer.checkpoint import checkpoints, newest_checkpoint, save_checkpoint


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
