"""What a run takes of each GPU and of the disk, before it starts, and whether that fits: learners, experts and policy
server of a card; checkpoints, results and pushed weights of the disk.

Estimates, in bytes, beside those of ``estimate``:

    process      what CUDA, its libraries and NCCL hold of a card before anything is computed: PROCESS
    expert       b · P twice, the model in use and the one that a push fills; keys and values of the prompts that are
                 remembered, states of their images; one layer's activations of ``max_batch_tokens``
    policy       what vLLM is given: a share of the card, which is what the others leave of it

and ALLOCATOR times what learners and experts have in use, since torch's allocator holds more than that.

On disk, at the most of what lies there at one time: checkpoints that are kept and the one that is being written, of all
stages; what a stage results in, experts' starts included; versions of each model's pushed weights that are kept and the
one that is being written, in which parts that are frozen are links, and so is an adapter's base unless it lies on
another file system. Results have adapters merged, and beside it by themselves. Images and logs come on top.
"""

import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from rich.filesize import decimal

from prism.config import AlignConfig, DevicesConfig, RlvrConfig, RunConfig, SftConfig, Stage
from prism.errors import ConfigError
from prism.stack.cards import card_bytes, named
from prism.trainer.run.estimate import Memory, ModelSize, checkpoint_bytes, expert_size, learners_memory, policy_size
from prism.trainer.run.expert_start import named_start, upcycles
from prism.trainer.run.result import stage_folder, start_of
from prism.trainer.weights.publish import KEEP_VERSIONS
from prism.wire.response import EXPERTS, Network

PROCESS = 0.7 * 2**30
ALLOCATOR = 1.08
EXPERT_TOKENS = 16_384  # an expert's max_batch_tokens and cache_tokens
LEAST_SEQUENCES = 16  # of max_model_len, for whose keys and values the policy server must have room
VLLM_TOKENS = 8192  # of one forward pass of vLLM
MOST_OF_A_CARD, LEAST_SHARE = 0.93, 0.05


@dataclass
class Card:
    name: str
    size: int | None
    """Bytes; None where nothing says."""
    parts: dict[str, float] = field(default_factory=dict)
    """Bytes of each process on it."""
    of_full_passes: float = 0.0
    """Of these, bytes that only passes of all their ``micro_batch_tokens`` take."""

    @property
    def taken(self) -> float:
        return sum(self.parts.values())

    def line(self) -> str:
        parts = ", ".join(f"{part} {decimal(round(value))}" for part, value in self.parts.items())
        of = f" of {decimal(self.size)}" if self.size else ""
        return f"card {self.name}: about {decimal(round(self.taken))}{of}: {parts}"


@dataclass
class Placement:
    """Of one stage."""

    stage: str
    cards: dict[str, Card]
    policy_share: float | None = None
    """Of its card, for vLLM; None where the card's size is not known, or the configuration gives one."""
    problems: list[str] = field(default_factory=list)
    """Why it cannot fit, whatever the data holds."""
    doubts: list[str] = field(default_factory=list)
    """Why it does not fit if passes are as full as they may be."""


@dataclass
class Disk:
    """What stages that are not finished will have on the disk of the run's folder, in bytes."""

    folder: Path
    parts: dict[str, float]
    there: int
    """Of that, what lies there already."""
    free: int

    @property
    def problem(self) -> str | None:
        """Why it does not fit."""
        missing = sum(self.parts.values()) - self.there - self.free
        if missing <= 0:
            return None
        return (
            f"the disk of {self.folder} has {decimal(self.free)} left, the run needs {self}: {decimal(round(missing))} "
            "more. What helps: another runs_dir, smaller keep_checkpoints or push.keep_gib, freeze parts of what learns"
        )

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {decimal(round(value))}" for name, value in self.parts.items())
        there = f", {decimal(self.there)} of it there already" if self.there else ""
        return f"about {decimal(round(sum(self.parts.values())))} ({parts}){there}"


