"""What runs beside the learners: services, pushes of weights, measurements."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from prism.config.data import DataNames, data_configs
from prism.config.evaluation import BenchmarkConfig, refuse_unknown
from prism.config.strict import ConfigModel


class DisentangleConfig(ConfigModel):
    """Held-out responses of the teacher, scored beside copies with other numbers in one section alone."""

    rows: int = Field(default=128, gt=1)
    """Rows of the held-out data that are tried, in order; they need a teacher's response. With 128 the share that an
    expert notices is known to about 4 points (one standard error)."""
    words: list[list[str]] = Field(default=[])
    """Vocabularies beside digits: words that stand in for one another in a corrupted section, such as ``["one",
    "two"]``. None by default, because they are the data's own."""
    share: float = Field(default=1.0, gt=0, le=1)
    """Share of a section's numbers and words that are changed, at least one. By default all: the plainest lie."""

    @model_validator(mode="after")
    def _words_have_others(self) -> Self:
        for words in self.words:
            if len(set(words)) < 2:
                raise ValueError(f"words: {words} holds no other word to put in place of one")
        return self


class LooksConfig(ConfigModel):
    """Whether experts look: told apart with the right picture, another prompt's, and a blank one."""

    pairs: int = Field(default=64, ge=0)
    """Held-out prompts, the first that have a picture and a teacher's response; the policy answers each once, as in the
    game. With 64 a share is known to about 6 points (one standard error), and the game waits for one short batch. 0
    measures nothing."""
    every: int | None = Field(default=None, gt=0)
    """Steps of the game between two measurements. By default there are two: before the policy's first step, when its
    experts are warmed up, and after its last."""


KeepBest = Literal["accuracy", "format_rate", "caption_f1"]


class EvaluateConfig(ConfigModel):
    """Measured through the live policy server after each stage, greedily, and while alignment and RLVR learn."""

    data: DataNames
    """Held-out questions with gold answers: a path as in ``data`` of SFT, a table, or a list of them, one after the
    other."""
    questions: int = Field(256, gt=0)
    """Questions asked: the first of the file, or all if it has fewer. With 256 an accuracy is known to about 3 points
    (one standard error)."""
    max_tokens: int = Field(gt=0)
    """Tokens of a response at most."""
    every: int | None = Field(default=None, gt=0)
    """Learner steps between two measurements while alignment and RLVR go on, on ``validation``; the learner does not
    wait for them. Off by default: it takes requests from the rollouts. (SFT has no server of its weights.)"""
    validation: DataNames | None = None
    """What is asked then, as ``data``. It must be other data: a checkpoint that was picked on the reported split would
    look better than it is. None by default."""
    validation_questions: int = Field(default=64, gt=0)
    """Questions of ``validation`` that are asked each time. 64 by default: soon answered, and known to about 6 points
    (one standard error)."""
    benchmarks: dict[str, BenchmarkConfig] = Field(default_factory=dict)
    """Benchmarks as `prism evaluate` has them, by name, asked too at each of these measurements: the first
    ``questions`` of each, or ``validation_questions``. They are shown, and no checkpoint is picked by them, since they
    are what one reports. None by default."""
    keep_best: KeepBest | None = None
    """Keeps the checkpoint whose validation has the highest of this figure, beside the newest; ``prism export --best``
    takes it. None by default. ``every`` must then be a multiple of each stage's ``checkpoint_every``. Rewards of the
    game cannot be named: they move around 0 however good the policy is."""
    stop_after: int | None = Field(default=None, gt=0)
    """Ends a stage at the next checkpoint after so many validations in a row that were no new best of ``keep_best``.
    Never by default: the learning rate falls over all steps."""
    disentangle: DisentangleConfig | None = None
    """After an alignment, measures whether each expert notices lies in its own section and not in the other's. Off by
    default: it needs teacher's responses in the held-out data."""

    looks: LooksConfig = Field(default_factory=LooksConfig)
    """In an alignment, measures whether experts judge by the picture: who tells teacher from policy as well with
    another prompt's picture works from the text. On by default, as it costs seconds and nothing else shows it. Held-out
    data without a teacher's response is said, and measures nothing."""

    @model_validator(mode="after")
    def _validation_is_other_data(self) -> Self:
        if self.every is None and (self.keep_best or self.stop_after or self.validation or self.benchmarks):
            raise ValueError("every: set it, or nothing is measured while a stage learns")
        if self.every is not None and self.validation is None:
            raise ValueError("validation: name data for `every`, other than evaluate.data")
        if self.validation is not None and _paths(self.validation) & _paths(self.data):
            raise ValueError("validation: a checkpoint must not be picked on evaluate.data, which is reported")
        if self.stop_after and not self.keep_best:
            raise ValueError("stop_after: name the figure, keep_best")
        refuse_unknown(self.benchmarks)
        return self


def _paths(names: DataNames) -> set[str]:
    return {entry.path for entry in data_configs(names)}


Cards = Annotated[str, Field(pattern=r"^\d+(,\d+)*$")]


