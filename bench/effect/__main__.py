"""The study of what alignment is worth: ``python -m bench.effect --help``, and docs/effect.md.

``run`` takes up what is left, for as many minutes as it is given; the plan says what there is to do.
"""

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.effect.jobs import Jobs, Work, run_workers
from bench.effect.nodes import Node, missing_keys, of_arms, of_gates, of_tuning, with_needs
from configs.effect.plan import FILE, Plan, load_plan
from configs.effect.prepare import prepare
from prism.errors import PrismError

if TYPE_CHECKING:
    from bench.effect.loop.setting import Setting  # torch takes seconds to import: not for a list or a report

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

Arms = Annotated[list[str] | None, typer.Option("--arm", help="of the plan, once for each; by default the main ones")]
Seeds = Annotated[list[int] | None, typer.Option("--seed", help="of the plan; by default its first three")]
Texts = Annotated[list[int] | None, typer.Option("--n", help="teacher texts; by default all that the arm has")]
ForGates = Annotated[bool, typer.Option("--gates", help="what the gates look at, instead of arms")]
ForTuning = Annotated[bool, typer.Option("--tuning", help="the trials of tuning, instead of arms")]
Minutes = Annotated[float, typer.Option(help="after which jobs end, to be taken up again by the same command")]


@dataclass
class Study:
    """Where a command works. Data and model are made when they are first asked for."""

    size: str
    root: Path
    results: Path
    plan_file: Path

    @cached_property
    def plan(self) -> Plan:
        return load_plan(self.plan_file)

    @cached_property
    def setting(self) -> "Setting":
        from bench.effect.loop.setting import Setting

        return Setting(self.plan, self.size, self.root)

    @cached_property
    def jobs(self) -> Jobs:
        return Jobs(self.root, self.results, self.plan, self.size, prepare(self.root, self.plan, self.size))

    def arguments(self) -> list[str]:
        return [f"--size={self.size}", f"--root={self.root}", f"--results={self.results}", f"--plan={self.plan_file}"]


@dataclass(frozen=True)
class Choice:
    """Which jobs."""

    arms: list[str] | None
    seeds: list[int] | None
    texts: list[int] | None
    gates: bool
    tuning: bool

    def nodes(self, plan: Plan) -> list[Node]:
        if self.gates:
            return of_gates(plan)
        if self.tuning:
            return of_tuning(plan)
        names = self.arms or [name for name, arm in plan.arms.items() if arm.kind == "main"]
        return of_arms(plan, names, self.seeds or plan.seeds[:3], self.texts or plan.texts)

    def arguments(self) -> list[str]:
        given = [("arm", self.arms), ("seed", self.seeds), ("n", self.texts)]
        flags = [*["--gates"] * self.gates, *["--tuning"] * self.tuning]
        return [*(f"--{name}={one}" for name, values in given for one in values or []), *flags]


@app.callback()
def common(
    context: typer.Context,
    size: Annotated[str, typer.Option(help="of the plan's sizes: gpu, cpu or toy")] = "gpu",
    root: Annotated[Path | None, typer.Option(help="of data and models; by default runs/effect-SIZE")] = None,
    results: Annotated[
        Path | None, typer.Option(help="of raw results, to be committed; by default docs/effect/SIZE, a toy's in ROOT")
    ] = None,
    plan: Annotated[Path, typer.Option(help="results of another plan are refused")] = FILE,
) -> None:
    """The study of what alignment is worth, over a single-process loop; docs/effect.md explains it."""
    root = root or Path("runs") / f"effect-{size}"
    kept = root / "results" if size == "toy" else Path("docs/effect") / size
    context.obj = Study(size, root, results or kept, plan)


