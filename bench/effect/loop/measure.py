"""What a policy is worth: every test question answered greedily once and n times at temperature 1."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.effect.loop.game import SEEDS
from bench.effect.loop.sampling import Sampler, grade, groups_of
from bench.effect.loop.setting import MICRO_BATCH_TOKENS, Prompts, Setting
from bench.effect.nodes import BASE, Node
from bench.effect.results import About, Answered, write_results
from configs.effect.plan import SPLITS
from configs.effect.world import LONG, Grid
from configs.effect.writing import Fact, facts, true_facts
from prism.data.rows import DataRow
from prism.model.inputs import Example, InputBuilder
from prism.model.packing import pack, split_by_tokens
from prism.trainer.learn.policy_model import load_policy, response_tokens
from prism.wire.response import parse_response
from prism.wire.sample import sample_problems
from prism.wire.v1 import rollout_pb2 as pb

VALIDATION = "validation"


def measure(
    setting: Setting, nodes: Path, data: str, node: Node, folder: Path, figures: dict[str, Any], file: Path
) -> None:
    """Answer all splits with the model in ``folder`` and write ``file``; a trial of tuning answers validation alone."""
    splits = {VALIDATION: "validation.jsonl"} if node.trial is not None else {s: f"test-{s}.jsonl" for s in SPLITS}
    answers: list[Answered] = []
    with Measured(setting, folder, nodes / BASE, node.seed) as measured:
        for split, name in splits.items():
            answers += measured.split(split, Prompts(setting.data(name), measured.inputs))
    about = About(
        plan=setting.plan.sha256,
        data=data,
        size=setting.size_name,
        path=node.path if node.trial is None else f"{node.path} trial {node.trial}",
        texts=node.texts,
        seed=node.seed,
        samples=setting.size.samples,
        figures=figures,
    )
    write_results(file, about, answers)


class Measured:
    """A policy, and beside it the one before SFT."""

    def __init__(self, setting: Setting, folder: Path, base: Path, seed: int) -> None:
        size = setting.size
        dtype = getattr(torch, size.dtype)
        self.inputs, self._size, self._seed = InputBuilder(folder), size, seed
        self._max_tokens = setting.max_tokens
        self._sampler = Sampler(folder, self.inputs, dtype, size.device, size.batch_rows)
        self._policy = load_policy(folder, dtype=dtype, device=size.device).eval()
        self._base = load_policy(base, dtype=dtype, device=size.device).eval()

    def __enter__(self) -> "Measured":
        return self

    def __exit__(self, *_: object) -> None:
        if self._size.device == "cuda":
            torch.cuda.empty_cache()

    def split(self, split: str, prompts: Prompts) -> list[Answered]:
        """Walks apart from the rest: a batch takes as long as its longest response."""
        found: list[Answered] = []
        for long in (False, True):
            places = [place for place in range(len(prompts)) if (_family(prompts.row(place)) in LONG) is long]
            sampled = [prompts.prompt(place) for place in places]
            greedy = self._groups(prompts, places, sampled, 1, 0.0)
            drawn = self._groups(prompts, places, sampled, self._size.samples, 1.0)
            policies = self._policies(sampled, drawn)
            for place, one, many, policy in zip(places, greedy, drawn, policies, strict=True):
                found.append(_answered(split, prompts.row(place), one, many, policy))
        return found

    def _groups(
        self, prompts: Prompts, places: Sequence[int], sampled: Sequence[Example], n: int, temperature: float
    ) -> list[pb.RolloutGroup]:
        seed = SEEDS * self._seed - 3
        samples = self._sampler.sample(sampled, n, max_tokens=self._max_tokens, temperature=temperature, seed=seed)
        groups = groups_of(prompts, places, samples, 0)
        grade(groups, self._sampler.never)
        return groups

    @torch.inference_mode()
    def _policies(self, prompts: Sequence[Example], groups: Sequence[pb.RolloutGroup]) -> list["OfPolicies"]:
        """Of each group. Whole groups are computed together: their prompt is, once."""
        units = [
            [self.inputs.with_ids(prompt, sample.token_ids) for sample in group.samples]
            for prompt, group in zip(prompts, groups, strict=True)
        ]
        found: list[OfPolicies] = []
        for indices in split_by_tokens(units, MICRO_BATCH_TOKENS):  # in order
            batch = pack([example for i in indices for example in units[i]], self.inputs, self._policy.device)
            own = response_tokens(self._policy, batch, 1.0, self._sampler.never)
            base = response_tokens(self._base, batch, 1.0, self._sampler.never)
            counts = [sum(len(example.response_ids) for example in units[i]) for i in indices]
            parts = zip(indices, (own.logprobs - base.logprobs).split(counts), own.entropy.split(counts), strict=True)
            found += [
                OfPolicies(float(kl.sum()) / len(units[i]), float(entropy.mean()), len(kl) / len(units[i]))
                for i, kl, entropy in parts
            ]
        return found


@dataclass(frozen=True)
class OfPolicies:
    """What a policy thinks of its own responses to a question, beside the one before SFT."""

    kl: float
    """Nats a response."""
    entropy: float
    """Nats a token."""
    tokens: float
    """A response."""


def _answered(
    split: str, row: DataRow, greedy: pb.RolloutGroup, drawn: pb.RolloutGroup, policies: OfPolicies
) -> Answered:
    meta: Any = row.meta
    truth = true_facts(Grid(meta["side"], tuple(meta["digits"]), tuple(meta["inks"])))
    right = [sample.verdict.accuracy == 1.0 for sample in drawn.samples]
    seen = [_facts(sample.text) == truth for sample in drawn.samples]
    return Answered(
        split=split,
        id=row.id,
        family=_family(row),
        greedy=int(greedy.samples[0].verdict.accuracy == 1.0),
        f1=facts_f1(_facts(greedy.samples[0].text), truth),
        right=sum(right),
        seen=sum(seen),
        seen_right=sum(r and s for r, s in zip(right, seen, strict=True)),
        formed=sum(not sample_problems(sample) for sample in drawn.samples),
        tokens=policies.tokens,
        entropy=policies.entropy,
        kl=policies.kl,
    )


def _family(row: DataRow) -> int:
    meta: Any = row.meta
    return int(meta["family"])


def _facts(text: str) -> frozenset[Fact]:
    return facts(parse_response(text).caption)


def facts_f1(said: frozenset[Fact], truth: frozenset[Fact]) -> float:
    return 2 * len(said & truth) / (len(said) + len(truth))
