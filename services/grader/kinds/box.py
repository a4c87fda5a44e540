"""Kind ``box``: visual grounding. Bounding boxes by IoU, points by distance, or by lying inside the gold box.

The usual spellings are read: JSON with or without quotes, fences and labels (``bbox_2d``, ``point_2d``, ``box_2d``,
whose order is y first), Qwen's ``<|box_start|>`` beside ``<|object_ref_start|>``, ``<ref>``/``<box>``, Molmo's
``<point x= y=>``. A box is four numbers, a point two; of several, each must meet another one of the gold answer's.

What numbers mean is said by the options: their order, and in which scale they are. No scale is guessed: an answer that
is right in one image size is wrong in another.
"""

import functools
import math
import re
import unicodedata
from dataclasses import dataclass

from prism.services.grader.kinds.multi import most_pairs
from prism.services.grader.verdict import GoldUnreadable, Match, Options, Unreadable, shown

MAX_BOX_CHARS = 4096
MAX_SHAPES = 64
_LABEL = re.compile(
    r"([\"'])(?:label|name|category|class|description|text|ref|object|caption|alt)\1\s*:\s*(?:\"[^\"]*\"|'[^']*')"
    r"|\b(?:alt|label)\s*=\s*(?:\"[^\"]*\"|'[^']*')|([\"'])(?:score|confidence|id)\2\s*:\s*[0-9.]+",
    re.IGNORECASE,
)
_REF = re.compile(r"<ref>[^<]*</ref>|<\|object_ref_start\|>[^<]*<\|object_ref_end\|>", re.IGNORECASE)
_POINT_TAG = re.compile(
    r"<points?\b((?:\s+[xy][0-9]{0,2}\s*=\s*[\"']?[0-9.]{1,20}[\"']?)+)\s*/?>(?:[^<]*</points?>)?", re.IGNORECASE
)
_KNOWN = re.compile(
    r"bbox(?:es)?_2d|points?_2d|box_2d|<\|?/?(?:box|points?|box_start|box_end|quad_start|quad_end)\|?>"
    r"|bounding[ _]box(?:es)?|bbox(?:es)?|points?|box(?:es)?|coordinates|```(?:json)?|\bjson\b",
    re.IGNORECASE,
)
_WORDY = re.compile("[A-Za-z_<|`]")
_NUMBER = re.compile(
    r"([+-]?(?:[0-9]{1,9}(?:\.[0-9]{0,12})?|\.[0-9]{1,12})(?:e[+-]?[0-9]{1,2}(?![0-9]))?)", re.IGNORECASE
)
_FILLING = re.compile(r"(?:[\s,;:()\[\]{}\"'`=*$]|and\b)*", re.IGNORECASE)
_LEADS = re.compile(
    r"\A\s*(?:the )?(?:bounding[ _]box(?:es)?|bbox(?:es)?|box(?:es)?|points?|coordinates|it) (?:is|are)\b",
    re.IGNORECASE,
)
_NAMES = re.compile(
    r"\b(?:(x_?min|x1|left)|(y_?min|y1|top)|(x_?max|x2|right)|(y_?max|y2|bottom)|(width|w)|(height|h)|(x)|(y))"
    r"\s*[\"']?\s*[:=]\s*[\"']?(?=[-+.0-9])",
    re.IGNORECASE,
)
_GROUP = re.compile(r"[\[({][^\[\](){}]*[\])}]")
_WRAPPING = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "«": '"', "»": '"', "−": "-"})

_FULL_SIZE = {"0-1": 1.0, "0-1000": 1000.0}


@dataclass(frozen=True, slots=True)
class Box:
    x1: float
    y1: float
    x2: float
    y2: float

    @property
    def area(self) -> float:
        return (self.x2 - self.x1) * (self.y2 - self.y1)


@dataclass(frozen=True, slots=True)
class Point:
    x: float
    y: float


Shapes = tuple[Box, ...] | tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Raw:
    """The numbers of each shape as they were written, and the order that the text itself says, if it does."""

    shapes: tuple[tuple[float, ...], ...]
    order: str | None
    text: str


def read(text: str, options: Options) -> Raw:
    """Raises Unreadable: neither boxes nor points, something beside them, or a box without area in either reading."""
    found = _raw(text)
    if not any(_has_area(found, order) for order in (options.gold_box_order, options.box_order)):
        raise Unreadable(f"a box without area (x1 < x2 and y1 < y2 is needed): {shown(text)!r}")
    return found


