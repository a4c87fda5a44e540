"""``prism score`` and ``prism grade``: rows of a file below the runs folder in, records beside it out."""

from typing import Literal

from pydantic import Field

from prism.errors import ConfigError
from prism.services.console.jobs.queue import Wanted
from prism.services.console.jobs.registry import Assigned, Command, Parameters, Place

Kind = Literal["auto", "number", "choice", "text", "math", "multi", "box", "date", "judge"]
Source = Literal["answer", "boxed", "phrase", "whole"]


class FileParameters(Parameters):
    file: str = Field(max_length=300)
    """JSON Lines or Parquet, from the runs folder, such as demo/data/answers.jsonl."""
    out: str = Field(max_length=300, pattern=r"\.jsonl$")
    """JSON Lines to write, from the runs folder; rows that it holds are skipped."""

    def check(self, place: Place) -> None:
        """Raises ConfigError."""
        if not place.inside(self.file, exists=True).is_file():
            raise ConfigError(f"file: {self.file!r} is no file")
        if place.inside(self.out) == place.inside(self.file):
            raise ConfigError("out: it is the input; name another file to write to")
        if place.inside(self.out).is_dir():
            raise ConfigError(f"out: {self.out!r} is a folder")


class ScoreParameters(FileParameters):
    run: str = Field(max_length=200)
    """A run whose services are up: its experts judge."""
    expert: Literal["perception", "reasoning", "both"] = "both"
    """Who judges."""
    section: Literal["own", "all"] = "own"
    """own: the section an expert was trained on; all: whole texts."""
    alpha: float = Field(default=0.5, ge=0, le=1)
    """Weight of perception in the mixture of both."""


class ScoreCommand(Command[ScoreParameters]):
    name, title = "score", "Score a file"
    about = "Responses of a file, scored by a run's experts."
    parameters = ScoreParameters

    def plan(self, given: ScoreParameters, place: Place) -> Wanted:
        given.check(place)
        place.services(given.run)
        return self.wanted(given, f"score {given.file}")

    def arguments(self, given: ScoreParameters, place: Place, assigned: Assigned) -> list[str]:
        options = [f"--expert={given.expert}", f"--section={given.section}", f"--alpha={given.alpha}"]
        out, run = place.inside(given.out), place.run(given.run)
        return ["score", *options, f"--run={run}", f"--out={out}", "--", str(place.inside(given.file, exists=True))]


class GradeParameters(FileParameters):
    kind: Kind = "auto"
    """The kind of answer, of rows that name none."""
    any_format: bool = False
    """Do not require caption, think and answer."""
    extract: list[Source] = Field(default=["answer", "boxed", "phrase"], min_length=1)
    """Where the answer is, first match first."""


class GradeCommand(Command[GradeParameters]):
    name, title = "grade", "Grade a file"
    about = "Responses of a file, graded against their gold answers in processes of this machine."
    parameters = GradeParameters

    def plan(self, given: GradeParameters, place: Place) -> Wanted:
        given.check(place)
        return self.wanted(given, f"grade {given.file}")

    def arguments(self, given: GradeParameters, place: Place, assigned: Assigned) -> list[str]:
        options = [f"--kind={given.kind}", f"--extract={','.join(given.extract)}"]
        options += ["--any-format"] if given.any_format else []
        out = place.inside(given.out)
        return ["grade", *options, f"--out={out}", "--", str(place.inside(given.file, exists=True))]


COMMANDS = (ScoreCommand(), GradeCommand())
