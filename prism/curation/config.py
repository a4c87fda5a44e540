"""``prism curate FILE``: every key of the file."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from prism.clients.teacher.config import TeacherConfig
from prism.config import ConfigModel, DataNames, LimitsConfig

CaptionCheck = Literal["judge", "expert", "none"]


class MineConfig(ConfigModel):
    """How problems are mined: sampled by the policy, judged by the grader, sorted by pass rate."""

    n: int = Field(default=8, gt=0)
    """Samples of a problem. With 8, one that the policy solves one time in three looks unsolved one time in 26."""
    temperature: float = Field(default=1.0, gt=0)
    """The sampler's. At 1 responses are drawn from the policy itself."""
    max_tokens: int = Field(gt=0)
    """Tokens of a sample at most. One that reaches them is masked: nobody knows what it would have said."""
    min_judged: float = Field(default=0.75, gt=0, le=1)
    """Share of the samples that must have a verdict; below it the problem has no pass rate and goes nowhere."""
    teacher: tuple[float, float] = (0.0, 0.0)
    """Lowest and highest pass rate of problems for the teacher. By default those that are never solved."""
    rl: tuple[float, float] = (0.2, 0.8)
    """Lowest and highest pass rate of prompts for RL: solved at times, so that there is something to learn."""
    concurrency: int = Field(default=16, gt=0)
    """Problems at work at a time; 16 fill a policy server."""
    patience_seconds: float = Field(default=600, ge=0)
    """How long a service may be away before the command ends; the same command goes on."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for name in ("teacher", "rl"):
            low, high = getattr(self, name)
            if not 0 <= low <= high <= 1:
                raise ValueError(f"{name}: [{low}, {high}] must be two rates in [0, 1], the lower first")
        if self.teacher[1] >= self.rl[0] and self.rl[1] >= self.teacher[0]:
            raise ValueError("teacher and rl must not overlap: a problem goes one way")
        return self


class TermsConfig(ConfigModel):
    """Whether a teacher's answers may be trained on is between you and its provider; the card says who decided."""

    name: str = Field(min_length=1)
    """The provider's terms, by name and date or address."""
    accepted_by: str | None = None
    """Who has read them and accepts them for this use. Without, the command asks (``--accept-terms NAME``)."""
    licence: str = Field(min_length=1)
    """Licence under which the demonstrations will be used, as the card tells it."""
    data_licence: str | None = None
    """Licence of the problems and their images, for the card; without it the card says that it is not stated."""


class AskConfig(ConfigModel):
    """What the teacher is asked."""

    attempts: int = Field(default=1, gt=0)
    """Answers to each problem; the best verified one is kept. One by default: each costs the same."""
    prompt: Path | None = None
    """A file with the instructions, in place of PRISM's own (prism/curation/prompts.py). It must ask for <caption>,
    <think> and <answer>."""


class VerifyConfig(ConfigModel):
    """What an answer must pass. Nobody who checks it is told who wrote it, or how."""

    min_bullets: int = Field(default=1, gt=0)
    """Bullets of a caption at least."""
    caption: CaptionCheck = "judge"
    """Who checks the caption against the images: the judge, bullet by bullet; or the run's perception expert, for which
    a true bullet beats its own false copies (``words``). ``none`` leaves it unchecked, and the card says so."""
    second: Literal["judge", "expert"] | None = None
    """Who is held against the captions of the labelled sample too, beside ``caption``: the card then shows what each of
    them catches and rejects. It decides nothing; None by default, as it costs time, or a judge's price."""
    expected_bullets: int = Field(default=12, gt=0)
    """Bullets of a caption that a dry run reckons with, for the judge, who is asked about each. 12 are a dense caption
    of a diagram; ``samples.html`` of a small job shows what yours have."""
    bullet_limit: int = Field(default=40, gt=0)
    """Bullets that are checked; an answer with more is rejected, as nobody would read it."""
    max_unclear: float = Field(default=0.5, ge=0, le=1)
    """Share of the bullets that the judge may call unclear. Half: not every true thing can be made out."""
    steps: Literal["rules", "judge"] = "rules"
    """``rules``: every equation in the steps must hold. ``judge``: the judge is asked too."""
    words: list[list[str]] = Field(default=[])
    """Vocabularies beside digits, words that stand in for one another, of which the expert's false copies are made."""
    margin: float | None = None
    """Score by which a caption must lead its best false copy, for the expert. By default it is found on the labelled
    sample, so that ``false_rejection`` of the faithful are rejected."""
    false_rejection: float = Field(default=0.05, gt=0, lt=1)
    """Share of faithful answers that calibration may give away. 5 %, against what it catches."""
    labelled: Path | None = None
    """JSON Lines of rows with a ``response`` and ``labels``, such as ``{"answer": true, "caption": false}``: what is
    known to be right. Judge and expert are held against them, and the card tells how they agree. Without it the card
    says that nobody has calibrated them."""
    concurrency: int = Field(default=16, gt=0)
    """Answers that are checked at a time."""


