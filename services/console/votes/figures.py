"""What follows from votes: Bradley-Terry strengths, and how often each expert orders a pair as people do."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.special import expit, log_expit

from prism.curation.mine import wilson
from prism.services.console.store.models import Vote
from prism.wire.console import AgreementInfo, StrengthInfo

PRIOR = 0.1
"""Precision of the normal prior of a strength: whoever won every vote stays finite."""
ROUNDS = 200  # of the bootstrap
Z = 1.959964
WON = {"left": 1.0, "right": 0.0, "tie": 0.5, "bad": 0.5}
"""The left side's share of a vote."""


def strengths(votes: Sequence[Vote], seed: int = 0) -> list[StrengthInfo]:
    """The strongest first in each group. Votes on two responses of the same contestant say nothing here.

    An interval is the wider of a bootstrap's over prompts, since votes on one prompt are not independent, and of the
    likelihood's own, since a bootstrap knows nothing of a contestant who never lost.
    """
    votes = [vote for vote in votes if vote.left["name"] != vote.right["name"]]
    names = sorted({side["name"] for vote in votes for side in (vote.left, vote.right)})
    if not names:
        return []
    place = {name: number for number, name in enumerate(names)}
    left = np.array([place[vote.left["name"]] for vote in votes])
    right = np.array([place[vote.right["name"]] for vote in votes])
    won = np.array([WON[vote.choice or "tie"] for vote in votes])
    _, prompt = np.unique([vote.prompt for vote in votes], return_inverse=True)
    n, prompts = len(names), int(prompt.max()) + 1
    _, group = connected_components(coo_array((np.ones(len(votes)), (left, right)), shape=(n, n)), directed=False)

    def wins(weight: np.ndarray) -> np.ndarray:
        """(n, n): of row over column."""
        flat = np.bincount(left * n + right, weight * won, n * n) + np.bincount(
            right * n + left, weight * (1 - won), n * n
        )
        return flat.reshape(n, n)

    counted = wins(np.ones(len(votes)))
    fitted = _fit(counted, np.zeros(n), group)
    random = np.random.default_rng(seed)
    drawn = random.multinomial(prompts, np.full(prompts, 1 / prompts), ROUNDS)
    fits = np.array([_fit(wins(counts[prompt].astype(float)), fitted, group) for counts in drawn])
    low, high = np.percentile(fits, (2.5, 97.5), axis=0)
    spread = Z * _errors(counted, fitted, group)
    found = [
        StrengthInfo(
            name=name,
            **_tally(votes, name),
            strength=float(fitted[i]),
            low=float(min(low[i], fitted[i] - spread[i])),
            high=float(max(high[i], fitted[i] + spread[i])),
            group=int(group[i]),
        )
        for i, name in enumerate(names)
    ]
    return sorted(found, key=lambda one: (one.group, -one.strength))


def agreements(votes: Iterable[Vote]) -> list[AgreementInfo]:
    """Each expert's with people."""
    by_pair: defaultdict[str, list[Vote]] = defaultdict(list)
    for vote in votes:
        by_pair[vote.pair].append(vote)
    counts: defaultdict[tuple[str, str], dict[str, int]] = defaultdict(
        lambda: dict.fromkeys(("agrees", "differs", "undecided", "level", "unscored"), 0)
    )
    for shown in by_pair.values():
        first = min((shown[0].left, shown[0].right), key=_identity)
        other = max((shown[0].left, shown[0].right), key=_identity)
        people = sum(
            (2 * WON[v.choice or "tie"] - 1) * (1 if _identity(v.left) == _identity(first) else -1) for v in shown
        )
        for run, expert in {(side["judge"], score["expert"]) for side in (first, other) for score in side["scores"]}:
            gap = _gap(run, expert, first, other)
            said = (
                "unscored" if gap is None else "undecided" if people == 0 else "level" if gap == 0
                else "agrees" if (gap > 0) == (people > 0) else "differs"
            )  # fmt: skip
            counts[run, expert][said] += 1
    return [_agreement(run, expert, count) for (run, expert), count in sorted(counts.items())]


def _agreement(run: str, expert: str, count: dict[str, int]) -> AgreementInfo:
    pairs = count["agrees"] + count["differs"]
    low, high = wilson(count["agrees"], pairs) if pairs else (None, None)
    share = count["agrees"] / pairs if pairs else None
    left_out = {key: count[key] for key in ("undecided", "level", "unscored")}
    return AgreementInfo(
        run=run, expert=expert, pairs=pairs, agrees=count["agrees"], share=share, low=low, high=high, **left_out
    )


def _identity(side: dict[str, Any]) -> tuple[str, str]:
    return side["name"], side["text"]


def _gap(run: str, expert: str, first: dict[str, Any], other: dict[str, Any]) -> float | None:
    """How much higher it scored the first; None where the two scores cannot be compared."""
    scores = []
    for side in (first, other):
        score = next((s for s in side["scores"] if s["expert"] == expert and side["judge"] == run), None)
        if score is None or score["value"] is None or score["status"] != "ok":
            return None
        scores.append(score)
    one, two = scores
    return one["value"] - two["value"] if one["version"] == two["version"] else None


def _tally(votes: Sequence[Vote], name: str) -> dict[str, int]:
    mine = [
        (vote.choice, vote.left["name"] == name) for vote in votes if name in (vote.left["name"], vote.right["name"])
    ]
    wins = sum((choice == "left") == is_left for choice, is_left in mine if choice in ("left", "right"))
    decided = sum(choice in ("left", "right") for choice, _ in mine)
    ties = sum(choice == "tie" for choice, _ in mine)
    bad = len(mine) - decided - ties
    return {"votes": len(mine), "wins": wins, "losses": decided - wins, "ties": ties, "bad": bad}


def _fit(wins: np.ndarray, start: np.ndarray, group: np.ndarray) -> np.ndarray:
    """(n,) strengths, their mean in each group 0. ``wins``: (n, n), of row over column, ties as half."""
    games = wins + wins.T

    def loss(strength: np.ndarray) -> tuple[float, np.ndarray]:
        gaps = strength[:, None] - strength[None, :]
        slope = (games * expit(gaps)).sum(axis=1) - wins.sum(axis=1)
        value = -(wins * log_expit(gaps)).sum() + PRIOR / 2 * (strength**2).sum()
        return float(value), slope + PRIOR * strength

    found = minimize(loss, start, jac=True, method="L-BFGS-B").x
    means = np.bincount(group, found) / np.bincount(group)
    return found - means[group]


def _errors(wins: np.ndarray, strength: np.ndarray, group: np.ndarray) -> np.ndarray:
    """(n,) standard errors by the likelihood's curvature at ``strength``."""
    chance = expit(strength[:, None] - strength[None, :])
    weight = (wins + wins.T) * chance * (1 - chance)
    curvature = np.diag(weight.sum(axis=1)) - weight + PRIOR * np.eye(len(strength))
    same = (group[:, None] == group[None, :]).astype(float)
    centred = np.eye(len(strength)) - same / same.sum(axis=1, keepdims=True)
    return np.sqrt(np.diag(centred @ np.linalg.inv(curvature) @ centred.T).clip(min=0))