def learners_of(config: RunConfig, stage: Stage, folder: Path) -> list[tuple[ModelSize, int]]:
    """The learners of a stage with the tokens of a pass, the policy first. Raises ConfigError as ``policy_size``."""
    checkpointing = config.gradient_checkpointing
    if isinstance(stage, SftConfig):
        size = policy_size(folder, [], checkpointing=checkpointing, lora=stage.lora)
        return [(size, stage.micro_batch_tokens)]
    learner = stage.policy
    size = policy_size(folder, learner.freeze, checkpointing=checkpointing, lora=learner.lora)
    found = [(size, learner.micro_batch_tokens)]
    if isinstance(stage, AlignConfig):
        experts = stage.experts
        for network, other in named_starts(config, stage, folder).items():
            start = other or folder
            size = expert_size(start, experts.mixture, experts.freeze, checkpointing=checkpointing, lora=experts.lora)
            if size.base:  # those that were grounded do not share the model that they start from
                apart = f" of experts {network if experts.grounding else ''}" if other or experts.grounding else ""
                size = replace(size, base=f"{start}{apart}")
            found.append((size, experts.micro_batch_tokens))
    return found


def named_starts(config: RunConfig, stage: AlignConfig, folder: Path) -> dict[Network, Path | None]:
    """Of each network as ``named_start`` has it; ``folder`` is what a stage starts from that the configuration does not
    hold."""
    own = own_start(config, stage, folder)
    return {network: named_start(config, stage, network, own) for network in stage.experts.networks}


def own_start(config: RunConfig, stage: AlignConfig, folder: Path) -> Path | str:
    """What the stage's policy starts from."""
    name = next((name for name, each in config.stages.items() if each == stage), None)
    return start_of(config, name) if name else folder


def memory_of(
    config: RunConfig, stage: Stage, learners: Sequence[tuple[ModelSize, int]], ranks: int, patches_per_token: float
) -> Memory:
    """Of a rank in this stage."""
    return learners_memory(
        config,
        learners,
        ranks=ranks,
        reference=isinstance(stage, RlvrConfig) and stage.kl_coef > 0,
        autocast=isinstance(stage, SftConfig) and stage.autocast_bf16,
        patches_per_token=patches_per_token,
    )


def place(
    config: RunConfig,
    name: str,
    learners: Sequence[tuple[ModelSize, int]],
    memory: Memory,
    *,
    experts: Sequence[ModelSize] | None,
    sizes: Mapping[str, int] | None = None,
) -> Placement:
    """What a stage takes of each card. ``experts``: as they are served, None without services on this machine;
    ``sizes`` of cards are the machine's own if not given."""
    devices = config.stack.devices or DevicesConfig()
    made = Placement(name, {})
    if "cuda" not in (config.device, config.stack.device):
        return made
    given = config.stack.card_gib
    known = card_bytes() if sizes is None else sizes

    def card(name: str) -> Card:
        return made.cards.setdefault(name, Card(name, round(given * 2**30) if given else known.get(name)))

    if config.device == "cuda":
        for each in map(card, named(devices.learner)):
            each.parts["learners" if len(learners) > 1 else "learner"] = PROCESS + ALLOCATOR * memory.total
            each.of_full_passes = ALLOCATOR * memory.activations
    if experts and config.stack.device == "cuda":
        policy = learners[0][0]
        cards = [card(each) for each in named(devices.experts)]
        if config.stack.experts_together:
            cards[0].parts["experts"] = PROCESS + ALLOCATOR * (
                sum(map(expert_bytes, experts)) - _held_once(config, experts)
            )
        for number, each in enumerate(() if config.stack.experts_together else EXPERTS):
            cards[number % len(cards)].parts[each] = PROCESS + ALLOCATOR * expert_bytes(experts[number])
        cards = [card(each) for each in named(devices.policy)]
        given_share = _given_share(config)
        made.policy_share = None if given_share else _share(cards)
        for each in cards:
            share = (given_share or made.policy_share or 0) * (each.size or 0)
            each.parts["policy"] = PROCESS + max(policy_bytes(config, policy) / len(cards), share)
    whole = any(size.base is None for size, _ in learners)
    for each in made.cards.values():
        if each.size and each.taken > each.size:
            fits_when_short = each.taken - each.of_full_passes <= each.size
            (made.doubts if fits_when_short else made.problems).append(_problem(config, name, each, whole))
    return made


def expert_bytes(size: ModelSize) -> float:
    """In use by an expert's service on a GPU, in bfloat16. Of adapters the base is there once."""
    held = 2 * size.trained + size.frozen if size.base else 2 * size.parameters
    return 2 * (held + EXPERT_TOKENS * (size.states_per_token + size.of_one_layer))