class DevicesConfig(ConfigModel):
    """What computes on which of this machine's GPUs, by their numbers; several are written ``"0,1"``."""

    policy: Cards = "0"
    """The policy server's. Several share it by tensor parallelism. By default the first, as everyone's."""
    experts: Cards = "0"
    """Both experts' on one card, or each on one of two. By default the first."""
    learner: Cards = "0"
    """The learner's: a rank on each, which share the models (FSDP2). By default the first; a card of its own leaves the
    services memory and time."""

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        for name, cards in self:
            if len(set(cards.split(","))) < len(cards.split(",")):
                raise ValueError(f"{name}: {cards} names a card twice")
        if len(self.experts.split(",")) > 2:
            raise ValueError(f"experts: there are two experts, {self.experts} are more cards")
        return self


class StackConfig(ConfigModel):
    """The services that ``prism up`` starts on this machine, on consecutive ports of 127.0.0.1."""

    base_port: int = Field(8100, ge=1024, le=65000)
    """The first port: Redis, policy, perception, reasoning, grader and rollout workers follow in this order. 8100 keeps
    clear of 8000 and 8080, which much else uses."""
    rollout_workers: int = Field(1, gt=0)
    """Processes that sample, score and grade. One has 16 groups at work at a time, which fills a single policy
    server."""
    start_deadline_seconds: float = Field(240, gt=0)
    """Seconds within which all services must be ready. vLLM takes one to two minutes on a CPU; a large model on a slow
    disk takes longer."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where policy server and experts compute. A CPU by default, as for the learners: it is there on any machine."""
    devices: DevicesConfig | None = None
    """GPUs of policy server, experts and learner for `prism run`, where they compute on "cuda": ``{ policy = "0",
    experts = "0", learner = "1" }``. By default all see every card, and take the first."""
    experts_together: bool = False
    """Both experts in one process (`prism serve experts`), which holds once what adapters of both are over. They take
    turns on it, and one that dies takes the other with it. Off by default: apart, neither waits for the other."""
    card_gib: float | None = Field(default=None, gt=0)
    """GiB of memory of a card, to ask on another machine with `prism run --dry-run` whether the run fits such cards. By
    default what this machine's cards have."""
    max_model_len: int = Field(gt=0)
    """Tokens of prompt and response together that the policy server admits, whoever starts it: compose and chart read
    it where ``[limits]`` are. It has no default because the server reserves memory by it."""
    policy_options: dict[str, str] = Field(default={})
    """More settings of the policy server, each named as its PRISM_* variable without that prefix, in lower case: ``{
    kv_cache_gib = "4" }``. services/policy/settings.py has them all."""

    @model_validator(mode="after")
    def _together_on_one_card(self) -> Self:
        if self.experts_together and self.devices and "," in self.devices.experts:
            raise ValueError(f"devices.experts: together they have one card, {self.devices.experts} are two")
        return self


class RolloutLogConfig(ConfigModel):
    """Rollouts that stay in the run's folder, for people to look at."""

    groups: int = Field(default=4, ge=0)
    """Groups of each step that are kept, with every token's log-probabilities. 4 show what a step was about and cost
    its trainer some hundredths of a second; 0 keeps none."""
    gib: float = Field(default=0.25, gt=0)
    """GiB on disk of all that are kept. Once they take more, every other step is dropped, so that what stays is spread
    over the whole run. 0.25 hold some thousand steps of long responses."""
    grade_alignment: bool = False
    """Has the grader judge alignment's responses too, where rows have a gold answer. Nothing is learnt from its
    verdicts: they show where experts like what is wrong. Off by default, as the game is played without a grader."""


class PushConfig(ConfigModel):
    """How weights reach the servers."""

    transport: Literal["file", "broadcast"] = "file"
    """How weights get to the servers: by files in a folder that learner and servers share, or from the learner's memory
    (read out of its GPU by servers of its machine, else NCCL; gloo on CPUs), files following behind. Files by default:
    they need nothing but that folder."""
    deadline_seconds: float = Field(default=120, gt=0)
    """A server that has not taken the weights within these seconds, its restarts included, fails the run. 120 let a
    server of a small model restart once."""
    in_flight: bool = False
    """Swaps the policy's weights under answers that are being written, instead of waiting for them: one long answer
    then does not idle the card. Tokens of one answer are then of several versions, each known by its own, and written
    on over the keys and values of the old. Only with ``staleness`` of 1 and more in every stage that samples, whose
    bound counts the oldest token. Off by default: a response is then of one policy, and at staleness 0 no push finds
    any in flight."""
    keep_gib: float = Field(default=100, gt=0)
    """GiB on disk of each model's pushed versions, of which three are kept, or two if three take more. A server that
    restarts in the middle of a push needs the two newest. 100 hold three versions of 16 billion parameters."""
    probe_tolerance: float = Field(default=1e-3, gt=0)
    """Largest mean absolute difference, in nats, between the server's and the learner's log-probabilities of a probe;
    beyond it a push is refused. 1e-3 is what float32 keeps to; bfloat16 differs by about 2e-2, so set 5e-2 there."""
