"""The gates: what must hold before any arm runs, as figures beside the plan's thresholds."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.effect.jobs import Jobs
from bench.effect.loop.game import SEEDS, game_of
from bench.effect.loop.game import told_apart as told_by_experts
from bench.effect.loop.setting import Prompts, Setting
from bench.effect.nodes import Node, node_of, of_gates
from bench.effect.results import Results, read_results
from bench.effect.study import t1
from configs.blind import PARTS, Pair, told_apart
from configs.effect.plan import Gates, Plan
from configs.effect.prepare import teacher_file
from prism.data.rows import DataRow
from prism.errors import ConfigError
from prism.files import write_json
from prism.model.inputs import Example
from prism.wire.messages import from_json
from prism.wire.response import EXPERTS, Expert

FILE = "gates.json"
OUTSIDE = ("near", "far")
HELD_OUT = 256  # prompts that experts and the blind judge are asked about


@dataclass(frozen=True)
class Gate:
    name: str
    value: float | None
    bound: float
    at_least: bool

    @property
    def passed(self) -> bool:
        """What could not be measured does not pass."""
        if self.value is None:
            return False
        return self.value >= self.bound if self.at_least else self.value <= self.bound


@dataclass(frozen=True)
class Looks:
    """What is asked of pairs of the teacher's and the SFT policy's response: shares told apart."""

    blind: Mapping[str, float]
    """By part of the response."""
    right: Mapping[Expert, float | None]
    """By the experts, with the right picture."""
    wrong: Mapping[Expert, float | None]
    """With another of the same size."""


def check(
    bounds: Gates, base: Results, sft: Results, taught: Sequence[tuple[int, Results]], looks: Looks
) -> list[Gate]:
    """``taught``: teacher-SFT at each N, smallest first."""
    found = [Gate("accuracy after pretraining, inside", t1(base, ["inside"]), bounds.base_accuracy, True)]
    for name, splits in (("inside", ["inside"]), ("outside", list(OUTSIDE))):
        cost = 100 * (t1(base, splits) - t1(sft, splits))
        found.append(Gate(f"points that SFT costs {name}", cost, bounds.sft_cost, True))
    for part, share in looks.blind.items():
        found.append(Gate(f"told apart without the picture, {part}", share, bounds.blind, False))
    for expert in EXPERTS:
        found.append(Gate(f"told apart by the {expert} expert", looks.right[expert], bounds.right_picture, True))
        name = f"told apart by the {expert} expert with another picture"
        found.append(Gate(name, looks.wrong[expert], bounds.wrong_picture, False))
    for (few, before), (many, after) in pairwise(taught):
        gain = 100 * (t1(after, ["inside"]) - t1(before, ["inside"]))
        found.append(Gate(f"points that teacher-SFT gains from {few} to {many} texts", gain, bounds.unsaturated, True))
    return found


def measure_gates(setting: Setting, jobs: Jobs) -> list[Gate]:
    """From the gates' nodes, which must be done. Writes ``gates.json`` beside the results."""
    plan, seed = setting.plan, setting.plan.tuning_seeds[0]
    missing = [node.name for node in [Node((), 0), *of_gates(plan)] if not jobs.result(node).is_file()]
    if missing:
        raise ConfigError(f"the gates wait for {', '.join(missing)}: run `python -m bench.effect run --gates` first")

    def of(steps: Sequence[str], texts: int | None = None) -> Results:
        return read_results(jobs.result(node_of(plan, steps, seed, texts)))

    taught = [(n, of(["sft", "teach-early"], n)) for n in sorted(plan.texts)]
    found = check(plan.gates, of([]), of(["sft"]), taught, looks(setting, jobs))
    write_json(jobs.results / FILE, {"plan": plan.sha256, "data": jobs.data, "gates": [asdict(gate) for gate in found]})
    return found


def looks(setting: Setting, jobs: Jobs) -> Looks:
    """Experts as they are when the game's policy begins to learn, asked about texts that they have never seen: the
    study's own, of which nothing is learnt here. The judge without the picture is fit on the texts of all seeds."""
    plan, seed, texts = setting.plan, setting.plan.tuning_seeds[0], setting.plan.statistics.texts
    node = node_of(plan, ["sft", "align"], seed, texts)
    game = game_of(setting, node, jobs.folder(node_of(plan, ["sft"], seed, None)), setting.work(node, "gates"))
    while game.step < game.stage.warmup_steps:
        game.play()
    pairs: list[Pair] = []
    right: dict[Expert, float | None] = {}
    wrong: dict[Expert, float | None] = {}
    for other in plan.seeds:
        prompts = Prompts(setting.data(teacher_file("sampled", other, max(plan.texts))), game.inputs, ("teacher",))
        places = list(range(len(prompts)))
        groups = game.sampled(prompts, places, 1, SEEDS * seed - 4 - other)
        for place, group in zip(places, groups, strict=True):
            pairs.append(Pair(_question(prompts.row(place)), prompts.row(place).teacher or "", group.samples[0].text))
        if not right:
            shown = [prompts.prompt(place) for place in places][:HELD_OUT]
            right = told_by_experts(game, groups[:HELD_OUT], shown)
            wrong = told_by_experts(game, groups[:HELD_OUT], with_others_pictures(shown))
    return Looks({part: told_apart(pairs, part).share for part in PARTS}, right, wrong)


def with_others_pictures(prompts: Sequence[Example]) -> list[Example]:
    """Each prompt with the picture of the one before it; all have one size."""
    others = [prompts[place - 1].pixel_values for place in range(len(prompts))]
    return [replace(prompt, pixel_values=picture) for prompt, picture in zip(prompts, others, strict=True)]


def _question(row: DataRow) -> str:
    return "".join(part.text for part in from_json(row.messages, str)[-1].parts)


def require_passed(plan: Plan, results: Path, data: str) -> None:
    """Raises ConfigError unless all gates were measured by this plan on this data, and hold."""
    file = results / FILE
    if not file.is_file():
        raise ConfigError(
            f"{file} is missing: the gates come before any arm. `python -m bench.effect run --gates`, then "
            "`python -m bench.effect gates`"
        )
    held: dict[str, Any] = json.loads(file.read_text())
    if (held["plan"], held["data"]) != (plan.sha256, data):
        raise ConfigError(f"{file} is of another plan or other data: `python -m bench.effect gates` measures them anew")
    failed = [gate.name for one in held["gates"] if not (gate := Gate(**one)).passed]
    if failed:
        raise ConfigError(
            f"gates that do not hold: {'; '.join(failed)}. Such a world cannot answer the question: change the world "
            "or the stages in the plan, and begin anew"
        )
