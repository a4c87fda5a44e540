"""What is a duplicate and what is not: never by the picture alone."""

import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from curation_world import World
from fake_services import response, served
from PIL import Image, ImageDraw
from test_curate import asked_of, rows

from prism.curation.sets.near import (
    Clusters,
    Problem,
    is_near,
    near_pairs,
    overlap,
    picture_hash,
    plain_gold,
)  # fmt: skip

BITS, OVERLAP = 10, 0.6


def drawing(seed: int, label: str = "") -> Image.Image:
    """A photograph of a kind: smooth colours and some shapes."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 255, (6, 8, 3), np.uint8)).resize((320, 240), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    draw.polygon([(int(x), int(y)) for x, y in rng.integers(20, 220, (3, 2))], outline="white", width=3)
    draw.text((150, 110), label, fill="white")
    return image


def encoded(image: Image.Image, **options: Any) -> Image.Image:
    out = io.BytesIO()
    image.save(out, **options)
    return Image.open(io.BytesIO(out.getvalue())).convert("RGB")


def apart(one: Image.Image, other: Image.Image) -> int:
    return (picture_hash(one) ^ picture_hash(other)).bit_count()


def problem(image: Image.Image | None, question: str, *golds: str) -> Problem:
    hashes = (picture_hash(image),) if image else ()
    return Problem("p", hashes, question, frozenset(map(plain_gold, golds)))


def test_copies_are_near_and_others_are_far() -> None:
    for seed in range(12):
        image = drawing(seed)
        assert apart(image, encoded(image, format="JPEG", quality=40)) <= BITS
        assert apart(image, image.resize((240, 180))) <= BITS
        assert apart(image, drawing(seed + 100)) > BITS


def test_a_problem_is_a_picture_and_a_question() -> None:
    first, again, other = drawing(1, "5 cm"), encoded(drawing(1, "5 cm"), format="JPEG", quality=40), drawing(2)
    ask, same_asked = "Find the length of the side x.", "find the length of the side x"
    base = problem(first, ask, "12")
    near = [
        (problem(again, same_asked, "12"), "the same, encoded anew"),
        (problem(first, same_asked, "12.0 cm"), "the same picture and question, another spelling of the answer"),
        (problem(again, "What is the length of the side x?", r"\boxed{12}"), "in other words"),
        (problem(again, same_asked), "an answer is not known"),
    ]
    far = [
        (problem(other, ask, "12"), "another picture"),
        (problem(first, "How many corners are there?", "3"), "another question"),
        (problem(first, "How many corners are there?", "12"), "another question with the same answer"),
        (problem(None, ask, "12"), "no picture"),
        (Problem("p", (*base.hashes, *base.hashes), ask, base.golds), "two pictures"),
    ]
    for one, what in near:
        assert is_near(base, one, BITS, OVERLAP), what
    for one, what in far:
        assert not is_near(base, one, BITS, OVERLAP), what


def test_one_drawing_with_another_label_is_another_problem() -> None:
    first = problem(drawing(3, "5"), "Find x.", "12")
    for label, gold in (("8", "15"), ("77777", "3")):
        hashes = (first.hashes[0] ^ 0b1011,)  # some bits apart, as labels make it
        assert not is_near(first, Problem("q", hashes, "Find x.", frozenset({gold})), BITS, OVERLAP), label


def test_questions_without_a_picture_are_near_by_their_words() -> None:
    base = problem(None, "What is 2 + 2?", "4")
    assert is_near(base, problem(None, "what is 2+2", "4"), BITS, OVERLAP)
    assert not is_near(base, problem(None, "What is 2 + 3?", "5"), BITS, OVERLAP)


@pytest.mark.parametrize(
    ("one", "other", "share"),
    [
        ("a b c d", "x a b c d y", 1.0),
        ("a b c d", "a b c x", 0.5),
        ("find x", "Find X!", 1.0),
        ("", "a", 0.0),
        ("", "", 1.0),
        ("Ｆｉｎｄ x y", "find x y", 1.0),
    ],
)
def test_overlap_is_of_word_triples(one: str, other: str, share: float) -> None:
    assert overlap(one, other) == overlap(other, one) == share


def test_pairs_are_all_that_are_within() -> None:
    rng = random.Random(0)
    hashes = [rng.getrandbits(64) for _ in range(150)]
    hashes += [h ^ (1 << rng.randrange(64)) for h in hashes[:40]]
    expected = {
        (i, j, (hashes[i] ^ hashes[j]).bit_count())
        for j in range(len(hashes))
        for i in range(j)
        if (hashes[i] ^ hashes[j]).bit_count() <= BITS
    }
    assert set(near_pairs(hashes, BITS)) == expected
    assert {(i, j) for i, j, _ in near_pairs(hashes[:9], BITS, hashes[150:])} == {(i, i) for i in range(9)}


def test_clusters_grow_together() -> None:
    clusters = Clusters(6)
    for pair in ((0, 1), (4, 5), (1, 5)):
        clusters.join(*pair)
    assert [clusters.root(n) for n in range(6)] == [0, 0, 2, 3, 0, 0]


def write(folder: Path, name: str, problems: list[tuple[str, Image.Image, str, str]]) -> Path:
    lines = list[str]()
    for id, image, question, gold in problems:
        image.save(folder / f"{name}-{id}.png")
        content = [{"type": "image", "image": f"{name}-{id}.png"}, {"type": "text", "text": question}]
        lines.append(json.dumps({"id": id, "messages": [{"role": "user", "content": content}], "gold": gold}))
    (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return folder / f"{name}.jsonl"


def test_sets_hold_no_duplicate_no_benchmark_and_no_picture_of_validation(world: World) -> None:
    small = {"format": "JPEG", "quality": 50}
    problems = [(f"r{n}", drawing(n), f"Q{100 + n}: what is the length?", str(100 + n)) for n in range(12)]
    problems += [("again", encoded(drawing(0), **small), "Q100: what is the length?", "100")]
    problems += [
        (f"more{n}", encoded(drawing(n), **small), f"Q{200 + n}: how many corners?", str(200 + n)) for n in range(1, 12)
    ]
    write(world.folder, "problems", problems)
    leaked = ("b0", encoded(drawing(3), **small), "Q103: What is the length?", "103")
    other = ("b1", drawing(4), "Which colour is the sky over it?", "blue")
    benchmark = write(world.folder, "bench", [leaked, other])
    world.teacher.answer = lambda body: response(asked_of(body))
    split = {"benchmarks": [str(benchmark)], "validation": 0.3, "align": 5}
    with served(world.teacher) as teacher:
        config = world.config(teacher, mine=None, split=split)
        world.curate(config, ["ask", "verify", "split", "card"])
    left_out = {row["id"]: (row["left_out"], row["near"]) for row in rows(config.folder, "contamination")}
    assert left_out == {"again": ("duplicate", "r0"), "r3": ("benchmark", "bench.jsonl:b0")}
    sets = {name: rows(config.folder, name) for name in ("sft", "align", "validation")}
    assert sum(map(len, sets.values())) == 22
    assert len(sets["align"]) == 5
    assert 4 <= len(sets["validation"]) <= 8

    def numbers(*names: str) -> set[str]:
        return {row["id"].lstrip("more") for name in names for row in sets[name]}

    assert not numbers("validation") & numbers("sft", "align"), "a copy of a picture is on its side"
    assert "| `align.jsonl` | 5 |" in (config.folder / "card.md").read_text()
