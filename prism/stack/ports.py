"""A port for a service that is about to be started."""

import random
import socket

LOWEST, HIGHEST = 10_000, 30_000  # below what systems give to outgoing connections, which would take it meanwhile

_given: set[int] = set()


def free_port(in_a_row: int = 1) -> int:
    """A port of 127.0.0.1 that nothing holds, as are the next ``in_a_row - 1``; this process is given each once.

    Raises OSError when none is found.
    """
    for _ in range(1000):
        first = random.randrange(LOWEST, HIGHEST)
        ports = range(first, first + in_a_row)
        if _given.isdisjoint(ports) and all(map(_is_free, ports)):
            _given.update(ports)
            return first
    raise OSError(f"no {in_a_row} free ports in a row between {LOWEST} and {HIGHEST} on 127.0.0.1")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
