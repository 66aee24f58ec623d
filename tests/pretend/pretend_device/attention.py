"""Attention as the CPU computes it, in one kernel: devices that are not torch's own have another name for that one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from .kernels import run

aten = torch.ops.aten


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return attention by one kernel where the CPU would compute it so, else of its parts."""
    given, options = (query, key, value, attn_mask, dropout_p, is_causal), {"scale": scale, "enable_gqa": enable_gqa}
    chosen = run(aten._fused_sdp_choice.default, *given, **options)
    # Of the mask that kernel has no gradient, and what the CPU is asked about wants none.
    if chosen != SDPBackend.FLASH_ATTENTION.value or (attn_mask is not None and attn_mask.requires_grad):
        return aten._scaled_dot_product_attention_math.default(*given, **options)[0]
    if attn_mask is not None and attn_mask.dtype is torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(~attn_mask, -torch.inf)
    op = aten._scaled_dot_product_fused_attention_overrideable.default
    return op(query, key, value, attn_mask, dropout_p, is_causal, scale=scale)[0]


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    causal: bool = False,
    debug: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Any, ...]:
    """Return the attention and what its gradient needs: of other devices' lengths and seeds the CPU knows nothing."""
    op = aten._scaled_dot_product_flash_attention_for_cpu.default
    output, sums = run(op, query, key, value, dropout, causal, attn_mask=mask, scale=scale)
    none = output.new_empty(0)
    return output, sums, none, none, query.size(2), key.size(2), none, none, none


def backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, wanted: list[bool], *rest: Any,
    scale: float | None = None,
) -> tuple[Any, ...]:  # fmt: skip
    """Return the gradients of the query, the key and the value; the CPU fuses nothing where the mask needs one."""
    output, sums, _, _, _, _, dropout, causal, _, _ = rest
    op = aten._scaled_dot_product_flash_attention_for_cpu_backward.default
    found = run(op, gradient, query, key, value, output, sums, dropout, causal, attn_mask=mask, scale=scale)
    return *found, None


KERNELS = {
    "_scaled_dot_product_fused_attention_overrideable": forward,
    "_scaled_dot_product_fused_attention_overrideable_backward": backward,
}
