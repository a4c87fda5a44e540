"""``prism calibrate``: a reference of teacher's and policy's responses scored, and each expert told of its scores."""

from collections import Counter
from contextlib import aclosing
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from prism.errors import DataError
from prism.scoring.batches import Failed, Judging, Scored, Service, score_lines
from prism.scoring.rows import reference_row, row_lines
from prism.scoring.session import problem_of, progress_of, require_file, require_same_weights, run_until_done
from prism.settings import describe
from prism.wire.experts import CalibrationRequest, CalibrationState, ModelInfo, Reference
from prism.wire.section import Section
from prism.wire.weights import file_sha256


def calibrate_on(file: Path, service: Service, how: Judging) -> None:
    """Raises DataError if a side has too few scores, ServiceError if weights change: then nothing is calibrated."""
    require_file(file)

    async def work() -> tuple[dict[Section, CalibrationState], dict[Section, "Sides"], int]:
        async with service.experts() as experts:
            experts.require_admin()
            infos = await service.models(how)
            sides: dict[Section, Sides] = {name: Sides() for name in how.experts}
            unread = 0
            with progress_of("scoring the reference", sum(1 for _ in row_lines(file)), 0) as tell:
                outcomes = score_lines(
                    experts, service, how, row_lines(file), lambda line: reference_row(line, file.parent)
                )
                async with aclosing(outcomes):
                    async for outcome in outcomes:
                        tell(problem_of(file, outcome))
                        if isinstance(outcome, Failed):
                            unread += 1
                            continue
                        require_same_weights(outcome, infos, "nothing was calibrated: run it again when they rest")
                        for name, of_expert in sides.items():
                            of_expert.add(name, outcome)
            reference = Reference(name=file.name[-200:], sha256=file_sha256(file))
            requests: dict[Section, CalibrationRequest] = {
                name: sides[name].request(name, reference, info, how, unread) for name, info in infos.items()
            }
            states: dict[Section, CalibrationState] = {
                name: await experts.calibrate(name, one) for name, one in requests.items()
            }
            return states, sides, unread

    states, sides, unread = run_until_done(work, "the calibration is not complete: run it again")
    console = Console(highlight=False)
    for name, state in states.items():
        console.print(
            f"[bold]{name}[/] version {state.version} (attempt {state.attempt}), section {state.section}: calibrated "
            f"on {escape(state.reference.name)} [dim](sha256 {state.reference.sha256[:12]}…)[/]\n"
            f"  percentiles are among {state.teacher} responses of the teacher and {state.policy} of the policy\n"
            f"  a probability over 50 % means the teacher's: right for {state.accuracy:.1%} of the reference (both "
            f"sides weighed alike; 50 % is chance)\n"
            f"  {sides[name].left_out(unread)}",
            soft_wrap=True,
        )


class Sides:
    """One expert's scores of the reference."""

    def __init__(self) -> None:
        self.teacher: list[float] = []
        self.policy: list[float] = []
        self._without: Counter[str] = Counter()

    def add(self, expert: Section, scored: Scored) -> None:
        for number, judgement in enumerate(scored.judgements):
            side = "teacher" if number < scored.row.teachers else "policy"
            score = judgement.experts[expert]
            if score.score is None:
                self._without[f"of the {side} ({score.status})"] += 1
            else:
                (self.teacher if side == "teacher" else self.policy).append(score.score)

    def left_out(self, unread: int) -> str:
        """How many were not used, and why."""
        why = [f"{count} {what}" for what, count in sorted(self._without.items())]
        why += [f"{unread} rows that could not be scored, named above"] if unread else []
        return f"left out: {', '.join(why)}" if why else "no response was left out"

    def request(
        self, expert: Section, reference: Reference, info: ModelInfo, how: Judging, unread: int
    ) -> CalibrationRequest:
        """Raises DataError if a side has too few scores, or more than a service takes."""
        for side, scores in (("teacher", self.teacher), ("policy", self.policy)):
            if len(scores) < 2:
                raise DataError(
                    f"the {expert} expert scored {len(scores)} responses of the {side}, a calibration needs 2 or more; "
                    f"{self.left_out(unread)}"
                )
        try:
            return CalibrationRequest(
                reference=reference,
                version=info.version,
                attempt=info.attempt,
                section=how.section,
                teacher=self.teacher,
                policy=self.policy,
            )
        except ValidationError as error:
            raise DataError(f"this reference cannot be used: {'; '.join(describe(error))}") from None
