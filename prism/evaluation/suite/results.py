"""What an evaluation left: figures, questions and samples, read again without the benchmark's files."""

import json
from pathlib import Path
from typing import Any

from prism.errors import ConfigError, DataError
from prism.evaluation.benchmarks import BENCHMARKS
from prism.evaluation.benchmarks.base import Question, Unit
from prism.evaluation.suite.figures import Scorer, by_scorer, sample_units
from prism.evaluation.suite.judge import is_right
from prism.evaluation.suite.run import RESULT
from prism.evaluation.suite.samples import Sample, Verdict, View, read_samples, read_verdicts

Result = dict[str, Any]


def read_result(folder: Path) -> Result:
    """Raises ConfigError where no evaluation has ended."""
    try:
        return json.loads((folder / RESULT).read_text())
    except FileNotFoundError:
        raise ConfigError(f"{folder} holds no {RESULT}: `prism evaluate` has not ended there") from None
    except ValueError as error:
        raise ConfigError(f"{folder / RESULT}: {error}") from None


def read_questions(folder: Path) -> dict[str, Question]:
    """By id, without what was asked in full. Raises DataError."""
    try:
        records = json.loads((folder / "questions.json").read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / 'questions.json'}: {error}") from None
    out: dict[str, Question] = {}
    for record in records:
        text = record.pop("text")
        record["categories"] = {name: tuple(values) for name, values in record["categories"].items()}
        record |= {name: tuple(record[name]) for name in ("options", "golds")}
        out[record["id"]] = Question(parts=(text,), **record)
    return out


def newest(samples: list[Sample], view: View) -> list[Sample]:
    """Of each question's each sample the one that was taken last: others were asked otherwise."""
    own: dict[tuple[str, int], Sample] = {}
    for sample in samples:
        if sample.view == view:
            own[sample.question, sample.sample] = sample
    return list(own.values())


def read_verdicts_by_sample(folder: Path) -> dict[tuple[str, int, View], Verdict]:
    """The newest of each. Raises DataError."""
    return {(one.question, one.sample, one.view): one for one in read_verdicts(folder)}


def read_units(
    folder: Path, name: str, kind: str, n: int, scorer: Scorer, view: View = "seen"
) -> dict[str, list[Unit]]:
    """Every figure's units, as they were scored. Raises DataError."""
    questions, verdicts = read_questions(folder / name), read_verdicts_by_sample(folder / name)

    def opinion(sample: Sample) -> bool | None:
        verdict = verdicts.get((sample.question, sample.sample, sample.view))
        judged = verdict if sample.status in ("ok", "unparsed") else None
        return is_right(questions[sample.question], judged) if judged and judged.status == "ok" else None

    samples = [one for one in newest(list(read_samples(folder / name)), view) if one.question in questions]
    scored = by_scorer(samples, opinion)[scorer]
    return sample_units(BENCHMARKS[kind], list(questions.values()), scored, n)
