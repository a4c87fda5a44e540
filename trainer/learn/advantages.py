"""Advantages: how much better a sample did than its group. Pure functions, no gradient, computed in float64.

N is the number of samples of a whole batch; ``group_index`` [N] says which samples answer the same prompt (any
integers, in any order). A sample without a verdict or a score is not valid: it takes no part in its group's statistics
and is not trained on. No failure becomes a number.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prism.errors import StreamError

# Added to the standard deviation; groups that spread less than this are flat, their differences being rounding.
STD_EPSILON = 1e-6
# Alignment's, as published: the bound of a score, and what a malformed response's advantage is below the lowest of its
# group, its score below the lowest score.
SCORE_CLAMP = 10.0
INVALID_PENALTY = 1.5
INVALID_MARGIN = 1.0


@dataclass(frozen=True)
class Advantages:
    values: Tensor
    """[N] float64; 0 where ``keep`` is false."""
    keep: Tensor
    """[N] bool: the samples to train on. The others must not be counted in a loss's totals either."""
    masked_samples: int
    """Samples that were not valid."""
    dropped_groups: int
    """Groups with too few valid samples to compare."""
    flat_groups: int
    """Kept groups whose advantages are all 0: nothing to learn from."""

    def figures(self) -> dict[str, int]:
        """The counts as they stand in metrics.jsonl."""
        return {name: getattr(self, name) for name in ("masked_samples", "dropped_groups", "flat_groups")}


def group_normalised(
    rewards: Tensor, valid: Tensor, group_index: Tensor, *, epsilon: float = STD_EPSILON
) -> Advantages:
    """GRPO: (r - mean) / (std + epsilon) over the valid samples of a group. Rewards [N], valid [N] bool, groups [N].

    ``std`` is the sample standard deviation (n - 1 in the divisor). The paper (arXiv 2402.03300, section 4.1.2) does
    not say which; verl, with which PRISM's published runs were made, and TRL both take this one (verl adds 1e-6, TRL
    1e-4). A group with fewer than two valid samples is dropped and counted; one with std <= epsilon gets zeros.

    Raises ValueError for shapes that differ, or a valid reward that is not finite.
    """
    return _within_groups(rewards, valid, group_index, scale=True, epsilon=epsilon)


def group_centred(rewards: Tensor, valid: Tensor, group_index: Tensor) -> Advantages:
    """Dr. GRPO: r - mean over the valid samples of a group (arXiv 2503.20783). Else as ``group_normalised``."""
    return _within_groups(rewards, valid, group_index, scale=False, epsilon=STD_EPSILON)


def _within_groups(rewards: Tensor, valid: Tensor, group_index: Tensor, *, scale: bool, epsilon: float) -> Advantages:
    if rewards.dim() != 1 or valid.shape != rewards.shape or group_index.shape != rewards.shape:
        shapes = ", ".join(str(list(tensor.shape)) for tensor in (rewards, valid, group_index))
        raise ValueError(f"rewards, valid and group_index must all be [N], not {shapes}")
    if valid.dtype != torch.bool:
        raise ValueError(f"valid must be bool, not {valid.dtype}")
    if not rewards[valid].isfinite().all():
        raise ValueError("a valid reward is not finite: mask the sample instead")

    groups, member = group_index.unique(return_inverse=True)  # [G], [N]
    # Whatever an invalid sample holds, even NaN, is gone.
    known = torch.where(valid, rewards.detach().double(), 0.0)  # [N]

    def per_group(values: Tensor) -> Tensor:  # [N] -> [G]
        return values.new_zeros(len(groups)).index_add(0, member, values)

    count = per_group(valid.double())  # [G]
    mean = per_group(known) / count.clamp(min=1)
    centred = torch.where(valid, known - mean[member], 0.0)  # [N]
    std = (per_group(centred.square()) / (count - 1).clamp(min=1)).sqrt()  # [G]

    kept = count >= 2  # [G]
    keep = valid & kept[member]  # [N]
    flat = std <= epsilon  # [G]
    values = centred / (std[member] + epsilon) if scale else centred
    return Advantages(
        values=torch.where(keep & ~flat[member], values, 0.0),
        keep=keep,
        masked_samples=int((~valid).sum()),
        dropped_groups=int((~kept).sum()),
        flat_groups=int((kept & flat).sum()),
    )


@dataclass(frozen=True)
class ExpertScores:
    """One expert's raw scores of a batch's samples."""

    values: Sequence[float | None]
    """[N] None where the expert gave no score."""
    versions: Sequence[int]
    """[N] the expert's version at each score; not looked at where there is none."""


