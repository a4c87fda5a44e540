"""A judge that never sees the picture: how often question and text alone tell the teacher's response from another's.

It is fit on the text of some prompts and asked about others. If it does well, so can an expert without looking, and the
game teaches words instead of sight.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from prism.wire.response import EXPERTS, Expert, parse_response

Part = Expert | Literal["whole"]
PARTS: tuple[Part, ...] = (*EXPERTS, "whole")
WORDS = r"\w+|[^\w\s]|\n"  # numbers whole, signs and line ends too


@dataclass(frozen=True)
class Pair:
    """Two responses to one prompt."""

    question: str
    teacher: str
    other: str


@dataclass(frozen=True)
class Told:
    """Of the pairs asked about: the share told apart, ties as half; and how many there were."""

    share: float
    pairs: int


def told_apart(pairs: Sequence[Pair], part: Part, *, seed: int = 0, fit_share: float = 0.6) -> Told:
    """Fit on the first ``fit_share`` of the pairs, in an order of ``seed``'s own, and ask about the rest.

    The judge is a logistic regression on counts of one to three words or signs in a row, apart for each question and
    over all of them, and on lengths. Pairs of which a text is malformed are left out. Raises ValueError where fewer
    than 20 are left.
    """
    usable = [p for p in pairs if _section(p.teacher, part) is not None and _section(p.other, part) is not None]
    if len(usable) < 20:
        raise ValueError(
            f"{len(usable)} of {len(pairs)} pairs are well-formed: too few for a judge without the picture"
        )
    usable = [usable[i] for i in np.random.default_rng(seed).permutation(len(usable))]
    teachers, others = (
        [_text(p.question, text, part) for p, text in zip(usable, texts, strict=True)]
        for texts in ([p.teacher for p in usable], [p.other for p in usable])
    )
    boundary = round(len(usable) * fit_share)
    # Its stub knows names alone.
    vectorizer = CountVectorizer(analyzer=_features, min_df=3)  # pyright: ignore[reportArgumentType]
    vectorizer.fit([*teachers[:boundary], *others[:boundary]])
    difference = sparse.csr_matrix(vectorizer.transform(teachers) - vectorizer.transform(others))
    judge = LogisticRegression(C=0.05, fit_intercept=False, max_iter=200)
    fit = difference[:boundary]
    judge.fit(sparse.vstack([fit, -fit]), [1] * boundary + [0] * boundary)
    margins = difference[boundary:] @ judge.coef_[0]
    return Told(float(np.mean((margins > 0) + 0.5 * (margins == 0))), len(margins))


def _section(response: str, part: Part) -> str | None:
    parsed = parse_response(response)
    if not parsed.valid:
        return None
    return response if part == "whole" else parsed.section(part)


def _text(question: str, response: str, part: Part) -> tuple[str, str]:
    return question, _section(response, part) or ""


_split = CountVectorizer(token_pattern=WORDS, ngram_range=(1, 3), lowercase=False).build_analyzer()


def _features(text: tuple[str, str]) -> list[str]:
    question, section = text
    found = [*_split(section), *["a line"] * section.count("\n")]
    return [*found, *(f"{question}|{feature}" for feature in found)]
