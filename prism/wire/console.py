"""What the console's API says of jobs, tokens, votes and running models."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from prism.wire.grading import AnswerKind
from prism.wire.messages import Text

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
    """Votes that found neither side any good; they count as ties."""
    strength: float
    """The mean over the contestants of its group is 0."""
    low: float
    high: float
    """The 95 % interval."""
    group: int
    """Strengths of different groups cannot be compared: no chain of votes links them."""


class AgreementInfo(Said):
    """How often an expert orders a pair as people do, over pairs that one version of it has scored."""

    run: str
    expert: str
    pairs: int
    """Which people and the expert both put in an order. One that several people voted on counts once, as most voted."""
    agrees: int
    share: float | None
    low: float | None
    high: float | None
    undecided: int
    """Pairs that people put in no order: ties, neither any good, as many for as against."""
    level: int
    """Pairs that people put in an order and the expert scored alike."""
    unscored: int
    """Pairs of which a side has no score, or the sides' are of different versions or runs."""


class VoteFigures(BaseModel):
    votes: int
    strengths: list[StrengthInfo]
    agreements: list[AgreementInfo]


MOST_TOKENS = 4096
PICTURE_CHARACTERS = 12 * 2**20
"""Of a picture as a data URI, which are some 9 MiB of the picture itself."""
Picture = Annotated[str, Field(max_length=PICTURE_CHARACTERS)]
LongText = Annotated[Text, Field(max_length=100_000)]


class Turn(Asking):
    role: Literal["system", "user", "assistant"]
    content: LongText


class Conversation(Asking):
    run: str = Field(max_length=300)
    """One that is up."""
    messages: Annotated[list[Turn], Field(min_length=1, max_length=64)]
    image: Picture | None = None
    """A data URI; it stands before the first user's text."""


class ChatRequest(Conversation):
    max_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    """Of the answer at most. None: as many as the policy's context holds."""
    temperature: float = Field(default=0.7, ge=0, le=2)


class AskPairRequest(Asking):
    runs: Annotated[list[Annotated[str, Field(max_length=300)]], Field(min_length=2, max_length=2)]
    """Two that are up; or one of them twice, for two samples of one policy. The first one's experts score both."""
    question: Annotated[LongText, Field(min_length=1)]
    image: Picture | None = None
    gold: Annotated[Text, Field(max_length=10_000)] | None = None
    """Shown once the vote is cast."""
    max_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    temperature: float = Field(default=0.7, ge=0, le=2)


class JudgeRequest(Conversation):
    response: LongText
    section: Literal["own", "all"] = "own"
    """own: the section that each expert was trained on. all: the whole text, whatever its format."""


class JudgedBy(Said):
    expert: str
    status: str
    """ok, what the expert says instead, or ``unavailable`` or ``refused`` where the service gave no answer."""
    version: int | None = None
    score: float | None = None
    detail: str = ""


class GradeRequest(Asking):
    run: str = Field(max_length=300)
    response: LongText
    gold: Annotated[Text, Field(min_length=1, max_length=10_000)]
    kind: AnswerKind = "auto"


class Graded(Said):
    status: str
    """ok, what the grader says instead, or ``unavailable`` or ``refused`` where the service gave no answer."""
    accuracy: float | None = None
    format: float | None = None
    reward: float | None = None
    extracted: str = ""
    detail: str = ""