class SplitConfig(ConfigModel):
    """Which sets come out."""

    benchmarks: list[str] = Field(default=[])
    """Files of benchmarks, of any format that rows are read from: what is near one of their rows is left out, and named
    in ``contamination.jsonl``."""
    hash_bits: int = Field(default=10, ge=0, le=32)
    """Bits, of 64, by which perceptual hashes of one picture may differ. JPEG at quality 40 and copies at three
    quarters of the size stay within 10; unrelated images begin at 18."""
    overlap: float = Field(default=0.6, gt=0, le=1)
    """Share of the shorter question's word triples that both have, from which on they ask the same. An image alone
    never makes a duplicate: one drawing with another label is another problem."""
    validation: float = Field(default=0.02, ge=0, lt=1)
    """Share of the demonstrations that is kept for validation, by whole clusters of images."""
    align: int = Field(default=6000, ge=0)
    """Demonstrations for alignment: those by which both experts tell teacher from policy best; the others are for SFT.
    Published: 6,000 of 113,000."""
    warmup: int = Field(default=120_000, ge=0)
    """Pairs of teacher and policy that warm the experts up, at most. Published: 120,000."""


class CurateConfig(ConfigModel):
    """One TOML file."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Names the job and its folder."""
    runs_dir: Path = Path("runs")
    """Folder of the jobs' folders."""
    database: str = ""
    """SQLAlchemy's URL of where the state lies. By default a SQLite file in the job's folder; a PostgreSQL
    (``postgresql+psycopg://...``) may hold several jobs, which then share their answers."""
    run: Path = Path("runs/demo")
    """Folder of the run whose services are asked, found by its ``stack.json``; PRISM_* variables go before it."""
    data: DataNames
    """The problems: files of any format, each row with a gold answer."""
    limits: LimitsConfig = Field(default_factory=LimitsConfig)
    """What a problem may hold."""
    mine: MineConfig | None = None
    """How the hardest problems are found. Without it all problems go to the teacher."""
    teacher: TeacherConfig
    """Who answers."""
    terms: TermsConfig
    """Under which terms."""
    ask: AskConfig = Field(default_factory=AskConfig)
    """What it is asked."""
    judge: TeacherConfig | None = None
    """A model that decides what rules cannot. It should be another than the teacher: nobody sees his own mistakes."""
    verify: VerifyConfig = Field(default_factory=VerifyConfig)
    """What an answer must pass."""
    split: SplitConfig = Field(default_factory=SplitConfig)
    """Which sets come out."""

    @property
    def folder(self) -> Path:
        return self.runs_dir / self.name

    @property
    def database_url(self) -> str:
        return self.database or f"sqlite:///{self.folder / 'curation.db'}"

    def path(self, name: str) -> Path:
        """Relative to the run's folder if it lies there, else to the working directory."""
        inside = self.run / name
        return inside if inside.exists() else Path(name)

    @model_validator(mode="after")
    def _judge_is_there(self) -> Self:
        for key in ("caption", "steps", "second"):
            if getattr(self.verify, key) == "judge" and self.judge is None:
                raise ValueError(f'verify.{key}: "judge" needs a [judge]')
        if self.judge and self.judge.batch:
            raise ValueError("judge.batch: judgements are asked for one by one")
        if self.verify.second and (self.verify.second == self.verify.caption or self.verify.labelled is None):
            raise ValueError("verify.second: another than verify.caption, and held against a labelled sample")
        if self.verify.caption == "expert" and self.verify.margin is None and self.verify.labelled is None:
            raise ValueError("verify.margin: give it, or a labelled sample on which it is found")
        return self
