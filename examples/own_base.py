"""A base of your own: steppe compare --task digits --base examples/own_base.py:muon_adamw --methods BASE,sam"""

from collections.abc import Iterable

import torch
from torch.nn import Parameter
from torch.optim import Optimizer


def muon_adamw(parameters: Iterable[Parameter], lr: float = 0.02, adamw_lr: float = 0.004) -> list[Optimizer]:
    """Let Muon take the matrices, and AdamW the rest."""
    matrices, rest = [], []
    for parameter in parameters:
        (matrices if parameter.ndim == 2 else rest).append(parameter)
    return [torch.optim.Muon(matrices, lr=lr), torch.optim.AdamW(rest, lr=adamw_lr)]
