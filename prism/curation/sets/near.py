"""What is nearly the same: pictures by a perceptual hash, questions by their words, problems by both."""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE, KEPT = 32, 8
SAME_PICTURE = 2  # bits: a copy, at most encoded anew
ROWS_AT_ONCE = 64
Hash = int


@cache
def _cosines() -> NDArray[np.float64]:
    """The first rows of the type II cosine transform. [KEPT, SIDE]"""
    return np.cos(np.pi * np.outer(np.arange(KEPT), np.arange(SIDE) + 0.5) / SIDE)


def picture_hash(image: Image.Image) -> Hash:
    """64 bits of the image's low frequencies, each above or below their median: what imagehash calls phash."""
    grey = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS), dtype=np.float64)
    low = _cosines() @ grey @ _cosines().T
    return int("".join("1" if bit else "0" for bit in (low > np.median(low)).ravel()), 2)


def near_pairs(
    hashes: Sequence[Hash], bits: int, others: Sequence[Hash] | None = None
) -> Iterator[tuple[int, int, int]]:
    """(i, j, distance) of all within ``bits``: i < j of ``hashes``, or i of ``hashes`` and j of ``others``."""
    own = np.array(hashes, np.uint64)
    against = own if others is None else np.array(others, np.uint64)
    for begin in range(0, len(own), ROWS_AT_ONCE):
        distances = np.bitwise_count(own[begin : begin + ROWS_AT_ONCE, None] ^ against[None])
        rows, columns = np.nonzero(distances <= bits)
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            if others is not None or begin + row < column:
                yield begin + row, column, int(distances[row, column])


def words(text: str) -> list[str]:
    """Without case, accents of form, and punctuation."""
    return re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())


def overlap(one: str, other: str) -> float:
    """Share of the shorter text's word triples that the longer has too; of its words, if there are fewer than three."""
    first, second = sorted((words(one), words(other)), key=len)
    size = min(3, len(first))
    if not size:
        return float(not second)
    grams = [{tuple(text[at : at + size]) for at in range(len(text) - size + 1)} for text in (first, second)]
    return len(grams[0] & grams[1]) / len(grams[0])


def plain_gold(gold: str) -> str:
    """For comparing golds of several sources: without case, spaces, dollar signs, a box, a full stop."""
    text = unicodedata.normalize("NFKC", gold).casefold().strip().strip("$").removesuffix(".")
    if boxed := re.fullmatch(r"\\boxed\{(.*)\}", text):
        text = boxed[1]
    return re.sub(r"\s+", "", text)


@dataclass(frozen=True)
class Problem:
    """What tells a problem from another."""

    name: str
    hashes: tuple[Hash, ...]
    question: str
    golds: frozenset[str]


def distance(one: Problem, other: Problem) -> int | None:
    """The largest between their pictures, taken in order; None if they have not as many."""
    if len(one.hashes) != len(other.hashes):
        return None
    return max(((a ^ b).bit_count() for a, b in zip(one.hashes, other.hashes, strict=True)), default=0)


def is_near(one: Problem, other: Problem, bits: int, least_overlap: float) -> bool:
    """Never by the pictures alone: one drawing with another label, or another question about it, is another problem.

    Pictures within ``bits``, and the same answer; or the same question about what is certainly the same picture, or
    about pictures within ``bits`` where an answer is not known. Without pictures: the same question, and answer.
    """
    apart = distance(one, other)
    if apart is None or apart > bits:
        return False
    asks_the_same = overlap(one.question, other.question) >= least_overlap
    unknown = not one.golds or not other.golds
    if not one.hashes:
        return words(one.question) == words(other.question) and (unknown or bool(one.golds & other.golds))
    if asks_the_same and (unknown or apart <= SAME_PICTURE):
        return True
    return bool(one.golds & other.golds) and (asks_the_same or _share_a_word(one.question, other.question))


def _share_a_word(one: str, other: str) -> bool:
    """Most of the shorter's words: the same answer to a question that is put in other words."""
    first, second = set(words(one)), set(words(other))
    return len(first & second) * 2 >= min(len(first), len(second))


class Clusters:
    """Sets that grow together. (Union-find.)"""

    def __init__(self, count: int) -> None:
        self._above = list(range(count))

    def root(self, one: int) -> int:
        while self._above[one] != one:
            self._above[one] = one = self._above[self._above[one]]
        return one

    def join(self, one: int, other: int) -> None:
        first, second = sorted((self.root(one), self.root(other)))
        self._above[second] = first
