"""Does the expert look? Pairs of teacher and policy, judged with the right picture, another prompt's and a blank one.

An expert that prefers the teacher as often with another picture works from the text: its reward pulls the policy
towards how the teacher writes, and not towards what is there. Scored by the running services, so it is what the game
gets. (No torch.)
"""

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean
from typing import Any, Literal

from PIL import Image

from prism.clients.endpoints import load_endpoints
from prism.clients.http import Refused, Unavailable
from prism.clients.rollout import RolloutServices, open_services
from prism.clients.services import ExpertClient
from prism.config import AlignConfig, RunConfig
from prism.data.blobs import BlobStore
from prism.data.images import encode_canonical, image_size
from prism.data.mixture import data_files
from prism.data.rows import Mixture, read_rows, to_prompt
from prism.errors import DataError, ServiceError
from prism.evaluation.unasked import Unasked, why_unasked
from prism.http.client import async_client
from prism.tasks import together
from prism.wire.messages import image_sha256s, with_images
from prism.wire.response import EXPERTS, Expert, JudgedSection, parse_response
from prism.wire.sample import sample_problems
from prism.wire.v1 import rollout_pb2 as pb

LookView = Literal["right", "shuffled", "blank"]
VIEWS: tuple[LookView, ...] = ("right", "shuffled", "blank")
CONCURRENCY = 16
GREY = (128, 128, 128)


@dataclass(frozen=True)
class Looked:
    """A held-out prompt of which an expert is asked with three pictures."""

    prompt: pb.Prompt
    views: dict[LookView, list[pb.Message]]


@dataclass(frozen=True)
class LookedPair:
    """The teacher's response and the policy's to one prompt. ``gaps``, teacher's score less policy's, stand for each
    expert with each view; None: not scored, or the policy's response breaks the format. ``ties``: experts to whom both
    say the same."""

    gaps: Mapping[Expert, Mapping[LookView, float | None]] | None
    ties: frozenset[Expert] = frozenset()


def read_looked(config: RunConfig, count: int) -> list[Looked]:
    """The first ``count`` held-out prompts that hold a picture and a valid response of the teacher's, and of which
    another one's pictures can take the place.

    Raises DataError for data that cannot be read, or without two such prompts.
    """
    blobs = BlobStore(load_endpoints(config.run_dir / "stack.json").blobs)
    files = data_files(config.evaluate.data, config.path)
    # Rows without a teacher's response are of use to the other measurements.
    rows = Mixture([read_rows(path, "skip", ("teacher",), limits=config.limits, entry=entry) for path, entry in files])
    prompts: list[pb.Prompt] = []
    for index in range(len(rows)):
        if len(prompts) == count:
            break
        file, row = rows.at(index)
        prompt = to_prompt(row, file, blobs)
        if image_sha256s(prompt.messages):
            prompts.append(prompt)

    @cache
    def blank(sha256: str) -> str:
        return blobs.put(encode_canonical(Image.new("RGB", image_size(blobs.get(sha256), None), GREY)))

    looked: list[Looked] = []
    for place, prompt in enumerate(prompts):
        others = _others(prompt, [*prompts[place + 1 :], *prompts[:place]])
        if others:
            taken = iter(others)
            shuffled = with_images(prompt.messages, lambda _, taken=taken: next(taken))
            views: dict[LookView, list[pb.Message]] = {
                "right": list(prompt.messages),
                "shuffled": shuffled,
                "blank": with_images(prompt.messages, blank),
            }
            looked.append(Looked(prompt, views))
    if len(looked) < 2:
        raise DataError("evaluate.data holds no two prompts with pictures that differ and a teacher's response")
    return looked


def _others(prompt: pb.Prompt, candidates: Sequence[pb.Prompt]) -> list[str]:
    """The images of the first candidate that has as many, each another than this prompt's."""
    own = image_sha256s(prompt.messages)
    for candidate in candidates:
        found = image_sha256s(candidate.messages)
        if len(found) == len(own) and not set(found) & set(own):
            return found
    return []


def measure_looks(
    config: RunConfig, stage: AlignConfig, looked: Sequence[Looked], version: int, expert_version: int
) -> dict[str, Any]:
    """Figures for a step's line of metrics.jsonl.

    Raises ServiceError unless these versions of policy and experts gave all responses and scores.
    """
    found = asyncio.run(_ask(config, stage, looked, version, expert_version))
    pairs = [one for one in found if isinstance(one, LookedPair)]
    figures: dict[str, Any] = {
        "looks_policy_version": version,
        "looks_expert_version": expert_version,
        "looks_asked": len(looked),
        "looks_unasked": len(found) - len(pairs),
        "looks_malformed": sum(pair.gaps is None for pair in pairs),
    }
    for expert in EXPERTS:
        figures |= {f"{expert}_looks_{name}": value for name, value in expert_figures(expert, pairs).items()}
    return figures


