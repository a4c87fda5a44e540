"""Nothing of ours takes a name that a user may have for something else, and rooms stay small enough to be read."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from zipfile import ZipFile

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[2]
MAX_LINES, MAX_FILES = 400, 15


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for name in listed.split("\0") if name and not (path := ROOT / name).is_symlink() and path.exists()]


@pytest.fixture
def clashing(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A working directory and an environment in which others have the names ``trainer`` and ``services``."""
    work, site = tmp_path / "work", tmp_path / "site"
    for folder in (work / "services", site / "trainer", site / "services"):
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("raise ImportError('this is not ours')\n")
    (work / "trainer.py").write_text("raise ImportError('this is not ours')\n")
    return work, os.environ | {"PYTHONPATH": f"{site}{os.pathsep}{ROOT}"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["-c", "import prism.trainer.stages.train, prism.trainer.run.pipeline, prism.services.experts.app"],
        ["-m", "prism", "train", "sft", "--config", "missing.toml"],
        ["-m", "torch.distributed.run", "--standalone", "-m", "prism", "train", "sft", "--config", "missing.toml"],
        ["-m", "prism", "serve", "grader"],
        ["-m", "prism.services.rollouts"],
    ],
)
def test_names_that_others_have_are_not_taken_for_ours(
    clashing: tuple[Path, dict[str, str]], arguments: list[str]
) -> None:
    work, environment = clashing
    result = subprocess.run([sys.executable, *arguments], cwd=work, env=environment, capture_output=True, text=True)
    output = result.stdout + result.stderr
    assert "not ours" not in output
    assert "No module named" not in output
    ours = {"train": "missing.toml does not exist", "serve": "PRISM_TOKEN", "prism.services.rollouts": "PRISM_TOKEN"}
    assert all(text in output for word, text in ours.items() if word in arguments), output
    assert (result.returncode == 0) is (arguments[0] == "-c")


def test_the_wheel_holds_one_package(tmp_path: Path) -> None:
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    names = ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {"prism"}
    assert {"prism/services/grader/app.py", "prism/trainer/stages/align.py"} <= set(names)


def test_no_file_is_too_long_to_be_read_at_once() -> None:
    files = [path for path in tracked() if path.suffix == ".py" and "_pb2" not in path.name]
    long = {str(path.relative_to(ROOT)) for path in files if len(path.read_text().splitlines()) > MAX_LINES}
    assert {name for name in long if not name.startswith("tests/")} == set()


def test_no_room_is_crowded() -> None:
    folders = Counter(str(path.parent.relative_to(ROOT)) for path in tracked())
    crowded = {folder: count for folder, count in folders.items() if count > MAX_FILES}
    assert {folder: count for folder, count in crowded.items() if folder.split("/")[0] not in ("tests", ".")} == {}


@pytest.mark.parametrize("which", ["--cached", "--others"])
def test_no_module_is_left_out_of_git(which: str) -> None:
    """A folder that .gitignore names by accident is on one machine alone."""
    command = ["git", "ls-files", which, "--ignored", "--exclude-standard", "*.py"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [name for name in listed if not name.startswith((".venv", "dist/", "runs/"))] == []
