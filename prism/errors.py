"""Every error a user can cause or must act on. Each also inherits the standard type: callers need not know PRISM's."""


class PrismError(Exception):
    """Base of all. The message says what was wrong and what to do; the command line prints it without a traceback."""


class ConfigError(PrismError, ValueError):
    """A configuration file, override or environment variable that cannot be used."""


class DataError(PrismError, ValueError):
    """A data row that does not parse, with file and line."""


class MismatchError(PrismError, ValueError):
    """Sampler and learner disagree about what was sampled: other pixels, template or weights on one side."""


class WeightsError(PrismError, RuntimeError):
    """A weight manifest that does not verify, or a push that failed."""


class CheckpointError(PrismError, OSError):
    """A checkpoint that could not be written."""


class ServiceError(PrismError, RuntimeError):
    """A service that did not start, died, or answered what it must not."""


class NotJudgedError(PrismError, ValueError):
    """An answer without a verdict, asked for where only a number can be given back: it must not become one."""


class LockedError(PrismError, RuntimeError):
    """A run's folder that another process uses, which is named."""


class StreamError(PrismError, RuntimeError):
    """A stream entry that cannot be used: a poison message."""


class Superseded(StreamError):
    """A newer attempt at the same run has taken over: this one stops, and writes, takes and acknowledges nothing."""


class NothingLearntError(PrismError, RuntimeError):
    """Step after step held nothing to learn from."""


class NotFiniteError(PrismError, ArithmeticError):
    """Update after update had to be skipped, because its loss or gradient was infinite or not a number."""
