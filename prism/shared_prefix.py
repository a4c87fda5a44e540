"""Responses that share a prompt, computed as branches of it: the prompt once, no padding, the stock model's own code.

Sequences lie one after another in a packed row [1, T]. A prompt's token attends to its prompt so far; a response's
token to its own response so far and to its prompt. The two parts of the latter are computed apart and merged by their
log-sum-exp, as in cascade inference (arXiv 2501.01005, section 3); backwards each part is given the merged output and
log-sum-exp, which makes its gradients those of the whole softmax, as in ring attention (arXiv 2310.01889, appendix A).

Learning has prompts and responses in one row. Scoring has them in two passes of the language model: what the first
computes of a prompt, each layer's keys and values, is kept for any number of the second. It plugs into transformers
through the attention interface: on a CPU over torch's fused kernel, a call a sequence; on a GPU over its flash
attention, a call a row, in bfloat16 or float16.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

NAME = "prism_shared_prefix"
ATTENTION = {"text_config": NAME}
"""What a model is loaded with, as ``attn_implementation``; its vision tower keeps transformers' own."""


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
    """How a packed row is to be read: ``lengths`` of the sequences in it, one after another, sum to T."""

    def __init__(
        self,
        lengths: list[int],
        *,
        prompts: Sequence[int] = (),
        branches: Sequence[int] = (),
        prefixes: Sequence[Prefix] = (),
    ) -> None:
        """Each of ``prompts``, lengths in tokens, has as many of the row's last sequences as ``branches`` says.

        The prompts are the row's first sequences, or with ``prefixes`` they have been through the model before.
        ``prefixes`` without ``branches``: the sequences are prompts, and what the layers compute of them is kept there.
        """
        self.lengths, self.prefixes = lengths, prefixes
        self.prompts = [prefix.tokens for prefix in prefixes] if prefixes else list(prompts)
        starts = _starts(lengths[len(lengths) - sum(branches) :])
        self.responses = [starts[b] - starts[a] for a, b in pairwise(_starts(branches))]
        """Tokens of all responses to each prompt; empty without branches."""
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
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface; ``layout`` comes through the model's keyword arguments."""
    assert attention_mask is None, "the layout says who sees whom"
    if dropout:
        raise ValueError("attention_dropout is set in the model's configuration: shared prefixes are computed without")
    if torch.is_autocast_enabled(query.device.type):  # query and key come out of their norms in float32
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # [T, heads, D]
    shared_k, shared_v = k[:0], v[:0]
    if layout.prefixes and layout.responses:
        layer = module.layer_idx
        shared_k = torch.cat([prefix.keys[layer] for prefix in layout.prefixes])
        shared_v = torch.cat([prefix.values[layer] for prefix in layout.prefixes])
    elif layout.prefixes:
        parts = zip(layout.prefixes, k.split(layout.lengths), v.split(layout.lengths), strict=True)
        for prefix, keys, values in parts:
            prefix.keys.append(keys.contiguous())  # not a view: it would keep the whole row alive
            prefix.values.append(values.contiguous())
    elif layout.responses:
        shared_k, shared_v = (tensor[: sum(layout.prompts)] for tensor in (k, v))
    out: Any = _Branches.apply(q, k, v, shared_k, shared_v, layout, scaling)
    return out[None], None