def expert_figures(expert: Expert, pairs: Sequence[LookedPair]) -> dict[str, float | int | None]:
    """Shares of the pairs in which the teacher's response has the higher score, with each view, over the pairs that
    differ for this expert and were scored with all views; an equal score is half. ``close``: see ``is_close``."""
    valid = [(pair.gaps[expert], expert in pair.ties) for pair in pairs if pair.gaps is not None]
    scored: list[dict[LookView, float]] = []
    for gaps, tied in valid:
        known: dict[LookView, float] = {view: gap for view, gap in gaps.items() if gap is not None}
        if not tied and len(known) == len(VIEWS):
            scored.append(known)
    figures: dict[str, float | int | None] = {
        "pairs": len(scored),
        "tie_share": fmean(float(tied) for _, tied in valid) if valid else None,
    }
    for view in VIEWS:
        won = [(gaps[view] > 0) + 0.5 * (gaps[view] == 0) for gaps in scored]
        figures |= {view: fmean(won) if won else None, f"{view}_stderr": _stderr(sum(won), len(won))}
    return figures | {"close": int(is_close(figures)) if scored else None}


def is_close(figures: Mapping[str, float | int | None]) -> bool:
    """Whether an expert that tells teacher from policy keeps more than half of its lead over a coin with another
    prompt's picture. One that hardly leads has nothing to lose: then it is not said."""
    right, error, shuffled = figures["right"], figures["right_stderr"], figures["shuffled"]
    if right is None or error is None or shuffled is None:
        return False
    return right - 0.5 > 2 * error and shuffled - 0.5 > (right - 0.5) / 2


def _stderr(won: float, count: int) -> float | None:
    """Binomial, of Laplace's estimate (won + 1) / (count + 2): where all were won, it is not 0, which says too much."""
    share = (won + 1) / (count + 2)
    return math.sqrt(share * (1 - share) / count) if count else None


async def _ask(
    config: RunConfig, stage: AlignConfig, looked: Sequence[Looked], version: int, expert_version: int
) -> list[LookedPair | Unasked]:
    endpoints, patience = load_endpoints(config.run_dir / "stack.json"), config.push.deadline_seconds
    token, room = endpoints.token.get_secret_value(), asyncio.Semaphore(CONCURRENCY)
    async with (
        open_services(endpoints, connections=CONCURRENCY, patience_seconds=patience) as services,
        async_client() as http,
    ):
        clients: dict[Expert, ExpertClient] = {
            expert: ExpertClient(http, endpoints.expert_url(expert), token, patience) for expert in EXPERTS
        }

        async def pair(index: int, one: Looked) -> LookedPair | Unasked:
            async with room:
                try:
                    own = await _own_response(services, stage, one.prompt, index, version)
                    if sample_problems(own):
                        return LookedPair(None)
                    gaps: dict[Expert, dict[LookView, float | None]] = {
                        expert: {
                            view: await _gap(client, expert, messages, [one.prompt.teacher, own.text], expert_version)
                            for view, messages in one.views.items()
                        }
                        for expert, client in clients.items()
                    }
                    return LookedPair(gaps, _ties(one.prompt.teacher, own.text, stage.experts.section))
                except (Refused, Unavailable, DataError) as error:
                    return why_unasked(one.prompt.id, error)

        return await together(*(pair(index, one) for index, one in enumerate(looked)))


async def _own_response(
    services: RolloutServices, stage: AlignConfig, prompt: pb.Prompt, seed: int, version: int
) -> pb.Sample:
    """The policy's, sampled as in the game. Raises ServiceError if another version gave it."""
    sampling = pb.Sampling(n=1, temperature=stage.rollouts.temperature, max_tokens=stage.rollouts.max_tokens, seed=seed)
    request = pb.RolloutRequest(prompt=prompt, sampling=sampling, stage="looks", min_policy_version=version)
    group = await services.rollout(request, "looks")
    if group.policy_version != version:
        raise ServiceError(f"the policy answered with version {group.policy_version}, not {version}")
    return group.samples[0]


async def _gap(
    client: ExpertClient, expert: Expert, messages: Sequence[pb.Message], texts: list[str], version: int
) -> float | None:
    """The first text's score less the second's; None if one was not scored. Raises ServiceError if another version of
    the expert gave them."""
    one, other = await client.score(expert, messages, texts, version)
    if one.expert_version != version:
        raise ServiceError(f"the {expert} expert answered with version {one.expert_version}, not {version}")
    return one.value - other.value if one.HasField("value") and other.HasField("value") else None


def _ties(teacher: str, own: str, section: JudgedSection) -> frozenset[Expert]:
    both = parse_response(teacher), parse_response(own)
    return frozenset(e for e in EXPERTS if both[0].judged(e, section) == both[1].judged(e, section))
