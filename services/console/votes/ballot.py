"""Votes in SQL: a pair is drawn for somebody, who then says once which side is better."""

import secrets
import time
from collections.abc import Callable, Sequence

from sqlalchemy import func, select, update
from sqlalchemy.exc import IntegrityError

from prism.services.console.jobs.queue import JobError, NoJob
from prism.services.console.store.engine import Store
from prism.services.console.store.models import Vote
from prism.services.console.votes.pairs import Pair, Source, as_json

chance = secrets.SystemRandom()


class NoVote(NoJob):
    """There is no such pair, or it is somebody else's that is still open."""


def draw(
    store: Store, who: str, runs: Sequence[str], source: Source, candidates: Callable[[], Sequence[Pair]]
) -> Vote | None:
    """A pair for ``who``, sides drawn at random: the one that waits for their vote, else a new one of those with the
    fewest votes. None when they have voted on all.
    """
    with store.read() as session:
        waiting = session.scalars(
            select(Vote).where(Vote.who == who, Vote.source == source, Vote.choice.is_(None)).order_by(Vote.id.desc())
        )
        for vote in waiting:
            if vote.run in runs:
                return vote
        seen = set(session.scalars(select(Vote.pair).where(Vote.who == who)))
        counts = {pair: count for pair, count in session.execute(select(Vote.pair, func.count()).group_by(Vote.pair))}
    fresh = [pair for pair in candidates() if pair.key not in seen]
    if not fresh:
        return None
    fewest = min(counts.get(pair.key, 0) for pair in fresh)
    return put(store, who, chance.choice([pair for pair in fresh if counts.get(pair.key, 0) == fewest]))


def put(store: Store, who: str, pair: Pair) -> Vote:
    """An open row for ``pair``; one that another tab of theirs has just made is that one."""
    left, right = chance.sample((pair.one, pair.other), 2)
    vote = Vote(
        who=who,
        pair=pair.key,
        prompt=pair.prompt,
        source=pair.source,
        run=pair.run,
        question=pair.question,
        gold=pair.gold,
        images=pair.images,
        left=as_json(left),
        right=as_json(right),
        drawn=time.time(),
    )
    try:
        with store.write() as session:
            session.add(vote)
    except IntegrityError:
        with store.read() as session:
            return session.scalars(select(Vote).where(Vote.who == who, Vote.pair == pair.key)).one()
    return vote


def get(store: Store, number: int, who: str) -> Vote:
    """Raises NoVote; for an open one, too, unless it is theirs."""
    with store.read() as session:
        vote = session.get(Vote, number)
    if vote is None or (vote.choice is None and vote.who != who):
        raise NoVote(f"there is no pair {number} of yours")
    return vote


def cast(store: Store, number: int, who: str, choice: str) -> Vote:
    """Vote, once. Raises NoVote, and JobError for what has been voted on already."""
    get(store, number, who)
    with store.write() as session:
        changed = session.execute(
            update(Vote)
            .where(Vote.id == number, Vote.who == who, Vote.choice.is_(None))
            .values(choice=choice, voted=time.time())
            .returning(Vote.id)
        ).all()
    if not changed:
        raise JobError(f"pair {number} has been voted on already: a vote stands")
    return get(store, number, who)


def cast_votes(store: Store, runs: Sequence[str] = (), limit: int | None = None) -> list[Vote]:
    """Votes that were cast, the newest first; with ``runs``, those about one of them."""
    asked = select(Vote).where(Vote.choice.is_not(None)).order_by(Vote.id.desc())
    with store.read() as session:
        found = session.scalars(asked)
        votes = [vote for vote in found if not runs or {vote.left["judge"], vote.right["judge"]} & set(runs)]
    return votes[:limit]
