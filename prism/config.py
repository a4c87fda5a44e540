"""A run, as written in TOML: ``configs/*.toml``. Unknown keys and impossible values are refused, by name."""

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from prism.errors import ConfigError
from prism.files import write_json
from prism.settings import describe


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Strict):
    """AdamW under a learning-rate schedule."""

    lr: float = Field(gt=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    final_lr_fraction: float = Field(0.0, ge=0, le=1)
    """Where a linear or cosine schedule ends, as a fraction of ``lr``."""
    warmup_fraction: float = Field(0.0, ge=0, lt=1)
    """Share of the steps over which the rate climbs from 0 to ``lr``."""
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    max_skipped: int = Field(5, gt=0)
    """As many updates in a row, skipped because loss or gradient was not finite, end the run."""


class SftConfig(Strict):
    """Supervised fine-tuning on demonstrations, loss on the response alone."""

    kind: Literal["sft"]
    data: list[str] = Field(min_length=1)
    """JSON Lines or Parquet files, relative to the run's folder. Rows stay on disk until a step needs them."""
    check_images: Literal["decode", "exist"] = "decode"
    """Before training starts every row is read, and every image opened or, for millions of them, only looked for. One
    that turns out to be broken later is named then; its row is left out of its steps, or fatal, by ``on_bad_row``."""
    cache_gib: float = Field(2.0, ge=0)
    """Memory for examples made ready, images processed, so that the next epoch finds them. Changes speed alone."""
    target: Literal["response", "teacher"] = "response"
    """Which text of a row is imitated."""
    steps: int = Field(gt=0)
    batch: int = Field(gt=0)
    """Examples a step."""
    micro_batch_tokens: int = Field(16_384, gt=0)
    """Tokens of one forward and backward pass; changes memory, not results."""
    autocast_bf16: bool = False
    """Compute in bfloat16, weights in float32. On a CPU without AVX-512 BF16 or AMX it is fifteen times slower."""
    optimizer: OptimizerConfig
    checkpoint_every: int = Field(200, gt=0)


class RolloutConfig(Strict):
    """What is sampled for each learner step."""

    data: str
    """JSON Lines or Parquet of prompts, relative to the run's folder."""
    prompts: int = Field(gt=0)
    """Prompts (groups) a step."""
    n: int = Field(ge=2)
    """Responses to each prompt."""
    temperature: float = Field(1.0, gt=0)
    max_tokens: int = Field(gt=0)
    staleness: int = Field(0, ge=0)
    """How many policy versions a rollout may be behind the learner: 0 is lock-step."""


Frozen = list[Annotated[str, Field(min_length=1)]]


class PolicyLearnerConfig(Strict):
    optimizer: OptimizerConfig
    freeze: Frozen = []
    """Parts of the model that are not trained, and that pushes need not write again: ``["model.visual"]``."""
    clip_low: float | None = Field(None, gt=0, lt=1)
    """How far below 1 a ratio may fall before it earns nothing more; by default as published for the loss."""
    clip_high: float | None = Field(None, gt=0)
    minibatches: int = Field(1, gt=0)
    """Optimizer steps that share one rollout batch."""
    epochs: int = Field(1, gt=0)
    micro_batch_tokens: int = Field(16_384, gt=0)
    """Tokens of one forward and backward pass, a prompt and its images counted once; changes memory, not results."""
    importance_cap: float | None = Field(None, gt=0)
    """Truncated importance sampling: a token weighs min(π_learner/π_sampler, cap), and its ratio is to the learner at
    the start of the step. Without, ratios are to the sampler."""


class MixtureConfig(Strict):
    """Sparse upcycling: every MLP of a dense model becomes several experts, of which each token is sent to a few."""

    experts: int = Field(4, ge=2)
    top_k: int = Field(2, ge=1)
    """Experts a token is sent to."""
    noise: float = Field(0.01, ge=0)
    """Standard deviation of what is added to the dense weights, so that experts differ."""

    @model_validator(mode="after")
    def _top_k_fits(self) -> Self:
        if self.top_k > self.experts:
            raise ValueError(f"top_k: a token cannot be sent to {self.top_k} of {self.experts} experts")
        return self


class GroundingConfig(Strict):
    """Before the game, from the teacher's text alone, each expert learns which response belongs to a prompt."""

    epochs: float = Field(gt=0)
    """Passes over the stage's prompts. The learning rate is the game's; it climbs over 10 % and falls as a cosine."""
    batch: int = Field(64, ge=2)
    """Prompts of an update."""


class ExpertLearnerConfig(Strict):
    """Bradley-Terry learning of one expert, online."""

    optimizer: OptimizerConfig
    freeze: Frozen = []
    """Parts of the model that are not trained in the game (grounding, before it, trains all)."""
    mixture: MixtureConfig | None = None
    """Start from mixtures of experts, upcycled from the model the stage starts from; without it experts are dense."""
    grounding: GroundingConfig | None = None
    """Teach experts to look at image and question: pairs with the policy teach them what the policy tends to write.

    (A matching-aware discriminator, arXiv 1605.05396; not in the published method.)
    """
    dropout: float = Field(0.1, ge=0, lt=1)
    score_regularisation: float = Field(0.001, ge=0)
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    margin: float = Field(0.0, ge=0)
    skip_above_accuracy: float = Field(1.0, gt=0.5, le=1)
    """Pair accuracy above which an online update is skipped; 1 never skips. A warm-up is never skipped."""
    mismatch: float = Field(0.0, ge=0)
    """Weight of grounding's pairs in the game: a teacher's response, and the one to another prompt like it."""
    load_balance: float = Field(0.01, ge=0)
    """Weight of the routers' load balance in the warm-up; nothing without a mixture."""
    load_balance_online: float = Field(0.0, ge=0)
    """The same after the warm-up."""
    micro_batch_tokens: int = Field(16_384, gt=0)
    """Tokens of one forward and backward pass; a prompt's pairs stay in one. Changes memory, hardly results."""


class AlignConfig(Strict):
    """The adversarial game: policy against the perception and the reasoning expert, no accuracy reward, no KL."""

    kind: Literal["align"]
    steps: int = Field(gt=0)
    rollouts: RolloutConfig
    policy: PolicyLearnerConfig
    experts: ExpertLearnerConfig
    warmup_steps: int = Field(gt=0)
    """Expert updates before the first policy update."""
    warmup_prompts: int = Field(gt=0)
    """Prompts (groups) of a warm-up step."""
    warmup_n: int = Field(1, gt=0)
    """Responses to each prompt of a warm-up step: pairs of many prompts teach an expert more than many pairs of one."""
    alpha: float = Field(0.5, ge=0, le=1)
    """Weight of the perception expert; the reasoning expert has the rest."""
    checkpoint_every: int = Field(10, gt=0)


class RlvrConfig(Strict):
    """Reinforcement learning with the grader's reward."""

    kind: Literal["rlvr"]
    loss: Literal["grpo", "dapo", "gspo", "dr_grpo"] = "grpo"
    steps: int = Field(gt=0)
    rollouts: RolloutConfig
    policy: PolicyLearnerConfig
    kl_coef: float = Field(0.0, ge=0)
    """Weight of KL(policy || the model the stage starts from), by the k3 estimate; 0 loads no second model."""
    dynamic_sampling: bool = False
    """DAPO: drop groups whose accuracies are all equal, and sample on until the batch is full."""
    max_sampling_rounds: int = Field(10, gt=0)
    overlong_buffer: int = Field(0, ge=0)
    """DAPO's soft over-long penalty: tokens before max_tokens over which the reward falls by 1; 0: no penalty."""
    checkpoint_every: int = Field(10, gt=0)


Stage = Annotated[SftConfig | AlignConfig | RlvrConfig, Field(discriminator="kind")]


class PrepareConfig(Strict):
    """A script that makes the run's model and data, for runs that bring none: ``SCRIPT --out RUN_DIR OPTIONS``."""

    script: Path
    options: dict[str, str | int | float] = {}


class DisentangleConfig(Strict):
    """Held-out responses of the teacher, scored beside copies with other numbers in one section alone."""

    rows: int = Field(default=128, gt=1)
    """Rows of the held-out data that are tried, in order; they need a teacher's response."""
    words: list[list[str]] = []
    """Vocabularies beside digits: words that stand in for one another in a corrupted section."""
    share: float = Field(default=1.0, gt=0, le=1)
    """Share of a section's numbers and words that are changed, at least one."""

    @model_validator(mode="after")
    def _words_have_others(self) -> Self:
        for words in self.words:
            if len(set(words)) < 2:
                raise ValueError(f"words: {words} holds no other word to put in place of one")
        return self


class EvaluateConfig(Strict):
    """Measured through the live policy server after each stage, greedily."""

    data: str
    questions: int = Field(256, gt=0)
    max_tokens: int = Field(gt=0)
    disentangle: DisentangleConfig | None = None
    """After an alignment: whether each expert notices lies in its own section and not in the other's."""


class StackConfig(Strict):
    """The services that ``prism up`` starts on this machine, on consecutive ports of 127.0.0.1."""

    base_port: int = Field(8100, ge=1024, le=65000)
    rollout_workers: int = Field(1, gt=0)
    start_deadline_seconds: float = Field(240, gt=0)
    device: Literal["cpu", "cuda"] = "cpu"
    max_model_len: int = Field(gt=0)
    """Longest prompt plus response the policy server admits, in tokens."""
    policy_options: dict[str, str] = {}
    """More PRISM_POLICY_* settings of the policy server."""


class PushConfig(Strict):
    """How weights reach the servers."""

    transport: Literal["file", "broadcast"] = "file"
    """How the policy's get there: by files on what learner and servers share, or from the learner's memory (NCCL; gloo
    on CPUs), files following behind."""
    deadline_seconds: float = Field(default=120, gt=0)
    """A server that has not taken the weights by then, restarts included, fails the run."""
    probe_tolerance: float = Field(default=1e-3, gt=0)
    """Largest mean absolute difference between server's and learner's logprobs that is accepted. In bf16 about 2e-2."""


class RunConfig(Strict):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Names the run's folder and its streams."""
    seed: int = 0
    runs_dir: Path = Path("runs")
    prepare: PrepareConfig | None = None
    model: str
    """Hugging Face folder, relative to the run's folder if it lies there, or a hub name."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the learners' models; optimizers keep float32 weights beside bfloat16 ones."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the learners compute, on a GPU in bfloat16; the services' is ``stack.device``."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: far less memory, about a third more time."""
    compile: bool = False
    """Decoder layers through torch.compile: for GPUs, where it needs a C compiler and a minute at the start."""
    threads: int | None = Field(None, gt=0)
    """CPU threads of the learner; by default torch's choice."""
    on_bad_row: Literal["skip", "fail"] = "skip"
    stages: dict[str, Stage] = Field(min_length=1)
    """Run in the order of the file; each starts from the weights of the one before."""
    evaluate: EvaluateConfig
    stack: StackConfig
    push: PushConfig = Field(default_factory=PushConfig)
    keep_checkpoints: int = Field(2, gt=0)

    @property
    def run_dir(self) -> Path:
        return self.runs_dir / self.name

    def path(self, name: str) -> Path:
        """A data file or model of the config: relative to the run's folder, or to the working directory."""
        inside = self.run_dir / name
        return inside if inside.exists() else Path(name)

    @model_validator(mode="after")
    def _stages_fit(self) -> Self:
        if self.device == "cuda" and self.dtype != "bfloat16":
            raise ValueError("dtype: on a GPU the learners' attention computes in bfloat16")
        for name, stage in self.stages.items():
            if isinstance(stage, SftConfig):
                continue
            rollouts, policy = stage.rollouts, stage.policy
            if rollouts.prompts % policy.minibatches:
                raise ValueError(
                    f"stages.{name}.policy.minibatches: {policy.minibatches} does not divide "
                    f"rollouts.prompts = {rollouts.prompts}"
                )
            if isinstance(stage, RlvrConfig) and stage.overlong_buffer > rollouts.max_tokens:
                raise ValueError(
                    f"stages.{name}.overlong_buffer: {stage.overlong_buffer} is more than "
                    f"rollouts.max_tokens = {rollouts.max_tokens}"
                )
            if rollouts.max_tokens >= self.stack.max_model_len:
                raise ValueError(
                    f"stages.{name}.rollouts.max_tokens: {rollouts.max_tokens} leaves no room for a prompt in "
                    f"stack.max_model_len = {self.stack.max_model_len}"
                )
        return self


def load_config(path: Path, overrides: list[str] | None = None) -> RunConfig:
    """Read a TOML file and apply dotted overrides such as ``stages.align.steps=10``.

    Raises ConfigError that names the file, the key and what is wrong with it.
    """
    try:
        values = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"config file {path} does not exist") from None
    except OSError as error:
        raise ConfigError(f"config file {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    for override in overrides or []:
        _override(values, override)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        # Inside a stage, pydantic names its kind as well: stages.sft.sft.steps.
        lines = (re.sub(r"^(stages\.[^.:]+)\.(?:sft|align|rlvr)\.", r"\1.", line) for line in describe(error))
        raise ConfigError("\n".join(f"{path}: {line}" for line in lines)) from None


def _override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not all(key.split(".")):
        raise ConfigError(f"override {override!r}: write it as dotted.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is a string
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ConfigError(f"override {override!r}: {parent} is a value, not a table")
    values[last] = value


def save_resolved(config: RunConfig) -> Path:
    """Write what was resolved, defaults included, into the run's folder."""
    path = config.run_dir / "config.json"
    write_json(path, config.model_dump(mode="json"))
    return path
