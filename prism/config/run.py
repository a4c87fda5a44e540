"""A run: its model, its stages in order, its services."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from prism.config.alerts import AlertsConfig
from prism.config.grader import GraderConfig
from prism.config.limits import LimitsConfig, RunLimits, place_of
from prism.config.services import EvaluateConfig, PushConfig, RolloutLogConfig, StackConfig
from prism.config.stages import AlignConfig, RlvrConfig, SftConfig, Stage
from prism.config.strict import ConfigModel
from prism.config.track import TrackConfig


class PrepareConfig(ConfigModel):
    """A script that makes the run's model and data, for runs that bring none: ``SCRIPT --out RUN_DIR OPTIONS``."""

    script: Path
    """A Python file, relative to the working directory. It is called at every start of the run, also with the run's
    ``--seed``, and should leave alone what it has made before."""
    options: dict[str, str | int | float] = Field(default={})
    """More options of the script: ``{ public_demos = 24 }`` becomes ``--public-demos=24``. None by default: each script
    has defaults of its own."""


class RunConfig(ConfigModel):
    """One TOML file."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Names the run's folder and its streams, so two runs that share folder or Redis must differ in it."""
    seed: int = 0
    """Seed of the order of data, of sampling, dropout and new heads. Any will do; a fixed default makes runs
    repeatable."""
    runs_dir: Path = Path("runs")
    """Folder of the runs' folders, relative to the working directory."""
    prepare: PrepareConfig | None = None
    """A script that makes model and data. None by default: most runs bring their own."""
    model: str
    """Hugging Face folder, relative to the run's folder if it lies there, or a hub name."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the learners' models; optimizers keep float32 weights beside bfloat16 ones. float32 by default, which every
    CPU computes; on a GPU it must be bfloat16."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the learners compute, on a GPU in bfloat16; the services' is ``stack.device``. A CPU by default: it is
    there on any machine."""
    gradient_checkpointing: bool = False
    """Computes activations again in the backward pass: far less memory, about a third more time. Off by default, as
    ``micro_batch_tokens`` bounds memory too; `prism run --dry-run` estimates both."""
    offload: Literal["idle", "optimizer", False] = False
    """What of the learners lies in page-locked host memory: float32 copies of the weights, and AdamW's moments, 12 of
    the 16 bytes that a weight takes which is trained in bfloat16. ``idle``: of learners that wait for their turn in an
    alignment; they come to the card while it computes. ``optimizer``: always; at a step they come a chunk at a time,
    which costs a second or more for each learner of 2 billion weights, and least memory. By default nothing: where all
    has room on the card, moving it gains nothing."""
    compile: bool = False
    """Runs decoder layers through torch.compile: 1.4 to 1.6 times as fast on an H100. Off by default, as it needs a C
    compiler and a minute at the start, and gains nothing on a CPU."""
    threads: int | None = Field(None, gt=0)
    """CPU threads of the learner. By default torch's choice, one for each core; set fewer where services share them."""
    on_bad_row: Literal["skip", "fail"] = "skip"
    """Whether a row that cannot be used is named and skipped, or ends the run. Skipped by default: large data sets hold
    bad rows, and each is named with file and line."""
    limits: LimitsConfig = Field(default_factory=LimitsConfig)
    """What a prompt may hold, for data and services alike."""
    grader: GraderConfig = Field(default_factory=GraderConfig)
    """How responses are graded."""
    stages: dict[str, Stage] = Field(min_length=1)
    """By a name of your choice; they run in the order of the file, each from the weights of the one before."""
    evaluate: EvaluateConfig
    """What is measured after each stage."""
    stack: StackConfig
    """The services on this machine."""
    push: PushConfig = Field(default_factory=PushConfig)
    """How weights reach the services."""
    alerts: AlertsConfig = Field(default_factory=AlertsConfig)
    """Bounds of figures that a healthy run does not cross."""
    rollout_log: RolloutLogConfig = Field(default_factory=RolloutLogConfig)
    """Rollouts that are kept to be looked at."""
    track: TrackConfig = Field(default_factory=TrackConfig)
    """Trackers that get the figures and rollouts too."""
    keep_checkpoints: int = Field(2, gt=0)
    """Checkpoints of each stage that stay on disk. 2 by default: should the newest be damaged, one is left."""
    redis_patience_seconds: float = Field(3600, ge=0)
    """Redis may be away, or refuse writes, that long before a stage ends; until then the trainer waits and says so. An
    hour by default: time for a failover, or for a person to free memory. After that the same command goes on."""

    @property
    def run_dir(self) -> Path:
        return self.runs_dir / self.name

    @property
    def run_limits(self) -> RunLimits:
        """What the run's services must admit, neither more nor less."""
        judging = next((stage.experts for stage in self.stages.values() if isinstance(stage, AlignConfig)), None)
        return RunLimits(
            **self.limits.model_dump(),
            max_model_len=self.stack.max_model_len,
            expert_pictures=judging is None or judging.pictures,
            expert_section=judging.section if judging else "own",
        )

    def path(self, name: str) -> Path:
        """A data file or model of the config: relative to the run's folder, or to the working directory."""
        inside = self.run_dir / name
        return inside if inside.exists() else Path(name)

    @model_validator(mode="after")
    def _stages_fit(self) -> Self:
        if self.offload == "idle" and not any(isinstance(stage, AlignConfig) for stage in self.stages.values()):
            raise ValueError(
                'offload: "idle" is for the learners of an alignment, which take turns; of one learner "optimizer" '
                "offloads the state"
            )
        if self.device == "cuda" and self.dtype != "bfloat16":
            raise ValueError("dtype: on a GPU the learners' attention computes in bfloat16")
        judging = {name: stage.experts for name, stage in self.stages.items() if isinstance(stage, AlignConfig)}
        for key in ("pictures", "section"):
            if len({getattr(experts, key) for experts in judging.values()}) > 1:
                raise ValueError(
                    f"stages.{list(judging)[-1]}.experts.{key}: alignments of one run share the experts' services, "
                    f"which judge one way: set the same {key} in each, or make two runs"
                )
        for name in sorted(RunLimits.model_fields.keys() & self.stack.policy_options.keys()):
            raise ValueError(f"stack.policy_options.{name}: set {place_of(name)} instead, which is everyone's")
        if self.evaluate.max_tokens >= self.stack.max_model_len:
            raise ValueError(
                f"evaluate.max_tokens: {self.evaluate.max_tokens} leaves no room for a question in "
                f"stack.max_model_len = {self.stack.max_model_len}"
            )
        for name, stage in self.stages.items():
            if isinstance(stage, SftConfig):
                continue
            rollouts, policy = stage.rollouts, stage.policy
            if self.push.in_flight and not rollouts.staleness:
                raise ValueError(
                    f"push.in_flight: stages.{name}.rollouts.staleness is 0, every token of the learner's own version: "
                    "set it to 1 or more, or leave in_flight out"
                )
            if self.evaluate.keep_best and (self.evaluate.every or 0) % stage.checkpoint_every:
                raise ValueError(
                    f"evaluate.every: {self.evaluate.every} is no multiple of stages.{name}.checkpoint_every = "
                    f"{stage.checkpoint_every}, and the best checkpoint must be one"
                )
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
