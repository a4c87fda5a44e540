"""``prism curate`` as it is called, and what its document says."""

import re
import tomllib
from pathlib import Path

import pytest
from curation_world import World, write_config
from fake_services import response, served, write_rows
from test_curate import asked_of, state
from typer.testing import CliRunner

from prism.cli import app
from prism.clients.teacher.errors import OutOfCredit
from prism.config import load_toml
from prism.curation.config import CurateConfig
from prism.curation.state.tables import Demo
from prism.errors import ConfigError, LockedError
from prism.stack.folder_lock import lock_run

ROOT = Path(__file__).parents[4]


def test_help_teaches() -> None:
    told = CliRunner().invoke(app, ["curate", "--help"], env={"COLUMNS": "100"}).stdout
    for word in ("mine", "ask", "verify", "split", "card", "--dry-run", "PRISM_TEACHER_KEY", "docs/curation.md"):
        assert word in told


def test_the_command_asks_who_accepts_the_terms(world: World) -> None:
    write_rows(world.folder, [0.0] * 2)
    world.teacher.answer = lambda body: response(asked_of(body))
    with served(world.teacher) as teacher:
        config = world.config(teacher, mine=None, terms={"accepted_by": None})
        file = str(write_config(config, world.folder / "job.toml"))
        refused = CliRunner().invoke(app, ["curate", file])
        assert isinstance(refused.exception, ConfigError)
        assert "--accept-terms NAME" in str(refused.exception)
        planned = CliRunner().invoke(app, ["curate", file, "--dry-run"])
        assert "2 questions to oracle" in planned.stdout
        assert len(world.teacher.seen) == 0
        done = CliRunner().invoke(app, ["curate", file, "verify", "ask", "card", "--accept-terms", "Ada L."])
        assert done.exit_code == 0, done.exception
        assert "Accepted for this use by **Ada L.**" in (config.folder / "card.md").read_text()
        assert state(config, Demo.state) == {"verified": 2}
        world.teacher.troubles = {"credit": 1.0}
        other = ["curate", file, "--accept-terms", "Ada", "--set", "name=other"]
        assert isinstance(CliRunner().invoke(app, other).exception, OutOfCredit)
        with lock_run(config.folder, "curation"):
            locked = CliRunner().invoke(app, ["curate", file, "--accept-terms", "Ada"])
        assert isinstance(locked.exception, LockedError)
        assert "curates there" in str(locked.exception)


def test_a_key_is_asked_for_by_name(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(world.folder, [0.0])
    monkeypatch.delenv("PRISM_TEACHER_KEY")
    with pytest.raises(ConfigError, match="PRISM_TEACHER_KEY is not set"):
        world.curate(world.config("http://t", mine=None), ["ask"])


def test_the_documents_example_is_a_configuration() -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "curation.md").read_text(), re.DOTALL)
    CurateConfig.model_validate(tomllib.loads(example))


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ('verify.caption="judge"', 'verify.caption: "judge" needs a'),
        ('verify.caption="expert"', "a labelled sample on which it is found"),
        ("mine={max_tokens=9, rl=[0.0, 0.5]}", "must not overlap"),
        ("mine={max_tokens=9, rl=[0.9, 0.5]}", "the lower first"),
        ("teacher.cap=0", "greater than 0"),
        ('teacher.key="sk-1"', "teacher.key: is not a known key"),
    ],
)
def test_what_cannot_be_is_refused_by_name(world: World, override: str, told: str) -> None:
    file = write_config(world.config("http://t", mine=None), world.folder / "job.toml")
    with pytest.raises(ConfigError, match=re.escape(told)):
        load_toml(file, CurateConfig, [override])
