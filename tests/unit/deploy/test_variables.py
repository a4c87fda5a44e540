"""Every PRISM_* variable that somebody is told of is read by something, and one that no longer is, is refused."""

import re

import pytest
from deployment import DOCKERFILE, ROOT, SETTINGS
from pydantic_settings import BaseSettings

from prism.clients.endpoints import Endpoints, ExpertEndpoints
from prism.errors import ConfigError
from prism.services.console.settings import ConsoleSettings, WorkerSettings
from prism.settings import GONE, load_settings
from prism.trainer.run.launch import Launch

NAME = re.compile(r"\bPRISM_[A-Z0-9_]*[A-Z0-9]\b(?![_*])")
TOLD = (
    *(ROOT.glob("*.md"), ROOT.glob("docs/*.md"), ROOT.glob("docker-compose*.yml"), ROOT.glob("configs/**/*.toml")),
    *(ROOT.glob("deploy/**/*.yaml"), ROOT.glob("deploy/**/*.tpl"), [DOCKERFILE, ROOT / "Makefile"]),
)
ALONE: set[type[BaseSettings]] = {ExpertEndpoints, ConsoleSettings, WorkerSettings}
KINDS: set[type[BaseSettings]] = {kind for kinds in SETTINGS.values() for kind in kinds} | ALONE


def read_in_code() -> set[str]:
    """By name, in Python and shell, and by compose for what it puts in their place."""
    folders = ("prism", "services", "trainer", "bench", "scripts", "tests/compose", "tests/harness", "deploy/docker")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*") if file.is_file()]
    texts = [file.read_text(errors="ignore") for file in files if file.suffix in (".py", ".sh", "")]
    by_name = {name for text in texts for name in re.findall(r"""["'{](PRISM_[A-Z0-9_]+)""", text)}
    compose = "".join(file.read_text() for file in ROOT.glob("docker-compose*.yml"))
    return by_name | set(re.findall(r"\$\{(PRISM_[A-Z0-9_]+)", compose))


def test_what_is_named_is_read_by_something() -> None:
    fields = {f"PRISM_{name.upper()}" for kind in KINDS for name in kind.model_fields}
    known = (fields | read_in_code()) - GONE.keys()
    told = {name: file for files in TOLD for file in files for name in NAME.findall(file.read_text())}
    assert {name: str(file.relative_to(ROOT)) for name, file in told.items() if name not in known} == {}
    assert len(told) > 40


@pytest.mark.parametrize("kind", [Endpoints, Launch], ids=lambda kind: kind.__name__)
def test_what_nobody_reads_any_more_is_refused(kind: type[BaseSettings], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRISM_IMAGE_DOMAINS", "example.org")
    with pytest.raises(ConfigError, match=r"^PRISM_IMAGE_DOMAINS: .*; send them as data URIs"):
        load_settings(kind)
