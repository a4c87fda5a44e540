"""Responses that share a prompt, computed as branches of it: the prompt once, no padding, the stock model's own code.

Two passes of the language model over packed rows [1, T]: the first over prompts, one after another, keeps each layer's
keys and values; the second over responses, whose every token attends to its own response so far and to its prompt.
The two parts of that attention are computed apart and merged by their log-sum-exp, as in cascade inference
(arXiv 2501.01005, section 3). It plugs into transformers through the attention interface. For scoring, not learning:
the merge has no backward pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

NAME = "prism_shared_prefix"


@dataclass
class Prefix:
    """A prompt that has been through the model."""

    tokens: int
    next_position: int
    """Rotary position of the token after it, the same on all three axes: a response is text."""
    keys: list[Tensor] = field(default_factory=list)
    """One [tokens, key-value heads, head size] for each layer, rotated already."""
    values: list[Tensor] = field(default_factory=list)


class Layout:
    """How a packed row is to be read: ``lengths`` of the sequences in it, one after another, sum to T.

    With ``branches``, sequences are responses: the first ``branches[0]`` of them to ``prefixes[0]``, and so on.
    Without, they are prompts, and what the layers compute of them is kept in ``prefixes``.
    """

    def __init__(self, lengths: list[int], prefixes: Sequence[Prefix], branches: Sequence[int] = ()) -> None:
        self.lengths, self.prefixes = lengths, prefixes
        starts, ends = _starts(lengths), _starts(branches)
        self.response_tokens = [starts[b] - starts[a] for a, b in pairwise(ends)]
        """Tokens of all responses to each prompt; empty for prompts."""
        self.prompt_tokens = [prefix.tokens for prefix in prefixes]
        self._offsets: dict[int, Tensor] = {}

    def offsets(self, lengths: list[int], device: torch.device) -> Tensor:
        """Cumulative lengths [n + 1] of one of the lists here, as the kernels take them; made once for all layers."""
        if id(lengths) not in self._offsets:
            self._offsets[id(lengths)] = torch.tensor(_starts(lengths), dtype=torch.int32, device=device)
        return self._offsets[id(lengths)]


def attention(
    module: Any,
    query: Tensor,  # [1, heads, T, D]
    key: Tensor,  # [1, key-value heads, T, D]
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    *,
    layout: Layout,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface; ``layout`` comes through the model's keyword arguments."""
    assert attention_mask is None, "the layout says who sees whom"
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # [T, heads, D]
    own, own_lse = _packed(q, k, v, layout, layout.lengths, layout.lengths, scaling, causal=True)
    if not layout.response_tokens:
        parts = zip(layout.prefixes, k.split(layout.lengths), v.split(layout.lengths), strict=True)
        for prefix, keys, values in parts:
            prefix.keys.append(keys.contiguous())  # not a view: it would keep the whole row alive
            prefix.values.append(values.contiguous())
        return own[None], None
    layer = module.layer_idx
    shared, shared_lse = _packed(
        q,
        torch.cat([prefix.keys[layer] for prefix in layout.prefixes]),
        torch.cat([prefix.values[layer] for prefix in layout.prefixes]),
        layout,
        layout.response_tokens,
        layout.prompt_tokens,
        scaling,
        causal=False,
    )
    weight = torch.sigmoid(shared_lse - own_lse)[..., None]  # [T, heads, 1]: the prompt's share of the softmax
    merged = torch.lerp(own.float(), shared.float(), weight)
    return merged.to(query.dtype)[None], None


def _packed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Layout,
    q_lengths: list[int],
    k_lengths: list[int],
    scale: float,
    *,
    causal: bool,
) -> tuple[Tensor, Tensor]:
    """Attention of the i-th run of ``q`` to the i-th of ``k``: output [T, heads, D], log-sum-exp [T, heads] float32."""
    # The fused kernels behind scaled_dot_product_attention, called by name for the log-sum-exp that it drops. Both take
    # fewer key-value heads than heads.
    if q.device.type == "cpu":
        runs = zip(q.split(q_lengths), k.split(k_lengths), v.split(k_lengths), strict=True)
        parts = [
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                *(part.transpose(0, 1)[None] for part in run), 0.0, causal, scale=scale
            )
            for run in runs
        ]
        out = torch.cat([part[0][0] for part in parts], dim=1).transpose(0, 1)  # [heads, T, D] ->
        return out, torch.cat([part[1][0] for part in parts], dim=1).transpose(0, 1)  # [heads, T] ->
    q_offsets, k_offsets = (layout.offsets(lengths, q.device) for lengths in (q_lengths, k_lengths))
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        q, k, v, q_offsets, k_offsets, max(q_lengths), max(k_lengths), 0.0, causal, False, scale=scale
    )
    return out, lse.transpose(0, 1)  # [heads, T] ->


def _starts(lengths: Sequence[int]) -> list[int]:
    return list(accumulate(lengths, initial=0))


AttentionInterface.register(NAME, attention)
