"""``prism calibrate``: a reference of teacher's and policy's responses scored, and each expert told of its scores."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from prism.errors import DataError
from prism.jobs import Job, require_file, run_until_done
from prism.scoring.batches import ScoredLine, WhoJudges
from prism.scoring.rows import reference_row
from prism.scoring.score import FORM
from prism.settings import describe
from prism.wire.experts import CalibrationRequest, CalibrationState, ModelInfo, PromptScores, Reference
from prism.wire.response import Expert
from prism.wire.weights import file_sha256


def calibrate_on(file: Path, how: WhoJudges, image_root: Path | None = None) -> None:
    """Images are in the folder of ``file``, or in ``image_root``.

    Raises DataError if too few prompts have scores of both sides, ServiceError if weights change: then nothing is
    calibrated.
    """
    require_file(file)
    sides = {name: Sides(name) for name in how.experts}

    def keep(line: ScoredLine) -> None:
        for of_expert in sides.values():
            of_expert.add(line)

    async def work() -> dict[Expert, CalibrationState]:
        async with how.panel("nothing was calibrated: run it again when they rest") as panel:
            panel.experts.require_admin()
            with Job(FORM, file, None, keep=keep) as job:
                await panel.run(job, "scoring the reference", lambda row: reference_row(row, file.parent, image_root))
            reference = Reference(name=file.name[-200:], sha256=file_sha256(file))
            requests: dict[Expert, CalibrationRequest] = {}
            for name, info in panel.infos.items():
                sides[name].failed = job.failed
                requests[name] = sides[name].request(reference, info, how)
            return {name: await panel.experts.calibrate(name, one) for name, one in requests.items()}

    states = run_until_done(work, "the calibration is not complete: run it again")
    console = Console(highlight=False)
    for name, state in states.items():
        console.print(
            f"[bold]{name}[/] version {state.version} (attempt {state.attempt}), section {state.section}: calibrated "
            f"on {escape(state.reference.name)} [dim](sha256 {state.reference.sha256[:12]}…)[/]\n"
            f"  percentiles are among {state.teacher} responses of the teacher and {state.policy} of the policy to "
            f"{state.prompts} prompts, each beside the others to its prompt\n"
            f"  a probability over 50 % means the teacher's: right for {state.accuracy:.1%} of the reference by fits "
            f"without the prompt (both sides weighed alike; 50 % is chance), log loss {state.log_loss:.3f} (0.693 is "
            f"chance)\n"
            f"  {sides[name].left_out()}",
            soft_wrap=True,
        )


@dataclass
class Sides:
    """One expert's scores of the reference."""

    expert: Expert
    prompts: list[PromptScores] = field(default_factory=list)
    without: Counter[str] = field(default_factory=Counter)
    failed: int = 0

    def add(self, line: ScoredLine) -> None:
        sides: dict[str, list[float]] = {"teacher": [], "policy": []}
        for number, response in enumerate(line.responses):
            side = "teacher" if number < line.teachers else "policy"
            score = response.experts[self.expert]
            if score.score is None:
                self.without[f"of the {side} ({score.status})"] += 1
            else:
                sides[side].append(score.score)
        if all(sides.values()):
            self.prompts.append(PromptScores(teacher=sides["teacher"], policy=sides["policy"]))
        else:
            for side, scores in sides.items():
                self.without.update({f"of the {side} (nothing of the other side to set beside)": len(scores)})

    def left_out(self) -> str:
        """How many were not used, and why."""
        why = [f"{count} {what}" for what, count in sorted(self.without.items()) if count]
        why += [f"{self.failed} rows that could not be scored, named above"] if self.failed else []
        return f"left out: {', '.join(why)}" if why else "no response was left out"

    def request(self, reference: Reference, info: ModelInfo, how: WhoJudges) -> CalibrationRequest:
        """Raises DataError for fewer than two prompts, or more than a service takes."""
        if len(self.prompts) < 2:
            scored = f"the {self.expert} expert scored both sides of {len(self.prompts)} prompts"
            raise DataError(f"{scored}, a calibration needs 2 or more, to hold some out; {self.left_out()}")
        try:
            return CalibrationRequest(
                reference=reference,
                version=info.version,
                attempt=info.attempt,
                section=how.section,
                prompts=self.prompts,
            )
        except ValidationError as error:
            raise DataError(f"this reference cannot be used: {'; '.join(describe(error))}") from None
