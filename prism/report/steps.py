"""Which lines of ``metrics.jsonl`` count when a run was killed and resumed."""

from collections.abc import Sequence

from prism.report.records import Step


def surviving(lines: Sequence[Step]) -> list[Step]:
    """The steps of one stage that led to its weights, in order; ``lines`` are its lines in the order of the file.

    A resumed attempt goes on from a checkpoint, so what earlier attempts did from its first step on was thrown away.
    Lines without an attempt (SFT's) tell a resume by counting back. Within an attempt a step's last line counts.
    """
    kept: dict[int, Step] = {}
    attempt = previous = None
    for line in sorted(lines, key=lambda step: step.attempt or 0):  # stable: the order of the file within an attempt
        counts_back = line.attempt is None and previous is not None and line.step <= previous
        if kept and (line.attempt != attempt or counts_back):
            kept = {step: kept[step] for step in kept if step < line.step}
        kept[line.step] = line
        attempt, previous = line.attempt, line.step
    return [kept[step] for step in sorted(kept)]
