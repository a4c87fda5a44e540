"""What learns and how: optimizer, policy learner, expert learner."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from prism.config.strict import ConfigModel
from prism.wire.response import DISCRIMINATOR, EXPERTS, Expert, JudgedSection, Network

Beta = Annotated[float, Field(ge=0, lt=1)]
Frozen = list[Annotated[str, Field(min_length=1)]]
HIGHEST_CLIP = 0.28  # of the losses' own, DAPO's


class OptimizerConfig(ConfigModel):
    """AdamW under a learning-rate schedule."""

    lr: float = Field(gt=0)
    """The highest learning rate. It has no default because it depends on model and stage: the published runs use 1e-5
    for SFT and 1e-6 for policy and experts in the game."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the rate falls after the warm-up. Constant by default: at the small rates of online learning a fall gains
    little. SFT is published with a cosine."""
    final_lr_fraction: float = Field(0.0, ge=0, le=1)
    """The rate at the last step of a linear or cosine schedule, as a fraction of ``lr``. By default it falls to 0, but
    gets there a step after the last, so that every step learns."""
    warmup_fraction: float = Field(0.0, ge=0, lt=1)
    """The share of the steps over which the rate climbs linearly from near 0 to ``lr``. The default of 0 suits the
    small rates of the game and RLVR; published for SFT is 0.1."""
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    """AdamW's decay of the mean of gradients and of their squares, per update. The second is 0.95, as usual for
    language models: torch's 0.999 remembers a spike of the gradient for a thousand updates, 0.95 for twenty."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decay of the weights, times the learning rate, per update. It is 0 because at an ``lr`` of 1e-6 it
    changes nothing; published for the experts' warm-up is 0.01."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients of a larger L2 norm, over all weights, are scaled down to it. 1 is the field's usual value."""
    max_skipped: int = Field(5, gt=0)
    """After this many consecutive updates that were skipped, because loss or gradient was not finite, the run stops. A
    single bad batch does no harm; five in a row mean that the weights themselves are broken."""


class LoraConfig(ConfigModel):
    """Adapters: the model stays as the stage finds it, and pairs of thin matrices beside its layers learn."""

    rank: int = Field(default=16, gt=0)
    """Width of an adapter: each weight gets ``rank * (inputs + outputs)`` numbers that learn. 16 is the field's usual
    value for reinforcement learning, where a rank of 1 to 32 does as well as training everything."""
    alpha: float = Field(default=32.0, gt=0)
    """What an adapter computes counts ``alpha / rank`` times. By default twice the rank, as is usual."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of an adapter's inputs that it does not see while it learns. 0 by default: what the learner computes with
    dropout is not the policy that was sampled from; SFT and experts may use some."""
    targets: Frozen | None = Field(default=None, min_length=1)
    """Layers of the language model that get an adapter, by the last part of their names, such as ``["q_proj",
    "v_proj"]``. By default all of attention and MLPs, which learns as well as full fine-tuning; of a mixture of experts
    attention's alone, since its experts are no layers of their own."""
    vision: bool = False
    """Whether the blocks of the vision tower get adapters too. Off by default: pictures are seen as before, and what is
    computed of them needs no backward pass."""


