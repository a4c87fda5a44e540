"""Mining: how often the policy solves a problem, and so who shall have it."""

import asyncio
import math
from collections.abc import Sequence
from typing import Any

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import Connection, insert, select, update

from prism.clients.http import Refused
from prism.clients.services import GraderClient, PolicyClient
from prism.curation.config import CurateConfig, MineConfig
from prism.curation.rows import golds_of, images_of, messages_of
from prism.curation.state.job import OpenJob
from prism.curation.state.tables import Problem, Sample
from prism.curation.window import in_chunks, work_through
from prism.data.blobs import BlobStore
from prism.errors import DataError
from prism.http.client import async_client
from prism.wire.v1 import rollout_pb2 as pb

CHUNK = 256


class CurationEndpoints(BaseSettings):
    """The run's services that a curation asks, each only for what it needs them for."""

    model_config = SettingsConfigDict(env_prefix="PRISM_", extra="ignore")

    policy_url: str | None = Field(default=None, description="base URL of the policy server, which mining samples")
    grader_url: str = Field(description="base URL of the grader")
    perception_url: str | None = Field(default=None, description="base URL of the perception expert")
    reasoning_url: str | None = Field(default=None, description="base URL of the reasoning expert")
    token: SecretStr = Field(description="bearer token of the services' data routes")


def wilson(right: float, judged: float) -> tuple[float, float]:
    """The 95 % interval of a rate, by Wilson's score; ``judged`` may be an effective number."""
    z, rate = 1.959964, right / judged
    centre, square = rate + z * z / (2 * judged), 1 + z * z / judged
    spread = z * math.sqrt(rate * (1 - rate) / judged + z * z / (4 * judged * judged))
    return max(0.0, (centre - spread) / square), min(1.0, (centre + spread) / square)


def route_of(config: MineConfig, right: int, judged: int) -> str:
    """Where a problem with so many right samples goes; ``unjudged`` without enough verdicts."""
    if judged < max(1, math.ceil(config.min_judged * config.n)):
        return "unjudged"
    rate = right / judged
    for route, (low, high) in (("teacher", config.teacher), ("rl", config.rl)):
        if low - 1e-9 <= rate <= high + 1e-9:
            return route
    return "solved" if rate > config.rl[1] else "between"


async def mine(
    job: OpenJob, config: CurateConfig, settings: MineConfig, at: CurationEndpoints, blobs: BlobStore
) -> None:
    """Every problem that has no route yet. Raises Unavailable when a service is away for all the patience."""

    def read(last: int) -> Sequence[Any]:
        with job.store.reading() as connection:
            wanted = select(Problem.id, Problem.position, Problem.row).where(
                Problem.job == job.id, Problem.route.is_(None), Problem.id > last
            )
            return connection.execute(wanted.order_by(Problem.id).limit(CHUNK)).all()

    async with async_client() as http:
        token, patience = at.token.get_secret_value(), settings.patience_seconds
        policy = PolicyClient(http, at.policy_url or "", token, patience)
        grader = GraderClient(http, at.grader_url, token, patience)
        job.note(mined_from=str(config.run))

        async def one(problem: Any) -> None:
            try:
                values, samples = await _mined(policy, grader, settings, problem, blobs)
            except (DataError, Refused) as error:  # of this problem: the others go on
                values, samples = {"route": "unjudged", "reason": str(error)[:500]}, []
            await job.store.write(_write, (job, problem.id, values, samples))

        await work_through(in_chunks(lambda last: list(read(last)), lambda row: row.id), one, settings.concurrency)


async def _mined(
    policy: PolicyClient, grader: GraderClient, settings: MineConfig, problem: Any, blobs: BlobStore
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    row, wanted = problem.row, set(images_of(problem.row))
    images = {sha256: await asyncio.to_thread(blobs.get, sha256) for sha256 in wanted}
    sampling = pb.Sampling(
        n=settings.n, temperature=settings.temperature, max_tokens=settings.max_tokens, seed=problem.position
    )
    answer = await policy.sample(messages_of(row), images, sampling, 0)
    verdicts = await grader.grade(
        [sample.text for sample in answer.samples], golds_of(row), row.get("kind", "auto"), row.get("options")
    )
    graded_by = grader.version
    if len(verdicts) != len(answer.samples):
        raise Refused(f"{grader.url} gave {len(verdicts)} verdicts for {len(answer.samples)} responses")
    samples = [
        {
            "number": number,
            "text": sample.text,
            "finish": sample.finish_reason,
            "status": pb.Status.Name(verdict.status).removeprefix("STATUS_").lower(),
            # What was cut off has not said its answer, so the grader's "wrong" is no verdict on it.
            "accuracy": verdict.accuracy if verdict.HasField("accuracy") and sample.finish_reason == "stop" else None,
        }
        for number, (sample, verdict) in enumerate(zip(answer.samples, verdicts, strict=True))
    ]
    known = [sample["accuracy"] for sample in samples if sample["accuracy"] is not None]
    right = sum(accuracy >= 1 for accuracy in known)
    mined = {
        "route": route_of(settings, right, len(known)),
        "reason": None,
        "asked": len(samples),
        "judged": len(known),
        "right": right,
        "policy_version": answer.version,
        "grader_version": graded_by,
    }
    return mined, samples


def _write(
    connection: Connection, mined: Sequence[tuple[OpenJob, int, dict[str, Any], list[dict[str, Any]]]]
) -> list[None]:
    mined[0][0].require_newest(connection)
    for _, problem, values, _ in mined:
        connection.execute(update(Problem).where(Problem.id == problem).values(**values))
    samples = [sample | {"problem": problem} for _, problem, _, samples in mined for sample in samples]
    if samples:
        connection.execute(insert(Sample), samples)
    return [None] * len(mined)
