"""Asking a teacher: at its pace, again where that may help, and never beyond the cap."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

import httpx
from pydantic import SecretStr
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from prism.clients.teacher.config import TeacherConfig
from prism.clients.teacher.errors import Busy, CapReached, Stopped, Unusable
from prism.clients.teacher.http import Line, make_api
from prism.clients.teacher.ledger import Ledger
from prism.clients.teacher.pace import Pace, Rate
from prism.clients.teacher.reply import Question, Reply, Tokens, Usage, count_tokens, dollars
from prism.clients.teacher.room import Room

Sizes = Sequence[tuple[int, int]]
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0


class Teacher:
    """An asynchronous context manager; any number of calls may be at work at a time, one event loop."""

    def __init__(
        self,
        config: TeacherConfig,
        key: SecretStr,
        ledger: Ledger,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        window_seconds: float = 60.0,
        first_pause: float = FIRST_PAUSE,
    ) -> None:
        """``window_seconds`` is the minute of the limits, ``first_pause`` the bound of the first random pause."""
        self.config, self._ledger = config, ledger
        self.api = make_api(config)
        self.line = Line(config, self.api, key.get_secret_value(), transport)
        a_minute = config.requests_per_minute, config.tokens_per_minute
        requests, tokens = (Rate(limit, window_seconds) if limit else None for limit in a_minute)
        self._pace = Pace(requests, tokens)
        self._room, self._places = Room(config.concurrency), asyncio.Semaphore(config.concurrency)
        self._jitter = wait_random_exponential(multiplier=first_pause, max=LONGEST_PAUSE)
        # Sends that are being reserved, that are under way, and that have ended, after which there may be room again.
        self._asking = self._open = self._ends = 0
        self._ended = asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.line.close()

    async def ask(
        self, question: Question, images: Mapping[str, bytes], sizes: Sizes = (), key: str | None = None
    ) -> Reply:
        """The answer, which the ledger has kept by then. ``images``: bytes by sha256; ``sizes``: theirs, if known;
        ``key``: the question's, if known.

        Raises Busy when the teacher was away for all the patience, Unusable when it gave no answer worth the name as
        often as ``max_sends`` says, Refused when it never will, Stopped when nobody can ask anything any more.
        """
        key = key or question.key(self.config.model)
        tokens = count_tokens(question, sizes, self.config.image_tokens)
        async with self._room:
            return await self._until_answered(question, images, key, tokens)

    async def _until_answered(self, question: Question, images: Mapping[str, bytes], key: str, tokens: Tokens) -> Reply:
        body, reckoned = self.api.body(question, images), tokens.expected + question.max_tokens
        reserved = self.config.prices.cost(Usage(tokens.bound, question.max_tokens))
        began, paid = time.monotonic(), 0

        async def once() -> Reply:
            await self._pace.wait(reckoned)
            send = await self._reserve(key, reserved)
            used = 0
            try:
                reply = await self._send(send, body, reserved)
                used = reply.usage.input_tokens + reply.usage.output_tokens if reply.usage else reckoned
                return reply
            finally:
                self._pace.used(reckoned, used)
                self._open, self._ends = self._open - 1, self._ends + 1
                self._ended.set()

        def gives_up(state: RetryCallState) -> bool:
            nonlocal paid
            error = state.outcome.exception() if state.outcome else None
            paid += isinstance(error, Unusable) or (isinstance(error, Busy) and error.billed)
            is_late = time.monotonic() - began + state.upcoming_sleep > self.config.patience_seconds
            return paid >= self.config.max_sends or (isinstance(error, Busy) and is_late)

        failure: Busy | Unusable | None = None
        try:
            return await once()  # mostly: retrying is set up where it is needed, it costs more than all else here
        except (Busy, Unusable) as error:
            failure = error

        async def again() -> Reply:
            nonlocal failure
            if failure:
                first, failure = failure, None
                raise first
            return await once()

        passes = retry_if_exception_type((Busy, Unusable))
        return await AsyncRetrying(retry=passes, wait=self._pause, stop=gives_up, reraise=True)(again)

    def _pause(self, state: RetryCallState) -> float:
        """Full jitter, on top of what the teacher asks for: those that were refused together do not come back so."""
        error = state.outcome.exception() if state.outcome else None
        return self._jitter(state) + (error.retry_after if isinstance(error, Busy) else 0)

    async def _reserve(self, key: str, cost: int) -> str:
        """Waits for room under the cap as long as another send may leave some. Raises CapReached."""
        while True:
            self._ended.clear()
            self._asking, ends, began = self._asking + 1, self._ends, time.monotonic()
            try:
                send = await self._ledger.reserve(key, cost)
            finally:
                self._asking -= 1
            self._room.entered(time.monotonic() - began)
            if send is not None:
                self._open += 1
                return send
            if ends != self._ends:
                continue  # one has ended since the books said no
            if not self._open and not self._asking:
                self._ended.set()
                raise CapReached(self.config.model, dollars(cost), self.config.cap)
            await self._ended.wait()

    async def _send(self, send: str, body: dict[str, object], reserved: int) -> Reply:
        """One request, and its entry in the books whatever becomes of it."""
        is_sent = False
        try:
            async with self._places:
                await self._pace.resumed()  # a pause may have been asked for since it was this question's turn
                is_sent, began = True, time.monotonic()
                try:
                    reply = await self.line.post(body)
                except Busy as error:
                    self._pace.pause(error.retry_after)  # before the place is another's
                    raise
                self._room.answered(time.monotonic() - began)
        except Unusable as error:
            if error.usage:
                await self._settle(send, error.usage, reserved, None)
            else:
                await self._ledger.lose(send, str(error))
            raise
        except Busy as error:
            await (self._ledger.lose if error.billed else self._ledger.release)(send, str(error))
            raise
        except asyncio.CancelledError:
            entry = self._ledger.lose if is_sent else self._ledger.release
            await asyncio.shield(entry(send, "given up while it was under way"))
            raise
        except Exception as error:  # refused, or no request at all: nothing was answered
            await self._ledger.release(send, str(error))
            raise
        await self._settle(send, reply.usage, reserved, reply)
        return reply

    async def _settle(self, send: str, usage: Usage | None, reserved: int, reply: Reply | None) -> None:
        """Raises Stopped if more was billed than can have been reserved: then the cap is no cap any more."""
        cost = self.config.prices.cost(usage) if usage else reserved
        began = time.monotonic()
        await self._ledger.settle(send, cost, reply)
        self._room.entered(time.monotonic() - began)
        if cost > reserved:
            raise Stopped(
                f"{self.config.model} billed {dollars(cost)} for a question of at most {dollars(reserved)} ({usage}): "
                "raise image_tokens or max_tokens to what is billed, so that the cap holds"
            )
