"""Whether a group's order is its responses', or the batch's that they came in: every kernel rounds by shapes."""

import io
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import torch
from PIL import Image

from bench.experts.workload import Workload
from prism.model.expert import load_expert, place
from prism.model.inputs import InputBuilder
from prism.services.experts.scoring import Branches, PrefixScorer
from prism.wire.v1 import rollout_pb2 as pb

AT_ONCE = 4  # groups of a large batch


def changed_order(model: Path, inputs: InputBuilder, groups: Sequence[Workload], device: str) -> tuple[float, float]:
    """Of pairs of responses to one prompt, the share that changes order in bfloat16 between a batch of several groups
    and batches of one response each; and by how much a score differs between these, at most."""
    expert = place(load_expert(model, dtype=torch.bfloat16, strict=True), device).eval()
    entries = [_branches(group, str(number), inputs) for number, group in enumerate(groups)]

    def scored(batches: Sequence[Sequence[Branches]]) -> list[float]:
        # Nothing is remembered from one batch to another.
        fresh = (PrefixScorer("bench", expert, inputs.image_token_id, cache_tokens=1) for _ in batches)
        each = (scorer.score(batch) for scorer, batch in zip(fresh, batches, strict=True))
        return [score for rows in each for row in rows for score in row]

    large = scored([entries[start : start + AT_ONCE] for start in range(0, len(entries), AT_ONCE)])
    small = scored([[replace(entry, responses=[text])] for entry in entries for text in entry.responses])
    return changed(large, small, len(groups)), max(abs(a - b) for a, b in zip(large, small, strict=True))


def changed(first: Sequence[float], second: Sequence[float], groups: int) -> float:
    """The share of pairs within each of so many groups, one after another, that two sets of scores do not order alike;
    a tie is an order of its own."""
    size = len(first) // groups
    pairs = [pair for start in range(0, len(first), size) for pair in combinations(range(start, start + size), 2)]
    orders = [[(scores[a] > scores[b]) - (scores[a] < scores[b]) for a, b in pairs] for scores in (first, second)]
    return sum(one != other for one, other in zip(*orders, strict=True)) / len(pairs)


def _branches(group: Workload, key: str, inputs: InputBuilder) -> Branches:
    parts = [pb.Part(image_sha256="given"), pb.Part(text=group.question)]
    picture = Image.open(io.BytesIO(group.image)).convert("RGB")
    prompt = inputs.prompt([pb.Message(role="user", parts=parts)], [picture])
    texts = [(*inputs.text_ids(text), inputs.end_token_id) for text in group.responses]
    return Branches(prompt, key, (key,), texts)
