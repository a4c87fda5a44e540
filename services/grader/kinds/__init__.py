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


def is_fast(task: AnswerPair) -> bool:
    if any(answer is not None and len(answer) > MAX_FAST_CHARS for answer in (task.answer, *task.others)):
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
            return not any(resolve(options.part_kind, part, options) == "math" for part in parts)
        case _:
            return True


def compare(task: AnswerPair) -> Outcome:
    """Right if the answer is the same as one of the gold answers. Raises whatever a comparison raises but Unreadable.

    The gold answers are read first: where none can be read, no answer is wrong.
    """
    options = task.options
    golds: list[tuple[str, str, Any]] = []
    problem = "missing"
    for gold in task.golds:
        kind = resolve(task.kind, gold, options)
        try:
            golds.append((kind, gold, _read_gold(kind, gold, options)))
        except Unreadable as why:
            problem = str(why)
    if not golds:
        return Outcome("unparseable_gold", detail=f"the gold answer is {problem}")
    if task.answer is None:
        if all(getattr(gold, "understood", True) is False for _, _, gold in golds):
            return Outcome("unparseable_gold", detail="the gold answer can only be compared as a text")
        return Outcome("ok")
    best: tuple[Match, int] | None = None
    gold_problem: str | None = None
    first_problem: str | None = None
    for kind, written, gold in golds:
        for index, answer in enumerate((task.answer, *task.others)):
            # Whatever a library makes of it: the gold answer could be read, and this is the same. (The numbers of a box
            # may mean another thing on either side.)
            same = kind != "box" and answer.strip() == written.strip()
            try:
                if same and kind == "math":  # without the seconds that it may take
                    match = Match(True, "math: the same text")
                else:
                    match = _match(kind, gold, module(kind).read(answer, options), options)
            except GoldUnreadable as why:
                gold_problem = str(why)
                break
            except Unreadable as why:
                first_problem = first_problem or str(why)
                continue
            if same and not match.right:
                match = Match(True, f"{kind}: the same text", match.components)
            if best is None or match.accuracy > best[0].accuracy:
                best = match, index
            break
        if best and best[0].right:
            break
    if gold_problem and not (best and best[0].right):
        return Outcome("unparseable_gold", detail=f"the gold answer is {gold_problem}")
    if best is None:
        return Outcome("unparseable_answer", 0.0, detail=f"the answer is {first_problem}: counted as wrong")
    match, index = best
    return Outcome("ok", match.accuracy, match.how, components=match.components, candidate=index)


def _read_gold(kind: str, gold: str, options: Options) -> Any:
    value = module(kind).read(gold, options)
    if kind == "multi":
        for part in value:
            part_kind = resolve(options.part_kind, part, options)
            try:
                module(part_kind).read(part, options)
            except Unreadable as why:
                raise Unreadable(f"in parts, of which {shown(part)!r} is {why}") from None
    return value


def _match(kind: str, gold: Any, answer: Any, options: Options) -> Match:
    if kind != "multi":
        return module(kind).same(gold, answer, options)

    def equal(gold_part: str, part: str) -> bool:
        part_kind = module(resolve(options.part_kind, gold_part, options))
        try:
            return part_kind.same(part_kind.read(gold_part, options), part_kind.read(part, options), options).right
        except Unreadable:
            return False

    return multi.match_parts(gold, answer, equal, options)
