"""MMMU-Pro (MMMU/MMMU_Pro): ten options, and the same questions as pictures; reported is the mean of both."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from string import ascii_uppercase as LETTERS
from typing import Any

from prism.errors import DataError
from prism.evaluation.benchmarks.base import (
    Benchmark,
    Judged,
    Picture,
    Question,
    Ruling,
    Unit,
    as_value,
    category_values,
    picture_column,
    text_of,
)
from prism.evaluation.benchmarks.mmmu import choose, discipline, option_lines, options_of, with_pictures

STANDARD = "Answer with the option letter from the given choices directly."
VISION = (
    "Answer with the option letter from the given choices directly. The last line of your response should be of the "
    "following format: 'Answer: $LETTER' (without quotes) where LETTER is one of options."
)
SPLITS = ("standard", "vision")


class MmmuPro(Benchmark):
    name, title = "mmmu-pro", "MMMU-Pro"
    repo, files = "MMMU/MMMU_Pro", ("standard (10 options)/test-*.parquet", "vision/test-*.parquet")
    headline = "mean"

    def question(self, row: Mapping[str, Any]) -> Question:
        own, options, gold = text_of(row, "id"), options_of(row), text_of(row, "answer").strip()
        if len(gold) != 1 or gold not in LETTERS[: len(options)]:
            raise DataError(f"the answer {gold!r} is the letter of none of {len(options)} options")
        split = "standard" if row.get("question") else "vision"
        asked = f"{row['question']}\n{option_lines(options)}" if split == "standard" else option_lines(options)
        if split == "standard":
            parts = with_pictures(f"{asked}\n\n{STANDARD}", row)
        else:
            parts = (Picture(picture_column(row, "image")), VISION)
        subject = text_of(row, "subject", "")
        return Question(
            id=f"{split}:{own}",
            parts=parts,
            gold=gold,
            cluster=own,  # the same question in both
            options=options,
            kind="choice",
            asked=asked,
            categories=category_values(
                {
                    "split": split,
                    "subject": subject,
                    "discipline": discipline(subject),
                    "topic_difficulty": row.get("topic_difficulty"),
                }
            ),
            place={"split": split},
        )

    def rule(self, question: Question, response: str) -> Ruling:
        return choose(question, response)

    def units(self, judged: Sequence[Judged]) -> dict[str, list[Unit]]:
        """``mean`` is there if both are."""
        splits: dict[str, list[Unit]] = defaultdict(list)
        for one in judged:
            split = one.question.place["split"]
            splits[split].append(Unit(one.question.id, as_value(one.right), one.question.cluster, split))
        figures = {split: [unit._replace(stratum="") for unit in splits[split]] for split in SPLITS if splits[split]}
        mean = [unit for split in SPLITS for unit in splits[split]]
        return ({"mean": mean} if len(figures) == len(SPLITS) else {}) | figures