def _held_once(config: RunConfig, experts: Sequence[ModelSize]) -> float:
    """In bytes, what both experts' services have in common in one process: the base of their adapters, or all of the
    one network that both are, where pushes come by files: in use, and while a push is loaded."""
    games = [stage.experts for stage in config.stages.values() if isinstance(stage, AlignConfig)]
    if all(not game.grounding or game.shared for game in games) and len({size.base for size in experts} - {None}) == 1:
        return 2 * experts[0].frozen
    whole = config.push.transport == "file" and any(game.shared for game in games)
    return 2 * 2 * experts[0].parameters if whole and all(game.shared and not game.lora for game in games) else 0.0


def policy_bytes(config: RunConfig, size: ModelSize) -> float:
    """The least that vLLM needs on a GPU: weights, a pass, and keys and values of a few sequences."""
    tokens = LEAST_SEQUENCES * config.stack.max_model_len
    return 2 * (size.parameters + tokens * size.states_per_token + VLLM_TOKENS * size.of_one_layer)


def served_experts(config: RunConfig, folder: Path) -> list[ModelSize]:
    """Of EXPERTS in turn, as the run's alignment makes them; dense where it has none. Raises ConfigError as
    ``expert_size``."""
    game = next((stage for stage in config.stages.values() if isinstance(stage, AlignConfig)), None)
    if game is None:
        return [expert_size(folder, None, [])] * len(EXPERTS)
    starts, experts = named_starts(config, game, folder), game.experts
    of_experts = [starts[experts.network_of(expert)] for expert in EXPERTS]
    return [expert_size(start or folder, experts.mixture, [], lora=experts.lora) for start in of_experts]


def share_for_policy(
    config: RunConfig, folder: Path, stages: Mapping[str, Stage], ranks: int, *, served: bool
) -> float | None:
    """Of its card, for vLLM, beside the stage that takes most; None where nothing says, or the run does.

    Raises ConfigError that names a stage, the card that it does not fit and what to change: what is refused cannot fit
    whatever the data holds.
    """
    shares: list[float] = []
    experts = served_experts(config, folder)
    for name, stage in stages.items():
        learners = learners_of(config, stage, folder)
        memory = memory_of(config, stage, learners, ranks, 0.0)
        with_services = served and not isinstance(stage, SftConfig)
        made = place(config, name, learners, memory, experts=experts if with_services else None)
        if made.problems:
            raise ConfigError("\n".join(made.problems))
        shares += [made.policy_share] if made.policy_share else []
    return min(shares, default=None)


def disk_of(config: RunConfig, folder: Path, stages: Mapping[str, Stage], ranks: int) -> Disk:
    """What ``stages``, those that are not finished, take. ``folder`` holds the model that they start from.

    Raises ConfigError as ``policy_size``.
    """
    held = 4 if config.dtype == "float32" else 2
    nearest = next(path for path in (config.run_dir, *config.run_dir.absolute().parents) if path.exists())
    checkpoints = results = one_more = 0.0
    pushed: dict[str, float] = {}  # of each model, the most that a stage has there
    for name, stage in stages.items():
        sizes = [size for size, _ in learners_of(config, stage, folder)]
        checkpoint, kept = checkpoint_bytes(config, sizes, ranks), min(config.keep_checkpoints, saves(stage))
        checkpoints += kept * checkpoint
        one_more = max(one_more, checkpoint if saves(stage) > kept else 0)  # while it is written
        results += held * sum(size.parameters for size in sizes)
        if isinstance(stage, SftConfig):
            continue
        if isinstance(stage, AlignConfig):
            results += held * _experts_numbers(config, stage, folder, sizes[1:])
        names: tuple[Literal["policy"] | Network, ...] = ("policy",)
        names += stage.experts.networks if isinstance(stage, AlignConfig) else ()
        for model, size in zip(names, sizes, strict=True):
            copied = size.base is None or not _is_linked(config, name, stage, model, folder, nearest)
            frozen = held * size.frozen if copied else 0
            pushed[model] = max(pushed.get(model, 0), _versions_bytes(config, held * size.trained, frozen))
    written = [config.run_dir / "weights", *(stage_folder(config, name) for name in stages)]
    written += [config.run_dir / kind / name for kind in ("checkpoints", "experts") for name in stages]
    parts = {"checkpoints": checkpoints + one_more, "results": results, "pushed weights": sum(pushed.values())}
    return Disk(config.run_dir, parts, _bytes_in(written), shutil.disk_usage(nearest).free)


