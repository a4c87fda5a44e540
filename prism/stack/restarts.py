"""When a service that died is started again, and when it is given up: one rule for whoever watches over one."""

from dataclasses import dataclass

LONGEST_PAUSE = 30.0


@dataclass
class Restarts:
    """Of one service. Times are in seconds."""

    limit: int = 5
    """Failures in a row after which it is given up."""
    quick_seconds: float = 60.0
    """A service that was ready for longer than this has not failed in a row."""
    first_pause: float = 1.0
    """Before the first restart, doubled for each that fails."""
    failures: int = 0

    def failed(self, ready_seconds: float) -> float | None:
        """The pause before the next start of a service that was ready for so long; None if it is given up."""
        self.failures = 1 if ready_seconds > self.quick_seconds else self.failures + 1
        if self.failures >= self.limit:
            return None
        return min(self.first_pause * 2.0 ** (self.failures - 1), LONGEST_PAUSE)