@functools.lru_cache(maxsize=4096)
def _raw(text: str) -> Raw:
    if len(text) > MAX_BOX_CHARS:
        raise Unreadable(f"longer than the {MAX_BOX_CHARS} characters of any box")
    plain = text if text.isascii() else unicodedata.normalize("NFKC", text).translate(_WRAPPING)
    names: list[int | None] = []
    bare = plain
    if _WORDY.search(plain):
        plain = _LEADS.sub("", plain, count=1)
        plain = _POINT_TAG.sub(_point_tag, _LABEL.sub(" ", _REF.sub(" ", plain)))
        names = [match.lastindex for match in _NAMES.finditer(plain)]
        bare = _KNOWN.sub(" ", _NAMES.sub(" ", plain))
    parts = _NUMBER.split(bare)
    numbers = tuple(map(float, parts[1::2]))
    if not _FILLING.fullmatch(" ".join(parts[::2]).rstrip(". ")):
        raise Unreadable(f"neither a box nor a point: {shown(text)!r}")
    raw = _named(names, numbers) or _grouped(plain, bare, numbers)
    if not raw or len(raw[0]) > MAX_SHAPES:
        raise Unreadable(f"neither a box (4 numbers) nor a point (2): {shown(text)!r}")
    shapes, order = raw
    return Raw(shapes, order, text)


def same(gold: Raw, answer: Raw, options: Options) -> Match:
    """Raises Unreadable for a box that has no area in its order; GoldUnreadable, if it is the gold answer's."""
    try:
        golds = _place(gold, options.gold_box_order, None)
    except Unreadable as why:
        raise GoldUnreadable(str(why)) from None
    answers = _place(answer, options.box_order, _factors(options))
    first, first_answer = golds[0], answers[0]
    if len(golds) > 1 or len(answers) > 1:
        return _same_sets(golds, answers, options)
    match first, first_answer:
        case Box() as one, Box() as other:
            iou = intersection_over_union(one, other)
            how = f"box: IoU {iou:.3f}, {options.iou:g} needed"
            return Match(iou >= options.iou, how, (("iou", iou),), iou if options.graded else None)
        case Point() as one, Point() as other:
            distance = math.hypot(one.x - other.x, one.y - other.y)
            how = f"point: distance {distance:.3f}, at most {options.distance:g}"
            return Match(distance <= options.distance, how, (("distance", distance),))
        case Box() as one, Point() as other:
            inside = one.x1 <= other.x <= one.x2 and one.y1 <= other.y <= one.y2
            return Match(inside, "point: inside the gold box" if inside else "point: outside the gold box")
        case _:
            return Match(False, "box: a box was given where a point is asked for")


def intersection_over_union(one: Box, other: Box) -> float:
    width = min(one.x2, other.x2) - max(one.x1, other.x1)
    height = min(one.y2, other.y2) - max(one.y1, other.y1)
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / (one.area + other.area - both)


def _same_sets(golds: Shapes, answers: Shapes, options: Options) -> Match:
    """Each gold shape needs an answer of its own, and nothing may be left over."""
    if isinstance(golds[0], Box) != isinstance(answers[0], Box):
        return Match(False, "box: boxes and points")
    fits = [[_closeness(gold, answer, options) for answer in answers] for gold in golds]
    most = max(len(golds), len(answers))
    met = most_pairs([[fit >= 0 for fit in row] for row in fits])
    how = f"box: {met} of {len(golds)} met, {len(answers)} given"
    components = (("parts", met / most),)
    if not isinstance(golds[0], Box):
        return Match(met == most, how, components)
    # The best pairs first: for a mean that is near enough, and never over the best one.
    ious = sorted(((fit + options.iou, i, j) for i, row in enumerate(fits) for j, fit in enumerate(row)), reverse=True)
    taken_golds, taken_answers, total = set[int](), set[int](), 0.0
    for iou, i, j in ious:
        if i not in taken_golds and j not in taken_answers:
            taken_golds.add(i)
            taken_answers.add(j)
            total += iou
    mean = min(1.0, total / most)
    return Match(met == most, how, (("iou", mean), *components), mean if options.graded else None)