def alignment_advantages(
    perception: ExpertScores,
    reasoning: ExpertScores,
    format_valid: Sequence[bool],
    group_index: Sequence[int],
    *,
    alpha: float = 0.5,
) -> Advantages:
    """The alignment stage's advantages from two experts' scores (PRISM, arXiv 2604.28123). All sequences are [N].

    Each expert's scores are clamped to ±SCORE_CLAMP around their group's mean and normalised within the group as in
    ``group_normalised``, apart from the other's; the advantage is ``alpha`` × perception + (1 - ``alpha``) × reasoning.
    (The published code clamps raw scores. Bradley-Terry says nothing of what a prompt's scores have in common, which
    moved by 8 in one update: clamped raw, a group's differences would be lost.)

    A response with an invalid format counts, whether or not it was scored, as the lowest score among the group's valid
    ones - INVALID_MARGIN, per expert; so its advantage is the group's minimum, and it gets that - INVALID_PENALTY. That
    is the published code's penalty. (A flat -1.5, as the text can be read, lies above well-formed responses far below
    their group.)
    A response with a valid format that either expert failed to score is masked out, for both experts.
    A group is dropped with fewer than two samples left, or none of them scored: then nothing is known to be better.

    Raises StreamError if one expert's scores within a group are of different versions: such a group was not scored in
    one call, and its scores cannot be compared. Raises ValueError for lengths that differ, a score that is not finite,
    or an alpha outside [0, 1].
    """
    n = len(group_index)
    sequences = (perception.values, perception.versions, reasoning.values, reasoning.versions, format_valid)
    if any(len(sequence) != n for sequence in sequences):
        raise ValueError(f"all sequences must have one entry for each of the {n} samples")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], not {alpha}")
    _refuse_mixed_versions("perception", perception, group_index)
    _refuse_mixed_versions("reasoning", reasoning, group_index)

    groups = torch.tensor(group_index, dtype=torch.long)  # [N]
    well_formed = torch.tensor(format_valid, dtype=torch.bool)  # [N]
    has_both = torch.tensor(
        [p is not None and r is not None for p, r in zip(perception.values, reasoning.values, strict=True)],
        dtype=torch.bool,
    )
    scored = well_formed & has_both  # [N]
    # A malformed response joins its group only if the group has a score to stand below.
    comparable = torch.isin(groups, groups[scored])  # [N]
    usable = comparable & (scored | ~well_formed)  # [N]

    def normalised(expert: ExpertScores) -> Advantages:
        raw = torch.tensor([0.0 if value is None else value for value in expert.values], dtype=torch.float64)  # [N]
        if not raw[scored].isfinite().all():
            raise ValueError("a score is not finite: an expert that fails must say so with None")
        ids, member = groups.unique(return_inverse=True)  # [G], [N]
        sums = raw.new_zeros(len(ids)).index_add(0, member[scored], raw[scored])  # [G]
        counts = torch.bincount(member[scored], minlength=len(ids)).clamp(min=1)  # [G]
        raw = (raw - (sums / counts)[member]).clamp(-SCORE_CLAMP, SCORE_CLAMP)
        lowest = torch.full((len(ids),), torch.inf, dtype=torch.float64)
        lowest = lowest.scatter_reduce(0, member[scored], raw[scored], "amin")  # [G], of scored samples alone
        return group_normalised(torch.where(scored, raw, lowest[member] - INVALID_MARGIN), usable, groups)

    by_perception, by_reasoning = normalised(perception), normalised(reasoning)
    keep = by_perception.keep  # [N]; the same for both: it depends on ``usable`` alone
    values = alpha * by_perception.values + (1 - alpha) * by_reasoning.values
    values = torch.where(well_formed, values, values - INVALID_PENALTY)
    kept_values = torch.where(keep, values, 0.0)
    live = groups[keep & (kept_values != 0)].unique()
    return Advantages(
        values=kept_values,
        keep=keep,
        masked_samples=int((well_formed & ~has_both).sum()),
        dropped_groups=by_perception.dropped_groups,
        flat_groups=len(groups[keep].unique()) - len(live),
    )


def _refuse_mixed_versions(name: str, expert: ExpertScores, group_index: Sequence[int]) -> None:
    first: dict[int, int] = {}
    for value, version, group in zip(expert.values, expert.versions, group_index, strict=True):
        if value is not None and first.setdefault(group, version) != version:
            raise StreamError(
                f"group {group} holds {name} scores of versions {first[group]} and {version}: score a group in one call"
            )


def soft_overlong_penalty(lengths: Tensor, *, max_length: int, buffer: int) -> Tensor:
    """[N] response lengths in tokens -> [N] float64, to be added to the rewards: 0, then down to -1.

    0 up to ``max_length - buffer``, then linear to -1 at ``max_length``, -1 beyond.
    Source: DAPO, arXiv 2503.14476, eq. 13. Raises ValueError unless 0 < buffer <= max_length.
    """
    if not 0 < buffer <= max_length:
        raise ValueError(f"buffer must lie between 1 and max_length = {max_length}, not {buffer}")
    return ((max_length - buffer - lengths.double()) / buffer).clamp(-1.0, 0.0)