class PolicyLearnerConfig(ConfigModel):
    """Clipped policy gradients on the groups of a step."""

    optimizer: OptimizerConfig
    """The policy's AdamW; the schedule spans the stage's steps."""
    lora: LoraConfig | None = None
    """Trains adapters over the frozen model that the stage starts from, instead of all its weights; the stage's result
    is that model with the adapters merged. Experts with ``lora`` share the frozen model. By default everything is
    trained, as published. Adapters want about ten times the learning rate."""
    freeze: Frozen = Field(default=[])
    """Modules that are not trained, such as ``["model.visual"]``. They need no optimizer state, and pushes do not write
    them again. By default everything is trained, as published."""
    clip_low: float | None = Field(None, gt=0, lt=1)
    """How far below 1 the ratio to the sampling policy may fall before a token earns nothing more. By default the
    published value of the loss: 0.2; GSPO 3e-4."""
    clip_high: float | None = Field(None, gt=0)
    """How far above 1 the ratio may rise before a token earns nothing more. By default the published value of the loss:
    0.2; DAPO 0.28, GSPO 4e-4."""
    dual_clip: float | None = Field(None, gt=1)
    """Ratio beyond which a token of negative advantage loses nothing more (arXiv 1912.09729); above ``1 + clip_high``.
    By default the published value of the loss: 10 for DAPO, none for the others. verl's default, with which the
    published runs were made, is 3."""
    average: Literal["tokens", "responses"] | None = None
    """Whether the loss is the mean over all tokens of a step, or over responses of the mean over each one's tokens. By
    default as the loss was published: responses for GRPO and GSPO, tokens for DAPO and alignment. verl's default is
    tokens."""
    minibatches: int = Field(1, gt=0)
    """Optimizer steps that share one rollout batch; divides ``rollouts.prompts``. By default 1, as published: all of
    the batch is on-policy, and clipping matters only for stale rollouts."""
    epochs: int = Field(1, gt=0)
    """Passes over one rollout batch. By default 1, for the same reason."""
    micro_batch_tokens: int = Field(16_384, gt=0)
    """Tokens of one forward and backward pass, a prompt and its images counted once: changes memory, not results. The
    default holds the longest published prompt and response (2,048 + 8,192 tokens) with room to spare."""
    importance_cap: float | None = Field(None, gt=0)
    """Truncated importance sampling: a token weighs min(π_learner/π_sampler, cap), and its ratio is to the learner at
    the start of the step. Without it, the default, ratios are to the sampler (in the published runs to the learner at
    the start of the step, and nothing is weighed); set about 2 where the learner's and the sampler's log-probabilities
    differ, as in bfloat16. GSPO demands it there: it clips ratios 3e-4 from 1, and a mismatch of 2e-2 nats alone put 26
    to 45 % of the gradient beyond that."""
    max_mismatch: float = Field(0.5, gt=0)
    """Largest mean absolute difference, in nats a token, between a group's log-probabilities by the sampler and by the
    learner. A group beyond it was sampled from something else than is trained on (other pixels, another template): it
    is named and teaches nothing. Compared before the step's first update; with several ``minibatches``, those after the
    first only where ``importance_cap`` is set. 0.5 is far above bfloat16's 0.02 and what a few updates change."""
    max_mismatched: int = Field(8, ge=0)
    """Once more groups than these were left out for their mismatch, since the stage was last started, the run stops. A
    few spoil nothing; many mean that sampler and learner disagree in general."""

    @model_validator(mode="after")
    def _frozen_once(self) -> Self:
        refuse_frozen_adapters(self.lora, self.freeze)
        return self

    @model_validator(mode="after")
    def _clips_follow(self) -> Self:
        high = HIGHEST_CLIP if self.clip_high is None else self.clip_high
        if self.dual_clip is not None and self.dual_clip <= 1 + high:
            raise ValueError(f"dual_clip: {self.dual_clip:g} must be above 1 + clip_high = {1 + high:g}")
        return self


class MixtureConfig(ConfigModel):
    """Sparse upcycling: every MLP of a dense model becomes several experts, of which each token is sent to a few."""

    experts: int = Field(default=4, ge=2)
    """Experts that each MLP becomes. The published discriminator has 4."""
    top_k: int = Field(default=2, ge=1)
    """Experts that a token is sent to, their outputs weighted to sum to 1. The published discriminator uses 2."""
    noise: float = Field(default=0.01, ge=0)
    """Standard deviation of the noise added to each expert's dense weights, so that experts differ. Published: 0.01.
    Adapters (``lora``) begin with none of it: they differ from the start."""

    @model_validator(mode="after")
    def _top_k_fits(self) -> Self:
        if self.top_k > self.experts:
            raise ValueError(f"top_k: a token cannot be sent to {self.top_k} of {self.experts} experts")
        return self


