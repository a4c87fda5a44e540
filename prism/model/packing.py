"""Examples as one packed row for a model: each prompt and each image once, responses as branches, no padding.

All that is learnt goes through here: SFT, experts and policy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from prism.model.inputs import Example, InputBuilder
from prism.model.shared_prefix import PackedLayout, prompt_positions
from prism.wire.v1 import rollout_pb2 as pb


@dataclass(frozen=True)
class PackedRun:
    """One of a row's sequences: a shared prompt, a whole example, or a response to a shared prompt."""

    prompt: Example | None
    """The example whose prompt it begins with; None for a response alone."""
    response: int
    """Response tokens in it."""
    parent: int
    """The sequence that holds its prompt: itself, but for a response alone."""


@dataclass(frozen=True)
class Batch:
    """T tokens of N examples with R response tokens.

    The row holds prompts that several examples share, then examples that share theirs with none, whole, then the
    responses to the former. What is said of examples is in their own order, whatever their places in the row.
    """

    examples: Sequence[Example]
    input_ids: Tensor
    """[1, T]"""
    is_image: Tensor
    """[1, T] bool: where image tokens stand."""
    layout: PackedLayout
    sequences: list[PackedRun]
    """As many as the ``layout`` has lengths."""
    predicts: Tensor
    """[R] places whose states predict the response tokens, example after example."""
    targets: Tensor
    """[R] these tokens."""
    ends: Tensor
    """[N] places of the examples' last tokens."""
    pixel_values: Tensor | None
    """[all patches, patch size] of distinct images; None without."""
    image_grid_thw: Tensor | None
    """[distinct images, 3] in patches."""
    image_rows: list[int]
    """Which of the distinct images each image of the row is."""

    @property
    def tokens(self) -> int:
        return self.input_ids.shape[1]


def pack(examples: Sequence[Example], inputs: InputBuilder, device: torch.device | str = "cpu") -> Batch:
    """Examples with equal prompt tokens and the very same image tensors share their prompt."""
    members: dict[tuple[int, tuple[int, ...]], list[int]] = {}  # prompt -> its examples
    for index, example in enumerate(examples):
        members.setdefault(prompt_key(example), []).append(index)
    answered = [[i for i in indices if examples[i].response_ids] for indices in members.values()]
    shared = [indices for indices in answered if len(indices) > 1]
    whole = [(found or indices)[0] for indices, found in zip(members.values(), answered, strict=True) if len(found) < 2]

    tokens = [examples[indices[0]].input_ids[: examples[indices[0]].prompt_length] for indices in shared]
    sequences = [PackedRun(examples[indices[0]], 0, number) for number, indices in enumerate(shared)]
    for number, index in enumerate(whole, len(shared)):
        tokens.append(examples[index].input_ids)
        sequences.append(PackedRun(examples[index], len(examples[index].response_ids), number))
    for parent, indices in enumerate(shared):
        tokens += [examples[index].response_ids for index in indices]
        sequences += [PackedRun(None, len(examples[index].response_ids), parent) for index in indices]
    lengths = list(map(len, tokens))
    starts = list(accumulate(lengths, initial=0))

    before: dict[int, int] = {}  # example -> place of its prompt's last token
    for number, run in enumerate(sequences):
        if run.prompt:
            of_prompt = members[prompt_key(run.prompt)]
            before |= dict.fromkeys(of_prompt, starts[number] + run.prompt.prompt_length - 1)
    last = dict(before)  # example -> place of its own last token
    order = [*whole, *(index for indices in shared for index in indices)]
    last |= {index: starts[number + 1] - 1 for number, index in enumerate(order, len(shared))}
    predicts: list[int] = []
    for index, example in enumerate(examples):
        count = len(example.response_ids)
        predicts += [before[index], *range(last[index] - count + 1, last[index])][:count]

    pixels, grids, rows = _images([sequence.prompt for sequence in sequences if sequence.prompt])
    row = torch.tensor([[token for ids in tokens for token in ids]])
    targets = [token for example in examples for token in example.response_ids]
    return Batch(
        examples=examples,
        input_ids=row.to(device),
        is_image=(row == inputs.image_token_id).to(device),
        layout=PackedLayout(lengths, prompts=lengths[: len(shared)], branches=list(map(len, shared)), device=device),
        sequences=sequences,
        predicts=torch.tensor(predicts, dtype=torch.long, device=device),
        targets=torch.tensor(targets, dtype=torch.long, device=device),
        ends=torch.tensor([last[index] for index in range(len(examples))], device=device),
        pixel_values=torch.cat(pixels).to(device) if pixels else None,
        image_grid_thw=torch.cat(grids).to(device) if grids else None,
        image_rows=rows,
    )


