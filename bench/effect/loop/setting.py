"""Where the study's trainings run: size, seed, data, and the configuration of one stage as a run's."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from bench.effect.nodes import Node, recipe, stage_table
from configs.effect.plan import Plan, Size, StepPlan
from configs.effect.prepare import teacher_file
from prism.config import RunConfig, Stage
from prism.config.published import merged
from prism.data.rows import DataFile, DataRow, read_rows
from prism.errors import ConfigError
from prism.model.inputs import Example, InputBuilder
from prism.settings import describe
from prism.trainer.flow.demonstrations import prompt_of

MAX_MODEL_LEN = 640  # tokens: a prompt, and the longest response a walk over 3×3 cells takes, twice
MICRO_BATCH_TOKENS = 65_536  # of a measurement's passes
STAGE = "stage"


@dataclass(frozen=True)
class Setting:
    plan: Plan
    size_name: str
    root: Path
    """Holds ``data`` and ``model``."""

    @property
    def size(self) -> Size:
        return self.plan.sizes[self.size_name]

    @property
    def max_tokens(self) -> int:
        """Of a response, wherever one is sampled."""
        own = self.size.stages.get("rlvr", {})
        return int(merged(self.plan.stages["rlvr"], own)["rollouts"]["max_tokens"])

    def data(self, name: str) -> Path:
        return self.root / "data" / name

    def work(self, node: Node, purpose: str = "") -> Path:
        """Where a node's training keeps what it may go on from; another for other settings."""
        name = (purpose or node.name).replace("+", ".")  # a run's name holds no other signs
        return self.root / "work" / f"{name}-{recipe(self.plan, self.size_name, node)[:8]}"

    def step(self, node: Node) -> StepPlan:
        return self.plan.steps[node.steps[-1]]

    def texts(self, node: Node) -> Path:
        """The teacher's, that a node's last step learns from."""
        assert node.texts is not None
        return self.data(teacher_file(self.step(node).teacher or "sampled", node.seed, node.texts))

    def config(self, node: Node, folder: Path, start: Path, kind: str, data: Path) -> RunConfig:
        """A run of this one stage, named ``STAGE``, in ``folder``, from the model in ``start``.

        Raises ConfigError for a key or value that the platform's configuration does not have.
        """
        table: dict[str, Any] = {**stage_table(self.plan, self.size_name, node), "kind": kind}
        if kind == "sft":
            table |= {"data": [str(data.resolve())], "check_images": "exist"}
        else:
            table["rollouts"] = table["rollouts"] | {"data": str(data.resolve())}
        values: dict[str, Any] = {
            "name": folder.name,
            "runs_dir": str(folder.parent),
            "seed": node.seed,
            "model": str(start.resolve()),
            "device": self.size.device,
            "dtype": self.size.dtype,
            "on_bad_row": "fail",
            "stages": {STAGE: table},
            "evaluate": {"data": str(data.resolve()), "max_tokens": self.max_tokens},
            "stack": {"max_model_len": MAX_MODEL_LEN},
        }
        try:
            return RunConfig.model_validate(values)
        except ValidationError as error:
            raise ConfigError("\n".join(f"{node.name}: {problem}" for problem in describe(error))) from None


def stage_of(config: RunConfig) -> Any:
    return cast(Stage, config.stages[STAGE])


class Prompts:
    """Rows of a file with the prompts a learner reads, each made when it is first asked for."""

    def __init__(self, file: Path, inputs: InputBuilder, require: tuple[str, ...] = ("gold",)) -> None:
        self.file: DataFile = read_rows(file, "fail", require, images="exist")
        self._inputs, self._made = inputs, dict[int, Example]()

    def __len__(self) -> int:
        return len(self.file.rows)

    def row(self, place: int) -> DataRow:
        return self.file.rows[place]

    def prompt(self, place: int) -> Example:
        if place not in self._made:
            self._made[place] = prompt_of(self.row(place), self.file, self._inputs)
        return self._made[place]