def _closeness(gold: Box | Point, answer: Box | Point, options: Options) -> float:
    """How much better than needed; negative if it is not enough."""
    if isinstance(gold, Box) and isinstance(answer, Box):
        return intersection_over_union(gold, answer) - options.iou
    if isinstance(gold, Point) and isinstance(answer, Point):
        return options.distance - math.hypot(gold.x - answer.x, gold.y - answer.y)
    return -1.0


def _factors(options: Options) -> tuple[float, float] | None:
    """What the answer's x and y are multiplied by, to be in the gold answer's scale. None: they are in it."""
    answer, gold = options.box_scale, options.gold_box_scale
    if answer == "same" or answer == gold:
        return None
    sizes: list[tuple[float, float]] = []
    for scale in (gold, answer):
        if scale == "pixels":
            if not options.image_size:
                raise Unreadable(f"in {answer}, the gold answer in {gold}: options.image_size is needed")
            sizes.append(options.image_size)
        else:
            sizes.append((_FULL_SIZE[scale], _FULL_SIZE[scale]))
    (gold_width, gold_height), (width, height) = sizes
    return gold_width / width, gold_height / height


def _place(raw: Raw, order: str, factors: tuple[float, float] | None) -> Shapes:
    across, down = factors or (1.0, 1.0)
    order = raw.order or order
    if len(raw.shapes[0]) == 2:
        turned = order == "yxyx"
        return tuple(Point(s[turned] * across, s[not turned] * down) for s in raw.shapes)
    if not _has_area(raw, order):
        raise Unreadable(f"a box without area (x1 < x2 and y1 < y2 is needed): {shown(raw.text)!r}")
    corners = (_corners(shape, order) for shape in raw.shapes)
    return tuple(Box(x1 * across, y1 * down, x2 * across, y2 * down) for x1, y1, x2, y2 in corners)


def _has_area(raw: Raw, order: str) -> bool:
    if len(raw.shapes[0]) == 2:
        return True
    corners = (_corners(shape, raw.order or order) for shape in raw.shapes)
    return all(x1 < x2 and y1 < y2 for x1, y1, x2, y2 in corners)


def _corners(shape: tuple[float, ...], order: str) -> tuple[float, ...]:
    """(x1, y1, x2, y2)"""
    a, b, c, d = shape
    match order:
        case "yxyx":
            return b, a, d, c
        case "xywh":
            return a, b, a + c, b + d
        case _:
            return shape


def _point_tag(tag: re.Match[str]) -> str:
    numbers = _NUMBER.findall(re.sub(r"[xy][0-9]{0,2}\s*=", " ", tag[1], flags=re.IGNORECASE))
    return " ".join(f"({x}, {y})" for x, y in zip(numbers[::2], numbers[1::2], strict=False)) + " points "


def _named(
    names: list[int | None], numbers: tuple[float, ...]
) -> tuple[tuple[tuple[float, ...], ...], str | None] | None:
    """One box or point whose numbers have names, in any order; None if it is none."""
    value = dict(zip(names, numbers, strict=False))
    if not names or not len(value) == len(names) == len(numbers):
        return None
    for wanted, order in (((1, 2, 3, 4), "xyxy"), ((7, 8, 5, 6), "xywh"), ((1, 2, 5, 6), "xywh"), ((7, 8), "xyxy")):
        if set(wanted) == set(value):
            return (tuple(value[name] for name in wanted),), order
    return None


def _grouped(
    plain: str, bare: str, numbers: tuple[float, ...]
) -> tuple[tuple[tuple[float, ...], ...], str | None] | None:
    """Boxes or points whose numbers stand in brackets, or one without any. ``bare`` is ``plain`` without its words."""
    order = "yxyx" if "box_2d" in plain and "bbox_2d" not in plain else None
    points = "point" in plain.lower()
    if len(numbers) in (2, 4) and not (points and len(numbers) == 4):
        return (numbers,), order
    groups = [tuple(map(float, _NUMBER.findall(group))) for group in _GROUP.findall(bare)]
    sizes = {len(group) for group in groups}
    if sum(map(len, groups)) != len(numbers):  # some stand outside all brackets
        return None
    if sizes == {4} or (sizes == {2} and points):
        return tuple(groups), order
    if sizes == {2} and len(groups) % 2 == 0:  # boxes by their corners
        corners = zip(groups[::2], groups[1::2], strict=True)
        return tuple((*one, *other) for one, other in corners), order
    return None
