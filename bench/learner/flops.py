"""Attention's matrix products where torch's counter has no formula: ours, on CPUs, of fewer key than query heads.

As torch counts: 2 FLOPs a multiplication and addition, a causal mask's half included, no softmax. Forward makes two
products, backward five (it makes the scores again).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

FORWARD, BACKWARD = 2, 5


def _dense(products: int, query: Tensor, key: Tensor) -> int:
    """q [batch, heads, tokens, D], k [batch, fewer heads, tokens, D]."""
    batch, heads, tokens, size = query.shape
    return products * 2 * batch * heads * tokens * key.shape[2] * size


def _branches(products: int, query: Tensor, lengths: Tensor, responses: Tensor, prompts: Tensor) -> int:
    """q [tokens, heads, D], of which sequences meet themselves and responses their prompts."""
    pairs = int(lengths.long().square().sum() + (responses.long() * prompts.long()).sum())
    return products * 2 * pairs * query.shape[-2] * query.shape[-1]


def _formulas(forward: Callable[..., int], backward: Callable[..., int]) -> list[Callable[..., int]]:
    for formula in (forward, backward):
        formula._get_raw = True  # pyright: ignore[reportFunctionMemberAccess] # it is given tensors, not their shapes
    return [forward, backward]


def attention_flops() -> dict[Any, Callable[..., int]]:
    """For ``FlopCounterMode``'s custom_mapping."""
    dense = _formulas(
        lambda q, k, *_, **__: _dense(FORWARD, q, k),
        lambda grad, q, k, *_, **__: _dense(BACKWARD, q, k),
    )
    branches = _formulas(
        lambda q, k, v, prefix_k, prefix_v, *layout, **_: _branches(FORWARD, q, *layout[:3]),
        lambda grad, q, k, v, out, lse, *layout, **_: _branches(BACKWARD, q, *layout[:3]),
    )
    kinds = ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention")
    names = [(torch.ops.aten, f"_scaled_dot_product_{kind}", dense) for kind in kinds]
    mapping: dict[Any, Callable[..., int]] = {}
    for library, name, formulas in [*names, (torch.ops.prism, "branches", branches)]:
        for suffix, formula in zip(("", "_backward"), formulas, strict=True):
            mapping[getattr(library, name + suffix)] = formula
    return mapping
