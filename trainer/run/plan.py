"""``prism run --dry-run``: what a run would read, need and do, without starting or writing anything.

Models are sized and data is checked as the run would; what a preparation has yet to make is said to be unknown.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from textwrap import wrap
from typing import TYPE_CHECKING, Literal

from rich.filesize import decimal

from prism.clients.endpoints import Endpoints
from prism.config import (
    AlignConfig,
    DataConfig,
    DataName,
    DataNames,
    RunConfig,
    SftConfig,
    Stage,
    published_keys,
    toml_value,
)
from prism.data.mixture import Epochs, data_files
from prism.data.rows import DataFile, Mixture, RowCheck, read_rows
from prism.errors import PrismError
from prism.evaluation.held_out import evaluated_stages
from prism.settings import load_settings
from prism.stack.local import redis_server, refuse_taken_port, service_ports
from prism.trainer.run.expert_start import refuse_unfit_starts
from prism.trainer.run.launch import Launch
from prism.trainer.run.pipeline import (
    describe_stage,
    no_model,
    of_cards,
    of_this_machine,
    refuse_changed,
    refuse_missing_script,
    served_model,
    unfinished,
)
from prism.trainer.run.result import stage_folder, stage_result, start_of
from prism.wire.response import EXPERTS, Network

if TYPE_CHECKING:
    from prism.model.inputs import InputBuilder
    from prism.trainer.run.estimate import ModelSize

SAMPLED_ROWS = 64  # of a file, evenly spread, whose tokens are counted
PROBLEMS_SHOWN = 5


@dataclass
class Plan:
    config: RunConfig
    progress: Callable[[str], None]
    """Told how far reading the data is, where that takes long."""
    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """What `prism run` would refuse."""
    pending: dict[str, Stage] = field(default_factory=dict)
    """Stages that are not finished."""
    patches_per_token: float = 0.0
    """Of images, in the sampled rows that have most."""

    def say(self, title: str, *lines: str) -> None:
        self.lines += [f"{f'{title}:' if title else '':12} {lines[0]}", *(f"{'':12} {line}" for line in lines[1:])]

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """What is refused inside is noted."""
        try:
            yield
        except PrismError as error:
            self.problems.append(str(error))


def make_plan(config: RunConfig, *, attach: bool = False, progress: Callable[[str], None] = lambda _: None) -> Plan:
    """``progress`` is told how far reading the data is, where that takes long. Raises ConfigError for bad PRISM_*."""
    from prism.model.inputs import InputBuilder

    plan = Plan(config, progress)
    config = plan.config = of_this_machine(config, attach=attach)
    launch = of_cards(config, load_settings(Launch))
    ranks = launch.nodes * launch.node_processes
    with plan.refusing():
        refuse_changed(config)
    plan.say("run", f"{config.name} in {config.run_dir}, on {config.device}, {ranks} rank{'s' if ranks > 1 else ''}")
    if config.prepare:
        with plan.refusing():
            refuse_missing_script(config)
        made = "again, which leaves what it made" if config.run_dir.is_dir() else "first: it has not made anything yet"
        plan.say("prepare", f"{config.prepare.script} is called {made}")
    stages = config.stages.items()
    plan.say("stages", *(f"{name}: {describe_stage(stage)}; {_state(config, name)}" for name, stage in stages))
    for name, stage in stages:
        _published(plan, name, stage)
    plan.pending = unfinished(config)
    folder = _model(plan)
    inputs = None
    if folder:
        with plan.refusing():
            inputs = InputBuilder(folder, config.limits.pixel_bounds)
    _data(plan, inputs)
    if folder:
        with plan.refusing():
            refuse_unfit_starts(config, plan.pending, folder)
            _sizes(plan, folder, ranks, attach=attach)
    _services(plan, attach)
    return plan


def _state(config: RunConfig, name: str) -> str:
    from prism.trainer.checkpoint.folder import checkpoints

    if result := stage_result(config, name):
        measured = "measured" if name in evaluated_stages(config.run_dir) else "to be measured"
        return f"finished at version {result['version']}, {measured}"
    saved = checkpoints(config.run_dir / "checkpoints" / name)
    return f"goes on after step {int(saved[-1].name)}" if saved else "starts at step 0"


def _published(plan: Plan, name: str, stage: Stage) -> None:
    """What ``published`` set, and what the file says beside it."""
    same, own = published_keys(stage)
    if not stage.published:
        return
    said = [f"{key} = {toml_value(value)}" for key, value in same.items()]
    more = [f"{key} = {toml_value(ours)} (published: {toml_value(theirs)})" for key, (ours, theirs) in own.items()]
    lines = _wrapped([f"{name} as in the runs of {stage.published}: {', '.join(said)}"])
    plan.say("published", *lines, *_wrapped([f"but the configuration says {', '.join(more)}"] if more else []))


def _wrapped(parts: Sequence[str]) -> list[str]:
    """Joined by commas, in lines that a terminal shows whole."""
    return wrap(", ".join(parts), 106, break_long_words=False, break_on_hyphens=False)


def _model(plan: Plan) -> Path | None:
    """The folder of the model that the run starts or goes on from, if it is on this machine."""
    from huggingface_hub import snapshot_download

    config = plan.config
    first = next(iter(config.stages))
    finished = [name for name in config.stages if name not in plan.pending]
    start = stage_folder(config, finished[-1]) if finished else start_of(config, first)
    if Path(start).is_dir():
        plan.say("model", str(start))
        return Path(start)
    if config.prepare and not Path(start).is_absolute():
        plan.say("model", f"{start}: not there yet; its size is known once `prism prepare` has made it")
        return None
    if not isinstance(config.stages[first], SftConfig):  # services start first, and from a folder
        with plan.refusing():
            served_model(config)
        return None
    try:
        folder = Path(snapshot_download(str(start), local_files_only=True))
    except FileNotFoundError:
        plan.say("model", f"{start}: not on this machine, to be downloaded from the hub")
        return None
    except ValueError:  # no name that the hub could have
        plan.problems.append(no_model(start))
        return None
    plan.say("model", f"{start}, from the hub's cache")
    return folder


def _data(plan: Plan, inputs: "InputBuilder | None") -> None:
    from prism.trainer.flow.examples import refuse_unservable
    from prism.trainer.flow.lengths import max_positions, refuse_overlong

    for name, stage in plan.pending.items():
        if isinstance(stage, SftConfig):
            taken = stage.steps * stage.batch
            check = None
            if inputs:
                with plan.refusing():
                    check = refuse_overlong(inputs, stage.max_tokens or max_positions(inputs.start), stage.target)
            every = stage.target == "response"
            files = _read(plan, stage.data, name, stage.target, stage.check_images, check, every_turn=every)
            plan.say(name, f"{taken:,} examples{_epochs(taken, files)}")
            response = stage.target
        else:
            rollouts = stage.rollouts
            groups, responses = stage.steps * rollouts.prompts, stage.steps * rollouts.prompts * rollouts.n
            response, most = None, ""
            if isinstance(stage, AlignConfig):
                groups += stage.warmup_steps * stage.warmup_prompts
                responses += stage.warmup_steps * stage.warmup_prompts * stage.warmup_n
                response = "teacher"
            elif stage.dynamic_sampling:
                most = f", up to {stage.max_sampling_rounds} times that with dynamic sampling"
            longest = plan.config.stack.max_model_len
            judged = stage.experts.section if isinstance(stage, AlignConfig) else None
            check = refuse_unservable(inputs, longest, rollouts.max_tokens, judged=judged) if inputs else None
            files = _read(plan, rollouts.data, name, response or "gold", check=check)
            plan.say(name, f"{responses:,} responses to {groups:,} prompts{_epochs(groups, files)}{most}")
        for file in files:
            if inputs:
                _lengths(plan, file, inputs, response)
    asked = plan.config.evaluate
    check = refuse_unservable(inputs, plan.config.stack.max_model_len, asked.max_tokens) if inputs else None
    if files := _read(plan, asked.data, "evaluate", "gold", check=check):
        plan.say("evaluate", f"{min(asked.questions, len(Mixture(files))):,} questions after each stage")


def _epochs(taken: int, files: Sequence[DataFile]) -> str:
    rows = len(Epochs(Mixture(files).parts, "")) if files else 0
    return f", {taken / rows:.2f} epochs of {rows:,} rows" if rows else ""


def _read(
    plan: Plan,
    names: DataNames | list[DataName],
    stage: str,
    key: str,
    images: Literal["decode", "exist"] = "decode",
    check: RowCheck | None = None,
    *,
    every_turn: bool = False,
) -> list[DataFile]:
    config, found = plan.config, list[DataFile]()
    paths = list[tuple[Path, DataConfig]]()
    with plan.refusing():
        paths = data_files(names, config.path)
    for path, entry in paths:
        if config.prepare and not path.is_file():
            plan.say(stage, f"{path}: not there yet; its rows are known once `prism prepare` has made it")
            continue
        with plan.refusing():
            file = read_rows(
                path,
                config.on_bad_row,
                require=(key,),
                images=images,
                say=plan.progress,
                limits=config.limits,
                check=check,
                entry=entry,
                every_turn=every_turn,
            )
            checked = "images opened" if images == "decode" else "images looked for"
            bad = [f"skipped {problem}" for problem in file.problems[:PROBLEMS_SHOWN]]
            usable = f"{len(file.rows):,} of {len(file.rows) + file.bad_rows:,} rows usable"
            plan.say(stage, f"{path}: {usable}, {checked}", *bad)
            found.append(file)
    return found


def _lengths(plan: Plan, file: DataFile, inputs: "InputBuilder", response: str | None) -> None:
    """Tokens of a sample of rows."""
    from prism.trainer.flow.demonstrations import prompt_of

    rows = file.rows[:: -(-len(file.rows) // SAMPLED_ROWS)]
    with plan.refusing():
        prompts = [prompt_of(row, file, inputs) for row in rows]
        lengths = [len(prompt.input_ids) for prompt in prompts]
        text = f"prompts of {median(lengths):.0f} tokens, {max(lengths)} at most"
        if response:
            answers = [len(inputs.text_ids(getattr(row, response))) + 1 for row in rows]
            text += f"; {response}s of {median(answers):.0f}, {max(answers)} at most"
        plan.say("", f"{file.path}, {len(rows)} rows sampled: {text}")
        patches = sum(0 if p.pixel_values is None else len(p.pixel_values) for p in prompts)
        plan.patches_per_token = max(plan.patches_per_token, patches / sum(lengths))


def _sizes(plan: Plan, folder: Path, ranks: int, *, attach: bool) -> None:
    """Of models, memory and disk."""
    from prism.trainer.run.estimate import checkpoint_bytes, policy_size
    from prism.trainer.run.placement import (
        disk_of,
        learners_of,
        memory_of,
        named_starts,
        place,
        saves,
        served_experts,
    )

    config = plan.config
    policy = policy_size(folder, [], checkpointing=config.gradient_checkpointing)
    plan.say("policy", f"{policy.parameters / 1e6:,.1f}M parameters")
    experts = [policy] * len(EXPERTS)
    for name, stage in plan.pending.items():
        learners = learners_of(config, stage, folder)
        if isinstance(stage, AlignConfig):
            networks = [size for size, _ in learners[1:]]
            experts = networks * len(EXPERTS) if stage.experts.shared else networks
            plan.say("experts", *_experts(networks, named_starts(config, stage, folder)))
            if stage.policy.lora and stage.experts.lora and experts[0].base != learners[0][0].base:
                plan.say("", "their adapters are over another model than the policy's: it is held beside that")
        memory = memory_of(config, stage, learners, ranks, plan.patches_per_token)
        kept = min(config.keep_checkpoints, saves(stage))
        checkpoint = checkpoint_bytes(config, [size for size, _ in learners], ranks)
        parts = ", ".join(f"{part} {decimal(round(value))}" for part, value in vars(memory).items())
        plan.say(
            name,
            f"about {decimal(round(memory.total))} of memory a rank, in a full pass: {parts}",
            f"{kept} checkpoints of {decimal(round(checkpoint))} stay; {_while_written(config, stage)}",
        )
        served = None if attach or isinstance(stage, SftConfig) else served_experts(config, folder)
        placed = place(config, name, learners, memory, experts=served)
        if placed.cards:
            share = [f"vLLM is given {placed.policy_share:.0%} of its card"] if placed.policy_share else []
            plan.say("", *(card.line() for card in placed.cards.values()), *share)
        plan.lines += [f"{'':12} {doubt}" for doubt in placed.doubts]
        plan.problems += placed.problems
    disk = disk_of(config, folder, plan.pending, ranks)
    plan.say("disk", f"{disk}; {decimal(disk.free)} are free")
    plan.problems += [disk.problem] if disk.problem else []
    on_cpu = config.stack.device == "cpu"
    cache = f"{config.stack.policy_options.get('kv_cache_gib', 1)} GiB of keys and values"
    served = (
        f"{decimal((4 if on_cpu else 2) * policy.parameters)} of weights, {cache if on_cpu else 'the rest of its card'}"
    )
    weights = [decimal(4 * expert.parameters) for expert in experts]
    if len(set(weights)) == 1:
        plan.say("services", f"policy {served}; {' and '.join(EXPERTS)} {weights[0]} of weights each")
    else:
        plan.say("services", f"policy {served}; {', '.join(f'{e} {w}' for e, w in zip(EXPERTS, weights, strict=True))}")


def _experts(sizes: Sequence["ModelSize"], named: Mapping[Network, Path | None]) -> list[str]:
    """How large they are, and from which folders they start if not from the policy."""
    parameters = [f"{size.parameters / 1e6:,.1f}M parameters" for size in sizes]
    from_there = [f", from {start}" if start else "" for start in named.values()]
    if len(sizes) == 1:
        return [f"both are one network of {parameters[0]}{from_there[0]}"]
    if len(set(zip(parameters, from_there, strict=True))) == 1:
        return [f"{len(sizes)} of {parameters[0]} each{from_there[0]}"]
    return [f"{network} of {p}{f}" for network, p, f in zip(named, parameters, from_there, strict=True)]


def _while_written(config: RunConfig, stage: Stage) -> str:
    if config.offload == "optimizer" or (config.offload and isinstance(stage, AlignConfig)):
        return "they are written from host memory, where the state lies"
    return "a copy waits in memory while one is written"


def _services(plan: Plan, attach: bool) -> None:
    if attach:
        with plan.refusing():
            found = load_settings(Endpoints)
            plan.say("services", f"those that run at {found.policy_url} and beside it: none is started")
        return
    ports = service_ports(plan.config)
    plan.say("ports", ", ".join(f"{name} {port}" for name, port in ports.items()))
    for name, port in ports.items():
        with plan.refusing():
            refuse_taken_port(name, port)
    if "redis" in ports:
        with plan.refusing():
            redis_server()
