"""Who checks is checked: on rows of which a person knows what is right, and with the figures in the card."""

import math
from collections import Counter
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prism.config import LimitsConfig
from prism.curation.checks import Check, NotChecked
from prism.curation.checks.expert import judge_margin
from prism.curation.mine import wilson
from prism.curation.rows import own_row, question_of
from prism.curation.verify import Verifier, decide
from prism.curation.window import work_through
from prism.data.blobs import BlobStore
from prism.data.files import ROW_ERRORS, open_rows
from prism.data.rows import DataFile, DataRow, what_is_wrong
from prism.errors import ConfigError, DataError
from prism.wire.response import parse_response

LABELS = ("answer", "caption", "steps")
CAPTION_BY = "caption, by the {}"
"""Of whom does not decide on captions, and is held against the labels all the same."""
LEAST = 20
"""Faithful captions that a margin is found on."""


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


async def hold_against(verifier: Verifier, labelled: Sequence[LabelledRow]) -> dict[str, Any]:
    """By check: of what is labelled false the share that is caught, of what is labelled true the share rejected.

    The judge is also held against the labels of answers that rules decide, and whoever is ``second`` against those of
    captions, so that their agreement is known. What could not be checked is counted, and is in no share.

    Finds ``verifier.margin`` where an expert is asked and it is not given; the expert's own figures are then of a
    margin that was found on the other half of the sample. Raises ConfigError where too few captions are labelled.
    """
    seen = dict[str, Counter[tuple[bool, str]]]()
    deciding, second = verifier.config.caption, verifier.config.second

    def count(name: str, label: bool | None, outcome: str) -> None:
        if label is not None:
            seen.setdefault(name, Counter())[label, outcome] += 1

    if verifier.expert:
        name = "caption" if deciding == "expert" else CAPTION_BY.format("expert")
        for label, outcome in await outcomes_of_expert(verifier, labelled):
            count(name, label, outcome)

    async def one(row: LabelledRow) -> None:
        try:
            checks = await verifier.checks(row.row, row.response, all_of_them=True, caption=deciding != "expert")
        except NotChecked:
            for name, label in row.labels.items():
                if name != "caption" or deciding != "expert":
                    count(name, label, "unknown")
            return
        for name, check in checks.items():
            count(name, row.labels.get(name), outcome_of(name, check))
        if not verifier.judge or checks["format"].outcome != "ok":
            return
        response = parse_response(row.response)
        if "answer" in row.labels:
            golds = [row.row["gold"]]
            said = verifier.judge.check_answer(question_of(row.row), golds, response.answer)
            count("judge of answers", row.labels["answer"], await _outcome("answer", said))
        if second == "judge" and "caption" in row.labels:
            said = verifier.caption(row.row, row.response, "judge")
            count(CAPTION_BY.format("judge"), row.labels["caption"], await _outcome("caption", said))

    await work_through(labelled, one, verifier.config.concurrency)
    return {name: _shares(counts) for name, counts in sorted(seen.items())}


async def _outcome(name: str, check: Awaitable[Check]) -> str:
    try:
        return outcome_of(name, await check)
    except NotChecked:
        return "unknown"


def outcome_of(name: str, check: Check) -> str:
    """What becomes of an answer by this check alone: what is undecided is rejected, except steps without equations."""
    return "wrong" if decide({name: check})[0] == "rejected" else "ok"


async def outcomes_of_expert(verifier: Verifier, labelled: Sequence[LabelledRow]) -> list[tuple[bool, str]]:
    """Label and outcome of each caption that is labelled, by a margin that its own half had no part in."""
    config, margins = verifier.config, dict[int, float | None]()
    rows = [(row, parse_response(row.response)) for row in labelled if "caption" in row.labels]
    rows = [(row, response) for row, response in rows if verifier.check_format(response).outcome == "ok"]
    unknown = set[int]()

    async def one(number: int) -> None:
        row, response = rows[number]
        try:
            margins[number] = await verifier.expert_margin(row.row, response)
        except NotChecked:
            unknown.add(number)

    await work_through(range(len(rows)), one, config.concurrency)
    labels = [row.labels["caption"] for row, _ in rows]
    faithful = [number for number, margin in sorted(margins.items()) if labels[number] and margin is not None]
    if config.margin is None and len(faithful) < LEAST:
        raise ConfigError(
            f"verify.labelled: {len(faithful)} faithful captions have a margin, {LEAST} are needed to find one: label "
            "more, or set verify.margin"
        )

    def least(numbers: Sequence[int]) -> float:
        """The margin at which ``false_rejection`` of these are rejected, at most."""
        known = sorted(margin for number in numbers if (margin := margins[number]) is not None)
        return known[math.floor(config.false_rejection * len(known))]

    halves = [config.margin] * 2 if config.margin is not None else [least(faithful[half::2]) for half in (1, 0)]
    verifier.margin = config.margin if config.margin is not None else least(faithful)
    half_of = {number: place % 2 for place, number in enumerate(faithful)}
    found = [(labels[number], "unknown") for number in sorted(unknown)]
    for number, margin in margins.items():
        check = judge_margin(margin, halves[half_of.get(number, number % 2)])
        found.append((labels[number], outcome_of("caption", check)))
    return found


def _shares(counts: Counter[tuple[bool, str]]) -> dict[str, Any]:
    false = counts[False, "wrong"] + counts[False, "ok"]
    true = counts[True, "wrong"] + counts[True, "ok"]
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
