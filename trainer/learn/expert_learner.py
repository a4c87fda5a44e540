"""The learner of a network that scores: teacher and student responses to the same prompts in, one Bradley-Terry update
out."""

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from prism.config import ExpertLearnerConfig
from prism.model.expert import ExpertModel, ExpertOutput
from prism.model.inputs import Example, InputBuilder, distinct
from prism.model.packing import pack, share_by_tokens, split_by_tokens
from prism.trainer.learn import ranks
from prism.trainer.learn.adapted import learning
from prism.trainer.learn.freeze import freeze
from prism.trainer.learn.learner import Learner
from prism.trainer.learn.losses import bradley_terry, score_regularisation
from prism.trainer.learn.offload import Offload
from prism.trainer.learn.optimizer import Optimizer
from prism.trainer.learn.router import RouterLoad, load_balance
from prism.wire.response import Expert, Network, experts_of, parse_response
from prism.wire.sample import sample_problems
from prism.wire.v1 import rollout_pb2 as pb


@dataclass(frozen=True)
class _Pairs:
    """One prompt's sections: the teacher's, and those it is paired with."""

    group: int
    """The prompt's place among the groups of the update."""
    teacher: Example
    students: list[Example]
    mismatched: Example | None = None
    """What the teacher said to another prompt, as if it were said to this one."""

    @property
    def sequences(self) -> list[Example]:
        return [self.teacher, *self.students, *([self.mismatched] if self.mismatched else [])]


@dataclass(frozen=True)
class _Scores:
    """The scores of one prompt's sequences."""

    teacher: torch.Tensor  # []
    students: torch.Tensor  # [students]
    mismatched: torch.Tensor  # [1], or [0] without

    @property
    def is_finite(self) -> bool:
        return bool(torch.cat([self.teacher[None], self.students, self.mismatched]).isfinite().all())


@dataclass(frozen=True)
class _Pass:
    """What the pairs of one section taught, over all ranks."""

    loss: float
    pairs: list[_Pairs]
    scores: list[_Scores]
    not_finite: list[int]
    """The groups whose loss was not finite."""
    load: dict[str, Any]
    """Figures of the routers."""

    @property
    def is_finite(self) -> bool:
        return all(s.is_finite for s in self.scores)


