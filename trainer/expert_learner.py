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
from prism.inputs import Example, distinct
from prism.response import parse_response
from prism.v1 import rollout_pb2 as pb
from trainer.examples import GroupExamples
from trainer.losses import bradley_terry, score_regularisation
from trainer.optimizer import Optimizer


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
        self, groups: Sequence[pb.RolloutGroup], prompts: Sequence[Example], examples: GroupExamples
    ) -> dict[str, Any]:
        """One update on all valid pairs of these groups; figures are of the scores before it.

        Without a valid pair nothing is learnt and every figure is None: no data is reported as no data.
        """
        started = time.perf_counter()
        pairs = [self._pairs(group, prompt, examples) for group, prompt in zip(groups, prompts, strict=True)]
        used = [p for p in pairs if p is not None and p.students]
        total_pairs = sum(len(p.students) for p in used)
        possible = sum(len(group.samples) for group in groups)
        teacher_scores: list[float] = []
        student_scores: list[float] = []
        gaps: list[float] = []
        loss_sum = 0.0
        self.model.train()
        for chunk in _chunks(used, self.config.micro_batch):
            once, rows = distinct([example for p in chunk for example in (p.teacher, *p.students)])
            scores = self.model(examples.inputs.collate(once, self.model.score.weight.device))[rows]  # [sequences]
            teacher, student = _aligned(scores, chunk)  # [pairs] each, the teacher's score repeated
            loss = bradley_terry(
                teacher,
                student,
                label_smoothing=self.config.label_smoothing,
                margin=self.config.margin,
                total_pairs=total_pairs,
            ) + self.config.score_regularisation * score_regularisation(scores, total_scores=total_pairs + len(used))
            loss.backward()
            loss_sum += loss.item()
            gaps += (teacher - student).tolist()
            student_scores += student.tolist()
            position = 0
            for p in chunk:
                teacher_scores.append(scores[position].item())
                position += 1 + len(p.students)
        accuracy = statistics.fmean(float(gap > 0) for gap in gaps) if gaps else None
        norm, updated = None, False
        if accuracy is not None and accuracy <= self.config.skip_above_accuracy:
            norm, updated = self._optimizer.step()
        else:
            self.model.zero_grad(set_to_none=True)
        self.version += 1
        figures = {
            "version": self.version,
            "loss": loss_sum if gaps else None,
            "grad_norm": norm,
            "updated": int(updated),
            "pair_accuracy": accuracy,
            "gap": statistics.fmean(gaps) if gaps else None,
            "teacher_score": statistics.fmean(teacher_scores) if teacher_scores else None,
            "teacher_score_std": statistics.pstdev(teacher_scores) if teacher_scores else None,
            "student_score": statistics.fmean(student_scores) if student_scores else None,
            "student_score_std": statistics.pstdev(student_scores) if student_scores else None,
            "length_correlation": _length_correlation(used, student_scores),
            "valid_pairs": total_pairs / possible if possible else None,
            "update_seconds": time.perf_counter() - started,
        }
        return {f"{self.expert}_{name}": value for name, value in figures.items()}

    def _pairs(self, group: pb.RolloutGroup, prompt: Example, examples: GroupExamples) -> _Pairs | None:
        teacher = self._section(group.request.prompt.teacher, prompt, examples)
        if teacher is None:
            return None
        students = [self._section(sample.text, prompt, examples) for sample in group.samples]
        return _Pairs(teacher, [student for student in students if student is not None])

    def _section(self, text: str, prompt: Example, examples: GroupExamples) -> Example | None:
        parsed = parse_response(text)
        return examples.inputs.with_text(prompt, section_of(parsed, self.expert)) if parsed.valid else None

    def save(self, folder: Path, examples: GroupExamples) -> None:
        save_expert(self.model, folder, examples.inputs)
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


def _length_correlation(pairs: Sequence[_Pairs], student_scores: Sequence[float]) -> float | None:
    """Pearson's r between a student section's tokens and its score: near ±1, the expert counts tokens."""
    lengths = [float(len(student.response_ids)) for p in pairs for student in p.students]
    if len(lengths) < 3 or len(set(lengths)) < 2 or len(set(student_scores)) < 2:
        return None
    return statistics.correlation(lengths, student_scores)
