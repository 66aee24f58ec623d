"""Mixed precision on the device: which operations compute in the dtype of ``torch.autocast``, and which in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from .memory import NAME

KEY = "AutocastPrivateUse1"
LOWER = (
    "addbmm", "addmm", "addmv", "baddbmm", "bmm", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d.input",
    "conv_transpose3d.input", "convolution", "linear", "matmul", "mm", "mv", "scaled_dot_product_attention",
)  # fmt: skip
FULL = (
    "binary_cross_entropy_with_logits", "cosine_similarity", "cross_entropy_loss", "cumsum", "exp", "group_norm", "kl_div",
    "l1_loss", "layer_norm", "log", "log_softmax.int", "mse_loss", "nll_loss", "nll_loss_nd", "norm.Scalar", "pow.Tensor_Scalar",
    "prod", "smooth_l1_loss", "softmax.int", "softplus", "sum", "sum.dim_IntList",
)  # fmt: skip


def kernel(name: str, lower: bool) -> Callable[..., Any]:
    """Return an operation that casts what it gets, if that is on the device, and goes on without autocast."""
    packet, _, overload = name.partition(".")
    op = getattr(getattr(torch.ops.aten, packet), overload or "default")

    def cast(x: Tensor) -> Tensor:
        eligible = x.device.type == NAME and x.is_floating_point() and x.dtype is not torch.float64
        return x.to(torch.get_autocast_dtype(NAME) if lower else torch.float32) if eligible else x

    def casting(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)):
            args, kwargs = tree_map_only(Tensor, cast, (args, kwargs))
            return op(*args, **kwargs)

    return casting


def kernels() -> dict[str, Callable[..., Any]]:
    """Return them all, by their names."""
    return {name: kernel(name, name in LOWER) for name in LOWER + FULL}