@app.command("jobs")
def list_jobs(
    context: typer.Context,
    arm: Arms = None,
    seed: Seeds = None,
    n: Texts = None,
    gates: ForGates = False,
    tuning: ForTuning = False,
) -> None:
    """What there is to do, and what is done."""
    study: Study = context.obj
    for node in with_needs(study.plan, Choice(arm, seed, n, gates, tuning).nodes(study.plan)):
        figures = study.jobs.model(node)
        model = "no model" if figures is None else f"model in {figures['seconds']:.0f} s"
        print(f"{node.name:60} {model:18} {'measured' if study.jobs.result(node).is_file() else ''}".rstrip())
    for name in study.plan.arms:
        if missing := missing_keys(study.plan, name):
            print(f"arm {name} cannot run: this version has no {', '.join(missing)} under [stages.align.experts]")


@app.command()
def run(
    context: typer.Context,
    minutes: Minutes = 9.0,
    processes: Annotated[int, typer.Option(min=1, help="that share the device")] = 1,
    arm: Arms = None,
    seed: Seeds = None,
    n: Texts = None,
    gates: ForGates = False,
    tuning: ForTuning = False,
    ungated: Annotated[bool, typer.Option(help="without the gates: a toy's hold nothing")] = False,
) -> None:
    """Do what is left of these arms, or of gates or tuning, until the time is over. The same command goes on."""
    from bench.effect.gates import require_passed

    study, choice = context.obj, Choice(arm, seed, n, gates, tuning)
    wanted, jobs = choice.nodes(study.plan), study.jobs
    if not (gates or tuning or (ungated and study.size == "toy")):
        require_passed(study.plan, study.results, jobs.data)
    arguments = [*study.arguments(), "work", f"--minutes={minutes}", *choice.arguments()]
    failed = run_workers(arguments, processes, minutes)
    left = jobs.left(wanted)
    print(f"{len(left)} jobs are left" + (f", {left[0].name} first" if left else ""))
    raise typer.Exit(failed)


@app.command(hidden=True)
def work(
    context: typer.Context,
    minutes: Minutes,
    arm: Arms = None,
    seed: Seeds = None,
    n: Texts = None,
    gates: ForGates = False,
    tuning: ForTuning = False,
) -> None:
    """One process of ``run``."""
    study: Study = context.obj
    wanted = Choice(arm, seed, n, gates, tuning).nodes(study.plan)
    study.jobs.work(wanted, work_of(study.setting, study.jobs), time.time() + 60 * minutes)


def work_of(setting: "Setting", jobs: Jobs) -> Work:
    from bench.effect.loop.measure import measure
    from bench.effect.loop.train import train

    nodes = jobs.root / "nodes"
    return Work(
        train=lambda node, folder: train(setting, nodes, node, folder),
        measure=lambda node, folder, figures: measure(
            setting, nodes, jobs.data, node, folder, figures, jobs.result(node)
        ),
    )


@app.command("gates")
def show_gates(context: typer.Context) -> None:
    """Measure the gates, write them down, and say which hold; `run --gates` comes first."""
    from bench.effect.gates import measure_gates

    study: Study = context.obj
    found = measure_gates(study.setting, study.jobs)
    for gate in found:
        value = "not measured" if gate.value is None else f"{gate.value:.3f}"
        sign = "≥" if gate.at_least else "≤"
        print(f"{'holds' if gate.passed else 'FAILS'}  {gate.name}: {value}, {sign} {gate.bound}")
    raise typer.Exit(0 if all(gate.passed for gate in found) else 1)


@app.command("tuning")
def show_tuning(context: typer.Context) -> None:
    """Each trial's accuracy at temperature 1 on the validation split."""
    from bench.effect.loop.measure import VALIDATION
    from bench.effect.results import load_all
    from bench.effect.study import t1

    study: Study = context.obj
    for result in load_all(study.results, study.plan, study.size):
        if " trial " in result.about.path:
            print(f"{result.about.path:40} seed {result.about.seed}: {100 * t1(result, [VALIDATION]):.1f} %")


@app.command("report")
def write_report(
    context: typer.Context,
    out: Annotated[Path | None, typer.Option(help="of report.md and its pictures; by default the results'")] = None,
) -> None:
    """Tables and plots from the raw results. Results of another plan are refused."""
    from bench.effect.report import report

    study: Study = context.obj
    print(report(study.plan, study.results, out or study.results, study.size))


def main() -> None:
    try:
        app()
    except PrismError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
