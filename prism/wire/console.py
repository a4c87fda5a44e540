"""What the console's API says of jobs, tokens, votes and runs."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

JobState = Literal["queued", "running", "done", "failed", "cancelled"]
Scope = Literal["view", "vote", "operate", "admin"]


class Said(BaseModel):
    model_config = ConfigDict(from_attributes=True)


class CommandInfo(Said):
    """A command that can be a job."""

    name: str
    title: str
    about: str
    parameters: dict[str, Any]
    """JSON Schema."""


class JobRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    command: str = Field(max_length=40)
    parameters: dict[str, Any]
    """Of the command's schema."""
    priority: int = Field(default=0, ge=-1000, le=1000)
    """Higher ones start first."""


class JobInfo(Said):
    id: int
    command: str
    title: str
    parameters: dict[str, Any]
    run: str | None
    gpus: int
    ports: int
    state: JobState
    priority: int
    cancel: bool
    """Cancellation was asked for, and has not arrived yet."""
    attempt: int
    losses: int
    worker: str | None
    cards: list[str] | None
    base_port: int | None
    created: float
    created_by: str
    started: float | None
    finished: float | None
    exit_status: int | None
    reason: str | None


class JobEventInfo(Said):
    at: float
    attempt: int
    what: str
    who: str
    detail: str


class JobPlan(Said):
    """What a job would be: nothing is queued."""

    title: str
    run: str | None
    gpus: int
    ports: int
    config: str | None
    """With all defaults, as TOML."""


class LogPart(BaseModel):
    text: str
    offset: int
    """Where the next part begins."""
    ended: bool
    """The job has ended, and this is all."""


class TokenRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f]+$")
    scope: Scope


class NewToken(BaseModel):
    name: str
    scope: Scope
    token: str
    """Shown this once."""


class TokenInfo(Said):
    id: int
    name: str
    scope: Scope
    created: float
    created_by: str
    revoked: float | None


class AuditInfo(Said):
    at: float
    who: str
    address: str
    action: str
    target: str
    detail: str


class WhoAmI(Said):
    name: str
    scope: Scope


Choice = Literal["left", "right", "tie", "bad"]
Runs = Annotated[list[Annotated[str, Field(max_length=300)]], Field(min_length=1, max_length=24)]


class Asking(BaseModel):
    model_config = ConfigDict(extra="forbid")


class DrawRequest(Asking):
    runs: Runs
    source: Literal["answers", "rollouts"] = "answers"
    """answers: held-out answers after stages, the teacher's among them. rollouts: two responses of one group."""


class VoteRequest(Asking):
    choice: Choice
    """bad: neither is any good."""


class PairInfo(Said):
    """What one sees before one votes: nothing says whose a side is."""

    id: int
    question: str
    pictures: int
    """How many there are: ``/api/v1/votes/ID/pictures/0`` is the first."""
    left: str
    right: str


class SideScore(Said):
    expert: str
    version: int | None
    status: str
    value: float | None


class SideInfo(Said):
    name: str
    version: int | None
    text: str
    judge: str
    scores: list[SideScore]


class VoteInfo(Said):
    id: int
    who: str
    source: Literal["answers", "rollouts", "asked"]
    question: str
    gold: str | None
    left: SideInfo
    right: SideInfo
    choice: Choice
    drawn: float
    voted: float


class StrengthInfo(Said):
    """Bradley-Terry: the difference of two strengths is the log-odds that the first is preferred."""

    name: str
    votes: int
    wins: int
    losses: int
    ties: int
    bad: int
    strength: float
    low: float
    high: float
    group: int
    """Strengths of different groups cannot be compared: no chain of votes links them."""


class AgreementInfo(Said):
    """How often an expert orders a pair as people do, over pairs that one version of it has scored."""

    run: str
    expert: str
    pairs: int
    agrees: int
    share: float | None
    low: float | None
    high: float | None
    undecided: int
    level: int
    unscored: int


class VoteFigures(BaseModel):
    votes: int
    strengths: list[StrengthInfo]
    agreements: list[AgreementInfo]
