"""What may go wrong with a teacher, by what there is to do about it."""

from prism.clients.teacher.reply import Usage
from prism.errors import PrismError, ServiceError


class Busy(ServiceError):
    """It may pass by waiting: a limit, an overload, a silence, a broken connection."""

    def __init__(self, message: str, retry_after: float = 0, *, billed: bool = False) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds the teacher asks to be left alone."""
        self.billed = billed
        """Whether the teacher may have answered, and ask to be paid, without our having the answer."""


class Unusable(ServiceError):
    """An answer that is none: empty, or not in the API's shape. It is asked for again, a few times."""

    def __init__(self, message: str, usage: Usage | None = None) -> None:
        super().__init__(message)
        self.usage = usage
        """What it cost, where it says so."""


class Refused(ServiceError):
    """The teacher will never take this question: too long, a picture that it cannot read, a parameter it has not."""


class Stopped(PrismError, RuntimeError):
    """No question can be asked any more until a person has done something. The message says what."""


class OutOfCredit(Stopped):
    """The account has nothing left."""


class CapReached(Stopped):
    """The next question might cost more than is left under the cap."""

    def __init__(self, model: str, cost: str, cap: float) -> None:
        super().__init__(
            f"the next question to {model} may cost {cost}, more than is left of the cap of ${cap:g}: raise cap, and "
            "the same command goes on"
        )
