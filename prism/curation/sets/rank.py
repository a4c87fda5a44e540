"""How clearly both experts tell a demonstration from the policy's own responses: the best are for alignment."""

import asyncio
import statistics
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Row, select

from prism.clients.http import Refused, Unavailable
from prism.clients.services import ExpertClient
from prism.curation.checks.expert import messages_with_images
from prism.curation.rows import images_of
from prism.curation.state.job import OpenJob
from prism.curation.state.tables import Answer, Demo, Problem, Sample
from prism.curation.window import in_chunks, work_through
from prism.data.blobs import BlobStore
from prism.wire.experts import ScoreItem, ScoreRequest
from prism.wire.response import EXPERTS, Expert

CHUNK, CONCURRENCY = 128, 8


async def rank(job: OpenJob, experts: Mapping[Expert, ExpertClient], blobs: BlobStore) -> dict[int, float]:
    """By problem. A score compares responses to one prompt alone, so it is how far the teacher leads the policy's mean;
    each expert's leads are put on one scale, and the lower of both counts.

    A demonstration without a comparable response of the policy, or that an expert does not take, has none.
    """
    leads: dict[int, dict[Expert, float]] = {}

    def read(last: int) -> list[Row[Any]]:
        with job.store.reading() as connection:
            wanted = (
                select(Problem.id, Problem.row, Answer.text)
                .join(Demo, Demo.problem == Problem.id)
                .join(Answer, Answer.key == Demo.key)
                .where(Demo.job == job.id, Demo.best, Problem.id > last)
            )
            return list(connection.execute(wanted.order_by(Problem.id).limit(CHUNK)).all())

    async def one(demo: Row[Any]) -> None:
        with job.store.reading() as connection:
            samples = list(connection.scalars(select(Sample.text).where(Sample.problem == demo.id)))
        images = {sha256: await asyncio.to_thread(blobs.get, sha256) for sha256 in dict.fromkeys(images_of(demo.row))}
        item = ScoreItem(messages=messages_with_images(demo.row, images), responses=[demo.text, *samples])
        found: dict[Expert, float] = {}
        for expert, client in experts.items():
            try:
                answer = await client.judge(expert, ScoreRequest(items=[item]))
            except (Refused, Unavailable):
                return
            teacher, *others = (score.score for score in answer.items[0].scores)
            known = [score for score in others if score is not None]
            if teacher is None or not known:
                return
            found[expert] = teacher - statistics.fmean(known)
        leads[demo.id] = found

    await work_through(in_chunks(read, lambda row: row.id), one, CONCURRENCY)
    if len(leads) < 2:
        return {}
    scale: dict[Expert, tuple[float, float]] = {}
    for expert in EXPERTS:
        values = [lead[expert] for lead in leads.values()]
        scale[expert] = statistics.fmean(values), statistics.stdev(values) or 1.0
    return {
        id: min((lead[expert] - scale[expert][0]) / scale[expert][1] for expert in EXPERTS)
        for id, lead in leads.items()
    }
