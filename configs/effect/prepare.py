"""Write the study's model and data: `python configs/effect/prepare.py --size gpu --out runs/effect-gpu`.

    OUT/model/                a Hugging Face folder with random weights
    OUT/data/pretrain.jsonl   right answers to all families, in all styles
    OUT/data/sft.jsonl        flawed public demonstrations of families 1 to 6, and some of the teacher's
    OUT/data/teacher-sampled-s0-n100.jsonl, teacher-deterministic-…   fresh texts of families 1 to 4, of a seed and an N
    OUT/data/candidates.jsonl prompts of families 1 to 6 with gold answers, of which RLVR's are chosen
    OUT/data/validation.jsonl, test-SPLIT.jsonl   questions with gold answer and truth ("teacher")
    OUT/data/images/*.png     the pictures

The rows are PRISM's own. A smaller N is the beginning of a larger one. A second call with the same plan, code and size
does nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that the file also runs as a script

from configs.demo import task
from configs.demo.prepare import MARKER, Writer
from configs.effect import writing
from configs.effect.plan import FILE, Plan, load_plan
from configs.effect.world import FAMILIES, FAR, INSIDE, NEAR, ON_LARGER, Grid, Question, draw_grid, draw_question
from configs.effect.world import question_text as text_of
from prism.errors import ConfigError
from prism.files import seal, write_json

SOURCES = ("world.py", "writing.py", "prepare.py", "../demo/task.py", "../demo/model.py", "../demo/chat_template.jinja")
COLOURS = np.array([(255, 70, 70), (80, 225, 80), (95, 130, 255)], dtype=np.float32) / 255  # of INKS
CHUNK = 500  # pictures of pretraining that a process draws at a time
LARGER_SHARE = 0.1  # of pretraining: 4×4 grids
OTHER_HANDWRITING = (
    0.25  # the end of scikit-learn's data set, whose scans stand in the order in which people wrote them
)

Families = Sequence[int]


@cache
def scans(other_handwriting: bool) -> task.Scans:
    """At [d], the places of digit d's scans in scikit-learn's data set."""
    digits: Any = load_digits()
    boundary = round(len(digits.target) * (1 - OTHER_HANDWRITING))
    own = np.arange(len(digits.target)) >= boundary if other_handwriting else np.arange(len(digits.target)) < boundary
    return [np.flatnonzero(own & (digits.target == digit)).tolist() for digit in range(10)]


def render(grid: Grid, rng: random.Random, other_handwriting: bool = False) -> Image.Image:
    """Each digit a random scan in its ink on black, a little off centre."""
    puzzle = task.Puzzle(0, "", None, grid.side, grid.side, grid.digits)
    strength = np.asarray(task.render(puzzle, scans(other_handwriting), rng), dtype=np.float32)  # [H, W]
    inks = np.array(grid.inks).reshape(grid.side, grid.side).repeat(task.CELL, 0).repeat(task.CELL, 1)  # [H, W]
    return Image.fromarray((strength[..., None] * COLOURS[inks]).round().astype(np.uint8))


class Rows(Writer):
    """Rows of the study, their pictures beside them."""

    def draw(self, rng: random.Random, families: Families, side: int = 3) -> tuple[Question, Grid]:
        return draw_question(rng, families, side), draw_grid(rng, side)

    def picture(self, name: str, grid: Grid, rng: random.Random, other_handwriting: bool = False) -> str:
        path = f"images/{name}.png"
        render(grid, rng, other_handwriting).save(self.folder / path, compress_level=1)
        return path

    def row(self, name: str, question: Question, grid: Grid, image: str, **texts: str) -> dict[str, Any]:
        content = [{"type": "image", "image": image}, {"type": "text", "text": text_of(question)}]
        meta = {"family": question.family, "side": grid.side, "digits": grid.digits, "inks": grid.inks}
        gold = {"gold": writing.gold(question, grid), "kind": "number"}
        return {"id": name, "messages": [{"role": "user", "content": content}], **texts, **gold, "meta": meta}


def pretrain_rows(rows: Rows, numbers: range, questions: int) -> list[dict[str, Any]]:
    """Of some of the pictures, which have a stream of their own: so many processes can draw."""
    rng, made = rows.rng(f"pretrain-{numbers.start}"), list[dict[str, Any]]()
    for number in numbers:
        families, side = (ON_LARGER, 4) if rng.random() < LARGER_SHARE else (FAMILIES, 3)
        grid = draw_grid(rng, side)
        image = rows.picture(f"pretrain-{number:05d}", grid, rng)
        for turn in range(questions):
            question = draw_question(rng, families, side)
            response = writing.teacher(question, grid, rng, slip=0)
            made.append(rows.row(f"pretrain-{number:05d}-{turn}", question, grid, image, response=response))
    return made


def write_sft(rows: Rows, size: int, plan: Plan) -> None:
    rng, made, world = rows.rng("sft"), list[dict[str, Any]](), plan.world
    flaws = writing.Flaws(misread=world.misread, ink=world.ink, procedure=world.procedure, slip=world.slip)
    of_teacher = round(size * world.teacher_share)
    for number in range(size):
        question, grid = rows.draw(rng, INSIDE if number < of_teacher else (*INSIDE, *NEAR))
        name = f"sft-{number:05d}"
        if number < of_teacher:
            response, found = writing.teacher(question, grid, rng, world.slip), []
        else:
            response, found = writing.public(question, grid, rng, flaws)
        row = rows.row(name, question, grid, rows.picture(name, grid, rng), response=response)
        made.append(row | {"meta": row["meta"] | {"teacher": number < of_teacher, "flaws": found}})
    rng.shuffle(made)
    rows.rows("sft", made)


def write_teacher(rows: Rows, seed: int, plan: Plan) -> None:
    """The same prompts and pictures for either kind of teacher."""
    rng = rows.rng(f"teacher-{seed}")
    made: dict[str, list[dict[str, Any]]] = {"sampled": [], "deterministic": []}
    for number in range(max(plan.texts)):
        question, grid = rows.draw(rng, INSIDE)
        name = f"teacher-s{seed}-{number:03d}"
        image = rows.picture(name, grid, rng)
        texts = {
            "sampled": writing.teacher(question, grid, rng, plan.world.slip),
            "deterministic": writing.truth(question, grid),
        }
        for kind, text in texts.items():
            made[kind].append(rows.row(name, question, grid, image, teacher=text))
    for kind, of_kind in made.items():
        for count in plan.texts:
            rows.rows(teacher_file(kind, seed, count).removesuffix(".jsonl"), of_kind[:count])


def teacher_file(kind: str, seed: int, count: int) -> str:
    return f"teacher-{kind}-s{seed}-n{count}.jsonl"


def write_questions(
    rows: Rows, name: str, count: int, families: Families, *, side: int = 3, other_handwriting: bool = False
) -> None:
    """As many of each family, but for a rest."""
    rng, made = rows.rng(name), list[dict[str, Any]]()
    for number in range(count):
        question, grid = rows.draw(rng, families[number % len(families) :][:1], side)
        image = rows.picture(f"{name}-{number:05d}", grid, rng, other_handwriting)
        made.append(rows.row(f"{name}-{number:05d}", question, grid, image, teacher=writing.truth(question, grid)))
    rows.rows(name, made)


def write_data(folder: Path, plan: Plan, size: str) -> None:
    of_size, rows = plan.sizes[size], Rows(folder, 0)
    images = range(of_size.pretrain_images)
    chunks = [images[begin : begin + CHUNK] for begin in range(0, len(images), CHUNK)]
    tasks: list[Callable[[], Any]] = [partial(pretrain_rows, rows, one, of_size.questions_per_image) for one in chunks]
    tasks.append(partial(write_sft, rows, of_size.sft_rows, plan))
    tasks += [partial(write_teacher, rows, seed, plan) for seed in (*plan.seeds, *plan.tuning_seeds)]
    count, ask = of_size.questions, partial(write_questions, rows)
    tasks.append(partial(ask, "candidates", of_size.candidates, (*INSIDE, *NEAR)))
    tasks.append(partial(ask, "validation", count // 2, (*INSIDE, *FAR)))
    tasks += [partial(ask, f"test-{s}", count, of) for s, of in (("inside", INSIDE), ("near", NEAR), ("far", FAR))]
    tasks.append(partial(ask, "test-handwriting", count, INSIDE, other_handwriting=True))
    tasks.append(partial(ask, "test-grid4", count, ON_LARGER, side=4))
    made: list[dict[str, Any]] = [row for found in _done(tasks, len(chunks) > 1) for row in found or ()]
    rows.rng("pretrain").shuffle(made)
    rows.rows("pretrain", made)


def _done(tasks: Sequence[Callable[[], Any]], apart: bool) -> list[Any]:
    """What each of the tasks gives; ``apart``: by processes, one for each core."""
    if not apart:
        return [task() for task in tasks]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=get_context("spawn")) as pool:
        return [each.result() for each in [pool.submit(task) for task in tasks]]


def fingerprint(plan: Plan, size: str) -> str:
    """Of the data and the model: of the plan's parts that make them, and of the code that does."""
    parts = [plan.world.model_dump(), plan.sizes[size].model_dump(exclude={"stages"}), plan.seeds, plan.tuning_seeds]
    digest = hashlib.sha256(json.dumps([*parts, plan.texts], sort_keys=True).encode())
    for source in SOURCES:
        digest.update((Path(__file__).parent / source).read_bytes())
    return digest.hexdigest()