class ExpertLearner(Learner):
    """The learner of a network that scores. Each valid response of a group is paired with the teacher's.

    One that both experts share learns from the pairs of both sections: its loss is the sum of theirs.
    """

    model: ExpertModel

    def __init__(
        self,
        network: Network,
        model: ExpertModel,
        config: ExpertLearnerConfig,
        updates: int,
        offload: Offload | None = None,
    ) -> None:
        freeze(model, config.freeze)
        optimizer = Optimizer(learning(model).items(), config.optimizer, updates, offload, config.rate_warmup)
        super().__init__(model, optimizer, 0)
        self.network: Network = network
        self.experts: tuple[Expert, ...] = experts_of(network)
        self.config = config
        self.not_finite: list[int] = []
        """The groups of the last update whose loss was not finite; all of them if its gradient alone was."""

    def update(
        self,
        groups: Sequence[pb.RolloutGroup],
        prompts: Sequence[Example],
        inputs: InputBuilder,
        *,
        warming_up: bool = False,
    ) -> dict[str, Any]:
        """One update on all valid pairs of these groups; figures, of each expert, are of the scores before it.

        A warm-up balances the routers' load and is never skipped; ``frozen`` experts learn nothing else, and their
        version stands still. Sections are judged whole, however long: nothing is
        ever truncated. Without a valid pair nothing is learnt and every figure is None: no data is reported as no data.
        Groups without a sample are of use where ``mismatch`` is set: it needs the teacher's text alone.
        All ranks are given the same groups; each computes a share of them, and all return the figures of the whole.
        """
        started = time.perf_counter()
        config = self.config
        learns = warming_up or not config.frozen
        shown = prompts if config.pictures else [inputs.without_pictures(prompt) for prompt in prompts]
        self.not_finite = []
        if learns:
            self._optimizer.prepare()
        self.model.train()
        passes = {
            expert: self._pass(self._all_pairs(expert, groups, shown, inputs), inputs, learns, warming_up)
            for expert in self.experts
        }
        used = [p for each in passes.values() for p in each.pairs]
        self.not_finite = sorted({group for each in passes.values() for group in each.not_finite})
        finite = all(each.is_finite for each in passes.values())
        scores = [s for each in passes.values() for s in each.scores]
        accuracy = _measured(used, scores)["pair_accuracy"] if finite else None
        norm, updated = None, False
        below = accuracy is None or accuracy <= config.skip_above_accuracy
        if used and learns and (warming_up or below):
            self.not_finite = self.not_finite or sorted({p.group for p in used})  # in case it raises
            norm, updated = self._optimizer.step(sum(each.loss for each in passes.values()))
            self.not_finite = [] if updated else self.not_finite
        elif learns:
            self._optimizer.clear()
        self.version += learns
        possible = sum(len(group.samples) for group in groups)
        seconds = (time.perf_counter() - started) / len(passes)
        figures: dict[str, Any] = {}
        for expert, each in passes.items():
            of_expert = {
                "version": self.version,
                "loss": each.loss if each.pairs else None,
                "grad_norm": norm,
                "updated": int(updated),
                **(_measured(each.pairs, each.scores) if each.is_finite else _measured([], [])),
                **each.load,
                "valid_pairs": sum(len(p.students) for p in each.pairs) / possible if possible else None,
                "update_seconds": seconds,
            }
            figures |= {f"{expert}_{name}": value for name, value in of_expert.items()}
        return figures

    def _all_pairs(
        self, expert: Expert, groups: Sequence[pb.RolloutGroup], prompts: Sequence[Example], inputs: InputBuilder
    ) -> list[_Pairs]:
        """Of one section."""
        numbered = enumerate(zip(groups, prompts, strict=True))
        found = [self._pairs(expert, number, group, prompt, inputs) for number, (group, prompt) in numbered]
        pairs = [p for p in found if p is not None]
        if self.config.mismatch:
            pairs = _with_mismatches(pairs, inputs)
        return [p for p in pairs if p.students or p.mismatched]

    def _pass(self, used: list[_Pairs], inputs: InputBuilder, learns: bool, warming_up: bool) -> _Pass:
        """Losses of the pairs of one section, and their gradients, added to those that are there if it ``learns``."""
        config = self.config
        total_pairs = sum(len(p.students) for p in used)
        total_mismatches = sum(p.mismatched is not None for p in used)
        total_scores = sum(len(p.sequences) for p in used)
        balance = config.load_balance if warming_up else config.load_balance_online
        load = RouterLoad(self.model.mixture)
        own_scores: dict[int, _Scores] = {}  # by the prompt's place in ``used``
        own_loss = 0.0
        blamed: list[int] = []
        ranks.expect_images(self.model, any(p.teacher.pixel_values is not None for p in used))
        for indices in self._passes(used):
            chunk = [used[index] for index in indices or [0]]
            with torch.set_grad_enabled(learns):
                judged = self._judged([example for p in chunk for example in p.sequences], inputs)
            scores = judged.scores  # [sequences]
            if not indices:
                if learns:
                    (0 * scores.sum()).backward()
                continue
            of_chunk = _split(scores, chunk)
            loss = config.score_regularisation * score_regularisation(scores, total_scores=total_scores)
            teachers, others = _beside([(s.teacher, s.students) for s in of_chunk])
            if len(others):
                smoothing, margin = config.label_smoothing, config.margin
                loss = loss + bradley_terry(
                    teachers, others, label_smoothing=smoothing, margin=margin, total_pairs=total_pairs
                )
            teachers, others = _beside([(s.teacher, s.mismatched) for s in of_chunk])
            if len(others):
                loss = loss + config.mismatch * bradley_terry(teachers, others, total_pairs=total_mismatches)
            if balance and self.model.mixture:
                share = len(scores) / total_scores
                loss = loss + balance * share * load_balance(judged, self.model.mixture)
            if learns:
                loss.backward()
            own_loss += loss.item()
            if not math.isfinite(loss.item()):
                blamed += [p.group for p in chunk]
            load.add(judged)
            own_scores |= zip(indices, _split(scores.detach().cpu(), chunk), strict=True)
        of_ranks = ranks.gathered((own_loss, blamed, own_scores))
        by_place = {place: scores for _, _, of_rank in of_ranks for place, scores in of_rank.items()}
        return _Pass(
            loss=sum(loss for loss, _, _ in of_ranks),
            pairs=used,
            scores=[by_place[place] for place in range(len(used))],
            not_finite=[group for _, groups, _ in of_ranks for group in groups],
            load=load.figures(),
        )

    def _judged(self, sequences: Sequence[Example], inputs: InputBuilder) -> ExpertOutput:
        once, rows = distinct(sequences)
        batch = pack(once, inputs, self.model.score.weight.device)

        def forward() -> ExpertOutput:
            judged = self.model.judge(batch, router_logits=True)
            return replace(judged, scores=judged.scores[rows])

        return ranks.run_sharded(self.model, forward)

    def _passes(self, pairs: Sequence[_Pairs]) -> list[list[int] | None]:
        """This rank's share of the prompts, as their places, in as many passes as every rank makes."""
        sequences = [p.sequences for p in pairs]
        batches: list[list[list[int]]] = []  # rank, pass, place
        for share in share_by_tokens(sequences, ranks.world()):
            passes = split_by_tokens([sequences[place] for place in share], self.config.micro_batch_tokens)
            batches.append([[share[index] for index in indices] for indices in passes])
        return ranks.pad_passes(batches[ranks.rank()], max(map(len, batches)))

    def _pairs(
        self, expert: Expert, number: int, group: pb.RolloutGroup, prompt: Example, inputs: InputBuilder
    ) -> _Pairs | None:
        teacher = self._section(expert, group.request.prompt.teacher, prompt, inputs)
        if teacher is None:
            return None
        finished = [sample for sample in group.samples if not sample_problems(sample, inputs.vision_token_ids)]
        students = [self._section(expert, sample.text, prompt, inputs) for sample in finished]
        return _Pairs(number, teacher, [student for student in students if student is not None])

    def _section(self, expert: Expert, text: str, prompt: Example, inputs: InputBuilder) -> Example | None:
        parsed = parse_response(text)
        return inputs.with_text(prompt, parsed.judged(expert, self.config.section)) if parsed.valid else None


