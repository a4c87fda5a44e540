"""MMMU (MMMU/MMMU, validation): letters, or a phrase or number to two decimals; pictures where the text has them."""

import ast
import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase as LETTERS
from typing import Any

from prism.errors import DataError
from prism.evaluation.benchmarks.base import (
    Benchmark,
    Picture,
    Question,
    Ruling,
    category_values,
    text_of,
)
from prism.evaluation.benchmarks.reading import final_answer, option_named, refuses

CHOOSE = "Answer with the option's letter from the given choices directly."
SAY = "Answer the question using a single word or phrase."
PICTURES = tuple(f"image_{number}" for number in range(1, 8))
_PLACE = re.compile(r"<image (\d+)>")
_INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)
DISCIPLINES = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        *("Basic_Medical_Science", "Clinical_Medicine", "Diagnostics_and_Laboratory_Medicine", "Pharmacy"),
        "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": (
        *("Agriculture", "Architecture_and_Engineering", "Computer_Science", "Electronics", "Energy_and_Power"),
        *("Materials", "Mechanical_Engineering"),
    ),
}


class Mmmu(Benchmark):
    name, title = "mmmu", "MMMU"
    repo, files = "MMMU/MMMU", ("*/validation-*.parquet",)

    def question(self, row: Mapping[str, Any]) -> Question:
        own = text_of(row, "id")
        options = options_of(row)
        choice = text_of(row, "question_type") == "multiple-choice"
        golds = listed(text_of(row, "answer")) or (text_of(row, "answer"),)
        subject = "_".join(own.split("_")[1:-1])
        asked = f"{text_of(row, 'question')}\n{option_lines(options)}" if choice else text_of(row, "question")
        if choice and (len(golds[0]) != 1 or golds[0] not in LETTERS[: len(options)]):
            raise DataError(f"the answer {golds[0]!r} is the letter of none of {len(options)} options")
        return Question(
            id=own,
            parts=with_pictures(f"{asked}\n\n{CHOOSE if choice else SAY}", row),
            gold=golds[0],
            golds=golds[1:],
            cluster=own,
            options=options if choice else (),
            kind="choice" if choice else "open",
            asked=asked,
            categories=category_values(
                {
                    "subject": subject,
                    "discipline": discipline(subject),
                    "topic_difficulty": row.get("topic_difficulty"),
                    "question_type": row["question_type"],
                    "img_type": list(listed(text_of(row, "img_type", "")) or ()),
                }
            ),
        )

    def rule(self, question: Question, response: str) -> Ruling:
        if question.kind == "choice":
            return choose(question, response)
        said = final_answer(response)
        if not said.text:
            return Ruling("refused" if refuses(response) else "unparsed")
        given = _given(said.text if said.marked else response, whole=said.marked)
        golds = [one for gold in (question.gold, *question.golds) for one in _normalised(gold)]
        right = any(
            gold in one if isinstance(one, str) and isinstance(gold, str) else one == gold
            for one in given
            for gold in golds
        )
        if not right and refuses(response):
            return Ruling("refused")
        return Ruling("ok", right, said.text)


def choose(question: Question, response: str) -> Ruling:
    """The option that a response means, by the official order of signs: of several the last.

    Where the official scorer draws one at random nothing is drawn, and neither an article nor "I" is a letter.
    """
    said = final_answer(response)
    letter = option_named(said.text, question.options)
    if letter is None:
        letter = _by_signs(said.text if said.marked else said.text.strip(",.!?;:' \n"), question.options)
    if letter is None:
        return Ruling("refused" if refuses(response) else "unparsed")
    return Ruling("ok", letter == question.gold, letter)


