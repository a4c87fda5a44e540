"""Groups sampled and judged within one process, as the services would: transformers' own model, the grader's own
functions, the experts' own models. What learners are given has the platform's types."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.effect.loop.decoder import Decoder
from bench.effect.loop.setting import Prompts
from bench.padded import collate, load_stock
from prism.clients.services import PB_STATUS
from prism.model.control import vision_tokens
from prism.model.inputs import Example, InputBuilder
from prism.model.packing import pack, split_by_tokens
from prism.services.grader.engine import compare_here, conclude
from prism.services.grader.extract import read_item
from prism.services.grader.verdict import Item, RewardFormula, Rules
from prism.trainer.learn.advantages import ExpertScores
from prism.trainer.learn.expert_learner import ExpertLearner
from prism.wire.response import Expert, parse_response
from prism.wire.sample import refuse_reward
from prism.wire.v1 import rollout_pb2 as pb

SCORE_TOKENS = 16_384  # of a pass of an expert
RULES, FORMULA = Rules(), RewardFormula()


class Sampler:
    """The policy as a server would hold it: a copy of its own, with transformers' own attention."""

    def __init__(self, folder: Path, inputs: InputBuilder, dtype: torch.dtype, device: str, batch_rows: int) -> None:
        self.model: Any = load_stock(folder, dtype=dtype).to(device).eval()
        self._inputs, self._rows = inputs, batch_rows
        self.never = vision_tokens(self.model.config)
        self._decoder = Decoder(self.model, self.never, inputs.end_token_id)

    @torch.no_grad()
    def take(self, model: Any) -> None:
        """The learner's weights, as a push would bring them."""
        own = dict(self.model.named_parameters())
        for name, parameter in model.named_parameters():
            own[name].copy_(parameter)

    def sample(
        self, prompts: Sequence[Example], n: int, *, max_tokens: int, temperature: float, seed: int
    ) -> list[list[pb.Sample]]:
        """n responses to each prompt, at temperature 0 one of the likeliest tokens; with their log-probabilities.

        No token that stands for a picture is sampled, as by no request of the platform.
        """
        torch.manual_seed(seed)
        out: list[list[pb.Sample]] = []
        size = max(1, self._rows // n)
        for begin in range(0, len(prompts), size):
            out += self._batch(prompts[begin : begin + size], n, max_tokens, temperature)
        return out

    def _batch(self, prompts: Sequence[Example], n: int, limit: int, temperature: float) -> list[list[pb.Sample]]:
        batch = collate(prompts, self._inputs, left=True)
        made = self._decoder.decode(batch, n, limit=limit, temperature=temperature)
        samples = [self._sample(*row) for row in zip(made.tokens.tolist(), made.logprobs.tolist(), strict=True)]
        return [samples[begin : begin + n] for begin in range(0, len(samples), n)]

    def _sample(self, tokens: list[int], logprobs: list[float]) -> pb.Sample:
        end = self._inputs.end_token_id
        finished = end in tokens
        length = tokens.index(end) + 1 if finished else len(tokens)
        text = self._inputs.tokenizer.decode(tokens[:length], skip_special_tokens=True)
        reason = "stop" if finished else "length"
        return pb.Sample(text=text, token_ids=tokens[:length], logprobs=logprobs[:length], finish_reason=reason)


def groups_of(
    prompts: Prompts, places: Sequence[int], samples: Sequence[Sequence[pb.Sample]], version: int
) -> list[pb.RolloutGroup]:
    """As a rollout worker would publish them, images left out."""
    groups: list[pb.RolloutGroup] = []
    for place, of_prompt in zip(places, samples, strict=True):
        row = prompts.row(place)
        prompt = pb.Prompt(id=row.id, gold=row.gold or "", kind=row.kind, teacher=row.teacher or "")
        groups.append(
            pb.RolloutGroup(
                request=pb.RolloutRequest(prompt=prompt),
                policy_version=version,
                prompt_token_ids=prompts.prompt(place).input_ids,
                samples=of_prompt,
            )
        )
    return groups


def grade(groups: Sequence[pb.RolloutGroup], never: Sequence[int]) -> None:
    """Each sample gets the grader's verdict."""
    for group in groups:
        for sample in group.samples:
            sample.verdict.CopyFrom(verdict(sample.text, group.request.prompt.gold, group.request.prompt.kind))
            refuse_reward(sample, never)


def verdict(response: str, gold: str, kind: Any) -> pb.Verdict:
    item = Item(response, (gold,), kind)
    reading, pair = read_item(item, RULES)
    found = conclude(item, reading, compare_here(pair), RULES, FORMULA, 0.0)
    return pb.Verdict(
        status=PB_STATUS[found.status],
        accuracy=found.accuracy,
        format=found.format,
        reward=found.reward,
        extracted=found.extracted or "",
        detail=found.detail or "",
    )


def shown_to(
    learner: ExpertLearner, expert: Expert, text: str, prompt: Example, inputs: InputBuilder
) -> Example | None:
    """What an expert is shown of a response, as it was in learning; None for a malformed one."""
    config, parsed = learner.config, parse_response(text)
    if not parsed.valid:
        return None
    beside = prompt if config.pictures else inputs.without_pictures(prompt)
    return inputs.with_text(beside, parsed.judged(expert, config.section))


def score(
    learner: ExpertLearner, expert: Expert, texts: Sequence[str], prompts: Sequence[Example], inputs: InputBuilder
) -> list[float | None]:
    """An expert's raw score of each text beside the prompt of the same place. None where the text is malformed."""
    shown = [shown_to(learner, expert, text, prompt, inputs) for text, prompt in zip(texts, prompts, strict=True)]
    places = [place for place, example in enumerate(shown) if example is not None]
    examples = [example for example in shown if example is not None]
    scores: list[float | None] = [None] * len(texts)
    learner.model.eval()
    with torch.inference_mode():
        for indices in split_by_tokens([[example] for example in examples], SCORE_TOKENS):
            batch = pack([examples[i] for i in indices], inputs, learner.model.score.weight.device)
            for i, value in zip(indices, learner.model(batch).tolist(), strict=True):
                scores[places[i]] = value
    return scores


def score_groups(
    learner: ExpertLearner,
    expert: Expert,
    groups: Sequence[pb.RolloutGroup],
    prompts: Sequence[Example],
    inputs: InputBuilder,
) -> ExpertScores:
    """Of all samples, group after group."""
    texts = [sample.text for group in groups for sample in group.samples]
    beside = [prompt for group, prompt in zip(groups, prompts, strict=True) for _ in group.samples]
    return ExpertScores(score(learner, expert, texts, beside, inputs), [learner.version] * len(texts))