def refuse_frozen_adapters(lora: LoraConfig | None, freeze: Frozen) -> None:
    """Raises ValueError."""
    if lora and freeze:
        raise ValueError("freeze: with lora all that is no adapter is frozen; lora.targets says what gets one")


class GroundingConfig(ConfigModel):
    """Before the game, from the teacher's text alone, each expert learns which response belongs to a prompt."""

    epochs: float = Field(gt=0)
    """Passes over the stage's prompts; a fraction is allowed. It has no default because it depends on the size of the
    data. The learning rate is the game's; it climbs over the first 10 % of the updates and falls as a cosine."""
    batch: int = Field(default=64, ge=2)
    """Prompts of an update. Each teaches by one other prompt's response, so a batch holds many prompts to be varied."""


class ExpertStarts(ConfigModel):
    """Folders that the experts start from; a text alone names one for both."""

    perception: str = Field(min_length=1)
    """The perception expert's, relative to the run's folder if it lies there, else to the working directory."""
    reasoning: str = Field(min_length=1)
    """The reasoning expert's."""

    @model_validator(mode="before")
    @classmethod
    def _one_for_both(cls, given: Any) -> Any:
        return dict.fromkeys(cls.model_fields, given) if isinstance(given, str) else given

    def of(self, network: Network) -> str:
        """The folder that this network starts from; both name one where they share it."""
        return self.reasoning if network == "reasoning" else self.perception


