"""What must hold of a run that was disturbed, beside one that was not."""

from itertools import count, pairwise
from typing import Any

from bench.faults.seen import Seen, last_lines

TOLERANCE = 1e-6
Checks = dict[str, tuple[bool, str]]
"""Name -> whether it holds, and what was seen."""


def checks(undisturbed: list[dict[str, Any]], seen: Seen, other: set[int], *, repeats: bool = False) -> Checks:
    """``other``: positions at which the ``undisturbed`` run, whose lines these are, trained on other data.

    Steps before the first of them are compared with it. Steps made again are compared with themselves, as long as
    their attempt has the groups of the one before; with ``repeats`` there must be some.
    """
    expected = {line["step"]: line for line in undisturbed}
    lines = seen.lines()
    in_order = last_lines(lines)
    final = {line["step"]: line for line in in_order}
    positions = [position for line in in_order for position in line["positions"]]
    versions = _versions(in_order)
    pushed = [seen.first_request[attempt] for attempt in sorted(seen.first_request)]
    late = [attempt for attempt, (newest, _) in seen.first_request.items() if newest < attempt]

    clean = next((step for step in count(1) if step not in expected or other & {*expected[step]["positions"]}), 1) - 1
    off = max(
        (_apart(final[step], expected[step]) for step in range(1, clean + 1) if step in final), default=float("inf")
    )
    again = _made_again(lines, seen.resampled() | other)
    again_off = max((_apart(*pair) for pair in again), default=0.0)
    return {
        "every step was made": (final.keys() == expected.keys(), f"{len(final)} of {len(expected)}"),
        "no rollout is trained on twice": (len({*positions}) == len(positions), f"{len(positions)} groups"),
        "none is lost": (
            sorted(positions) == sorted(p for line in expected.values() for p in line["positions"])
            and not any(line["lost_groups"] for line in lines),
            f"positions 0 to {max(positions, default=0)}",
        ),
        "policy versions count updates": (
            versions == _versions(last_lines(undisturbed)),
            f"{versions[0]} to {versions[-1]}" if versions else "none",
        ),
        "weights are pushed before an attempt's first rollout": (
            not late and pushed == sorted(pushed),
            f"{len(pushed)} attempts asked for rollouts",
        ),
        "every rollout is of the newest weights (lock-step)": (
            all(line["staleness_max"] == 0 for line in lines),
            "staleness 0",
        ),
        "losses are those of the run left alone, within 1e-6": (
            off <= TOLERANCE and clean > 0,
            f"{off:.1e} at most, over {clean} of {len(expected)} steps",
        ),
        "steps made again had the same losses, within 1e-6": (
            again_off <= TOLERANCE and (bool(again) or not repeats),
            f"{again_off:.1e} at most, over {len(again)} steps",
        ),
    }


def _made_again(lines: list[dict[str, Any]], resampled: set[int]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Pairs of lines of one step, of two attempts that had the same groups since the later one resumed."""
    resumed: dict[int, int] = {}  # attempt -> its first step
    for line in lines:
        resumed.setdefault(line["attempt"], line["step"])
    others = {line["step"] for line in lines if resampled & {*line["positions"]}}
    by_step = pairwise(sorted(lines, key=lambda line: line["step"]))
    return [
        (a, b)
        for a, b in by_step
        if a["step"] == b["step"] and not others.intersection(range(resumed[b["attempt"]], b["step"] + 1))
    ]


def _versions(lines: list[dict[str, Any]]) -> list[int]:
    """Of steps that trained the policy: those that warm the experts up alone do not."""
    return [line["policy_version"] for line in lines if "policy_version" in line]


def _apart(one: dict[str, Any], other: dict[str, Any]) -> float:
    """How far the losses of two lines are apart. A step whose groups were all alike has none."""
    names = {name for name in (*one, *other) if name.endswith("_loss")}
    pairs = [(one.get(name), other.get(name)) for name in names]
    if any((a is None) is not (b is None) for a, b in pairs):
        return float("inf")
    return max((abs(a - b) for a, b in pairs if a is not None and b is not None), default=0.0)
