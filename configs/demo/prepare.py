"""Write the demo's model and data: `python configs/demo/prepare.py --out DIR --seed 0`.

    DIR/model/              a Hugging Face folder with random weights
    DIR/data/public.jsonl   many demonstrations with flaws ("response"), what SFT imitates
    DIR/data/teacher.jsonl  a few prompts with the closed teacher's text ("teacher") and the gold answer
    DIR/data/prompts.jsonl  prompts with gold answers, for RL; hard ones are over-represented
    DIR/data/validation.jsonl, test.jsonl   held-out handwriting, with gold answer and truth ("teacher"), to measure
    DIR/data/images/*.png   the pictures; a row names its own relative to the file it stands in

A second call with the same options does nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that the file also runs as a script

from configs.blind import Pair, Part, Told, told_apart
from configs.demo import task
from configs.demo.task import Flaws, Puzzle, Scans
from prism.files import seal, write_json
from prism.wire.response import EXPERTS

MARKER = "prepared.json"
BLIND_PAIRS = 2_000
NAMES: dict[Part, str] = {"perception": "captions", "reasoning": "reasoning"}
SOURCES = ("task.py", "model.py", "chat_template.jinja", "prepare.py")


def misread(text: str) -> tuple[int, int, float]:
    """`7=1:0.75`: three times in four, a seven is called a one."""
    try:
        pair, rate = text.split(":")
        digit, read_as = pair.split("=")
        return int(digit), int(read_as), float(rate)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: write DIGIT=DIGIT:RATE, such as 7=1:0.75") from None


def shares(text: str) -> tuple[float, ...]:
    """`1,1,2`: one share a level."""
    values = _each_level(text)
    if not values or min(values) < 0 or sum(values) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r}: give {len(task.LEVELS)} shares, such as 1,1,2")
    return values


def rates(text: str) -> tuple[float, ...]:
    """`0.05,0.15,0.6`: one rate a level; a single one holds for all."""
    values = _each_level(text if "," in text else ",".join([text] * len(task.LEVELS)))
    if not values or not all(0 <= value <= 1 for value in values):
        raise argparse.ArgumentTypeError(f"{text!r}: give a rate between 0 and 1, or {len(task.LEVELS)} of them")
    return values


def _each_level(text: str) -> tuple[float, ...] | None:
    try:
        values = tuple(float(value) for value in text.split(","))
    except ValueError:
        return None
    return values if len(values) == len(task.LEVELS) else None


def rate(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: a rate lies between 0 and 1")
    return value


def count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: at least 1")
    return value


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    flaws = Flaws()
    usual = [(digit, read_as, share) for digit, (read_as, share) in flaws.misread.items()]
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="seed of the data and of the model's random weights")
    parser.add_argument("--scan-seed", type=int, default=0, help="seed of the split into training and held-out scans")
    parser.add_argument("--held-out-scans", type=rate, default=0.25, help="share of the scans kept for measuring")
    parser.add_argument("--public-demos", type=count, default=12_000, help="rows of public.jsonl")
    parser.add_argument("--teacher-demos", type=count, default=400, help="rows of teacher.jsonl")
    parser.add_argument("--prompts", type=count, default=1_000, help="rows of prompts.jsonl")
    parser.add_argument("--validation", type=count, default=512, help="rows of validation.jsonl")
    parser.add_argument("--test", type=count, default=1_024, help="rows of test.jsonl")
    parser.add_argument("--questions-per-image", type=count, default=2, help="public rows that share one picture")
    parser.add_argument("--levels", type=shares, default=(1.0, 1.0, 1.0), help="shares of levels 1, 2, 3")
    parser.add_argument("--teacher-levels", type=shares, default=(1.0, 1.0, 1.0), help="the same, for teacher.jsonl")
    parser.add_argument("--prompt-levels", type=shares, default=(1.0, 2.0, 3.0), help="the same, for prompts.jsonl")
    parser.add_argument(
        "--prompt-drift",
        type=rate,
        default=0.25,
        help="chance that prompts.jsonl keeps a question about a digit the public misreads: at 1 RL alone undoes the "
        "drift, at 0 it never sees it and brings back what alignment removed",
    )
    parser.add_argument(
        "--misread",
        type=misread,
        nargs="*",
        default=usual,
        metavar="DIGIT=DIGIT:RATE",
        help="what public annotators call which digit, and how often",
    )
    parser.add_argument(
        "--teacher-share", type=rate, default=0.08, help="share of public.jsonl that is the teacher's text"
    )
    parser.add_argument("--drop-bullet", type=rate, default=flaws.drop_bullet, help="public responses missing a bullet")
    parser.add_argument(
        "--slip",
        type=rates,
        default=tuple(flaws.slip.values()),
        help="share of public computations that are off by one, at levels 1, 2, 3",
    )
    parser.add_argument("--force", action="store_true", help="write again even when nothing changed")
    options = parser.parse_args(arguments)
    if options.prompt_drift == 0 and len({digit for digit, _, _ in options.misread}) == 10:
        parser.error("--prompt-drift 0 leaves no prompts when every digit is misread")
    return options


def fingerprint(options: argparse.Namespace) -> str:
    """Of the options and of the code that turns them into files."""
    shown = {name: value for name, value in vars(options).items() if name not in ("out", "force")}
    digest = hashlib.sha256(json.dumps(shown, sort_keys=True, default=str).encode())
    for source in SOURCES:
        digest.update((Path(__file__).parent / source).read_bytes())
    return digest.hexdigest()


class Writer:
    """Rows of JSON Lines and their pictures, under one folder."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.seed = seed
        (folder / "images").mkdir(parents=True)

    def rng(self, name: str) -> random.Random:
        """A stream of its own for each file, so that one file's size does not change another's rows."""
        return random.Random(f"{name}-{self.seed}")

    def save_image(self, name: str, puzzle: Puzzle, scans: Scans, rng: random.Random) -> str:
        path = f"images/{name}.png"
        task.render(puzzle, scans, rng).save(self.folder / path, compress_level=1)
        return path

    def rows(self, name: str, rows: Sequence[dict[str, Any]]) -> None:
        lines = (json.dumps(row, ensure_ascii=False) for row in rows)
        (self.folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_public(writer: Writer, scans: Scans, options: argparse.Namespace, flaws: Flaws) -> None:
    rng = writer.rng("public")
    rows: list[dict[str, Any]] = []
    while len(rows) < options.public_demos:
        puzzle = task.draw_puzzle(rng, rng.choices(task.LEVELS, options.levels)[0])
        image = writer.save_image(f"public-{len(rows):05d}", puzzle, scans, rng)
        for turn in range(min(options.questions_per_image, options.public_demos - len(rows))):
            if turn:
                puzzle = task.ask(rng, puzzle.level, puzzle.rows, puzzle.columns, puzzle.digits)
            response, found = task.public_response(puzzle, flaws, rng)
            if rng.random() < options.teacher_share:
                response, found = task.teacher_response(puzzle), []
            rows.append(
                {
                    "id": f"public-{len(rows):05d}",
                    "messages": task.prompt_messages(puzzle, image),
                    "response": response,
                    "kind": "number",
                    "meta": {**asdict(puzzle), "flaws": found},
                }
            )
    rng.shuffle(rows)
    writer.rows("public", rows)


def write_prompts(
    writer: Writer,
    name: str,
    size: int,
    scans: Scans,
    levels: Sequence[float],
    teacher: bool,
    keep: Callable[[Puzzle, random.Random], bool] = lambda puzzle, rng: True,
) -> None:
    rng = writer.rng(name)
    rows: list[dict[str, Any]] = []
    while len(rows) < size:
        puzzle = task.draw_puzzle(rng, rng.choices(task.LEVELS, levels)[0])
        if not keep(puzzle, rng):
            continue
        identity = f"{name}-{len(rows):05d}"
        row: dict[str, Any] = {
            "id": identity,
            "messages": task.prompt_messages(puzzle, writer.save_image(identity, puzzle, scans, rng)),
        }
        if teacher:
            row["teacher"] = task.teacher_response(puzzle)
        rows.append({**row, "gold": task.gold(puzzle), "kind": "number", "meta": asdict(puzzle)})
    writer.rows(name, rows)


def flaws_of(options: argparse.Namespace) -> Flaws:
    misread = {digit: (read_as, share) for digit, read_as, share in options.misread}
    return Flaws(misread, options.drop_bullet, dict(zip(task.LEVELS, options.slip, strict=True)))


def write_data(folder: Path, options: argparse.Namespace) -> None:
    flaws = flaws_of(options)
    training, held_out = task.split_scans(options.scan_seed, options.held_out_scans)
    writer = Writer(folder, options.seed)

    def covered(puzzle: Puzzle, rng: random.Random) -> bool:
        asked = {puzzle.digits[cell] for cell in puzzle.cells}
        return not asked & flaws.misread.keys() or rng.random() < options.prompt_drift

    write_public(writer, training, options, flaws)
    write_prompts(writer, "teacher", options.teacher_demos, training, options.teacher_levels, teacher=True)
    write_prompts(writer, "prompts", options.prompts, training, options.prompt_levels, teacher=False, keep=covered)
    write_prompts(writer, "validation", options.validation, held_out, options.levels, teacher=True)
    write_prompts(writer, "test", options.test, held_out, options.levels, teacher=True)


def told_blind(options: argparse.Namespace) -> dict[Part, Told]:
    """How often the teacher's text is told from the public's on the same question by a judge who sees no picture."""
    rng, flaws = random.Random(f"blind-{options.seed}"), flaws_of(options)
    puzzles = [task.draw_puzzle(rng, rng.choices(task.LEVELS, options.levels)[0]) for _ in range(BLIND_PAIRS)]
    texts = [task.public_response(puzzle, flaws, rng)[0] for puzzle in puzzles]
    pairs = [
        Pair(task.question_text(puzzle), task.teacher_response(puzzle), text)
        for puzzle, text in zip(puzzles, texts, strict=True)
    ]
    return {part: told_apart(pairs, part) for part in EXPERTS}


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    out: Path = options.out
    marker = out / MARKER
    wanted = fingerprint(options)
    if not options.force and marker.is_file() and json.loads(marker.read_text()).get("fingerprint") == wanted:
        print(f"{out}: up to date")
        return
    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".prepare-", dir=out) as scratch:
        work = Path(scratch)
        write_data(work / "data", options)
        from configs.demo import model  # torch takes seconds to import: not before something is to be done

        size = model.Size()
        parameters = model.save_model(work / "model", task.corpus(), task.TAGS, options.seed, size)
        marker.unlink(missing_ok=True)  # from here to the end, the folder is in between
        seal(work / "data", out / "data")
        seal(work / "model", out / "model")
    blind = told_blind(options)
    made_with = {name: str(value) for name, value in vars(options).items() if name not in ("out", "force")}
    prepared = {"fingerprint": wanted, "parameters": parameters, "size": asdict(size), "options": made_with}
    prepared["told_without_the_picture"] = {part: round(told.share, 4) for part, told in blind.items()}
    write_json(marker, prepared)
    print(
        f"{out}: model of {parameters / 1e6:.2f}M parameters and {options.public_demos:,} public demonstrations, "
        f"{options.teacher_demos:,} of the teacher, {options.prompts:,} prompts in {time.monotonic() - started:.0f} s"
    )
    shown = " and ".join(f"{told.share:.0%} of the public's {NAMES[part]}" for part, told in blind.items())
    print(f"who sees no picture tells {shown} from the teacher's (50 % is a coin)")


if __name__ == "__main__":
    main()
