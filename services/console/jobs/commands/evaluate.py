"""``prism evaluate``: benchmarks over a run's policy or any server, by a file of the configurations' folder."""

import glob
from collections.abc import Mapping

from pydantic import Field

from prism.config import EvaluationConfig, as_toml
from prism.errors import ConfigError
from prism.services.console.jobs.overrides import refuse_all_but_numbers
from prism.services.console.jobs.queue import Wanted
from prism.services.console.jobs.registry import Assigned, Command, Parameters, Place
from prism.services.console.runs.found import benchmarks

FOLDER = r"^[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*){0,2}$"


class EvaluateParameters(Parameters):
    config: str = Field(max_length=300)
    """An evaluation's file of the configurations' folder, such as evaluate.toml: server, judge, benchmarks."""
    out: str = Field(pattern=FOLDER, max_length=200)
    """Folder of the results, from the runs folder, such as evaluations/rlvr."""
    run: str = Field(default="", max_length=200)
    """A run whose services are up: its policy is asked. Left empty, the server that the file names."""
    overrides: list[str] = Field(default=[], max_length=100)
    """Numbers and switches that differ from the file, such as ``sampling.n=4``, one a line."""
    resume: bool = False
    """Go on with an evaluation that is there already."""


class EvaluateCommand(Command[EvaluateParameters]):
    name, title = "evaluate", "Evaluate on benchmarks"
    about = "Questions of benchmarks or of a file asked, responses scored, what failed masked. It goes on."
    parameters = EvaluateParameters

    def suggestions(self, place: Place) -> dict[str, list[str]]:
        return {"config": place.files(EvaluationConfig), "run": place.served_runs()}

    def plan(self, given: EvaluateParameters, place: Place) -> Wanted:
        config = self._config(given, place)
        out = place.inside(given.out, exists=None if given.resume else False)
        if out.exists() and not (benchmarks(out) or (out / ".lock").is_file()):
            raise ConfigError(f"out: {given.out!r} is no evaluation that could go on")
        if given.run:
            place.services(given.run)
        named = [one.path if isinstance(one.path, list) else [one.path] for one in config.benchmarks.values()]
        if missing := [name for names in named for name in names if not glob.glob(name, recursive=True)]:
            raise ConfigError(f"benchmarks: {', '.join(missing)}: there is no such file or folder")
        return self.wanted(given, f"evaluate as {given.out}", config=as_toml(config), run=given.out)

    def arguments(self, given: EvaluateParameters, place: Place, assigned: Assigned) -> list[str]:
        server = []
        if given.run:
            server = [f"--set=server.url={place.services(given.run)['policy_url']}/v1", "--set=server.model=policy"]
            server += ["--set=server.key_variable=PRISM_TOKEN"]
        return ["evaluate", "run", *server, "--", str(assigned.config)]

    def environment(self, given: EvaluateParameters, place: Place, own: Mapping[str, str]) -> dict[str, str]:
        config = self._config(given, place)
        keys = [config.server.key_variable, *([config.judge.key_variable] if config.judge else []), "PRISM_SECRETS_DIR"]
        found = {name: own[name] for name in keys if name in own}
        return found | ({"PRISM_TOKEN": str(place.services(given.run)["token"])} if given.run else {})

    def _config(self, given: EvaluateParameters, place: Place) -> EvaluationConfig:
        refuse_all_but_numbers(given.overrides)
        config = place.load(EvaluationConfig, given.config, given.overrides)
        return config.model_copy(update={"out": place.inside(given.out)})


COMMANDS = (EvaluateCommand(),)
