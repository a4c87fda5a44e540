"""Attention's matrix products where torch's counter has no formula: on CPUs, and of fewer key than query heads.

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


def _runs(products: int, query: Tensor, key: Tensor, starts_q: Tensor | None, starts_k: Tensor | None) -> int:
    """q [tokens, heads, D], k [tokens, fewer heads, D], of which runs meet; or one run [batch, tokens, heads, D]."""
    if starts_q is None or starts_k is None:
        return _dense(products, query.transpose(1, 2), key.transpose(1, 2))
    pairs = int((starts_q.diff().long() * starts_k.diff().long()).sum())
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
    runs = _formulas(
        lambda q, k, v, starts_q, starts_k, *_, **__: _runs(FORWARD, q, k, starts_q, starts_k),
        lambda grad, q, k, v, out, lse, starts_q, starts_k, *_, **__: _runs(BACKWARD, q, k, starts_q, starts_k),
    )
    kinds = ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention")
    mapping: dict[Any, Callable[..., int]] = {}
    for name, formulas in [*((f"_scaled_dot_product_{kind}", dense) for kind in kinds), ("_flash_attention", runs)]:
        suffixes = ("_forward", "_backward") if formulas is runs else ("", "_backward")
        for suffix, formula in zip(suffixes, formulas, strict=True):
            mapping[getattr(torch.ops.aten, name + suffix)] = formula
    return mapping
