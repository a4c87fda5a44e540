"""Rollouts that stay in the run's folder to be looked at: some groups of each step, bounded in bytes. (No torch.)

A file a step, ``rollouts/STAGE/STEP.json.gz``. Once all take more than their bound every other step is dropped, and
from then on half as many are written: what is there is spread over the whole run.
"""

import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from prism.config import RolloutLogConfig
from prism.files import write_bytes, write_json
from prism.wire.messages import image_sha256s
from prism.wire.v1 import rollout_pb2 as pb

FOLDER, STRIDE = "rollouts", "stride.json"
LONGEST = 1024  # tokens of a response whose figures are kept; its text is kept whole


class View(Protocol):
    """What the learner thought of a response's tokens."""

    @property
    def logprobs(self) -> list[float]: ...
    @property
    def entropies(self) -> list[float]: ...


class RolloutLog:
    """Of one stage. A disk that is full or slow costs the log, and nothing else: ``say`` is told once."""

    def __init__(
        self,
        run_dir: Path,
        stage: str,
        config: RolloutLogConfig,
        decode: Callable[[list[int]], str],
        say: Callable[[str], None],
    ) -> None:
        self._root, self._stage, self._config, self._decode, self._say = run_dir / FOLDER, stage, config, decode, say
        self._pieces: dict[int, str] = {}
        self._told = False
        try:
            self._stride = max(1, int(json.loads((self._root / STRIDE).read_text())))
        except (OSError, ValueError, TypeError):
            self._stride = 1

    @property
    def groups(self) -> int:
        """Of each step, that are kept."""
        return self._config.groups

    def step(
        self,
        step: int,
        groups: Sequence[pb.RolloutGroup],
        *,
        version: int,
        attempt: int,
        advantages: Sequence[float | None] = (),
        views: Mapping[tuple[int, int], View] | None = None,
    ) -> None:
        """Keep some of the groups of step ``step`` (1-based), at whose beginning the learner stood at ``version``.

        ``advantages``: of the responses of all groups, one after the other; none for a step without.
        """
        if not self._config.groups or step % self._stride:
            return
        kept: list[dict[str, Any]] = []
        position = 0
        for number, group in enumerate(groups[: self._config.groups]):
            own = advantages[position : position + len(group.samples)] if advantages else [None] * len(group.samples)
            position += len(group.samples)
            kept.append(self._group(number, group, own, views or {}))
        record = {"stage": self._stage, "step": step, "attempt": attempt, "version": version, "groups": kept}
        try:
            self._write(step, gzip.compress(json.dumps(record).encode(), compresslevel=1))
        except OSError as error:
            if not self._told:
                self._say(f"rollouts of step {step} could not be kept to be looked at: {error.strerror}")
            self._told = True

    def _write(self, step: int, data: bytes) -> None:
        bound = int(self._config.gib * 2**30)
        files = {path: path.stat().st_size for path in self._root.glob("*/*.json.gz")}
        while sum(files.values()) + len(data) > bound:
            if not files:
                return  # one step alone is over the bound
            self._stride *= 2
            write_json(self._root / STRIDE, self._stride)
            for path in [path for path in files if int(path.name.split(".")[0]) % self._stride]:
                path.unlink(missing_ok=True)
                del files[path]
            if step % self._stride:
                return
        write_bytes(self._root / self._stage / f"{step:08d}.json.gz", data, sync=False)

    def _group(
        self,
        number: int,
        group: pb.RolloutGroup,
        advantages: Sequence[float | None],
        views: Mapping[tuple[int, int], View],
    ) -> dict[str, Any]:
        prompt = group.request.prompt
        return {
            "prompt_id": prompt.id,
            "position": group.request.position,
            "messages": [_message(message) for message in prompt.messages],
            "images": image_sha256s(prompt.messages),
            "gold": prompt.gold or None,
            "teacher": prompt.teacher or None,
            "teacher_scores": [_fields(score) for score in group.teacher_scores],
            "policy_version": group.policy_version,
            "worker": group.worker,
            "generate_seconds": group.generate_seconds,
            "judge_seconds": group.judge_seconds,
            "samples": [
                self._sample(sample, advantage, views.get((number, index)))
                for index, (sample, advantage) in enumerate(zip(group.samples, advantages, strict=True))
            ],
        }

    def _sample(self, sample: pb.Sample, advantage: float | None, view: View | None) -> dict[str, Any]:
        ids = list(sample.token_ids)
        return {
            "text": sample.text,
            "finish_reason": sample.finish_reason,
            "versions": [[run.policy_version, run.tokens] for run in sample.versions],
            "token_count": len(ids),
            "tokens": [self._piece(token) for token in ids[:LONGEST]],
            "logprobs": _rounded(sample.logprobs),
            "learner_logprobs": _rounded(view.logprobs) if view else None,
            "entropies": _rounded(view.entropies) if view else None,
            "advantage": advantage,
            "scores": [_fields(score) for score in sample.scores],
            "verdict": _fields(sample.verdict) if sample.HasField("verdict") else None,
        }

    def _piece(self, token: int) -> str:
        if token not in self._pieces:
            self._pieces[token] = self._decode([token])
        return self._pieces[token]


def _rounded(values: Sequence[float]) -> list[float | None]:
    """To what a colour can show; None where there is no finite number."""
    return [round(value, 4) if abs(value) < 1e6 else None for value in values[:LONGEST]]


def _message(message: pb.Message) -> dict[str, Any]:
    parts = [{"text": p.text} if p.WhichOneof("part") == "text" else {"image": p.image_sha256} for p in message.parts]
    return {"role": message.role, "parts": parts}


def _fields(message: pb.Score | pb.Verdict) -> dict[str, Any]:
    """A judgement with its status in lower case, as the services' APIs name it; what is not set is not there."""
    found = {field.name: value for field, value in message.ListFields()}
    return found | {"status": pb.Status.Name(message.status).removeprefix("STATUS_").lower()}
