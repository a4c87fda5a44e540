"""One request, sampled and judged: what a rollout worker does with a prompt, and an evaluation with a question."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from prism import telemetry
from prism.clients.endpoints import Endpoints
from prism.clients.http import SILENCE_SECONDS, Refused, Unavailable
from prism.clients.services import ExpertClient, GraderClient, PolicyClient
from prism.data.blobs import BlobStore
from prism.http.client import async_client
from prism.tasks import together
from prism.wire.messages import image_sha256s
from prism.wire.response import EXPERTS, Expert
from prism.wire.sample import refuse_reward
from prism.wire.v1 import rollout_pb2 as pb


class RolloutServices:
    """The services a group passes through, and how it does."""

    def __init__(
        self,
        http: httpx.AsyncClient,
        endpoints: Endpoints,
        *,
        patience_seconds: float,
        silence_seconds: float = SILENCE_SECONDS,
        takes_mixed: bool = False,
    ) -> None:
        """``takes_mixed``: groups may be of several policy versions, where pushes in flight make them so."""
        token, bounds = endpoints.token.get_secret_value(), (patience_seconds, silence_seconds)
        self._blobs = BlobStore(endpoints.blobs)
        self._policy = PolicyClient(http, endpoints.policy_url, token, *bounds)
        self._policy.takes_mixed = takes_mixed
        self._grader = GraderClient(http, endpoints.grader_url, token, *bounds)
        self._experts: dict[str, tuple[Expert, ExpertClient]] = {
            expert: (expert, ExpertClient(http, endpoints.expert_url(expert), token, *bounds)) for expert in EXPERTS
        }

    async def rollout(self, request: pb.RolloutRequest, worker: str) -> pb.RolloutGroup:
        """Sample the group, then let experts and grader judge it concurrently, one call each.

        A judge that fails at the group leaves a status, never a number. Raises Refused if nothing could be sampled,
        Unavailable if a service is away, DataError if an image is missing, ServiceError if their store is away.
        """
        about = {"stage": request.stage, "position": request.position, "prompt_id": request.prompt.id}
        with telemetry.span("rollout", parent=request.traceparent, kind="consumer", worker=worker, **about):
            prompt = request.prompt
            started = time.perf_counter()
            wanted = set(image_sha256s(prompt.messages))
            images = {sha256: await asyncio.to_thread(self._blobs.get, sha256) for sha256 in wanted}
            answer = await self._policy.sample(prompt.messages, images, request.sampling, request.min_policy_version)
            sampled = time.perf_counter()
            group = pb.RolloutGroup(
                request=request,
                worker=worker,
                policy_version=answer.version,
                prompt_token_ids=answer.prompt_token_ids,
                samples=answer.samples,
                generate_seconds=sampled - started,
            )
            judging = [self._score(group, *self._experts[name], request.min_expert_version) for name in request.experts]
            await together(*judging, *([self._grade(group)] if request.grade else []))
            group.judge_seconds, group.judged_at = time.perf_counter() - sampled, time.time()
            return group

    async def _score(self, group: pb.RolloutGroup, expert: Expert, client: ExpertClient, min_version: int) -> None:
        prompt = group.request.prompt
        texts = [sample.text for sample in group.samples] + ([prompt.teacher] if prompt.teacher else [])
        try:
            scores = await client.score(expert, prompt.messages, texts, min_version)
        except (Refused, Unavailable) as error:
            _raise_if_away(error)
            scores = [pb.Score(expert=expert, status=pb.STATUS_ERROR, detail=str(error)) for _ in texts]
        for sample, score in zip(group.samples, scores, strict=False):
            sample.scores.append(score)
        group.teacher_scores.extend(scores[len(group.samples) :])

    async def _grade(self, group: pb.RolloutGroup) -> None:
        prompt = group.request.prompt
        texts = [sample.text for sample in group.samples]
        try:
            gold = [prompt.gold, *prompt.equivalent_answers] if prompt.equivalent_answers else prompt.gold
            options, rules = (
                json.loads(said) if said else None for said in (prompt.options_json, group.request.rules_json)
            )
            verdicts = await self._grader.grade(texts, gold, prompt.kind, options, rules)
            if len(verdicts) != len(texts):
                raise Refused(f"{self._grader.url} gave {len(verdicts)} verdicts for {len(texts)} responses")
        except (Refused, Unavailable) as error:
            _raise_if_away(error)
            verdicts = [pb.Verdict(status=pb.STATUS_ERROR, detail=str(error)) for _ in texts]
        for sample, verdict in zip(group.samples, verdicts, strict=True):
            sample.verdict.CopyFrom(verdict)
            refuse_reward(sample)


def _raise_if_away(error: Refused | Unavailable) -> None:
    if isinstance(error, Unavailable) and not error.reached:
        raise error


@asynccontextmanager
async def open_services(
    endpoints: Endpoints,
    *,
    connections: int,
    patience_seconds: float,
    silence_seconds: float = SILENCE_SECONDS,
    takes_mixed: bool = False,
) -> AsyncIterator[RolloutServices]:
    limits = httpx.Limits(max_connections=4 * connections, max_keepalive_connections=4 * connections)
    async with async_client(limits=limits) as http:
        yield RolloutServices(
            http,
            endpoints,
            patience_seconds=patience_seconds,
            silence_seconds=silence_seconds,
            takes_mixed=takes_mixed,
        )
