"""``prism experts warmup``: an expert trained on pairs, outside a run."""

from typing import Literal

from pydantic import Field

from prism.errors import ConfigError
from prism.services.console.jobs.queue import Wanted
from prism.services.console.jobs.registry import Assigned, Command, Parameters, Place


class WarmupParameters(Parameters):
    model: str = Field(max_length=300)
    """Folder of a Qwen3-VL, from the runs folder."""
    pairs: str = Field(max_length=300)
    """JSON Lines or Parquet of messages, teacher and response, from the runs folder."""
    out: str = Field(max_length=300)
    """Folder to write, from the runs folder; it must not exist yet."""
    expert: Literal["perception", "reasoning", "discriminator"]
    """Which section of responses it judges; discriminator: one network judges both."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the rows."""
    batch: int = Field(default=64, ge=1)
    """Rows of an update."""
    lr: float = Field(default=1e-5, gt=0)
    """Highest learning rate."""
    mismatch: float = Field(default=0.0, ge=0)
    """Weight of pairs of the teacher's response and its response to another row."""
    seed: int = 0
    """Of the order of pairs, of dropout and of a new head."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to compute; on cuda in bfloat16."""


class WarmupCommand(Command[WarmupParameters]):
    name, title = "warmup", "Warm up an expert"
    about = "One expert, trained on pairs of a teacher's and a policy's response. Interrupted, it goes on."
    parameters = WarmupParameters

    def plan(self, given: WarmupParameters, place: Place) -> Wanted:
        for name in (given.model, given.pairs):
            place.inside(name, exists=True)
        if not place.inside(given.pairs).is_file():
            raise ConfigError(f"pairs: {given.pairs!r} is no file")
        place.inside(given.out, exists=False)
        return self.wanted(given, f"warm up {given.expert} as {given.out}", gpus=int(given.device == "cuda"))

    def arguments(self, given: WarmupParameters, place: Place, assigned: Assigned) -> list[str]:
        dtype = "bfloat16" if given.device == "cuda" else "float32"
        named = {"expert": given.expert, "epochs": given.epochs, "batch": given.batch, "lr": given.lr}
        named |= {"mismatch": given.mismatch, "seed": given.seed, "device": given.device, "dtype": dtype}
        options = [f"--{name}={value}" for name, value in named.items()]
        paths = [
            place.inside(given.model, exists=True),
            place.inside(given.pairs, exists=True),
            place.inside(given.out),
        ]
        return ["experts", "warmup", *options, "--", *map(str, paths)]


COMMANDS = (WarmupCommand(),)