class _Branches(torch.autograd.Function):
    """Attention of each sequence to itself, and of the row's last sequences to their prompts as well."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, shared_k: Tensor, shared_v: Tensor, layout: Layout, scale: float
    ) -> Tensor:
        own = _Runs(layout, layout.lengths, layout.lengths, scale, causal=True)
        shared = _Runs(layout, layout.responses, layout.prompts, scale, causal=False)
        out, lse = own.forward(q, k, v)  # [T, heads, D], [T, heads]
        if layout.responses:
            first = len(q) - sum(layout.responses)
            prompt_out, prompt_lse = shared.forward(q[first:], shared_k, shared_v)
            weight = torch.sigmoid(prompt_lse - lse[first:])[..., None]  # the prompt's share of the softmax
            # One rounding: the parts are merged in float32.
            merged = torch.lerp(out[first:].float(), prompt_out.float(), weight).to(out.dtype)
            out = torch.cat([out[:first], merged])
            lse = torch.cat([lse[:first], torch.logaddexp(lse[first:], prompt_lse)])
        ctx.runs = own, shared
        ctx.save_for_backward(q, k, v, shared_k, shared_v, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads  # [T, heads, D]
        q, k, v, shared_k, shared_v, out, lse = ctx.saved_tensors
        own, shared = ctx.runs
        grad_q, grad_k, grad_v = own.backward(grad, q, k, v, out, lse)
        grad_shared_k = grad_shared_v = None
        if shared.q_lengths:
            first = len(q) - sum(shared.q_lengths)
            grad_tail, grad_shared_k, grad_shared_v = shared.backward(
                grad[first:], q[first:], shared_k, shared_v, out[first:], lse[first:]
            )
            grad_q[first:] += grad_tail
        return grad_q, grad_k, grad_v, grad_shared_k, grad_shared_v, None, None


class _Runs:
    """Attention of the i-th run of queries to the i-th run of keys; q [Tq, heads, D], k and v [Tk, fewer heads, D].

    These are the fused kernels behind scaled_dot_product_attention, called by name for the log-sum-exp that it drops.
    """

    def __init__(self, layout: Layout, q_lengths: list[int], k_lengths: list[int], scale: float, *, causal: bool):
        self._layout, self.q_lengths, self.k_lengths = layout, q_lengths, k_lengths
        self._scale, self._causal = scale, causal
        self._random: tuple[Tensor, Tensor] | None = None  # of dropout, which there is none of; its kernel wants it

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """[Tq, heads, D] and its log-sum-exp [Tq, heads] in float32."""
        if q.device.type == "cpu":
            runs = zip(_split(q, self.q_lengths), *(_split(each, self.k_lengths) for each in (k, v)), strict=True)
            parts = [
                torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*run, 0.0, self._causal, scale=self._scale)
                for run in runs
            ]
            return _joined([out for out, _ in parts]), torch.cat([lse[0] for _, lse in parts], 1).transpose(0, 1)
        out, lse, seed, offset, _ = torch.ops.aten._flash_attention_forward(
            q, k, v, *self._offsets(q), 0.0, self._causal, False, scale=self._scale
        )
        self._random = seed, offset
        return out, lse.transpose(0, 1)

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of q, k and v. ``out`` and ``lse`` are of the whole softmax, of which this may be one part."""
        if q.device.type == "cpu":
            grads, qs, outs = (_split(each, self.q_lengths) for each in (grad, q, out))
            ks, vs = (_split(each, self.k_lengths) for each in (k, v))
            lses = [part.transpose(0, 1)[None] for part in lse.split(self.q_lengths)]  # [1, heads, tokens]
            runs = zip(grads, qs, ks, vs, outs, lses, strict=True)
            parts = [
                torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                    *run, 0.0, self._causal, scale=self._scale
                )
                for run in runs
            ]
            grad_q, grad_k, grad_v = (_joined(list(each)) for each in zip(*parts, strict=True))
            return grad_q, grad_k, grad_v
        assert self._random is not None
        return torch.ops.aten._flash_attention_backward(
            grad.contiguous(), q, k, v, out, lse.transpose(0, 1).contiguous(), *self._offsets(q), 0.0, self._causal,
            *self._random, scale=self._scale,
        )  # fmt: skip

    def _offsets(self, q: Tensor) -> tuple[Tensor, Tensor, int, int]:
        offsets = [self._layout.offsets(lengths, q.device) for lengths in (self.q_lengths, self.k_lengths)]
        return offsets[0], offsets[1], max(self.q_lengths), max(self.k_lengths)


def _split(tensor: Tensor, lengths: list[int]) -> list[Tensor]:
    """[T, heads, D] into runs [1, heads, tokens, D]."""
    return [part.transpose(0, 1)[None] for part in tensor.split(lengths)]


def _joined(parts: list[Tensor]) -> Tensor:
    """Runs [1, heads, tokens, D] one after another: [T, heads, D]."""
    return torch.cat([part[0] for part in parts], 1).transpose(0, 1)


def _starts(lengths: Sequence[int]) -> list[int]:
    return list(accumulate(lengths, initial=0))


def prompt_positions(backbone: Any, ids: Tensor, is_image: Tensor, grid: Tensor | None) -> Tensor:
    """Rotary positions [3, 1, L] of one prompt, ids [1, L], by the model's own rule.

    For tensors of the CPU: the rule looks at single numbers, each of which a GPU would be waited for.
    """
    if grid is None:
        return torch.arange(ids.shape[1]).expand(3, 1, -1)
    positions, _ = backbone.get_rope_index(
        ids, is_image.int(), image_grid_thw=grid, attention_mask=torch.ones_like(ids)
    )
    return positions


AttentionInterface.register(NAME, attention)
