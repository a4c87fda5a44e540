"""The console's API from Python: jobs queued, followed, cancelled; pairs drawn and voted on.

::

    with ConsoleClient("http://127.0.0.1:8110", token) as console:
        job = console.add("run", {"config": "demo.toml", "name": "demo"})
        for text in console.follow(job.id):
            print(text, end="")
"""

import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import httpx
from pydantic import BaseModel, TypeAdapter

from prism.errors import ServiceError
from prism.http.client import sync_client
from prism.wire.console import (
    AskPairRequest,
    Choice,
    CommandInfo,
    Graded,
    GradeRequest,
    JobEventInfo,
    JobInfo,
    JobPlan,
    JudgedBy,
    JudgeRequest,
    LogPart,
    PairInfo,
    VoteFigures,
    VoteInfo,
    WhoAmI,
)

Answer = TypeVar("Answer")
LOOK_SECONDS = 1.0


class ConsoleClient:
    """Every method raises ServiceError with the console's own words for what it refuses, or where it is away."""

    def __init__(self, url: str, token: str, *, timeout: float = 30) -> None:
        self._url = url.rstrip("/")
        self._http = sync_client(timeout=timeout, headers={"Authorization": f"Bearer {token}"})

    def who_am_i(self) -> WhoAmI:
        return self._get("/whoami", WhoAmI)

    def commands(self) -> list[CommandInfo]:
        return self._get("/commands", list[CommandInfo])

    def plan(self, command: str, parameters: dict[str, Any]) -> JobPlan:
        """What a job would be; nothing is queued."""
        return self._post("/jobs/plan", JobPlan, {"command": command, "parameters": parameters})

    def add(self, command: str, parameters: dict[str, Any], *, priority: int = 0) -> JobInfo:
        asked = {"command": command, "parameters": parameters, "priority": priority}
        return self._post("/jobs", JobInfo, asked)

    def jobs(self, *, states: tuple[str, ...] = (), run: str | None = None, limit: int = 200) -> list[JobInfo]:
        """The newest first."""
        query: dict[str, Any] = {"state": list(states), "limit": limit} | ({"run": run} if run else {})
        return self._get("/jobs", list[JobInfo], query)

    def job(self, job: int) -> JobInfo:
        return self._get(f"/jobs/{job}", JobInfo)

    def events(self, job: int) -> list[JobEventInfo]:
        return self._get(f"/jobs/{job}/events", list[JobEventInfo])

    def cancel(self, job: int) -> JobInfo:
        return self._post(f"/jobs/{job}/cancel", JobInfo)

    def retry(self, job: int) -> JobInfo:
        return self._post(f"/jobs/{job}/retry", JobInfo)

    def prioritise(self, job: int, priority: int) -> JobInfo:
        return self._post(f"/jobs/{job}/priority", JobInfo, query={"priority": priority})

    def log(self, job: int, offset: int = 0) -> LogPart:
        return self._get(f"/jobs/{job}/log", LogPart, {"offset": offset})

    def follow(self, job: int, offset: int = 0) -> Iterator[str]:
        """Its log, until it has ended."""
        while True:
            part = self.log(job, offset)
            if part.text:
                yield part.text
            elif part.ended:
                return
            else:
                time.sleep(LOOK_SECONDS)
            offset = part.offset

    def draw(self, runs: list[str], source: Literal["answers", "rollouts"] = "answers") -> PairInfo:
        """The pair that waits for one's vote, or a new one."""
        return self._post("/votes/draw", PairInfo, {"runs": runs, "source": source})

    def ask_both(self, asked: AskPairRequest) -> PairInfo:
        """One question to two policies that are up; the pair of their answers waits for one's vote."""
        return self._post("/votes/ask", PairInfo, asked.model_dump(mode="json"))

    def vote(self, pair: int, choice: Choice) -> VoteInfo:
        """It stands, and says whose the sides were."""
        return self._post(f"/votes/{pair}/choice", VoteInfo, {"choice": choice})

    def picture(self, pair: int, number: int = 0) -> bytes:
        return self._answer("GET", f"/votes/{pair}/pictures/{number}").content

    def votes(self, runs: Sequence[str] = (), *, limit: int = 200) -> list[VoteInfo]:
        """The newest first."""
        return self._get("/votes", list[VoteInfo], {"run": list(runs), "limit": limit})

    def vote_figures(self, runs: Sequence[str] = ()) -> VoteFigures:
        """Strengths, and experts' agreement with people."""
        return self._get("/votes/figures", VoteFigures, {"run": list(runs)})

    def vote_reference(self, runs: Sequence[str] = ()) -> str:
        """JSON Lines for `prism calibrate`."""
        return self._answer("GET", "/votes/reference", params={"run": list(runs)}).text

    def score(self, asked: JudgeRequest) -> list[JudgedBy]:
        """What a run's experts say of a response. One that cannot say has a status and no score."""
        return self._post("/score", list[JudgedBy], asked.model_dump(mode="json"))

    def grade(self, asked: GradeRequest) -> Graded:
        """What a run's grader says of a response."""
        return self._post("/grade", Graded, asked.model_dump(mode="json"))

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _get(self, path: str, kind: type[Answer], query: dict[str, Any] | None = None) -> Answer:
        return self._ask("GET", path, kind, params=query)

    def _post(self, path: str, kind: type[Answer], body: Any = None, query: dict[str, Any] | None = None) -> Answer:
        return self._ask("POST", path, kind, json=body, params=query)

    def _ask(self, method: str, path: str, kind: type[Answer], **how: Any) -> Answer:
        return TypeAdapter(kind).validate_json(self._answer(method, path, **how).content)

    def _answer(self, method: str, path: str, **how: Any) -> httpx.Response:
        try:
            answer = self._http.request(method, f"{self._url}/api/v1{path}", **how)
        except httpx.TransportError as error:
            raise ServiceError(f"the console at {self._url} does not answer: {error}") from None
        if not answer.is_success:
            raise ServiceError(_said(answer))
        return answer


class _Refusal(BaseModel):
    detail: str | list[dict[str, Any]]


def _said(answer: httpx.Response) -> str:
    try:
        detail = _Refusal.model_validate_json(answer.content).detail
    except ValueError:
        return f"the console answered {answer.status_code}"
    if isinstance(detail, str):
        return detail
    return "\n".join(": ".join(filter(None, (".".join(map(str, d["loc"])), d["msg"]))) for d in detail)
