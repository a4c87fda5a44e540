"""The stages of a run: SFT, alignment, RLVR."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from prism.config.data import DataName, DataNames
from prism.config.learners import ExpertLearnerConfig, LoraConfig, OptimizerConfig, PolicyLearnerConfig
from prism.config.published import Publishable
from prism.config.strict import ConfigModel


class SftConfig(Publishable):
    """Supervised fine-tuning on demonstrations, loss on the response alone."""

    kind: Literal["sft"]
    """Says that this stage is supervised fine-tuning."""
    data: list[DataName] = Field(min_length=1)
    """Files, folders or patterns of JSON Lines, JSON arrays or Parquet, in the run's folder or relative to the working
    directory, each a path or a table (``{ path = "…", weight = 2 }``). Their rows, of any format that docs/data.md
    names, are mixed; they stay on disk until a step needs them."""
    max_tokens: int | None = Field(default=None, gt=0)
    """Tokens of prompt and response together at most; a longer row is refused by name, with its length, when the data
    is read. By default what the model has positions for."""
    check_images: Literal["decode", "exist"] = "decode"
    """What is done with every image before training starts: it is opened, or only looked for. Opening is the default
    because it names every broken image at once; for millions of them ``exist`` saves hours, and one that turns out to
    be broken is named when its step comes, and left out or fatal by ``on_bad_row``."""
    cache_gib: float = Field(2.0, ge=0)
    """GiB of memory for examples made ready, images processed, so that the next epoch finds them. Changes speed alone;
    2 holds a few thousand examples with images and leaves a small machine its memory."""
    target: Literal["response", "teacher"] = "response"
    """Which text of a row is imitated. By default the row's own demonstration; ``teacher`` needs the closed model's."""
    steps: int = Field(gt=0)
    """Updates of the stage; ``steps * batch / rows`` are its epochs. Published: 1 epoch."""
    batch: int = Field(gt=0)
    """Examples a step."""
    micro_batch_tokens: int = Field(16_384, gt=0)
    """Tokens of one forward and backward pass: changes memory, not results. The default is the other learners'."""
    autocast_bf16: bool = False
    """Computes in bfloat16 while weights are float32. Off by default: on a CPU without AVX-512 BF16 or AMX it is
    fifteen times slower, and on a GPU ``dtype`` is bfloat16 already."""
    optimizer: OptimizerConfig
    """The policy's AdamW."""
    lora: LoraConfig | None = None
    """Trains adapters over the frozen model, instead of all its weights, as in ``policy.lora`` of the later stages. By
    default everything is trained, as published."""
    checkpoint_every: int = Field(200, gt=0)
    """Steps between checkpoints. A step of SFT takes seconds, so 200 lose minutes at most."""


class RolloutConfig(ConfigModel):
    """What is sampled for each step of the learner."""

    data: DataNames
    """Prompts: a path as in ``data`` of SFT, a table, or a list of them. Alignment needs a teacher's response in each
    row, RLVR a gold answer."""
    prompts: int = Field(gt=0)
    """Prompts (groups) a step. Published: 4 in alignment, 32 in RLVR."""
    n: int = Field(ge=2)
    """Responses to each prompt; advantages compare them, so there are two or more. Published: 16."""
    temperature: float = Field(1.0, gt=0)
    """The sampler's. At 1, the default and the published value, responses are drawn from the policy itself."""
    max_tokens: int = Field(gt=0)
    """Tokens of a response at most; one that reaches them is cut off and usually has no valid format. Published: 6,144
    in alignment, 8,192 in RLVR."""
    staleness: int = Field(0, ge=0)
    """Updates that a rollout's policy may be behind the learner. 0, the default, is lock-step and exactly on-policy; at
    1 workers sample the next step while the learner updates."""
    cache_gib: float = Field(default=2.0, ge=0)
    """GiB of memory, on each rank, for prompts made ready, images processed: a group that comes again finds its own.
    Changes speed alone; 2 hold some 80 prompts with images of 1,000 tokens."""


