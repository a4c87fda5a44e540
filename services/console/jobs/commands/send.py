"""``prism track`` and ``prism upload``: what a run has left, sent to trackers and to a hub."""

from pathlib import Path

from pydantic import Field

from prism.config.track import TrackerName
from prism.errors import ConfigError
from prism.services.console.jobs.queue import Wanted
from prism.services.console.jobs.registry import Assigned, Command, Parameters, Place


class TrackParameters(Parameters):
    run: str = Field(max_length=200)
    """A run's folder."""
    to: list[TrackerName] = Field(min_length=1)
    """Which trackers; each needs its package, and its own key in the worker's environment."""
    project: str = Field(default="", pattern=r"^([A-Za-z0-9][A-Za-z0-9_.-]*)?$", max_length=100)
    """What the trackers call the project; left empty, as the run's configuration says."""


class TrackCommand(Command[TrackParameters]):
    name, title = "track", "Send to trackers"
    about = "A run's figures, and rollouts with their pictures, sent to the trackers that people use."
    parameters = TrackParameters

    def suggestions(self, place: Place) -> dict[str, list[str]]:
        return {"run": place.begun_runs()}

    def plan(self, given: TrackParameters, place: Place) -> Wanted:
        _require(place.run(given.run) / "config.json", f"run: {given.run!r} holds no run")
        return self.wanted(given, f"track {given.run}")

    def arguments(self, given: TrackParameters, place: Place, assigned: Assigned) -> list[str]:
        options = [f"--to={name}" for name in given.to]
        options += [f"--project={given.project}"] if given.project else []
        return ["track", *options, "--", str(place.run(given.run))]


class UploadParameters(Parameters):
    model: str = Field(max_length=300)
    """A model's folder as `prism export` writes it, from the runs folder."""
    repo: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$", max_length=200)
    """Repository on the hub, such as me/my-model."""
    evaluations: list[str] = Field(default=[], max_length=20)
    """Folders of evaluations whose figures the card tells, from the runs folder, one a line."""
    private: bool = True
    """A repository that is made is private."""


class UploadCommand(Command[UploadParameters]):
    name, title = "upload", "Upload a model"
    about = "An exported model to a hub, with its card and the figures of evaluations. HF_TOKEN is the worker's."
    parameters = UploadParameters

    def plan(self, given: UploadParameters, place: Place) -> Wanted:
        model = place.inside(given.model, exists=True)
        _require(model / "config.json", f"model: {given.model!r} is no exported model")
        for name in given.evaluations:
            folder = place.inside(name, exists=True)
            _require(folder / "result.json", f"evaluations: {name!r} has no figures")
            if "=" in str(folder):  # which the command would take for a name
                raise ConfigError(f"evaluations: {name!r} holds an =: rename the folder")
        return self.wanted(given, f"upload {given.model} to {given.repo}")

    def arguments(self, given: UploadParameters, place: Place, assigned: Assigned) -> list[str]:
        options = [f"--evaluation={place.inside(name, exists=True)}" for name in given.evaluations]
        options += ["--private"] if given.private else []
        return ["upload", *options, "--", str(place.inside(given.model, exists=True)), given.repo]


def _require(file: Path, problem: str) -> None:
    if not file.is_file():
        raise ConfigError(problem)


COMMANDS = (TrackCommand(), UploadCommand())
