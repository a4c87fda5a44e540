"""Dockerfiles: safe to run, and with what pyproject.toml says and nothing else."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from deployment import DOCKERFILES, ROOT, image

EXTRAS = {"experts": "experts,s3", "grader": "grader", "policy-cpu": "policy-cpu", "rollouts": "s3", "policy-gpu": ""}
EXTRAS |= {"trainer": "learner,report,demo,s3"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def kind(file: Path) -> str:
    return file.name.removesuffix(".Dockerfile")


@pytest.mark.parametrize("file", DOCKERFILES, ids=kind)
def test_an_image_is_safe_to_run_and_says_how_it_is(file: Path) -> None:
    text, made = file.read_text(), image(f"prism-{kind(file)}")
    assert made.user == 10001
    assert re.search(r'^ENTRYPOINT \["python3", "-m", "prism"\]$', text, re.MULTILINE)
    assert re.search(r'^CMD \["', text, re.MULTILINE)
    assert re.search(r'^HEALTHCHECK .* CMD \["python3", "-m", "prism.http.healthcheck"', text, re.MULTILINE)
    assert "org.opencontainers.image.revision" in text
    assert "TOKEN" not in text
    assert int(made.environment["PRISM_PORT"]) in made.ports
    assert made.environment.get("PRISM_ADMIN_PORT") in {None, *(str(port) for port in made.ports), "8001"}


@pytest.mark.parametrize("file", DOCKERFILES, ids=kind)
def test_code_comes_after_dependencies(file: Path) -> None:
    text = file.read_text()
    assert text.index("deploy/docker/install") < text.index("\nCOPY prism prism")


@pytest.mark.parametrize("file", DOCKERFILES, ids=kind)
def test_an_image_installs_its_own_extras(file: Path) -> None:
    (extras,) = re.findall(r'deploy/docker/install "([^"]*)"', file.read_text())
    assert extras == EXTRAS[kind(file)]
    assert all(extra in PROJECT["optional-dependencies"] for extra in extras.split(",") if extra)


def test_grader_and_workers_hold_no_torch() -> None:
    for extra in (PROJECT["dependencies"], PROJECT["optional-dependencies"]["grader"]):
        assert not [line for line in extra if line.startswith("torch")]


def test_the_gpu_image_is_the_vllm_that_pyproject_names() -> None:
    (pin,) = PROJECT["optional-dependencies"]["policy-gpu"]
    base = image("prism-policy-gpu").text.split("FROM ")[1].split()[0]
    assert base == f"vllm/vllm-openai:v{pin.removeprefix('vllm==')}"


def test_all_images_end_alike() -> None:
    """What stands in each Dockerfile must be the same in all: it is written six times."""

    def common(text: str) -> str:
        tail = text.split("\nWORKDIR /app\n")[1]
        tail = re.sub(r'title="[^"]*"|^CMD .*$|^COPY configs configs\n|, "/metrics"', "", tail, flags=re.MULTILINE)
        return tail.replace(" PRISM_ADMIN_PORT=8001", "").replace("EXPOSE 8000 8001", "EXPOSE 8000")

    assert len({common(file.read_text()) for file in DOCKERFILES}) == 1


def test_the_context_holds_what_dockerfiles_copy() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        source.rstrip("/")
        for file in DOCKERFILES
        for line in re.findall(r"^COPY (.+)$", file.read_text(), re.MULTILINE)
        for source in line.split()[:-1]
    }
    assert copied == allowed
    assert all((ROOT / source).exists() for source in copied)


def test_a_command_of_every_image_exists() -> None:
    for file in DOCKERFILES:
        (command,) = re.findall(r'^CMD \["(\w+)"', file.read_text(), re.MULTILINE)
        help_text = subprocess.run([sys.executable, "-m", "prism", command, "--help"], cwd=ROOT, capture_output=True)
        assert help_text.returncode == 0
