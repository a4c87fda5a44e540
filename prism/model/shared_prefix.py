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


class PackedLayout:
    """How a packed row is to be read: ``lengths`` of the sequences in it, one after another, sum to T."""

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        prompts: Sequence[int] = (),
        branches: Sequence[int] = (),
        prefixes: Sequence[Prefix] = (),
        device: torch.device | str = "cpu",
    ) -> None:
        """Each of ``prompts``, lengths in tokens, has as many of the row's last sequences as ``branches`` says.

        The prompts are the row's first sequences, or with ``prefixes`` they have been through the model before.
        ``prefixes`` without ``branches``: the sequences are prompts, and what the layers compute of them is kept there.
        """
        self.lengths, self.prefixes, self.branched = list(lengths), prefixes, bool(branches)
        if prefixes:
            prompts = [prefix.tokens for prefix in prefixes]
        starts = _starts(lengths[len(lengths) - sum(branches) :])
        responses = [starts[b] - starts[a] for a, b in pairwise(_starts(branches))]  # tokens of all to each prompt
        counts = (lengths, responses, prompts)
        self.tensors = [torch.tensor(each, dtype=torch.int32) for each in counts]
        self.tensors += [torch.tensor(_starts(each), dtype=torch.int32, device=device) for each in counts]
        """Lengths in host memory, and where each starts and the last ends: of sequences, of responses, of prompts."""


def attention(
    module: Any,
    query: Tensor,  # [1, heads, T, D]
    key: Tensor,  # [1, key-value heads, T, D]
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    *,
    layout: PackedLayout,
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
    prefix_k = prefix_v = None
    if layout.prefixes and layout.branched:
        layer = module.layer_idx
        prefix_k = torch.cat([prefix.keys[layer] for prefix in layout.prefixes])
        prefix_v = torch.cat([prefix.values[layer] for prefix in layout.prefixes])
    elif layout.prefixes:
        parts = zip(layout.prefixes, k.split(layout.lengths), v.split(layout.lengths), strict=True)
        for prefix, keys, values in parts:
            prefix.keys.append(keys.contiguous())  # not a view: it would keep the whole row alive
            prefix.values.append(values.contiguous())
    out, _ = _branches(q, k, v, prefix_k, prefix_v, *layout.tensors, scaling)
    return out[None], None


# An operator of its own, whose lengths are tensors: a compiled layer holds one call, whatever the row's layout.
@torch.library.custom_op("prism::branches", mutates_args=())
def _branches(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix_k: Tensor | None,
    prefix_v: Tensor | None,
    lengths: Tensor,
    responses: Tensor,
    prompts: Tensor,
    starts: Tensor,
    response_starts: Tensor,
    prompt_starts: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Attention of each sequence to itself, and of the row's last sequences to their prompts as well: those in the
    prefix, or without one the row's first sequences. From ``lengths`` on, tensors are the layout's.

    Returns [T, heads, D] and its log-sum-exp [heads, T] in float32.
    """
    own = _Runs(lengths, lengths, starts, starts, scale, causal=True)
    shared = _Runs(responses, prompts, response_starts, prompt_starts, scale, causal=False)
    out, lse = own.forward(q, k, v)
    if shared.queries:
        first = len(q) - shared.queries
        if prefix_k is None or prefix_v is None:
            prefix_k, prefix_v = k[: shared.keys], v[: shared.keys]
        prompt_out, prompt_lse = shared.forward(q[first:], prefix_k, prefix_v)
        own_lse = lse[:, first:]
        weight = torch.sigmoid(prompt_lse - own_lse).T[..., None]  # the prompt's share of the softmax
        # One rounding: the parts are merged in float32.
        out[first:] = torch.lerp(out[first:].float(), prompt_out.float(), weight)
        own_lse.copy_(torch.logaddexp(own_lse, prompt_lse))
    return out, lse


@torch.library.custom_op("prism::branches_backward", mutates_args=())
def _branches_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    lengths: Tensor,
    responses: Tensor,
    prompts: Tensor,
    starts: Tensor,
    response_starts: Tensor,
    prompt_starts: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v from that of ``out``, without a prefix."""
    own = _Runs(lengths, lengths, starts, starts, scale, causal=True)
    shared = _Runs(responses, prompts, response_starts, prompt_starts, scale, causal=False)
    grad = grad.contiguous()
    grad_q, grad_k, grad_v = own.backward(grad, q, k, v, out, lse)
    if shared.queries:
        first, keys = len(q) - shared.queries, shared.keys
        added = shared.backward(grad[first:], q[first:], k[:keys], v[:keys], out[first:], lse[:, first:].contiguous())
        for whole, part in zip((grad_q[first:], grad_k[:keys], grad_v[:keys]), added, strict=True):
            whole += part
    return grad_q, grad_k, grad_v


@_branches.register_fake
def _(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)


@_branches_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, prefix_k, _, *layout, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, *output, *layout)
    ctx.prefixed = prefix_k is not None
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, grad: Tensor, _: None) -> Any:
    if ctx.prefixed:
        raise NotImplementedError("what was computed of a prefix before is not learnt from")
    return *_branches_backward(grad, *ctx.saved_tensors, ctx.scale), *[None] * 9


