"""``prism score``: a file's responses scored, into tables or into a file that can be gone on with."""

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console

from prism.errors import DataError
from prism.jobs import Form, Job, require_file, run_until_done
from prism.scoring.batches import ScoredLine, Weights, WhoJudges
from prism.scoring.rows import score_row
from prism.scoring.summary import ScoreSummary, rows_table
from prism.wire.response import Expert

FEW_RESPONSES = 40


def score_file(
    file: Path, out: Path | None, how: WhoJudges, *, mixed_versions: bool, image_root: Path | None = None
) -> None:
    """Images are in the folder of ``file``, or in ``image_root``.

    Raises DataError if rows failed, once all others are scored, and ServiceError if weights change meanwhile.
    """
    require_file(file)
    summary, few = ScoreSummary(), list[ScoredLine]()

    def keep(line: ScoredLine) -> None:
        summary.add(line)
        if out is None and len(few) <= FEW_RESPONSES:
            few.append(line)

    async def work() -> Job[ScoredLine]:
        async with how.panel(None if mixed_versions else "score with --mixed-versions to go on all the same") as panel:
            weights: dict[Expert, Weights] = {name: panel.weights(name, info) for name, info in panel.infos.items()}
            settings = (_how(how.experts, how), None if mixed_versions else _by(weights))
            with Job(FORM, file, out, settings=settings, keep=keep) as job:
                await panel.run(job, "scoring", lambda row: score_row(row, file.parent, image_root))
            return job

    job = run_until_done(work, FORM.kept(out))
    console = Console(highlight=False)
    if few and sum(len(line.responses) for line in few) <= FEW_RESPONSES:
        console.print(rows_table(few))
    console.print(summary.table())
    bad = {"have no scores": job.failed, "have a response with status error": job.statuses["error"]}
    if sum(bad.values()):
        counts = ", ".join(f"{count} {what}" for what, count in bad.items() if count)
        raise DataError(f"{sum(bad.values())} of {job.total} rows in {file} failed: {counts}")


def _how(experts: Iterable[Expert], how: WhoJudges | ScoredLine) -> str:
    return f"by {' and '.join(experts)}, section {how.section}, alpha {how.alpha}"


def _by(weights: dict[Expert, Weights]) -> str:
    def name(one: Weights) -> str:
        calibrated = f"calibrated on {one.calibration[:8]}" if one.calibration else "not calibrated"
        return f"{one.base} version {one.version} (attempt {one.attempt}, {calibrated})"

    return "by " + " and ".join(f"{expert} {name(one)}" for expert, one in weights.items())


FORM: Form[ScoredLine] = Form(
    verb="score",
    done="scored",
    begins=b'{"index":',
    parse=ScoredLine.model_validate_json,
    dump=lambda line: line.model_dump(mode="json"),
    place=lambda _, line: (line.index, line.input),
    status=lambda line: "error" if any(response.status == "error" for response in line.responses) else "ok",
    settings=lambda line: (_how(line.weights, line), _by(line.weights)),
)