def split_by_tokens(units: Sequence[Sequence[Example]], tokens: int) -> list[list[int]]:
    """``units``, each of which must stay whole, in batches of at most ``tokens`` tokens each, as their indices.

    Packed in order; a prompt counts once a batch. A unit that is larger than ``tokens`` is a batch by itself.
    """
    batches: list[list[int]] = []
    used = 0
    prompts: set[tuple[int, tuple[int, ...]]] = set()
    for index, unit in enumerate(units):
        own, responses = _token_counts(unit)
        cost = responses + sum(length for key, length in own.items() if key not in prompts)
        if not batches or used + cost > tokens:
            batches.append([])
            used, prompts, cost = 0, set(), responses + sum(own.values())
        batches[-1].append(index)
        used += cost
        prompts |= own.keys()
    return batches


def share_by_tokens(units: Sequence[Sequence[Example]], ranks: int) -> list[list[int]]:
    """``units``, each of which must stay whole, dealt to ``ranks`` so that these get about as many tokens each: the
    largest first, to whoever has least. Their indices, in order; a rank may get none.
    """
    sizes = [sum(prompts.values()) + responses for prompts, responses in map(_token_counts, units)]
    shares: list[list[int]] = [[] for _ in range(ranks)]
    tokens = [0] * ranks
    for index in sorted(range(len(units)), key=lambda index: -sizes[index]):
        least = tokens.index(min(tokens))
        shares[least].append(index)
        tokens[least] += sizes[index]
    return [sorted(share) for share in shares]


def _token_counts(unit: Sequence[Example]) -> tuple[dict[tuple[int, tuple[int, ...]], int], int]:
    """Tokens of each distinct prompt, and of all responses."""
    prompts = {prompt_key(example): example.prompt_length for example in unit}
    return prompts, sum(len(example.response_ids) for example in unit)


def spare_example(inputs: InputBuilder) -> Example:
    """Something short to compute, for a rank that has nothing but must come by."""
    return inputs.with_text(inputs.prompt([pb.Message(role="user", parts=[pb.Part(text="?")])], []), "")


def prompt_key(example: Example) -> tuple[int, tuple[int, ...]]:
    """Equal for examples that share their prompt. Images are told apart by identity: a group's share their tensors."""
    return id(example.pixel_values), tuple(example.input_ids[: example.prompt_length])


def _images(prompts: Sequence[Example]) -> tuple[list[Tensor], list[Tensor], list[int]]:
    """Pixels and grids of distinct images, and which of them each image of ``prompts`` is."""
    pixels: list[Tensor] = []
    grids: list[Tensor] = []
    rows: list[int] = []
    first_row: dict[int, int] = {}  # by identity
    for prompt in prompts:
        if prompt.pixel_values is None or prompt.image_grid_thw is None:
            continue
        key = id(prompt.pixel_values)
        if key not in first_row:
            first_row[key] = sum(map(len, grids))
            pixels.append(prompt.pixel_values)
            grids.append(prompt.image_grid_thw)
        rows += range(first_row[key], first_row[key] + len(prompt.image_grid_thw))
    return pixels, grids, rows


def hidden_states(backbone: Any, batch: Batch) -> Tensor:
    """The backbone's last hidden states [T, H]."""
    return run_backbone(backbone, batch).last_hidden_state[0]


def run_backbone(backbone: Any, batch: Batch, **options: Any) -> Any:
    """What the backbone's language model gives for the row. It must be loaded with ``shared_prefix.ATTENTION``."""
    embeds = backbone.get_input_embeddings()(batch.input_ids)  # [1, T, H]
    if torch.is_grad_enabled() and not embeds.requires_grad:
        # Where embeddings are frozen the first layer, too, hears of its backward pass on every rank, images or not.
        embeds.requires_grad_(True)
    vision: dict[str, Any] = {}
    if batch.pixel_values is not None:
        features = backbone.get_image_features(batch.pixel_values, batch.image_grid_thw, return_dict=True)
        sizes = [len(image) for image in features.pooler_output]

        def placed(images: Sequence[Tensor]) -> Tensor:  # -> [image tokens of the row, H]
            return torch.cat([images[row] for row in batch.image_rows]).to(embeds.dtype)

        embeds = embeds.masked_scatter(batch.is_image[..., None], placed(features.pooler_output))
        vision = {
            "visual_pos_masks": batch.is_image,
            "deepstack_visual_embeds": [placed(layer.split(sizes)) for layer in features.deepstack_features],
        }
    return backbone.language_model(
        inputs_embeds=embeds,
        position_ids=_positions(backbone, batch).to(embeds.device),
        use_cache=False,
        layout=batch.layout,
        **vision,
        **options,
    )


def _positions(backbone: Any, batch: Batch) -> Tensor:
    """Rotary positions [3, 1, T]: a response's go on from the end of its prompt, on all three axes."""
    parts: list[Tensor] = []
    after: list[int] = []  # the position after each prompt
    for sequence in batch.sequences:
        if sequence.prompt:
            ids = torch.tensor([sequence.prompt.input_ids[: sequence.prompt.prompt_length]])
            is_image = ids == backbone.config.image_token_id
            taken = prompt_positions(backbone, ids, is_image, sequence.prompt.image_grid_thw)
            parts.append(taken)
            after.append(int(taken.max()) + 1)
        start = after[sequence.parent]
        parts.append(torch.arange(start, start + sequence.response).expand(3, 1, -1))
    return torch.cat(parts, -1)