class ExpertLearnerConfig(ConfigModel):
    """Bradley-Terry learning of the experts, online; both learn by the same settings.

    ``pictures``, ``section`` and ``frozen`` take away a part of the method, to find out what it is worth.
    """

    pictures: bool = True
    """Whether the experts are shown pictures, in learning and in scoring alike. False makes them judges of text alone,
    the game that any discriminator of texts plays; then nothing can be learnt from ``grounding`` and ``mismatch``. The
    default is the published method."""
    section: JudgedSection = "own"
    """What of a response each expert is shown: its own section, as published, or with ``whole`` all three. Then both
    learn the same, and with ``alpha = 1`` of the stage one expert of whole responses judges alone."""
    frozen: bool = False
    """Leaves the experts as the warm-up made them: they judge the game and do not learn in it, and their versions stand
    still. False, the published method, lets them follow the policy."""
    start: ExpertStarts | None = None
    """Folders the experts start from, instead of the model that the stage starts from: a Qwen3-VL of any size, plain or
    upcycled, with the policy's tokens and processor; what ``prism experts warmup`` or another run's alignment wrote,
    head included; the published discriminator. One text for both, or ``{ perception = "…", reasoning = "…" }``. By
    default the policy itself: it is there, and knows the task."""
    shared: bool = False
    """Makes both experts one network with one head, as published, which is shown one section at a time: it learns from
    the pairs of both, the sum of their losses in one update, and both services score by it. Then there is one learner
    in memory, checkpoints and pushes, and `prism export` writes the same for either expert. False by default: with two,
    what one section teaches does not move the other's scores."""
    optimizer: OptimizerConfig
    """Each network's AdamW; the schedule spans the warm-up and the steps of the game."""
    rate_warmup: int = Field(20, ge=0)
    """Updates over which the learning rate climbs from near 0, at most a fifth of all; a ``warmup_fraction``
    goes before it. AdamW's first update is of full size in every weight, however small its gradient: it undoes what
    grounding taught. 20, because AdamW scales updates by squares that it averages over as many
    (``1 / (1 - betas[1])``)."""
    lora: LoraConfig | None = None
    """Trains adapters and the head over a frozen model in the game, instead of all weights. It is one model for both
    experts, and for the policy where that has ``lora``; experts with a ``start`` have theirs apart from the policy's,
    and experts that were grounded have one each. With ``mixture`` the adapters of each MLP are several, to which a
    router sends tokens, over the one dense MLP (MixLoRA, arXiv 2404.15159). By default everything is trained, as
    published."""
    freeze: Frozen = Field(default=[])
    """Modules that are not trained, in the game and in grounding, such as ``["model.visual"]``. By default everything
    is trained, as published."""
    mixture: MixtureConfig | None = None
    """Makes the experts mixtures of experts, upcycled from the model that they start from; with ``lora`` mixtures of
    adapters. A ``start`` that is such a mixture already is taken as it is. They are published as mixtures (66.2 against
    62.8 % for dense ones); the default is dense because that takes a third of the memory."""
    grounding: GroundingConfig | None = None
    """Teaches experts to look at image and question, before the game: pairs with the policy teach them only what the
    policy tends to write. Off by default because the published method has none.

    (A matching-aware discriminator, arXiv 1605.05396.)
    """
    dropout: float = Field(0.1, ge=0, lt=1)
    """Share of the last hidden state's values that the scalar head does not see while it learns. Published: 0.1."""
    score_regularisation: float = Field(0.001, ge=0)
    """Weight of the mean squared score in the loss. Bradley-Terry fixes differences alone: this keeps scores near 0.
    Published for the game: 0.001."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Chance with which the loss takes teacher and policy as swapped. It keeps an expert that is nearly always right
    from growing ever surer; 0 by default, as published."""
    margin: float = Field(0.0, ge=0)
    """Gap, in units of score, by which the teacher must lead before the loss counts it as even; 0 by default, as
    published."""
    skip_above_accuracy: float = Field(1.0, gt=0.5, le=1)
    """Share of pairs told apart, of those whose scores differ, above which an update of the game is skipped, so that
    the policy can catch up with a saturated expert; with ``shared``, of the pairs of both sections. The default of 1
    never skips, as published; a warm-up is never skipped."""
    mismatch: float = Field(0.0, ge=0)
    """Weight, in the game, of grounding's pairs: the teacher's response, and its response to a similar prompt. The
    default of 0 is the published method."""
    load_balance: float = Field(0.01, ge=0)
    """Weight of the routers' load balance in the warm-up; without a mixture it does nothing. Published: 0.01."""
    load_balance_online: float = Field(0.0, ge=0)
    """The same after the warm-up. By default 0, as published: routers are balanced by then."""
    micro_batch_tokens: int = Field(16_384, gt=0)
    """Tokens of one forward and backward pass; a prompt's pairs stay in one. Changes memory, hardly results. The
    default holds a published prompt with 8 responses of 1,800 tokens; more than fit are a pass by themselves."""

    @model_validator(mode="after")
    def _frozen_once(self) -> Self:
        refuse_frozen_adapters(self.lora, self.freeze)
        return self

    @property
    def networks(self) -> tuple[Network, ...]:
        """That score responses, each a learner with weights of its own."""
        return (DISCRIMINATOR,) if self.shared else EXPERTS

    def network_of(self, expert: Expert) -> Network:
        return DISCRIMINATOR if self.shared else expert

    @model_validator(mode="after")
    def _one_network_is_one(self) -> Self:
        if self.shared and self.start and self.start.perception != self.start.reasoning:
            raise ValueError("start: shared experts are one network: name one folder, or set shared = false")
        if self.shared and self.section == "whole":
            raise ValueError(
                "section: shared experts that are shown whole responses would learn each pair twice: leave it out, or "
                "set shared = false"
            )
        return self

    @model_validator(mode="after")
    def _taken_away_makes_sense(self) -> Self:
        if not self.pictures and (self.grounding or self.mismatch):
            raise ValueError(
                "pictures: grounding and mismatch teach which response belongs to a picture, which experts without "
                "pictures cannot learn: leave them out"
            )
        if not self.pictures and self.lora and self.lora.vision:
            raise ValueError("pictures: without them lora.vision has nothing to learn from: leave it out")
        if self.frozen and (self.skip_above_accuracy < 1 or self.load_balance_online):
            raise ValueError(
                "frozen: skip_above_accuracy and load_balance_online are for experts that learn in the game: leave "
                "them out"
            )
        return self
