"""The study's plan, ``plan.toml``: read, checked, and known by its hash.

It is committed before any arm runs; results carry the hash, and the report refuses those of another.
"""

import hashlib
import tomllib
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from prism.config import ConfigModel
from prism.errors import ConfigError
from prism.settings import describe

FILE = Path(__file__).with_name("plan.toml")
SPLITS = ("inside", "near", "far", "handwriting", "grid4")
StageKind = Literal["sft", "teach", "align", "rlvr"]


class World(ConfigModel):
    """How the public errs, and how often the teacher slips."""

    misread: float
    """Chance with which the public misreads a digit that it can misread."""
    ink: float
    """The same of inks."""
    procedure: float
    """Share of the public's responses of families 3 to 6 that follow the wrong procedure."""
    slip: float
    """Share of anyone's responses whose last computation is off by one."""
    teacher_share: float
    """Share of the SFT data that is the teacher's text."""


class Size(ConfigModel):
    """What a machine can bear: counts of rows, the model, and settings of stages over the plan's own."""

    pretrain_images: int
    questions_per_image: int
    sft_rows: int
    candidates: int
    """Prompts of which RLVR's are chosen by their pass rate."""
    questions: int
    """Of each test split."""
    samples: int
    """Responses to each question at temperature 1."""
    batch_rows: int
    """Responses that are sampled at once."""
    device: Literal["cpu", "cuda"]
    dtype: Literal["float32", "bfloat16"]
    model: dict[str, Any]
    """Of ``configs.demo.model.Size``."""
    stages: dict[str, dict[str, Any]] = Field(default={})
    """Merged over ``stages`` of the plan."""


class StepPlan(ConfigModel):
    """A step of an arm: one training of the policy."""

    stage: StageKind
    """Which of ``stages`` it is."""
    teacher: Literal["sampled", "deterministic"] | None = None
    """Whose texts it learns from; those of the arm's N."""
    early_stop: bool = False
    """Of ``teach``: keeps the weights that give a held-out eighth of the texts the best likelihood."""
    needs: list[str] = Field(default=[])
    """Keys of ``stages.align.experts`` that must exist in this version for the step to run."""
    times: float = Field(default=1, gt=0)
    """The stage's number of steps is multiplied by it."""
    config: dict[str, Any] = Field(default={})
    """Merged over the stage's."""
    without: list[str] = Field(default=[])
    """Keys of the stage that are taken away, dotted."""


class ArmPlan(ConfigModel):
    label: str
    """As tables name it."""
    steps: list[str]
    """After pretraining, in order; each a key of ``steps``."""
    texts: list[int] = Field(default=[])
    """Numbers N of teacher texts that it is run with; empty: it sees none beside SFT's."""
    kind: Literal["main", "ablation", "control", "steps", "loss"]
    """Which table it belongs to."""


class Gates(ConfigModel):
    """What must hold before any arm runs."""

    base_accuracy: float
    """T = 1 accuracy after pretraining, inside, at least."""
    sft_cost: float
    """Points of T = 1 accuracy that SFT costs, inside and outside families 1 to 4, at least."""
    blind: float
    """Share of pairs that a judge without the picture may tell at most."""
    right_picture: float
    """Share of pairs that an expert tells with the right picture, at least."""
    wrong_picture: float
    """The same with another picture, at most."""
    unsaturated: float
    """Points of T = 1 accuracy inside that teacher-SFT gains from each N to the next, at least."""


class Contrast(ConfigModel):
    name: str
    arm: str
    against: str


class Statistics(ConfigModel):
    resamples: int
    level: float
    seed: int
    measure: Literal["t1"]
    """T = 1 accuracy."""
    splits: list[str]
    """Their mean counts: the mean of in and out."""
    texts: int
    """N."""
    contrasts: list[Contrast]
    """The first is primary; Holm's correction is over all."""


class Plan(ConfigModel):
    seeds: list[int]
    tuning_seeds: list[int]
    """Of the gates and of tuning; none of them is a seed of the study."""
    texts: list[int]
    pass_rate: tuple[float, float]
    """Prompts of RLVR: the pass rate of the SFT policy lies in it."""
    pass_samples: int
    world: World
    gates: Gates
    statistics: Statistics
    stages: dict[str, dict[str, Any]]
    steps: dict[str, StepPlan]
    arms: dict[str, ArmPlan]
    tuning: dict[str, list[dict[str, Any]]]
    """By step: settings that are tried over the step's own, on ``tuning_seeds``."""
    sizes: dict[str, Size]
    sha256: str = ""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if both := set(self.seeds) & set(self.tuning_seeds):
            raise ValueError(f"tuning_seeds: {sorted(both)} are seeds of the study")
        for name, arm in self.arms.items():
            if missing := [step for step in arm.steps if step not in self.steps]:
                raise ValueError(f"arms.{name}.steps: no step {', '.join(missing)}")
            taught = any(self.steps[step].teacher for step in arm.steps)
            if taught != bool(arm.texts) or not set(arm.texts) <= set(self.texts):
                raise ValueError(f"arms.{name}.texts: some of {self.texts}, for arms that learn from the teacher alone")
        for contrast in self.statistics.contrasts:
            for arm in (contrast.arm, contrast.against):
                if arm not in self.arms:
                    raise ValueError(f"statistics.contrasts: no arm {arm}")
        if wrong := set(self.statistics.splits) - set(SPLITS):
            raise ValueError(f"statistics.splits: no split {sorted(wrong)}")
        return self


def load_plan(file: Path = FILE) -> Plan:
    """Raises ConfigError that names what is wrong with it."""
    try:
        text = file.read_bytes()
        return Plan.model_validate(tomllib.loads(text.decode()) | {"sha256": hashlib.sha256(text).hexdigest()})
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{file}: {error}") from None
    except ValidationError as error:
        raise ConfigError("\n".join(f"{file}: {problem}" for problem in describe(error))) from None


def without(table: dict[str, Any], keys: list[str]) -> dict[str, Any]:
    """``keys`` are dotted. Raises ConfigError for one that is not there."""
    for key in keys:
        head, _, rest = key.partition(".")
        if head not in table:
            raise ConfigError(f"without: there is no {key} to take away")
        table = {name: value for name, value in table.items() if name != head or rest}
        if rest:
            table = table | {head: without(table[head], [rest])}
    return table