def _with_mismatches(pairs: Sequence[_Pairs], inputs: InputBuilder) -> list[_Pairs]:
    """Each prompt with the teacher's section for another that begins as it does, if there is one: the same question
    about another picture of its size. Only what is said of the picture then gives it away.

    Every section stands once beside its own prompt and once beside another: by itself it tells nothing.
    """
    if len(pairs) < 2:
        return list(pairs)

    def likeness(i: int) -> tuple[list[int], int]:
        teacher = pairs[i].teacher
        return teacher.input_ids[: teacher.prompt_length], len(teacher.input_ids)

    order = sorted(range(len(pairs)), key=likeness)
    other = dict(zip(order, [*order[1:], order[0]], strict=True))
    return [
        replace(p, mismatched=inputs.with_ids(p.teacher, pairs[other[i]].teacher.response_ids))
        for i, p in enumerate(pairs)
    ]


def _beside(scores: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Each prompt's teacher [] and others [n], n of any size -> all pairs: teachers [P], others [P]."""
    return torch.cat([teacher.expand(len(others)) for teacher, others in scores]), torch.cat([o for _, o in scores])


def _split(scores: torch.Tensor, chunk: Sequence[_Pairs]) -> list[_Scores]:
    """[sequences] of a chunk, prompt by prompt."""
    of_prompts = scores.split([len(p.sequences) for p in chunk])
    return [
        _Scores(s[0], s[1 : 1 + len(p.students)], s[1 + len(p.students) :])
        for p, s in zip(chunk, of_prompts, strict=True)
    ]


def _measured(pairs: Sequence[_Pairs], scores: Sequence[_Scores]) -> dict[str, float | None]:
    """Figures of the scores, each None where there is nothing to compute it from."""
    teachers = [s.teacher.item() for s in scores]
    students: list[list[float]] = [s.students.tolist() for s in scores]
    gaps = [teacher - student for teacher, group in zip(teachers, students, strict=True) for student in group]
    mismatches = [(s.teacher - s.mismatched).item() for s in scores if len(s.mismatched)]
    flat = [student for group in students for student in group]
    lengths = [len(student.response_ids) for p in pairs for student in p.students]
    # Scores of different prompts cannot be compared. So what is correlated over both sides are distances from the
    # teacher, its own included: hard prompts and long ones do not count.
    score_distances, length_distances = list[float](), list[int]()
    for p, teacher, group in zip(pairs, teachers, students, strict=True):
        score_distances += [0.0, *(student - teacher for student in group)]
        length_distances += [0, *(len(s.response_ids) - len(p.teacher.response_ids) for s in p.students)]
    return {
        "pair_accuracy": _share_won(gaps),
        "tie_share": _share_tied(gaps),
        "mismatch_accuracy": _share_won(mismatches),
        "mismatch_tie_share": _share_tied(mismatches),
        "gap": statistics.fmean(gaps) if gaps else None,
        "teacher_score": statistics.fmean(teachers) if teachers else None,
        "teacher_score_std": statistics.pstdev(teachers) if teachers else None,
        "student_score": statistics.fmean(flat) if flat else None,
        "student_score_std": statistics.pstdev(flat) if flat else None,
        "length_correlation": _correlation(flat, lengths),
        "length_correlation_both": _correlation(score_distances, length_distances),
    }


def _share_won(gaps: Sequence[float]) -> float | None:
    """Of the pairs that differ. A policy that says word for word what the teacher says makes a tie, which nobody could
    tell apart: neither won nor lost."""
    differ = [gap for gap in gaps if gap != 0]
    return statistics.fmean(float(gap > 0) for gap in differ) if differ else None


def _share_tied(gaps: Sequence[float]) -> float | None:
    return statistics.fmean(float(gap == 0) for gap in gaps) if gaps else None


def _correlation(scores: Sequence[float], lengths: Sequence[float]) -> float | None:
    """Pearson's r of a section's score and its tokens: near 1 or -1, the expert counts tokens."""
    if len(lengths) < 3 or len(set(lengths)) < 2 or len(set(scores)) < 2:
        return None
    return statistics.correlation(lengths, scores)