_branches.register_autograd(_gradients, setup_context=_keep)


class _Runs:
    """Attention of the i-th run of queries to the i-th run of keys; q [Tq, heads, D], k and v [Tk, fewer heads, D].

    These are the fused kernels behind scaled_dot_product_attention, called by name for the log-sum-exp that it drops.
    """

    def __init__(
        self, lengths_q: Tensor, lengths_k: Tensor, starts_q: Tensor, starts_k: Tensor, scale: float, *, causal: bool
    ) -> None:
        self._lengths_q, self._lengths_k, self._starts = lengths_q.tolist(), lengths_k.tolist(), (starts_q, starts_k)
        self._scale, self._causal = scale, causal
        self.queries, self.keys = sum(self._lengths_q), sum(self._lengths_k)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """[Tq, heads, D] and its log-sum-exp [heads, Tq] in float32: new tensors, contiguous."""
        if q.device.type == "cpu":
            runs = zip(_split(q, self._lengths_q), *(_split(each, self._lengths_k) for each in (k, v)), strict=True)
            parts = [
                torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*run, 0.0, self._causal, scale=self._scale)
                for run in runs
            ]
            return _joined([out for out, _ in parts]), torch.cat([lse[0] for _, lse in parts], 1)
        out, lse, *_ = torch.ops.aten._flash_attention_forward(
            q, k, v, *self._starts, *self._longest, 0.0, self._causal, False, scale=self._scale
        )
        return out.contiguous(), lse.contiguous()

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of q, k and v. ``out`` and ``lse`` are of the whole softmax, of which this may be one part."""
        if q.device.type == "cpu":
            grads, qs, outs = (_split(each, self._lengths_q) for each in (grad, q, out))
            ks, vs = (_split(each, self._lengths_k) for each in (k, v))
            lses = [part[None] for part in lse.split(self._lengths_q, 1)]  # [1, heads, tokens]
            runs = zip(grads, qs, ks, vs, outs, lses, strict=True)
            parts = [
                torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                    *run, 0.0, self._causal, scale=self._scale
                )
                for run in runs
            ]
            grad_q, grad_k, grad_v = (_joined(list(each)) for each in zip(*parts, strict=True))
            return grad_q, grad_k, grad_v
        no_dropout = torch.empty(2, dtype=torch.uint64, device=q.device)  # its random state, which is not read
        grad_q, grad_k, grad_v = torch.ops.aten._flash_attention_backward(
            grad, q, k, v, out, lse, *self._starts, *self._longest, 0.0, self._causal, no_dropout, no_dropout,
            scale=self._scale,
        )  # fmt: skip
        return grad_q.contiguous(), grad_k.contiguous(), grad_v.contiguous()

    @property
    def _longest(self) -> tuple[int, int]:
        return max(self._lengths_q), max(self._lengths_k)


def _split(tensor: Tensor, lengths: list[int]) -> list[Tensor]:
    """[T, heads, D] into runs [1, heads, tokens, D]."""
    return [part.transpose(0, 1)[None] for part in tensor.split(lengths)]


def _joined(parts: list[Tensor]) -> Tensor:
    """Runs [1, heads, tokens, D] one after another: [T, heads, D]."""
    return torch.cat([part[0].transpose(0, 1) for part in parts])


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
