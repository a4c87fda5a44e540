"""An expert's learner: teacher and student responses to the same prompts in, one Bradley-Terry update out."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prism.config import ExpertLearnerConfig
from prism.expert_model import ExpertModel, load_expert, save_expert
from prism.expert_section import Section, section_of
from prism.inputs import Example, InputBuilder, distinct
from prism.response import parse_response
from prism.v1 import rollout_pb2 as pb
from trainer.losses import bradley_terry, score_regularisation
from trainer.optimizer import Optimizer
from trainer.router import RouterLoad, load_balance


@dataclass(frozen=True)
class _Pairs:
    """One prompt's sections: the teacher's, and the students' it is paired with."""

    teacher: Example
    students: list[Example]


class ExpertLearner:
    """Owns one expert's weights and version. Each valid response of a group is paired with the teacher's."""

    def __init__(self, expert: Section, model: ExpertModel, config: ExpertLearnerConfig, updates: int) -> None:
        self.expert: Section = expert
        self.model, self.config, self.version = model, config, 0
        self._optimizer = Optimizer(model.parameters(), config.optimizer, updates)

    def update(
        self,
        groups: Sequence[pb.RolloutGroup],
        prompts: Sequence[Example],
        inputs: InputBuilder,
        *,
        warming_up: bool = False,
    ) -> dict[str, Any]:
        """One update on all valid pairs of these groups; figures are of the scores before it.

        A warm-up balances the routers' load and is never skipped. Sections are judged whole, however long: nothing is
        ever truncated. Without a valid pair nothing is learnt and every figure is None: no data is reported as no data.
        """
        started = time.perf_counter()
        config = self.config
        pairs = [self._pairs(group, prompt, inputs) for group, prompt in zip(groups, prompts, strict=True)]
        used = [p for p in pairs if p is not None and p.students]
        total_pairs = sum(len(p.students) for p in used)
        total_scores = total_pairs + len(used)
        possible = sum(len(group.samples) for group in groups)
        balance = config.load_balance if warming_up else config.load_balance_online
        load = RouterLoad(self.model.mixture)
        scores_of: list[tuple[float, list[float]]] = []  # of each prompt: the teacher's, the students'
        loss_sum = 0.0
        self.model.train()
        for chunk in _chunks(used, config.micro_batch):
            once, rows = distinct([example for p in chunk for example in (p.teacher, *p.students)])
            batch = inputs.collate(once, self.model.score.weight.device)
            judged = self.model.judge(batch, router_logits=True)
            scores = judged.scores[rows]  # [sequences]
            teacher, student = _aligned(scores, chunk)  # [pairs] each, the teacher's score repeated
            loss = bradley_terry(
                teacher,
                student,
                label_smoothing=config.label_smoothing,
                margin=config.margin,
                total_pairs=total_pairs,
            ) + config.score_regularisation * score_regularisation(scores, total_scores=total_scores)
            if balance and self.model.mixture:
                share = len(scores) / total_scores
                loss = loss + balance * share * load_balance(judged, batch.attention_mask, self.model.mixture)
            loss.backward()
            loss_sum += loss.item()
            load.add(judged, batch.attention_mask)
            each = iter(scores.tolist())
            scores_of += [(next(each), [next(each) for _ in p.students]) for p in chunk]
        measured = _measured(used, scores_of)
        accuracy = measured["pair_accuracy"]
        norm, updated = None, False
        if accuracy is not None and (warming_up or accuracy <= config.skip_above_accuracy):
            norm, updated = self._optimizer.step()
        else:
            self.model.zero_grad(set_to_none=True)
        self.version += 1
        figures = {
            "version": self.version,
            "loss": loss_sum if used else None,
            "grad_norm": norm,
            "updated": int(updated),
            **measured,
            **load.figures(),
            "valid_pairs": total_pairs / possible if possible else None,
            "update_seconds": time.perf_counter() - started,
        }
        return {f"{self.expert}_{name}": value for name, value in figures.items()}

    def _pairs(self, group: pb.RolloutGroup, prompt: Example, inputs: InputBuilder) -> _Pairs | None:
        teacher = self._section(group.request.prompt.teacher, prompt, inputs)
        if teacher is None:
            return None
        students = [self._section(sample.text, prompt, inputs) for sample in group.samples]
        return _Pairs(teacher, [student for student in students if student is not None])

    def _section(self, text: str, prompt: Example, inputs: InputBuilder) -> Example | None:
        parsed = parse_response(text)
        return inputs.with_text(prompt, section_of(parsed, self.expert)) if parsed.valid else None

    def save(self, folder: Path, inputs: InputBuilder) -> None:
        save_expert(self.model, folder, inputs)
        torch.save(self._optimizer.state_dict(), folder / "optimizer.pt")

    def load(self, folder: Path, version: int) -> None:
        self.model.load_state_dict(load_expert(folder, dtype=self.model.score.weight.dtype, strict=True).state_dict())
        self._optimizer.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True))
        self.version = version