def _by_signs(text: str, options: Sequence[str]) -> str | None:
    letters = LETTERS[: len(options)]
    bracketed = {letter: text.rfind(f"({letter})") for letter in letters if f"({letter})" in text}
    if bracketed:
        return max(bracketed, key=lambda letter: bracketed[letter])
    alone = {
        match[1]: match.start()
        for match in re.finditer(r"(?<![\w'’])([A-Z])(?![\w'’])", text)
        if match[1] in letters and not _is_word(text, match)
    }
    if alone:
        return max(alone, key=lambda letter: alone[letter])
    if len(text.split()) > 5:
        lower = text.lower()
        found = {
            letter: [match.start() for match in re.finditer(rf"(?<!\w){re.escape(option.lower())}(?!\w)", lower)]
            for letter, option in zip(letters, options, strict=False)
            if option.strip()
        }
        last = {letter: places[-1] for letter, places in found.items() if places}
        if last:
            return max(last, key=lambda letter: last[letter])
    return None


def _is_word(text: str, match: re.Match[str]) -> bool:
    """Whether the letter is the article, or the pronoun: a word follows that is no verb of an answer."""
    if match[1] not in "AI":
        return False
    following = re.match(r"\s+([A-Za-z'’]+)", text[match.end() :])
    return bool(following) and following[1].lower() not in ("is", "because", "since", "as", "and", "or", "but", "would")


def _given(text: str, *, whole: bool) -> list[float | str]:
    """What the official scorer takes for the answer: what follows the last of its words in each line."""
    text = text.strip().strip(".").lower()
    keys: list[str] = []
    lines = text.split("\n")
    for index, line in enumerate(lines):
        signs = (*_INDICATORS, "=") if index == len(lines) - 1 else _INDICATORS
        tails = [line.split(sign)[-1].strip() for sign in signs if sign in line]
        if (tails := [tail for tail in tails if tail]) and (shortest := min(tails, key=len)) not in set(":,.!?;'"):
            keys.append(shortest)
    if whole or not keys:
        keys = [text, *keys] if whole else [text]
    found = [*keys, *(number for key in keys for pattern in _NUMBERS for number in pattern.findall(key))]
    return [one for each in found for one in _normalised(each)]


def _normalised(text: str) -> list[float | str]:
    text = text.strip()
    try:
        value = float(text.replace(",", ""))
        return [round(value, 2)] if value == value and abs(value) != float("inf") else [text.lower()]
    except ValueError:
        text = text.lower()
    return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def options_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Of a column that holds a list, or one as Python writes it."""
    given = row.get("options")
    if isinstance(given, list | tuple):
        return tuple(str(one) for one in given)
    found = listed(str(given or ""))
    if found is None and str(given or "").strip() not in ("", "[]"):
        raise DataError(f"options {str(given)[:80]!r} are no list")
    return found or ()


def listed(text: str) -> tuple[str, ...] | None:
    """The texts of a list as Python writes it; None for what is none. (A literal is read, nothing is run.)"""
    if not text.strip().startswith("["):
        return None
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return tuple(str(one) for one in value) if isinstance(value, list) else None


def option_lines(options: Sequence[str]) -> str:
    return "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))


def with_pictures(text: str, row: Mapping[str, Any]) -> tuple[str | Picture, ...]:
    """The text with each picture where it is first named; those that it does not name stand before it, in order.

    Raises DataError if it names one that is not there.
    """
    there = [name for name in PICTURES if isinstance(row.get(name), str) and row[name]]
    named = [f"image_{number}" for number in _PLACE.findall(text)]
    if missing := sorted(set(named) - set(there)):
        raise DataError(f"the question names {', '.join(missing)}, which is not there")
    parts: list[str | Picture] = [Picture(name) for name in there if name not in named]
    shown: set[str] = set()
    rest = 0
    for match in _PLACE.finditer(text):
        name = f"image_{match[1]}"
        if name in shown:
            continue
        shown.add(name)
        if before := text[rest : match.start()]:
            parts.append(before)
        parts.append(Picture(name))
        rest = match.end()
    if after := text[rest:]:
        parts.append(after)
    return tuple(parts)


def discipline(subject: str) -> str | None:
    return next((name for name, subjects in DISCIPLINES.items() if subject in subjects), None)
