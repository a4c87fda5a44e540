"""The faults: each is played on one part, over before ``play`` returns, and says so if it could not be played."""

import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import psutil

from bench.faults.parts import Part
from bench.faults.tcp_proxy import TcpProxy


@dataclass(frozen=True)
class Pace:
    """Seconds that the faults last."""

    stop: float = 20
    cut: float = 5
    delay: float = 7
    """Longer than the trainer waits for an answer of Redis: it asks again, and Redis executes both."""
    disk: float = 5
    end: float = 60
    """Within which a part that is told to end does."""
    use: float = 120
    """Within which somebody uses a link; else no fault of the network can be played on it."""


class NotPlayed(Exception):
    """Why a fault could not be played on a part."""


def kill(part: Part, rng: random.Random, pace: Pace) -> None:
    """The part with all its processes, or only the largest of its children, as the kernel does when memory is short."""
    root, *children = _running(part)
    victims = [root, *children]
    if children and rng.random() < 0.5:
        victims = [max(children, key=_memory)]
    for process in victims:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    if not _ended(victims, pace.end):
        raise NotPlayed("a process outlived SIGKILL")


def end(part: Part, rng: random.Random, pace: Pace) -> None:
    """SIGTERM. Redis writes its append-only file to the end, and reads it as it starts again."""
    root = _running(part)[0]
    root.terminate()
    if not _ended([root], pace.end):
        raise NotPlayed(f"it had not ended {pace.end:.0f} s after SIGTERM")


def stop(part: Part, rng: random.Random, pace: Pace) -> None:
    """SIGSTOP, and SIGCONT later: connections stay, nobody answers."""
    stopped = _running(part)
    for process in stopped:
        with suppress(psutil.NoSuchProcess):
            process.suspend()
    time.sleep(pace.stop)
    for process in stopped:
        with suppress(psutil.NoSuchProcess):
            process.resume()


def cut(part: Part, rng: random.Random, pace: Pace) -> None:
    """All connections of the part end, new ones are turned away."""
    _disturb(part, TcpProxy.cut, pace.cut, pace)


def delay(part: Part, rng: random.Random, pace: Pace) -> None:
    """Requests and answers of the part arrive late, connections stay."""
    _disturb(part, TcpProxy.stall, pace.delay, pace)


def swallow(part: Part, rng: random.Random, pace: Pace) -> None:
    """The next request on each link of the part is executed, its answer lost."""
    before = sum(link.tricks_played for link in part.links)
    for link in part.links:
        link.lose_reply(b"")
    try:
        _wait(lambda: sum(link.tricks_played for link in part.links) > before, pace)
    finally:
        for link in part.links:
            link.restore()


def full_disk(part: Part, rng: random.Random, pace: Pace) -> None:
    """No file of the part can be written (RLIMIT_FSIZE is 0: writes fail as on a full disk), then it can again."""
    limits: list[tuple[psutil.Process, tuple[int, int]]] = []
    for process in _running(part):
        with suppress(psutil.NoSuchProcess):
            soft, hard = process.rlimit(psutil.RLIMIT_FSIZE)
            process.rlimit(psutil.RLIMIT_FSIZE, (0, hard))
            limits.append((process, (soft, hard)))
    _ended([process for process, _ in limits[:1]], pace.disk)  # of it, maybe
    for process, before in limits:
        with suppress(psutil.NoSuchProcess):
            process.rlimit(psutil.RLIMIT_FSIZE, before)


FAULTS: dict[str, Callable[[Part, random.Random, Pace], None]] = {
    "kill -9": kill,
    "SIGTERM": end,
    "SIGSTOP": stop,
    "network cut": cut,
    "delayed replies": delay,
    "swallowed replies": swallow,
    "full disk": full_disk,
}
ENDS = ("kill -9", "SIGTERM", "full disk")
"""Faults that may end the process they are played on."""


def play(fault: str, part: Part, rng: random.Random, pace: Pace) -> str | None:
    """None once it was played, else why it was not."""
    try:
        FAULTS[fault](part, rng, pace)
    except NotPlayed as error:
        return str(error)
    except (psutil.Error, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def shuffled(parts: list[str], number: int, rng: random.Random) -> list[tuple[str, str]]:
    """``number`` pairs of part and fault: all there are in random order, then all in another."""
    pairs: list[tuple[str, str]] = []
    while len(pairs) < number:
        deck = [(part, fault) for part in parts for fault in FAULTS]
        rng.shuffle(deck)
        pairs += deck
    return pairs[:number]


def _running(part: Part) -> list[psutil.Process]:
    processes = part.processes()
    if not processes:
        raise NotPlayed("it was down")
    return processes


def _disturb(part: Part, begin: Callable[[TcpProxy], None], seconds: float, pace: Pace) -> None:
    before = sum(link.disturbed for link in part.links)
    for link in part.links:
        begin(link)
    try:
        time.sleep(seconds)
        _wait(lambda: sum(link.disturbed for link in part.links) > before, pace)
    finally:
        for link in part.links:
            link.restore()


def _wait(felt: Callable[[], bool], pace: Pace) -> None:
    give_up = time.monotonic() + pace.use
    while not felt():
        if time.monotonic() > give_up:
            raise NotPlayed(f"nobody used its links within {pace.use:.0f} s")
        time.sleep(0.02)


def _ended(processes: list[psutil.Process], seconds: float) -> bool:
    """Whether all have, within ``seconds``. None is waited for as a child: whoever started it hears of its status."""
    give_up = time.monotonic() + seconds
    while any(_lives(process) for process in processes):
        if time.monotonic() > give_up:
            return False
        time.sleep(0.02)
    return True


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _memory(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.Error:
        return 0
