"""Who checks is checked: on rows of which a person knows what is right, and with the figures in the card."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prism.config import LimitsConfig
from prism.curation.checks import NotChecked
from prism.curation.mine import wilson
from prism.curation.rows import own_row, question_of
from prism.curation.verify import Verifier
from prism.curation.window import work_through
from prism.data.blobs import BlobStore
from prism.data.files import ROW_ERRORS, open_rows
from prism.data.rows import DataFile, DataRow, what_is_wrong
from prism.errors import ConfigError, DataError
from prism.wire.response import parse_response

LABELS = ("answer", "caption", "steps")


@dataclass(frozen=True)
class LabelledRow:
    row: dict[str, Any]
    response: str
    labels: dict[str, bool]


def read_labelled(path: Path, blobs: BlobStore, limits: LimitsConfig) -> list[LabelledRow]:
    """Raises DataError that names file and line: a label that is wrong would count against whoever is right."""
    if not path.is_file():
        raise DataError(f"verify.labelled: {path} does not exist")
    file, found = DataFile(path, limits=limits), list[LabelledRow]()
    for line in open_rows(path):
        try:
            if line.problem:
                raise line.problem
            row = DataRow.model_validate(line.value)
            labels = line.value.get("labels")
            if row.response is None or row.gold is None:
                raise DataError("a labelled row needs a response and a gold answer")
            if not isinstance(labels, dict) or not labels.keys() <= set(LABELS) or not labels:
                raise DataError(f"labels must be some of {', '.join(LABELS)}, each true or false")
            if not all(isinstance(label, bool) for label in labels.values()):
                raise DataError("a label is true or false")
            found.append(LabelledRow(own_row(row, file, blobs), row.response, labels))
        except ROW_ERRORS as error:
            raise DataError(f"{path}:{line.number}: {what_is_wrong(error)}") from None
    if not found:
        raise DataError(f"verify.labelled: {path} holds no row")
    return found


async def find_margin(verifier: Verifier, labelled: Sequence[LabelledRow]) -> float:
    """The margin at which ``false_rejection`` of the faithful captions are rejected, at most.

    Raises ConfigError where too few of them are labelled to tell.
    """
    assert verifier.expert
    faithful = [one for one in labelled if one.labels.get("caption")]
    found = [await _margin(verifier, one) for one in faithful]
    margins = sorted(margin for margin in found if margin is not None)
    may_go = math.floor(verifier.config.false_rejection * len(margins))
    if len(margins) < 20:
        raise ConfigError(
            f"verify.labelled: {len(margins)} faithful captions have a margin, 20 are needed to find one: label more, "
            "or set verify.margin"
        )
    return margins[may_go]


async def _margin(verifier: Verifier, one: LabelledRow) -> float | None:
    assert verifier.expert
    return await verifier.expert.margin(one.row, parse_response(one.response), await verifier.images(one.row))


async def hold_against(verifier: Verifier, labelled: Sequence[LabelledRow]) -> dict[str, Any]:
    """By check: of what is labelled false the share that is caught, of what is labelled true the share rejected.

    The judge is also held against the labels of answers that rules decide, so that its agreement is known. What could
    not be checked is counted, and is in no share.
    """
    seen = dict[str, Counter[tuple[bool, str]]]()

    async def one(row: LabelledRow) -> None:
        try:
            checks = await verifier.checks(row.row, row.response, all_of_them=True)
            outcomes = {name: check.outcome for name, check in checks.items()}
            if verifier.judge and "answer" in row.labels and checks["format"].outcome == "ok":
                golds, answer = [row.row["gold"]], parse_response(row.response).answer
                said = await verifier.judge.check_answer(question_of(row.row), golds, answer)
                outcomes["judge of answers"] = said.outcome
        except NotChecked:
            outcomes = dict.fromkeys(row.labels, "unknown")
        for name, outcome in outcomes.items():
            label = row.labels.get("answer" if name == "judge of answers" else name)
            if label is not None:
                seen.setdefault(name, Counter())[label, outcome] += 1

    await work_through(labelled, one, verifier.config.concurrency)
    return {name: _shares(counts) for name, counts in seen.items()}


def _shares(counts: Counter[tuple[bool, str]]) -> dict[str, Any]:
    false = counts[False, "wrong"] + counts[False, "ok"] + counts[False, "undecided"]
    true = counts[True, "wrong"] + counts[True, "ok"] + counts[True, "undecided"]
    caught, lost = counts[False, "wrong"], counts[True, "wrong"]
    return {
        "labelled_false": false,
        "caught": caught,
        "caught_share": caught / false if false else None,
        "caught_interval": wilson(caught, false) if false else None,
        "labelled_true": true,
        "rejected": lost,
        "rejected_share": lost / true if true else None,
        "rejected_interval": wilson(lost, true) if true else None,
        "unknown": counts[False, "unknown"] + counts[True, "unknown"],
    }