class AlignConfig(Publishable):
    """The adversarial game: policy against the perception and the reasoning expert, no accuracy reward, no KL."""

    kind: Literal["align"]
    """Says that this stage is alignment."""
    steps: int = Field(gt=0)
    """Updates of the policy, and of each expert, after the warm-up."""
    rollouts: RolloutConfig
    """What is sampled for a step after the warm-up; the warm-up uses its data, temperature and lengths."""
    policy: PolicyLearnerConfig
    """How the policy learns."""
    experts: ExpertLearnerConfig
    """How the experts start and learn."""
    warmup_steps: int = Field(ge=0)
    """Updates of the experts before the first of the policy. At least one, since experts that know nothing teach
    nothing; 0, as published, where they begin with a head that was trained before (``experts.start``), or grounded."""
    warmup_prompts: int = Field(48, gt=0)
    """Prompts (groups) of a warm-up step. 48, as in the recipes of ``configs/``."""
    warmup_n: int = Field(1, gt=0)
    """Responses to each prompt of a warm-up step. By default 1: pairs of many prompts teach an expert more than many
    pairs of one."""
    alpha: float = Field(0.5, ge=0, le=1)
    """Weight of the perception expert in the advantage; the reasoning expert has the rest. Published: 0.5."""
    max_empty_steps: int = Field(3, gt=0)
    """After this many consecutive steps without a sample to learn from, the run ends and says why:
    no valid format, no score, no pair for an expert. One may be bad luck; three are a fault of the
    model's format, the data or a service. May be changed before a run goes on."""
    max_flat_steps: int = Field(20, gt=0)
    """The same for consecutive steps whose responses could be compared, but were scored alike. More than
    ``max_empty_steps``, because a policy that repeats itself may recover. May be changed too."""
    checkpoint_every: int = Field(10, gt=0)
    """Steps between checkpoints, warm-up steps included. A step with rollouts takes a minute or more at full size, so
    10 lose some minutes; the loop waits for no more than a copy of the tensors."""

    @model_validator(mode="after")
    def _experts_can_judge(self) -> Self:
        if not self.warmup_steps and not self.experts.start and not self.experts.grounding:
            raise ValueError(
                "warmup_steps: 0 is for experts that can judge from the first step: name folders of trained ones "
                "(experts.start), ground them (experts.grounding), or warm them up"
            )
        return self


class RlvrConfig(Publishable):
    """Reinforcement learning with the grader's reward."""

    kind: Literal["rlvr"]
    """Says that this stage is reinforcement learning with verifiable rewards."""
    loss: Literal["grpo", "dapo", "gspo", "dr_grpo"] = "grpo"
    """The policy loss. GRPO by default: after alignment the published averages of GRPO, DAPO and GSPO lie within 0.6
    points, and it needs no setting of its own."""
    steps: int = Field(gt=0)
    """Updates of the policy (``minibatches * epochs`` optimizer steps each)."""
    rollouts: RolloutConfig
    """What is sampled for a step."""
    policy: PolicyLearnerConfig
    """How the policy learns."""
    kl_coef: float = Field(0.0, ge=0)
    """Weight of KL(policy || the model the stage starts from), by the k3 estimate. The published runs use none; above 0
    a second model is loaded to compare with."""
    dynamic_sampling: bool = False
    """Drops groups whose accuracies are all equal and samples on until the batch is full. It is DAPO's, so it is off
    unless asked for."""
    max_sampling_rounds: int = Field(10, gt=0)
    """Rounds of dynamic sampling in a step at most; then the step learns from what there is. Published for DAPO: 10."""
    overlong_buffer: int = Field(0, ge=0)
    """Tokens before ``max_tokens`` over which the reward falls by 1: DAPO's soft over-long penalty. By default 0, no
    penalty; published for DAPO are 4,096."""
    max_empty_steps: int = Field(3, gt=0)
    """After this many consecutive steps without a sample to learn from, the run ends and says why:
    no valid format, no verdict. One may be bad luck; three are a fault of the
    model's format, the data or a service. May be changed before a run goes on."""
    max_flat_steps: int = Field(20, gt=0)
    """The same for consecutive steps whose responses could be compared, but were all right or all wrong. More than
    ``max_empty_steps``, because success is rare on hard prompts. May be changed too."""
    checkpoint_every: int = Field(10, gt=0)
    """Steps between checkpoints; as in alignment."""

    @model_validator(mode="after")
    def _loss_has_an_average(self) -> Self:
        if self.loss == "dr_grpo" and self.policy.average:
            raise ValueError("policy.average: Dr. GRPO divides by a constant, rollouts.max_tokens: leave it out")
        return self


Stage = Annotated[SftConfig | AlignConfig | RlvrConfig, Field(discriminator="kind")]
