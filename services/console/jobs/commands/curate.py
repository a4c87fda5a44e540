"""``prism curate``: demonstrations from the hardest problems, by a curation's file of the configurations' folder."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from prism.clients.teacher.keys import JUDGE_KEY, TEACHER_KEY
from prism.config import as_toml
from prism.curation.config import CurateConfig
from prism.data.mixture import data_files
from prism.errors import ConfigError, DataError
from prism.services.console.jobs.commands.runs import RUN_NAME
from prism.services.console.jobs.overrides import refuse_all_but_numbers
from prism.services.console.jobs.queue import Wanted
from prism.services.console.jobs.registry import Assigned, Command, Parameters, Place

KEYS = (TEACHER_KEY, JUDGE_KEY, "PRISM_SECRETS_DIR")
MONEY = ("cap", "input_price", "output_price", "image_tokens")
"""Keys that bound what a teacher may cost: whoever keeps the configuration files sets them."""


class CurateParameters(Parameters):
    config: str = Field(max_length=300)
    """A curation's file of the configurations' folder, such as hard.toml. Teacher, prices and cap stand there."""
    name: str = Field(pattern=RUN_NAME, max_length=100)
    """Names the job's folder in the runs folder."""
    run: str = Field(max_length=200)
    """A run whose services are asked; they must be up."""
    steps: list[Literal["mine", "ask", "verify", "split", "card"]] = Field(default=[])
    """Which steps; none chosen: all of them."""
    accept_terms: str = Field(default="", max_length=200)
    """Who has read the teacher's terms and accepts them for training on its answers; for the card."""
    dry_run: bool = False
    """Say what asking the teacher would take, in tokens and dollars; ask nobody."""
    overrides: list[str] = Field(default=[], max_length=100)
    """Numbers and switches that differ from the file, such as ``mine.n=4``, one a line."""
    resume: bool = False
    """Go on with a curation of this name that is there already."""


class CurateCommand(Command[CurateParameters]):
    name, title = "curate", "Curate demonstrations"
    about = (
        "Hard problems mined, a teacher asked within its cap, answers verified, sets and a card written. It goes on."
    )
    parameters = CurateParameters

    def suggestions(self, place: Place) -> dict[str, list[str]]:
        return {"config": place.files(CurateConfig), "run": place.served_runs()}

    def plan(self, given: CurateParameters, place: Place) -> Wanted:
        config = self._config(given, place)
        folder = place.inside(given.name, exists=None if given.resume else False)
        if folder.exists() and not config.database and not (folder / "curation.db").is_file():
            raise ConfigError(f"name: {given.name!r} is no curation that could go on")
        place.services(given.run)
        if not given.dry_run and not config.terms.accepted_by:
            raise ConfigError(f"accept_terms: somebody must have read and accept {config.terms.name}: name that person")
        try:
            files = [file for file, _ in data_files(config.data, config.path)]
        except DataError as error:
            raise ConfigError(f"data: {error}") from None
        files += [file for file in (config.verify.labelled, config.ask.prompt) if file]
        if missing := [str(file) for file in files if not file.is_file()]:
            raise ConfigError(f"{', '.join(missing)}: there is no such file")
        what = "estimate" if given.dry_run else " and ".join(given.steps) + " for" if given.steps else "curate"
        return self.wanted(given, f"{what} {given.name}", config=as_toml(config), run=given.name)

    def arguments(self, given: CurateParameters, place: Place, assigned: Assigned) -> list[str]:
        place.services(given.run)
        dry = ["--dry-run"] if given.dry_run else []
        return ["curate", *dry, "--wait-for-lock=60", "--", str(assigned.config), *given.steps]

    def environment(self, given: CurateParameters, place: Place, own: Mapping[str, str]) -> dict[str, str]:
        return {name: own[name] for name in KEYS if name in own}

    def _config(self, given: CurateParameters, place: Place) -> CurateConfig:
        refuse_all_but_numbers(given.overrides, sealed=MONEY)
        config = place.load(CurateConfig, given.config, given.overrides)
        terms = config.terms.model_copy(update={"accepted_by": given.accept_terms.strip() or config.terms.accepted_by})
        own = {"name": given.name, "runs_dir": place.runs.resolve(), "run": place.run(given.run), "terms": terms}
        return config.model_copy(update=own)


COMMANDS = (CurateCommand(),)
