"""The services as a rollout asks them: samples from the policy, scores from an expert, verdicts from the grader."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import ValidationError

from prism.clients.completion import read_completion
from prism.clients.http import Refused, ServiceClient
from prism.errors import StreamError
from prism.settings import describe
from prism.wire.experts import Judge, ScoreAnswer, ScoreItem, ScoreRequest
from prism.wire.grading import VERSION_HEADER as GRADER_VERSION
from prism.wire.messages import to_json, to_openai
from prism.wire.response import Expert
from prism.wire.v1 import rollout_pb2 as pb
from prism.wire.versions import MIN_VERSION_HEADER, MIXED_HEADER, VERSION_HEADER, Changes

PB_STATUS = {
    "ok": pb.STATUS_OK,
    "invalid_format": pb.STATUS_INVALID_FORMAT,
    "too_long": pb.STATUS_TOO_LONG,
    "unparseable_answer": pb.STATUS_UNPARSEABLE_ANSWER,
    "unparseable_gold": pb.STATUS_UNPARSEABLE_GOLD,
    "timeout": pb.STATUS_TIMEOUT,
    "error": pb.STATUS_ERROR,
}


@dataclass(frozen=True)
class PolicyAnswer:
    version: int
    """Of its oldest token."""
    prompt_token_ids: list[int]
    samples: list[pb.Sample]


class WrongService(Refused):
    """Another service answers at the address."""


class PolicyClient(ServiceClient):
    takes_mixed = False
    """Whether weights may be swapped under its answers by a push in flight; else that waits for them."""

    async def sample(
        self, messages: Sequence[pb.Message], images: dict[str, bytes], sampling: pb.Sampling, min_version: int
    ) -> PolicyAnswer:
        """``sampling.n`` responses with token ids, the sampler's own logprobs, and which policy version sampled which
        of them. top_p stays 1: see TRL#6789.

        An answer that is being made is waited for, however long it takes; it is given up, and asked for again while
        there is patience, after a silence.
        """
        response, completion = await self.stream(
            "/v1/chat/completions",
            {
                "model": "policy",
                "messages": to_openai(messages, images),
                "n": sampling.n,
                "temperature": sampling.temperature,
                "top_p": 1.0,
                "max_tokens": sampling.max_tokens,
                "seed": sampling.seed,
                "logprobs": True,
                "return_token_ids": True,
                "stream": True,
            },
            # The server may then answer with comments before there are tokens, and does not let a push keep us silent.
            {MIN_VERSION_HEADER: str(min_version), "Accept": "text/event-stream"}
            | ({MIXED_HEADER: "1"} if self.takes_mixed else {}),
            partial(read_completion, n=sampling.n),
        )
        changes = completion.changes or Changes(version=int(response.headers[VERSION_HEADER]))
        try:
            samples = [
                pb.Sample(
                    text=choice.text,
                    token_ids=choice.token_ids,
                    logprobs=choice.logprobs,
                    finish_reason=choice.finish_reason or "",
                    versions=changes.runs(index, len(choice.token_ids)),
                )
                for index, choice in enumerate(completion.choices)
            ]
        except StreamError as error:
            raise Refused(f"{self.url}: {error}") from None
        version = min((run.policy_version for sample in samples for run in sample.versions), default=changes.version)
        return PolicyAnswer(version, completion.prompt_token_ids, samples)


class ExpertClient(ServiceClient):
    async def judge(self, expert: Expert, request: ScoreRequest) -> ScoreAnswer:
        """Raises Refused also if another expert answers there, or not one score comes for each response."""
        answer = await self.ask(ScoreAnswer, "POST", "/v1/score", request)
        self.check_expert(expert, answer)
        self.check_counts(request.items, [len(item.scores) for item in answer.items])
        return answer

    def check_expert(self, expert: Expert, answer: Judge) -> None:
        if answer.expert != expert:
            raise WrongService(f"{self.url} is the {answer.expert} expert, not the {expert} expert: check its address")

    def check_counts(self, items: Iterable[ScoreItem], given: list[int]) -> None:
        asked = [len(item.responses) for item in items]
        if given != asked:
            raise Refused(f"{self.url} gave {given} scores for {asked} responses")

    async def score(
        self, expert: Expert, messages: Sequence[pb.Message], responses: list[str], min_version: int
    ) -> list[pb.Score]:
        """One score per response, all by one version of the expert."""
        try:
            item = ScoreItem(messages=to_json(messages), responses=responses)
        except ValidationError as error:
            raise Refused("; ".join(describe(error))) from None
        answer = await self.judge(expert, ScoreRequest(items=[item], min_version=min_version))
        return [
            pb.Score(
                expert=expert,
                expert_version=answer.version,
                status=PB_STATUS[score.status],
                value=score.score,
                detail=score.detail or "",
            )
            for score in answer.items[0].scores
        ]


class GraderClient(ServiceClient):
    version: str | None = None
    """Of the grader that gave the newest verdicts; None where it does not say."""

    async def grade(
        self,
        responses: list[str],
        gold: str | list[str],
        kind: str,
        options: dict[str, Any] | None = None,
        rules: dict[str, Any] | None = None,
    ) -> list[pb.Verdict]:
        """One verdict per response. Of several gold answers each is right; ``options`` and ``rules`` are the API's."""
        how = {"gold": gold, "kind": kind} | ({"options": options} if options else {})
        request = {"items": [{"response": response} | how for response in responses]}
        response = await self.post("/v1/grade", request | ({"rules": rules} if rules else {}))
        answer, self.version = response.json(), response.headers.get(GRADER_VERSION)
        return [
            pb.Verdict(
                status=PB_STATUS[verdict["status"]],
                accuracy=verdict["accuracy"],
                format=verdict["format"],
                reward=verdict["reward"],
                extracted=verdict["extracted"] or "",
                detail=verdict["detail"] or "",
            )
            for verdict in answer["verdicts"]
        ]