def saves(stage: Stage) -> int:
    """Checkpoints that a stage writes: SFT's end needs none."""
    if isinstance(stage, SftConfig):
        return (stage.steps - 1) // stage.checkpoint_every
    steps = stage.steps + (stage.warmup_steps if isinstance(stage, AlignConfig) else 0)
    return -(-steps // stage.checkpoint_every)


def _is_linked(
    config: RunConfig,
    name: str,
    stage: AlignConfig | RlvrConfig,
    model: Literal["policy"] | Network,
    folder: Path,
    nearest: Path,
) -> bool:
    """Whether the base of an adapter lies where versions of the run can be linked to it."""
    other = None
    if isinstance(stage, AlignConfig) and model != "policy":
        if stage.experts.grounding:
            return True  # it was made in the run's folder
        other = named_starts(config, stage, folder)[model]
    made = other is None and name != next(iter(config.stages))  # by the stage before
    return made or on_one_disk(other or folder, nearest)


def _experts_numbers(config: RunConfig, stage: AlignConfig, folder: Path, sizes: Sequence[ModelSize]) -> int:
    """What experts have on disk beside results of their ``sizes``: their starts, and where an adapter is a mixture,
    what the whole mixture is more than its base."""
    experts, numbers = stage.experts, 0
    upcycled: dict[Path, int] = {}
    own = own_start(config, stage, folder)
    for (network, other), size in zip(named_starts(config, stage, folder).items(), sizes, strict=True):
        numbers += bool(experts.grounding) * (size.frozen if size.base else size.parameters)
        if experts.mixture and size.base:
            numbers += expert_size(other or folder, experts.mixture, []).parameters - size.frozen
        elif upcycles(config, stage, network, own):
            upcycled[other or folder] = size.parameters
    return numbers + sum(upcycled.values())


def on_one_disk(one: Path, other: Path) -> bool:
    return one.stat().st_dev == other.stat().st_dev


def _versions_bytes(config: RunConfig, trained: float, frozen: float) -> float:
    """Of one model's pushed weights."""
    fit = frozen + KEEP_VERSIONS * trained <= config.push.keep_gib * 2**30
    return frozen + ((KEEP_VERSIONS if fit else 2) + 1) * trained


def _bytes_in(folders: Iterable[Path]) -> int:
    """Of files, those that are linked several times once."""
    sizes: dict[tuple[int, int], int] = {}
    for folder in folders:
        for where, _, names in os.walk(folder):
            for name in names:
                try:
                    found = os.stat(os.path.join(where, name), follow_symlinks=False)
                except FileNotFoundError:  # whoever writes there has gone on
                    continue
                sizes[found.st_dev, found.st_ino] = found.st_size
    return sum(sizes.values())


def _given_share(config: RunConfig) -> float | None:
    """Of a card, for vLLM, as the configuration has it."""
    flags = config.stack.policy_options.get("vllm_flags", "").replace("_", "-")
    given = re.search(r"--gpu-memory-utilization[=\s]+([\d.]+)", flags)
    return float(given[1]) if given else None


def _share(cards: Sequence[Card]) -> float | None:
    """What is left of the cards of the policy server, as a share of each."""
    left = [MOST_OF_A_CARD - (card.taken + PROCESS) / card.size for card in cards if card.size]
    return max(LEAST_SHARE, round(min(left), 2)) if len(left) == len(cards) else None


def _problem(config: RunConfig, name: str, card: Card, whole: bool) -> str:
    """``whole``: whether a learner trains more than an adapter."""
    assert card.size
    helps: list[str] = []
    if any(part.startswith("learner") for part in card.parts):
        helps += ["more cards for the learner (stack.devices.learner, which shards it)", "freeze parts of what learns"]
        helps += ["adapters (lora)"] if whole else []
        helps += ["offload"] if whole and not config.offload else []
        helps += [] if config.gradient_checkpointing else ["gradient_checkpointing = true"]
        helps += ["fewer micro_batch_tokens"]
    if len(card.parts) > 1:
        helps += ["other cards for some (stack.devices)"]
    full = f", of it {decimal(round(card.of_full_passes))} in full passes" if card.of_full_passes else ""
    return f"stage {name} does not fit {card.line()}{full}. What helps: {', '.join(helps) or 'a smaller model'}"
