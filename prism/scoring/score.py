"""``prism score``: a file's responses scored, into tables or into a file that can be gone on with."""

from contextlib import aclosing
from pathlib import Path

from rich.console import Console

from prism.errors import DataError
from prism.scoring.batches import Failed, Judging, Service, score_lines
from prism.scoring.output import Line, Output, Weights, to_line, weights_of
from prism.scoring.rows import row_lines, score_row
from prism.scoring.session import problem_of, progress_of, require_file, require_same_weights, run_until_done
from prism.scoring.summary import Summary, rows_table
from prism.wire.section import Section

FEW_RESPONSES = 40


def score_file(file: Path, out: Path | None, service: Service, how: Judging, *, mixed_versions: bool) -> None:
    """Raises DataError if rows failed, once all others are scored, and ServiceError if weights change meanwhile."""
    require_file(file)
    if out is not None and out.exists() and out.samefile(file):
        raise DataError(f"{out} is the input: name another file to write to")
    summary, few, failed = Summary(), list[Line](), 0
    output = Output(out, summary.add) if out is not None else None

    async def work() -> None:
        nonlocal failed
        async with service.experts() as experts:
            infos = await service.models(how)
            weights: dict[Section, Weights] = {name: weights_of(info, how.section) for name, info in infos.items()}
            if output is not None:
                output.require(how, None if mixed_versions else weights)
            total = output.require_input(file, row_lines(file)) if output else sum(1 for _ in row_lines(file))
            done = output.done if output else {}
            with progress_of("scoring", total, len(done)) as tell:
                todo = (line for line in row_lines(file) if line.index not in done)
                outcomes = score_lines(experts, service, how, todo, lambda line: score_row(line, file.parent))
                async with aclosing(outcomes):
                    async for outcome in outcomes:
                        tell(problem_of(file, outcome))
                        if isinstance(outcome, Failed):
                            failed += 1
                            continue
                        if not mixed_versions:
                            require_same_weights(outcome, infos, "score with --mixed-versions to go on all the same")
                        line = to_line(outcome, how, weights)
                        summary.add(line)
                        if output is not None:
                            output.write(line)
                        elif len(few) <= FEW_RESPONSES:
                            few.append(line)

    try:
        run_until_done(work, f"what is scored is in {out}: the same command goes on" if out else "nothing was kept")
    finally:
        if output is not None:
            output.close()
    console = Console(highlight=False)
    if few and sum(len(line.responses) for line in few) <= FEW_RESPONSES:
        console.print(rows_table(few))
    console.print(summary.table())
    bad = {"have no scores": failed, "have a response with status error": summary.rows_with_errors}
    if sum(bad.values()):
        counts = ", ".join(f"{count} {what}" for what, count in bad.items() if count)
        raise DataError(f"{sum(bad.values())} of {failed + summary.rows} rows in {file} failed: {counts}")