def prepare(out: Path, plan: Plan, size: str) -> str:
    """Returns the fingerprint of what is in ``out`` now. Raises ConfigError for an unknown size."""
    if size not in plan.sizes:
        raise ConfigError(f"the plan has no size {size!r}; it has {', '.join(plan.sizes)}")
    wanted, marker = fingerprint(plan, size), out / MARKER
    if marker.is_file() and json.loads(marker.read_text()).get("fingerprint") == wanted:
        return wanted
    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".prepare-", dir=out) as scratch:
        work = Path(scratch)
        write_data(work / "data", plan, size)
        from configs.demo import model  # torch takes seconds to import: not before something is to be done

        of_model = model.Size(vocabulary=512, **plan.sizes[size].model)
        parameters = model.save_model(work / "model", writing.corpus(), writing.TAGS, 0, of_model)
        marker.unlink(missing_ok=True)  # from here to the end, the folder is in between
        seal(work / "data", out / "data")
        seal(work / "model", out / "model")
    write_json(marker, {"fingerprint": wanted, "parameters": parameters, "size": asdict(of_model)})
    print(f"{out}: data and a model of {parameters / 1e6:.2f}M parameters in {time.monotonic() - started:.0f} s")
    return wanted


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--size", required=True, help="of the plan's sizes")
    parser.add_argument("--plan", type=Path, default=FILE)
    options = parser.parse_args(arguments)
    prepare(options.out, load_plan(options.plan), options.size)


if __name__ == "__main__":
    main()
