"""Grading for code that is not asynchronous, such as another trainer's reward function. (No torch.)"""

import asyncio
import atexit
import contextlib
import os
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, Literal, TypeVar

import httpx
from pydantic import ValidationError

from prism.clients.http import SILENCE_SECONDS, Refused, ServiceClient, ask_in_halves
from prism.errors import ConfigError, ServiceError
from prism.http.client import async_client
from prism.services.grader.protocol import GradeItem, GradeRequest, GradeRules, GradeVerdict
from prism.settings import describe
from prism.stack.ports import free_port
from prism.stack.processes import end_group, start_process

Value = Literal["accuracy", "reward"]
"""Of a verdict: 1 for right and 0 for wrong, or what the grader's formula makes of it, format and length included."""

BATCH = 1024
START_SECONDS = 120.0
STOP_SECONDS = 5.0

Given = TypeVar("Given")


class Grading:
    """A grader that is asked from any thread. It is reached, or started, at the first call.

    ``url`` is a running grader's (else PRISM_GRADER_URL), ``token`` its data token (else PRISM_TOKEN). Without a URL a
    grader of this process's own is started on this machine, which ends with it and needs the packages of
    ``prism-align[grader]``. Where several processes grade, start one with ``prism serve grader`` and give its URL.

    ``kind`` is that of items that name none. ``rules`` say how responses are read, as ``POST /v1/grade`` takes them;
    ``{"format": "ignored"}`` unless given, since other trainers' models do not write PRISM's sections. Raises
    ConfigError for rules that are none, and where the value asked for leaves out a part of them.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        token: str | None = None,
        kind: str = "auto",
        rules: Mapping[str, Any] | None = None,
        value: Value = "accuracy",
        patience_seconds: float = 120.0,
    ) -> None:
        self._url, self._token, self.kind, self.value = url, token, kind, value
        self._patience = patience_seconds
        try:
            self._rules = GradeRules.model_validate(plain({"format": "ignored"} if rules is None else rules))
        except ValidationError as error:
            raise ConfigError("; ".join(describe(error))) from None
        if value not in ("accuracy", "reward"):
            raise ConfigError(f'value: "accuracy" or "reward", not {value!r}')
        if self._rules.overlong and value == "accuracy":
            raise ConfigError('the over-long penalty is part of the reward: ask for value="reward"')
        self._lock = threading.Lock()
        self._link: _Link | None = None

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which reaches or starts a grader for itself."""
        return {name: value for name, value in vars(self).items() if name not in ("_lock", "_link")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock, self._link = threading.Lock(), None

    def grade(self, items: Sequence[Mapping[str, Any]]) -> list[GradeVerdict]:
        """A verdict for each item (``response``, ``gold`` and perhaps ``kind``, ``options``, ``tokens``), in order.

        An item that cannot be graded, or not be sent, has the status error and no numbers. Raises Unavailable where the
        grader does not answer within the patience, Refused for a wrong token, ServiceError where none can be started.
        """
        verdicts: list[GradeVerdict | None] = []
        sent: list[GradeItem] = []
        for item in items:
            try:
                sent.append(GradeItem.model_validate({"kind": self.kind} | plain(item)))
                verdicts.append(None)
            except ValidationError as error:
                verdicts.append(_unjudged("; ".join(describe(error))))
        given = iter(self._reach().run(self._ask(sent)) if sent else [])
        return [verdict or next(given) for verdict in verdicts]

    def values(self, items: Sequence[Mapping[str, Any]]) -> list[float | None]:
        """``value`` of each item's verdict: None, never 0, where there is none. Raises as ``grade``."""
        return [getattr(verdict, self.value) for verdict in self.grade(items)]

    async def _ask(self, items: list[GradeItem]) -> list[GradeVerdict]:
        assert self._link
        service = self._link.service

        async def ask(part: Sequence[GradeItem]) -> list[GradeVerdict]:
            request = GradeRequest(items=list(part), rules=self._rules)
            answer = (await service.post("/v1/grade", request.model_dump())).json()
            verdicts = [GradeVerdict.model_validate(verdict) for verdict in answer["verdicts"]]
            if len(verdicts) != len(part):
                raise Refused(f"{service.url} gave {len(verdicts)} verdicts for {len(part)} responses")
            return verdicts

        parts = [items[start : start + BATCH] for start in range(0, len(items), BATCH)]
        answers = [answer for part in parts for answer in await ask_in_halves(part, ask)]
        return [_unjudged(str(answer)) if isinstance(answer, Refused) else answer for answer in answers]

    def _reach(self) -> "_Link":
        with self._lock:
            if self._link is None or self._link.pid != os.getpid():  # threads do not survive a fork
                url = self._url or os.environ.get("PRISM_GRADER_URL")
                token = self._token or os.environ.get("PRISM_TOKEN", "")
                self._link = _Link(url, token, self._patience)
            return self._link

    def close(self) -> None:
        """End the grader, if it is this process's own. It ends with the process in any case."""
        with self._lock:
            link, self._link = self._link, None
        if link and link.pid == os.getpid():
            link.close()


class _Link:
    """The way to a grader: an event loop in a thread of its own, and the grader too if no URL names one."""

    def __init__(self, url: str | None, token: str, patience_seconds: float) -> None:
        """Raises ServiceError if no grader can be started."""
        self.pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._process: subprocess.Popen[bytes] | None = None
        self._http: httpx.AsyncClient | None = None
        threading.Thread(target=self._loop.run_forever, name="prism-grading", daemon=True).start()
        atexit.register(self.close)
        try:
            if not url:
                token = secrets.token_urlsafe(32)
                url = self.run(self._start(token))
            self._http = self.run(_client())
        except BaseException:
            self.close()
            raise
        self.service = ServiceClient(self._http, url, token, patience_seconds, min(SILENCE_SECONDS, patience_seconds))

    def run(self, work: Coroutine[Any, Any, Given]) -> Given:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _start(self, token: str) -> str:
        """In the loop's thread, with which the process ends: that of the caller may end before its process does."""
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        log = tempfile.TemporaryFile(prefix="prism-grader-")  # noqa: SIM115  (the process writes it)
        self._process = start_process(
            [sys.executable, "-m", "prism", "serve", "grader"],
            {"PRISM_HOST": "127.0.0.1", "PRISM_PORT": str(port), "PRISM_TOKEN": token},
            log,
        )
        deadline = time.monotonic() + START_SECONDS
        async with async_client(timeout=5) as http:
            while self._process.poll() is None and time.monotonic() < deadline:
                with contextlib.suppress(httpx.TransportError):
                    if (await http.get(f"{url}/readyz")).status_code == 200:
                        return url
                await asyncio.sleep(0.1)
        log.seek(0)
        said = log.read()[-2000:].decode(errors="replace").strip()
        raise ServiceError(f"no grader could be started (pip install 'prism-align[grader]', or give its url): {said}")

    def close(self) -> None:
        atexit.unregister(self.close)
        if self.pid != os.getpid():
            return
        if self._process:
            self._process.terminate()
            end_group(self._process, STOP_SECONDS)
        if self._http:
            self.run(self._http.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)


async def _client() -> httpx.AsyncClient:
    return async_client()


def _unjudged(detail: str) -> GradeVerdict:
    names = ("accuracy", "format", "reward", "extracted", "compared")
    return GradeVerdict(status="error", **dict.fromkeys(names), components={}, detail=detail, elapsed_seconds=0.0)


def plain(value: Any) -> Any:
    """As JSON has it: configurations' mappings and NumPy's arrays become Python's, and what is None is nothing.

    Data sets of tables hold such, with a None for each key that any other row has.
    """
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items() if one is not None}
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [plain(one) for one in value]
    return value
