"""``python -m bench.step``: who waits for whom in a step of alignment and of RLVR, in lock-step and a version behind.

Two short runs over live services. ``--run`` prints the same of a run that is there, on whatever machine it ran; its
report has the picture.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from bench.shared import command_line, console
from prism.config import load_config
from prism.errors import PrismError
from prism.report.model import load_report
from prism.report.waits import Waits
from prism.trainer.run.pipeline import run

CONFIG = Path(__file__).with_name("step.toml")


def main() -> None:
    parser = command_line("bench.step", __doc__)
    parser.add_argument("--run", type=Path, help="the folder of a finished run, instead of two new ones")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="another setting of step.toml")
    options = parser.parse_args()
    if options.run:
        try:
            show(str(options.run), load_report(options.run).waits)
        except PrismError as error:
            raise SystemExit(f"error: {error}") from None
        return
    for staleness in (0, 1):
        stale = [f"stages.{stage}.rollouts.staleness={staleness}" for stage in ("align", "rlvr")]
        overrides = [f"name=bench-step-{staleness}", *stale, *options.set]
        config = load_config(CONFIG, overrides)
        shutil.rmtree(config.run_dir, ignore_errors=True)
        run(config, CONFIG, overrides, console)
        show(f"staleness {staleness}", load_report(config.run_dir).waits)


def show(title: str, found: Sequence[Waits]) -> None:
    if not found:
        console.print(f"{title}: no stage has rollouts whose times are known")
    for waits in found:
        table = Table("part", "busy", "in the step shown", title=f"{title}: {waits.stage}, step {waits.step}")
        for part in waits.parts:
            spans = ", ".join(f"{span.does} {span.start:.2f}–{span.end:.2f}" for span in part.spans)
            table.add_row(part.name, f"{part.busy:.0%}", spans)
        table.caption = f"busy: of the stage's last half; the step took {waits.seconds:.2f} s"
        console.print(table)


if __name__ == "__main__":
    main()
