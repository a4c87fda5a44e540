"""``make curate-demo``: the demo's own curation, from its SFT policy to an alignment on what came out.

1. SFT as in the demo, on flawed public demonstrations (configs/curate-demo/sft.toml).
2. ``prism curate`` over its services (configs/curate-demo/curate.toml): the prompts that this policy never solves go to
   a teacher on this machine that errs at known rates (bench/curation/stand_ins.py); its answers are verified and split.
3. Alignment of that policy on what was verified, and on nothing else (configs/curate-demo/align.toml). At its end its
   perception expert is held against the labelled captions too: the card then has its agreement beside the judge's.

The same command goes on where it was. ``--small`` shortens every part: a look at the chain, whose policy learns little.
It fails if the checks do not catch what they must on the labelled sample: ``python -m bench.curation.errors`` measures
that alone, without a policy.
"""

import json
import sys
import time
from pathlib import Path

from bench.curation.errors import curate_with_stand_ins, tell_checks
from bench.shared import command_line, console
from prism.config import RunConfig, load_config, load_toml
from prism.curation.calibrate import CAPTION_BY
from prism.curation.config import CurateConfig
from prism.stack.folder_lock import lock_run
from prism.trainer.run import pipeline
from prism.trainer.run.export import export

CONFIGS = Path("configs/curate-demo")
SFT, CURATE, ALIGN = (CONFIGS / f"{name}.toml" for name in ("sft", "curate", "align"))
POLICY = "curated-from"
"""In the SFT run's folder: the policy that was mined, where alignment starts. Written once the curation is through."""
SMALL = (
    [
        "name=curate-demo-small-sft",
        "prepare.options={ prompts = 48, public_demos = 64, teacher_demos = 60 }",
        "stages.sft.steps=8",
        "stages.sft.batch=8",
        "evaluate.questions=16",
    ],
    ["name=curate-demo-small", "run=runs/curate-demo-small-sft", "mine.n=2",
     "verify.labelled=runs/curate-demo-small-sft/data/labelled.jsonl"],
    [
        "name=curate-demo-small-align",
        f"model=runs/curate-demo-small-sft/{POLICY}",
        "stages.align.steps=2",
        "stages.align.warmup_steps=1",
        "stages.align.warmup_prompts=8",
        "stages.align.checkpoint_every=1",
        "stages.align.experts.grounding.epochs=1",
        "stages.align.rollouts.prompts=4",
        "stages.align.rollouts.data=runs/curate-demo-small/align.jsonl",
        "evaluate.data=runs/curate-demo-small-sft/data/validation.jsonl",
        "evaluate.questions=16",
    ],
)  # fmt: skip
"""Overrides of the three configurations, by which each part takes seconds and shows only that it works."""


def main() -> None:
    parser = command_line("bench.curation.demo", __doc__)
    parser.add_argument("--small", action="store_true", help="each part a few steps long, in folders of its own")
    parser.add_argument("--until", choices=["curate", "align"], default="align", help="the last part to run")
    options = parser.parse_args()
    began = time.monotonic()
    sft_options, curate_options, align_options = SMALL if options.small else ([], [], [])
    sft, curation = load_config(SFT, sft_options), load_toml(CURATE, CurateConfig, curate_options)

    def curate() -> None:
        with lock_run(curation.folder, "curation"):
            curate_with_stand_ins(curation)

    if not (policy := sft.run_dir / POLICY).exists():
        with lock_run(sft.run_dir, "trainer", "services") as lock:
            pipeline.run(sft, SFT, sft_options, console, at_end=curate, lock=lock)
        export(sft.run_dir, policy, stage=None, model="policy", console=console)
    if options.until == "align":
        align = load_config(ALIGN, align_options)

        def hold_expert() -> None:
            with lock_run(curation.folder, "curation"):
                curate_with_stand_ins(with_expert(curation, align), ("verify", "card"))

        known = json.loads((curation.folder / "card.json").read_text())["agreement"]
        at_end = None if CAPTION_BY.format("expert") in known else hold_expert
        with lock_run(align.run_dir, "trainer", "services") as lock:
            pipeline.run(align, ALIGN, align_options, console, at_end=at_end, lock=lock)
    holds = tell_checks(curation)
    console.print(f"{(time.monotonic() - began) / 60:.1f} minutes; {curation.folder}/card.md and samples.html")
    sys.exit(0 if holds else 1)


def with_expert(curation: CurateConfig, align: RunConfig) -> CurateConfig:
    """The same, over the services of the alignment, whose perception expert is held against the labelled captions."""
    assert isinstance(curation.data, str)
    data = str(curation.path(curation.data))
    verify = curation.verify.model_copy(update={"second": "expert"})
    return curation.model_copy(update={"run": align.run_dir, "data": data, "verify": verify})


if __name__ == "__main__":
    main()
