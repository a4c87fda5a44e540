"""We-Math (We-Math/We-Math, testmini): problems of two and three steps beside each of their steps.

Of a problem and its steps: IK (a step and the problem wrong), IG (the steps right, the problem wrong), RM (the problem
right though a step is wrong), CM (all right). The score is (n − 0.5·IG − RM − IK) / n over n = 525 of these groups.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from prism.evaluation.benchmarks.base import (
    Benchmark,
    Judged,
    Picture,
    Question,
    Ruling,
    Unit,
    category_values,
    picture_column,
    text_of,
)
from prism.evaluation.benchmarks.reading import Said, final_answer, option_in, option_named, refuses

PROMPT = (
    "Now, we require you to solve a multiple-choice math question. Please briefly describe your thought process and "
    "provide the final answer(option).\nQuestion: {question}\nOption: {option}\nRegarding the format, please answer "
    "following the template below, and be sure to include two <> symbols:\n"
    "<Thought process>: <<your thought process>> <Answer>: <<your option>>"
)
_TEMPLATE = re.compile(r"<?answer>?\s*[:：]\s*<<\s*(.*?)\s*>>", re.DOTALL | re.IGNORECASE)
_OPTION = re.compile(r"\s*([A-H])\s*[.:]\s*(.*?)\s*(?:;\s*(?=[A-H]\s*[.:])|;?\s*\Z)", re.DOTALL)


class WeMath(Benchmark):
    name, title = "wemath", "We-Math"
    repo, files = "We-Math/We-Math", ("**/testmini-*.parquet",)
    headline = "score_strict"

    def question(self, row: Mapping[str, Any]) -> Question:
        key, option = text_of(row, "key"), text_of(row, "option")
        steps, _, step = key.partition("_")
        group = f"{steps}:{text_of(row, 'ID')}"
        asked = f"{text_of(row, 'question')}\n{option}"
        concept = row.get("knowledge concept")
        return Question(
            id=f"{group}:{step}",
            parts=(
                Picture(picture_column(row, "image_path", "image")),
                PROMPT.format(question=text_of(row, "question"), option=option),
            ),
            gold=text_of(row, "answer").strip().upper(),
            cluster=group,
            options=options_of(option),
            kind="choice",
            asked=asked,
            categories=category_values(
                {"steps": {"multi": steps}.get(step, "1step"), "knowledge": concept if step != "multi" else None}
            ),
            place={"group": group, "step": step, "steps": steps},
        )

    def rule(self, question: Question, response: str) -> Ruling:
        filled = _TEMPLATE.findall(response)
        said = Said(filled[-1], True) if filled else final_answer(response)
        letter = option_in(said, question.options, count=8)
        if letter is None and not question.options:
            letter = option_named(said.text, (), count=8)
        if letter is None:
            return Ruling("refused" if refuses(response) else "unparsed")
        return Ruling("ok", letter == question.gold, letter)

    def units(self, judged: Sequence[Judged]) -> dict[str, list[Unit]]:
        groups: dict[str, list[Judged]] = defaultdict(list)
        for one in judged:
            groups[one.question.place["group"]].append(one)
        values = {group: _four(members) for group, members in groups.items() if _is_whole(members)}
        figures = {
            name: [Unit(group, None if four is None else four[name], group) for group, four in values.items()]
            for name in ("score_strict", "score_loose", "IK", "IG", "CM_strict", "CM_loose", "RM_strict", "RM_loose")
        }
        return super().units(judged) | figures


def _is_whole(members: Sequence[Judged]) -> bool:
    """Whether the problem and each of its steps was asked: of a slice, some are not."""
    steps = int(members[0].question.place["steps"][0])
    return {one.question.place["step"] for one in members} == {"multi", *(str(i + 1) for i in range(steps))}


def _four(members: Sequence[Judged]) -> dict[str, float] | None:
    """Each figure of one problem; None if a member is masked."""
    if any(one.right is None for one in members):
        return None
    right = next(bool(one.right) for one in members if one.question.place["step"] == "multi")
    steps = [bool(one.right) for one in members if one.question.place["step"] != "multi"]
    ik, ig = not right and not all(steps), not right and all(steps)
    strict, loose = right and all(steps), right and any(steps)
    return {
        "score_strict": strict + 0.5 * ig,
        "score_loose": loose + 0.5 * ig,
        "IK": float(ik),
        "IG": float(ig),
        "CM_strict": float(strict),
        "CM_loose": float(loose),
        "RM_strict": float(right and not strict),
        "RM_loose": float(right and not loose),
    }


def options_of(text: str) -> tuple[str, ...]:
    """The texts of ``A. 3; B. 4``. Empty where they cannot be told."""
    found = _OPTION.findall(text)
    letters = [letter for letter, _ in found]
    return tuple(one for _, one in found) if letters == [chr(65 + i) for i in range(len(letters))] else ()
