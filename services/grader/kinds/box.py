"""Kind ``box``: visual grounding. A bounding box by IoU, a point by distance, or by lying inside the gold box.

``[x1, y1, x2, y2]`` in the gold answer's coordinates, in any of the usual spellings (JSON, Qwen's ``bbox_2d`` and
``<|box_start|>``, ``<box>(x1,y1),(x2,y2)</box>``); a point is two numbers.
"""

import math
import re
from dataclasses import dataclass

from prism.services.grader.verdict import Match, Options, Unreadable, shown

MAX_BOX_CHARS = 400
_KNOWN = re.compile(
    r"bbox_2d|point_2d|<\|?/?(?:box|point|box_start|box_end)\|?>|bounding box|bbox|point|box", re.IGNORECASE
)
_LABEL = re.compile(r'"label"\s*:\s*"[^"]*"')
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,9}(?:\.[0-9]{0,12})?|\.[0-9]{1,12})")
_FILLING = re.compile(r"[\s,;:()\[\]{}\"'`=]*(?:x1|y1|x2|y2|x|y|json)?[\s,;:()\[\]{}\"'`=]*", re.IGNORECASE)
_COORDINATE_NAME = re.compile(r"\b[xy][12]?\s*[\"']?\s*[:=]", re.IGNORECASE)


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


def read(text: str, options: Options) -> Box | Point:
    """Raises Unreadable: not two or four numbers, something beside them, or a box without area."""
    if len(text) > MAX_BOX_CHARS:
        raise Unreadable(f"longer than the {MAX_BOX_CHARS} characters of any box")
    plain = _COORDINATE_NAME.sub(" ", _KNOWN.sub(" ", _LABEL.sub(" ", text)))
    numbers = [float(number) for number in _NUMBER.findall(plain)]
    if not _FILLING.fullmatch(_NUMBER.sub(" ", plain).rstrip(". ")):
        raise Unreadable(f"neither a box nor a point: {shown(text)!r}")
    if len(numbers) == 2:
        return Point(*numbers)
    if len(numbers) != 4:
        raise Unreadable(f"neither a box (4 numbers) nor a point (2), but {len(numbers)} numbers: {shown(text)!r}")
    box = Box(*numbers)
    if box.x2 <= box.x1 or box.y2 <= box.y1:
        raise Unreadable(f"a box without area (x1 < x2 and y1 < y2 is needed): {shown(text)!r}")
    return box


def same(gold: Box | Point, answer: Box | Point, options: Options) -> Match:
    match gold, answer:
        case Box(), Box():
            iou = intersection_over_union(gold, answer)
            return Match(iou >= options.iou, f"box: IoU {iou:.3f}, {options.iou:g} needed", (("iou", iou),))
        case Point(), Point():
            distance = math.hypot(gold.x - answer.x, gold.y - answer.y)
            how = f"point: distance {distance:.3f}, at most {options.distance:g}"
            return Match(distance <= options.distance, how, (("distance", distance),))
        case Box(), Point():
            inside = gold.x1 <= answer.x <= gold.x2 and gold.y1 <= answer.y <= gold.y2
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
