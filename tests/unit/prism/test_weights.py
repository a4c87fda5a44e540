"""Weights on the move: nothing is loaded that is not what its manifest says."""

import os
from pathlib import Path

import pytest

from prism.errors import WeightsError
from prism.wire.weights import (
    MANIFEST,
    Manifest,
    WeightFile,
    keep_newest,
    newest_sealed,
    note_newest,
    read_newest,
    seal,
    verify,
)

EMPTY = WeightFile(sha256="0" * 64, bytes=0)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root" / "policy" / "000003"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_text("{}")
    return tmp_path / "root"


@pytest.fixture
def manifest(root: Path) -> Manifest:
    return seal(root, "policy/000003", model="policy", version=3, attempt=1)


def test_sealed_weights_verify_and_the_manifest_lies_beside_them(root: Path, manifest: Manifest) -> None:
    folder = verify(root, manifest)
    assert set(manifest.files) == {"model.safetensors", "config.json"}
    assert Manifest.model_validate_json((folder / MANIFEST).read_bytes()) == manifest
    # Sealing again does not take the manifest for a weight file.
    assert seal(root, "policy/000003", model="policy", version=3, attempt=1) == manifest


@pytest.mark.parametrize("content", [b"weightz", b"weight", b"weights+", b""])
def test_a_corrupted_file_is_refused_by_name(root: Path, manifest: Manifest, content: bytes) -> None:
    (root / "policy/000003/model.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match=r"'model\.safetensors'.* sha256"):
        verify(root, manifest)


def test_versions_are_kept_by_number_and_by_bytes_but_two(tmp_path: Path) -> None:
    def versions(*names: int) -> None:
        for name in names:
            folder = tmp_path / f"{name:06d}"
            folder.mkdir(exist_ok=True)
            (folder / "own").write_bytes(b"x" * 100)
            if not (folder / "shared").exists():
                os.link(first, folder / "shared")

    first = tmp_path / "first"
    first.write_bytes(b"x" * 1000)
    for most, left in ((1300, [3, 4, 5]), (1299, [4, 5]), (1, [4, 5])):
        versions(1, 2, 3, 4, 5)
        keep_newest(tmp_path, 3, most)
        assert sorted(int(path.name) for path in tmp_path.iterdir() if path.is_dir()) == left


def test_a_missing_file_is_refused_by_name(root: Path, manifest: Manifest) -> None:
    (root / "policy/000003/config.json").unlink()
    with pytest.raises(WeightsError, match=r"'config\.json' is missing"):
        verify(root, manifest)


@pytest.mark.parametrize("path", ["..", "../outside", "/etc", "policy/../../outside", "link"])
def test_a_path_out_of_the_root_is_refused(root: Path, manifest: Manifest, path: str) -> None:
    (root / "link").symlink_to(root.parent)
    with pytest.raises(WeightsError, match="outside the weights root"):
        verify(root, manifest.model_copy(update={"path": path}))


@pytest.mark.parametrize("path", ["nowhere", "a\0b", "a\ud800", "x" * 5000, ""])
def test_a_path_that_leads_nowhere_is_refused(root: Path, manifest: Manifest, path: str) -> None:
    with pytest.raises(WeightsError):
        verify(root, manifest.model_copy(update={"path": path}))


@pytest.mark.parametrize("name", ["../000003/model.safetensors", "/etc/passwd", "..", ".", "a\0b", "x" * 5000, ""])
def test_a_file_name_that_is_no_plain_name_is_refused(root: Path, manifest: Manifest, name: str) -> None:
    with pytest.raises(WeightsError):
        verify(root, manifest.model_copy(update={"files": {name: EMPTY} | manifest.files}))


def test_a_manifest_without_weights_is_refused(root: Path, manifest: Manifest) -> None:
    with pytest.raises(WeightsError, match=r"no \.safetensors"):
        verify(root, manifest.model_copy(update={"files": {"config.json": manifest.files["config.json"]}}))


def test_a_resumed_run_outranks_a_zombie(manifest: Manifest) -> None:
    zombie = manifest.model_copy(update={"version": 99})
    resumed = manifest.model_copy(update={"attempt": 2, "version": 1})
    assert resumed.order > zombie.order > manifest.order


def test_the_newest_weights_are_remembered(tmp_path: Path, manifest: Manifest) -> None:
    state = tmp_path / "state"
    assert read_newest(state) is None
    note_newest(state, manifest)
    newer = manifest.model_copy(update={"version": 4})
    note_newest(state, newer)
    assert read_newest(state) == newer


def test_a_folder_that_was_not_finished_is_no_version(root: Path, manifest: Manifest) -> None:
    assert newest_sealed(root / "reasoning") is None
    for name, content in (("000004", None), ("000005", "{"), ("000006", '{"version": 6}')):
        (root / "policy" / name).mkdir()
        if content is not None:
            (root / "policy" / name / MANIFEST).write_text(content)
    assert newest_sealed(root / "policy") == manifest


@pytest.mark.parametrize(("count", "left"), [(5, ["1", "2", "3"]), (2, ["2", "3"]), (0, [])])
def test_old_versions_are_deleted(tmp_path: Path, count: int, left: list[str]) -> None:
    for version in ("2", "3", "1"):
        (tmp_path / "versions" / version).mkdir(parents=True)
    keep_newest(tmp_path / "versions", count)
    assert sorted(path.name for path in (tmp_path / "versions").iterdir()) == left
