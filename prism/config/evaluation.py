"""What ``prism evaluate`` does, as one TOML file says it: a server, how it samples, a judge, benchmarks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from prism.config.strict import ConfigModel

BenchmarkName = Literal["mathvista", "mathverse", "mathvision", "wemath", "mmmu", "mmmu-pro", "hallusionbench", "own"]


class ServerConfig(ConfigModel):
    """An OpenAI-compatible server."""

    url: str = Field(default="http://127.0.0.1:8101/v1", pattern=r"^https?://")
    """Base URL, to which ``/chat/completions`` is added. By default the policy server of a run on this machine."""
    model: str = "policy"
    """The model's name there. ``policy`` by default, which is the name at our own server."""
    key_variable: str = "PRISM_TOKEN"
    """Environment variable that holds the key; a file of that name under PRISM_SECRETS_DIR does as well. The key itself
    can be given nowhere else: arguments and files are read by others. PRISM_TOKEN by default, which our server
    takes."""
    in_flight: int = Field(default=64, gt=0)
    """Requests at a time. 64 by default, which keep one GPU busy without a queue that outlasts a deadline."""
    patience_seconds: float = Field(default=120, ge=0)
    """The server may be away, or busy, that long before the evaluation stops; the same command goes on later. Two
    minutes by default: time for a restart."""
    silence_seconds: float = Field(default=1800, gt=0)
    """A request may go unanswered that long. Half an hour by default: most servers say nothing until the answer is
    whole."""
    proxy: str | None = None
    """A proxy for requests to it. None by default, whatever HTTP_PROXY says: requests carry the key."""


class SamplingConfig(ConfigModel):
    """How responses are sampled. The defaults are the paper's."""

    temperature: float = Field(default=1.0, ge=0)
    """0 is greedy. 1 by default, as in the paper (arXiv 2604.28123)."""
    top_p: float = Field(default=0.7, gt=0, le=1)
    """Share of the probability that is sampled from. 0.7 by default, as in the paper."""
    max_tokens: int = Field(default=8192, gt=0)
    """Tokens of a response at most; one that is cut off there is masked, for its answer stands at its end. 8192 by
    default, as in the paper."""
    n: int = Field(default=1, gt=0)
    """Responses to each question, for avg@n and pass@n. One by default."""
    seed: int = 0
    """Seed of the first response of each question; the next has the next. A fixed default makes evaluations
    repeatable, where the server is."""

    @model_validator(mode="after")
    def _several_differ(self) -> Self:
        if self.n > 1 and self.temperature == 0:
            raise ValueError(f"n: {self.n} greedy responses are all the same; set temperature above 0")
        return self


class JudgeConfig(ConfigModel):
    """A language model that says whether an answer agrees with the gold answer."""

    url: str = Field(pattern=r"^https?://")
    """Base URL of an OpenAI-compatible server. It has no default: nobody's model judges unasked."""
    model: str
    """The model's name there. The paper's is Qwen2.5-32B-Instruct."""
    key_variable: str = "PRISM_JUDGE_TOKEN"
    """Environment variable that holds its key, as the grader's."""
    in_flight: int = Field(default=16, gt=0)
    """Requests at a time. 16 by default, as many judges are shared."""
    patience_seconds: float = Field(default=120, ge=0)
    """As the server's."""
    max_tokens: int = Field(default=1024, gt=0)
    """Tokens of a verdict at most; models that think first need as many."""
    calibrate: int = Field(default=50, ge=0)
    """Answers known to be right, and as many known to be wrong, that the judge is tried on first. 50 of each by
    default, which know its errors to about 4 points; 0 tries nothing."""
    least_accuracy: float = Field(default=0.9, ge=0, le=1)
    """A judge that calls fewer of either kind what they are gives no score. 0.9 by default: what it errs by must stay
    small beside differences between models."""
    proxy: str | None = None
    """As the server's."""


class BenchmarkConfig(ConfigModel):
    """One benchmark's files."""

    path: str | list[str]
    """Its files as they are distributed: Parquet, JSON Lines, JSON or TSV; a pattern, a folder, or a list of them.
    Nothing is downloaded, unless `--download` is given."""
    kind: BenchmarkName | None = None
    """Which benchmark's rules hold. By default the one that the table is named for; ``own`` for a file of one's
    own."""
    image_root: Path | None = None
    """Folder that pictures which rows name by a path must lie in. By default the file's own folder."""
    questions: int | None = Field(default=None, gt=0)
    """Ask the first so many alone. By default all; the headline then says that it is of a part."""
    repo: str | None = None
    """Data set on the hub that `--download` takes the files from. By default where the benchmark lay in November
    2026."""


class EvaluationConfig(ConfigModel):
    """One TOML file."""

    out: Path
    """Folder of the results. The same command goes on there."""
    name: str | None = None
    """What tables call the model. By default the folder's name."""
    server: ServerConfig = Field(default_factory=ServerConfig)
    """Whom the questions are asked."""
    sampling: SamplingConfig = Field(default_factory=SamplingConfig)
    """How responses are sampled."""
    judge: JudgeConfig | None = None
    """Judges beside the rules. None by default: a model's opinion costs, and errs."""
    benchmarks: dict[str, BenchmarkConfig] = Field(min_length=1)
    """By name: mathvista, mathverse, mathvision, wemath, mmmu, mmmu-pro, hallusionbench; any other with its
    ``kind``."""
    system: str = ""
    """A system message before every question. Empty by default: the official prompts have none."""
    baseline: bool = True
    """Asks every question again with a blank picture, to show what the text alone is worth. On by default, though it
    doubles the requests: benchmarks differ much in how far one gets without looking."""
    max_masked: float = Field(default=0.02, ge=0, le=1)
    """Share of responses that may be masked (failed, truncated, refused, unparsed) before a score is withheld. 2 % by
    default: what is left out could shift a score by as much."""

    @model_validator(mode="after")
    def _kinds_are_known(self) -> Self:
        refuse_unknown(self.benchmarks)
        return self

    def kind_of(self, name: str) -> str:
        return self.benchmarks[name].kind or name


def refuse_unknown(benchmarks: Mapping[str, BenchmarkConfig]) -> None:
    """Raises ValueError for a benchmark of which neither name nor kind says what it is."""
    known = BenchmarkName.__args__
    for name, benchmark in benchmarks.items():
        if benchmark.kind is None and name not in known:
            raise ValueError(f"benchmarks.{name}: no benchmark of that name ({', '.join(known)}); set its kind")
