"""Cleaning and splitting: duplicates and benchmarks' problems out, whole clusters of images to one side, then sets."""

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from sqlalchemy import bindparam, or_, select, update

from prism.curation.config import CurateConfig, SplitConfig
from prism.curation.rows import golds_of, images_of, own_row, question_of
from prism.curation.sets.near import Clusters, Hash, Problem, is_near, near_pairs, picture_hash, plain_gold
from prism.curation.state.job import OpenJob
from prism.curation.state.tables import Demo, Picture
from prism.curation.state.tables import Problem as ProblemRow
from prism.data.blobs import BlobStore
from prism.data.images import decode_image
from prism.data.mixture import data_files
from prism.data.rows import read_rows
from prism.errors import DataError

CHUNK = 256
PROBLEMS: Any = ProblemRow.__table__


def split(job: OpenJob, config: CurateConfig, blobs: BlobStore, scores: Mapping[int, float]) -> None:
    """Give every problem that is used its set, or the reason why it has none; begun anew each time.

    ``scores``: by problem, of its demonstration, how clearly both experts tell it from the policy's; without them
    alignment takes any. Raises DataError for a benchmark that cannot be read.
    """
    settings = config.split
    ids, routes = _used(job)
    problems = list(_problems(job, blobs, ids))
    files, against = _benchmarks(config, blobs, job)
    fates: dict[int, tuple[str, str | None]] = {}
    leaks = dict[str, set[int]]()
    for index, other in _contaminated(problems, against, settings):
        fates.setdefault(ids[index], ("benchmark", against[other].name))
        leaks.setdefault(files[other], set()).add(index)
    clean = [index for index, id in enumerate(ids) if id not in fates]
    groups = _groups([problems[index] for index in clean], settings)
    for index, twin in _duplicates([problems[index] for index in clean], groups, settings):
        fates[ids[clean[index]]] = "duplicate", twin
    kept = [(place, ids[index]) for place, index in enumerate(clean) if ids[index] not in fates]
    held_out = _held_out([(groups.root(place), id) for place, id in kept], routes, settings.validation)
    demos = [id for _, id in kept if routes[id] == "teacher" and id not in held_out]
    best = sorted(demos, key=lambda id: (-scores.get(id, float("-inf")), id))[: settings.align]
    aligned = set(best) if len(demos) > settings.align else set(best[: len(best) // 2])
    for _, id in kept:
        name = "rl" if routes[id] == "rl" else "align" if id in aligned else "sft"
        fates[id] = f"{name}-validation" if id in held_out else name, None
    _write(job, fates)
    job.note(
        split={
            "benchmarks": [str(name) for name in settings.benchmarks],
            "benchmark_problems": len(against),
            "by_benchmark": {
                file: {"problems": count, "near": len(leaks.get(file, ()))} for file, count in Counter(files).items()
            },
            "scored": sum(id in scores for id in demos),
            "clusters": len({groups.root(place) for place, _ in kept}),
        }
    )


def _used(job: OpenJob) -> tuple[list[int], dict[int, str]]:
    """Problems of RL, and those of which a demonstration is verified, in order; and their routes."""
    verified = select(Demo.problem).where(Demo.job == job.id, Demo.best)
    with job.store.reading() as connection:
        found = connection.execute(
            select(ProblemRow.id, ProblemRow.route)
            .where(ProblemRow.job == job.id, or_(ProblemRow.route == "rl", ProblemRow.id.in_(verified)))
            .order_by(ProblemRow.id)
        ).all()
    return [row.id for row in found], {row.id: row.route for row in found}


def _problems(job: OpenJob, blobs: BlobStore, ids: list[int]) -> Iterator[Problem]:
    for begin in range(0, len(ids), CHUNK):
        with job.store.reading() as connection:
            wanted = select(ProblemRow.row).where(ProblemRow.id.in_(ids[begin : begin + CHUNK]))
            rows = list(connection.scalars(wanted.order_by(ProblemRow.id)))
        yield from _told_apart(job, blobs, rows)


def _told_apart(job: OpenJob, blobs: BlobStore, rows: list[dict[str, Any]]) -> list[Problem]:
    hashes = _hashes(job, blobs, {sha256 for row in rows for sha256 in images_of(row)})
    return [
        Problem(
            row["id"],
            tuple(hashes[sha256] for sha256 in images_of(row)),
            question_of(row),
            frozenset(map(plain_gold, golds_of(row))) if row.get("gold") else frozenset(),
        )
        for row in rows
    ]


def _hashes(job: OpenJob, blobs: BlobStore, wanted: set[str]) -> dict[str, Hash]:
    """Of images by sha256; computed once for each image and database."""
    with job.store.reading() as connection:
        found = connection.execute(select(Picture.sha256, Picture.hash).where(Picture.sha256.in_(wanted))).all()
    known = {row.sha256: int(row.hash, 16) for row in found}
    new = {sha256: picture_hash(decode_image(blobs.get(sha256), None)) for sha256 in sorted(wanted - known.keys())}
    if new:
        with job.store.writing() as connection:
            rows = [{"sha256": sha256, "hash": f"{one:016x}"} for sha256, one in new.items()]
            connection.execute(job.store.insert_new(Picture), rows)
    return known | new


def _benchmarks(config: CurateConfig, blobs: BlobStore, job: OpenJob) -> tuple[list[str], list[Problem]]:
    """Every row of the files, and its file. A row that cannot be read cannot be compared: that is an error."""
    files, found = list[str](), list[Problem]()
    for path, entry in data_files(list(config.split.benchmarks), config.path):
        data = read_rows(path, "skip", limits=config.limits, entry=entry)
        if data.bad_rows:
            raise DataError(
                f"{path}: {data.bad_rows} rows of the benchmark cannot be read, the first: {data.problems[0]}: nothing "
                "could be told of what is near them"
            )
        for begin in range(0, len(data.rows), CHUNK):
            rows = [own_row(data.rows[number], data, blobs) for number in range(len(data.rows))[begin : begin + CHUNK]]
            found += _told_apart(job, blobs, [row | {"id": f"{path.name}:{row['id']}"} for row in rows])
            files += [str(path)] * len(rows)
    return files, found


def _by_picture(problems: list[Problem]) -> tuple[list[Hash], list[list[int]]]:
    """Each hash once, and the problems that have it; those without a picture under their words."""
    places: dict[Hash, list[int]] = defaultdict(list)
    for index, problem in enumerate(problems):
        for one in dict.fromkeys(problem.hashes):
            places[one].append(index)
    return list(places), list(places.values())


def _groups(problems: list[Problem], settings: SplitConfig) -> Clusters:
    """Of problems that share a picture, or nearly; those without one that ask the same."""
    groups = Clusters(len(problems))
    hashes, owners = _by_picture(problems)
    for several in [*owners, *_same_texts(problems)]:
        for other in several[1:]:
            groups.join(several[0], other)
    for one, other, _ in near_pairs(hashes, settings.hash_bits):
        groups.join(owners[one][0], owners[other][0])
    return groups


def _same_texts(problems: list[Problem]) -> list[list[int]]:
    texts: dict[str, list[int]] = defaultdict(list)
    for index, problem in enumerate(problems):
        if not problem.hashes:
            texts[problem.question.casefold().strip()].append(index)
    return list(texts.values())


def _duplicates(problems: list[Problem], groups: Clusters, settings: SplitConfig) -> Iterator[tuple[int, str]]:
    """Each problem that is near an earlier one that is kept, and that one's name."""
    kept: dict[int, list[int]] = defaultdict(list)
    for index, problem in enumerate(problems):
        others = kept[groups.root(index)]
        near = (other for other in others if is_near(problem, problems[other], settings.hash_bits, settings.overlap))
        if (twin := next(near, None)) is not None:
            yield index, problems[twin].name
        else:
            others.append(index)


def _contaminated(problems: list[Problem], against: list[Problem], settings: SplitConfig) -> Iterator[tuple[int, int]]:
    """Each problem that is near one of a benchmark, and that one's place in ``against``; with several, each of them."""
    hashes, owners = _by_picture(problems)
    theirs, their_owners = _by_picture(against)
    pairs = [
        (mine, other)
        for one, two, _ in near_pairs(hashes, settings.hash_bits, theirs)
        for mine in owners[one]
        for other in their_owners[two]
    ]
    texts = {other.question.casefold().strip(): number for number, other in enumerate(against) if not other.hashes}
    pairs += [
        (index, texts[text])
        for index, problem in enumerate(problems)
        if not problem.hashes and (text := problem.question.casefold().strip()) in texts
    ]
    for mine, other in pairs:
        if is_near(problems[mine], against[other], settings.hash_bits, settings.overlap):
            yield mine, other


def _held_out(clusters: list[tuple[int, int]], routes: Mapping[int, str], share: float) -> set[int]:
    """Problems of whole clusters, drawn until they hold the share of the demonstrations."""
    members: dict[int, list[int]] = defaultdict(list)
    for root, id in clusters:
        members[root].append(id)
    order = sorted(members)
    random.Random("validation").shuffle(order)
    wanted = share * sum(routes[id] == "teacher" for _, id in clusters)
    held_out, demos = set[int](), 0
    for root in order:
        count = sum(routes[id] == "teacher" for id in members[root])
        if count and demos + count <= wanted + 0.5:
            held_out.update(members[root])
            demos += count
    return held_out


def _write(job: OpenJob, fates: Mapping[int, tuple[str, str | None]]) -> None:
    values = [{"at": id, "became": fate, "of": twin} for id, (fate, twin) in fates.items()]
    with job.store.writing() as connection:
        job.require_newest(connection)
        connection.execute(update(PROBLEMS).where(PROBLEMS.c.job == job.id).values(fate=None, twin=None))
        became = {"fate": bindparam("became"), "twin": bindparam("of")}
        for begin in range(0, len(values), 1000):
            which = update(PROBLEMS).where(PROBLEMS.c.id == bindparam("at")).values(**became)
            connection.execute(which, values[begin : begin + 1000])
