"""One file a kind. Each has ``read(text, options)``, which raises Unreadable, and ``same(gold, answer, options)``.

``compare`` is all the grader knows of them. ``is_fast`` says which tasks are linear in short texts, so that the server
may compare them itself; all others belong into a worker process.
"""

import importlib
from types import ModuleType
from typing import Any

from prism.services.grader.kinds import auto, box, choice, date, multi, number, short, text
from prism.services.grader.verdict import AnswerPair, GoldUnreadable, Match, Options, Outcome, Unreadable, shown

_MODULES: dict[str, ModuleType] = {"box": box, "choice": choice, "date": date, "multi": multi, "number": number} | {
    "short": short,
    "text": text,
}
MAX_FAST_CHARS = 512


def module(kind: str) -> ModuleType:
    """math is imported at its first use: the server never needs sympy."""
    if kind not in _MODULES:
        _MODULES[kind] = importlib.import_module(f"prism.services.grader.kinds.{kind}")
    return _MODULES[kind]


def resolve(kind: str, gold: str, options: Options) -> str:
    return auto.resolve(gold, options) if kind == "auto" else kind


def resolve_part(part: str, options: Options) -> str:
    """As ``resolve``, for a part of a multi: that is never a multi itself."""
    return auto.resolve(part, options, part=True) if options.part_kind == "auto" else options.part_kind


def is_fast(task: AnswerPair) -> bool:
    if task.answer is not None and len(task.answer) > MAX_FAST_CHARS:
        return False
    return all(len(gold) <= MAX_FAST_CHARS and _is_fast(task.kind, gold, task.options) for gold in task.golds)


def _is_fast(kind: str, gold: str, options: Options) -> bool:
    match resolve(kind, gold, options):
        case "math":
            return False
        case "multi":
            try:
                parts = multi.read(gold, options)
            except Unreadable:
                return True
            return not any(resolve_part(part, options) == "math" for part in parts)
        case _:
            return True


def compare(task: AnswerPair) -> Outcome:
    """Right if the answer is the same as one of the gold answers. Raises whatever a comparison raises but Unreadable.

    The gold answers are read first: where none can be read, no answer is wrong.
    """
    options = task.options
    golds: list[tuple[str, Any]] = []
    problem = "missing"
    for gold in task.golds:
        kind = resolve(task.kind, gold, options)
        try:
            golds.append((kind, _read_gold(kind, gold, options)))
        except Unreadable as why:
            problem = str(why)
    if not golds:
        return Outcome("unparseable_gold", detail=f"the gold answer is {problem}")
    if task.answer is None:
        if all(getattr(gold, "understood", True) is False for _, gold in golds):
            return Outcome("unparseable_gold", detail="the gold answer can only be compared as a text")
        return Outcome("ok")
    best: Match | None = None
    gold_problem: str | None = None
    for kind, gold in golds:
        try:
            match = _match(kind, gold, module(kind).read(task.answer, options), options)
        except GoldUnreadable as why:
            gold_problem = str(why)
            continue
        except Unreadable as why:
            problem = str(why)
            continue
        if best is None or match.right:
            best = match
        if match.right:
            break
    if gold_problem and not (best and best.right):
        return Outcome("unparseable_gold", detail=f"the gold answer is {gold_problem}")
    if best is None:
        return Outcome("unparseable_answer", 0.0, detail=f"the answer is {problem}: counted as wrong")
    return Outcome("ok", float(best.right), best.how, components=best.components)


def _read_gold(kind: str, gold: str, options: Options) -> Any:
    value = module(kind).read(gold, options)
    if kind == "multi":
        for part in value:
            part_kind = resolve_part(part, options)
            try:
                module(part_kind).read(part, options)
            except Unreadable as why:
                raise Unreadable(f"in parts, of which {shown(part)!r} is {why}") from None
    return value


def _match(kind: str, gold: Any, answer: Any, options: Options) -> Match:
    if kind != "multi":
        return module(kind).same(gold, answer, options)

    def equal(gold_part: str, part: str) -> bool:
        part_kind = module(resolve_part(gold_part, options))
        try:
            return part_kind.same(part_kind.read(gold_part, options), part_kind.read(part, options), options).right
        except Unreadable:
            return False

    return multi.match_parts(gold, answer, equal, options)