def _chunks(pairs: Sequence[_Pairs], size: int) -> list[list[_Pairs]]:
    """Prompts that fit into ``size`` sequences together; a prompt's pairs stay in one pass."""
    chunks: list[list[_Pairs]] = []
    room = 0
    for p in pairs:
        sequences = 1 + len(p.students)
        if sequences > room:
            chunks.append([])
            room = max(size, sequences)
        chunks[-1].append(p)
        room -= sequences
    return chunks


def _aligned(scores: torch.Tensor, chunk: Sequence[_Pairs]) -> tuple[torch.Tensor, torch.Tensor]:
    """[sequences] -> teacher [P], student [P]: each student's score beside its own teacher's."""
    teacher: list[torch.Tensor] = []
    student: list[torch.Tensor] = []
    position = 0
    for p in chunk:
        count = len(p.students)
        teacher.append(scores[position].expand(count))
        student.append(scores[position + 1 : position + 1 + count])
        position += 1 + count
    return torch.cat(teacher), torch.cat(student)


def _measured(pairs: Sequence[_Pairs], scores: Sequence[tuple[float, Sequence[float]]]) -> dict[str, float | None]:
    """Figures of the scores, each None where there is nothing to compute it from."""
    teachers = [teacher for teacher, _ in scores]
    students = [student for _, of_prompt in scores for student in of_prompt]
    gaps = [teacher - student for teacher, of_prompt in scores for student in of_prompt]
    student_lengths = [len(student.response_ids) for p in pairs for student in p.students]
    # Scores of different prompts cannot be compared: what is correlated over both sides are distances from the mean of
    # the prompt, so that neither hard prompts nor long ones count.
    sides = [
        _centred((teacher, *of_prompt), [len(e.response_ids) for e in (p.teacher, *p.students)])
        for p, (teacher, of_prompt) in zip(pairs, scores, strict=True)
    ]
    return {
        "pair_accuracy": statistics.fmean(float(gap > 0) for gap in gaps) if gaps else None,
        "gap": statistics.fmean(gaps) if gaps else None,
        "teacher_score": statistics.fmean(teachers) if teachers else None,
        "teacher_score_std": statistics.pstdev(teachers) if teachers else None,
        "student_score": statistics.fmean(students) if students else None,
        "student_score_std": statistics.pstdev(students) if students else None,
        "length_correlation": _correlation(students, student_lengths),
        "length_correlation_both": _correlation(
            [score for scores_p, _ in sides for score in scores_p], [n for _, lengths in sides for n in lengths]
        ),
    }


def _centred(scores: Sequence[float], lengths: Sequence[int]) -> tuple[list[float], list[float]]:
    mean_score, mean_length = statistics.fmean(scores), statistics.fmean(lengths)
    return [score - mean_score for score in scores], [length - mean_length for length in lengths]


def _correlation(scores: Sequence[float], lengths: Sequence[float]) -> float | None:
    """Pearson's r of a section's score and its tokens: near 1 or -1, the expert counts tokens."""
    if len(lengths) < 3 or len(set(lengths)) < 2 or len(set(scores)) < 2:
        return None
    return statistics.correlation(lengths, scores)
