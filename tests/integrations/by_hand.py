"""What hosts must come to, written out without them. Nothing here uses steppe."""

from __future__ import annotations

import torch

RHO, ALPHA = 0.1, 0.4


def handed_on(model, loss, method, clean_loss=None):
    """The gradient that a method hands on, by its equations; ``loss`` is computed in both passes, or in the second."""
    params = list(model.parameters())
    clean = torch.autograd.grad((clean_loss or loss)(), params)
    norm = 1.0 if method == "usam" else torch.sqrt(sum((g**2).sum() for g in clean))
    before = [p.detach().clone() for p in params]
    with torch.no_grad():
        for p, g in zip(params, clean, strict=True):
            p += RHO * g / norm
    sharp = torch.autograd.grad(loss(), params)
    with torch.no_grad():
        for p, b in zip(params, before, strict=True):
            p.copy_(b)
    if method != "gsam":
        return sharp
    along = sum((c * s).sum() for c, s in zip(clean, sharp, strict=True)) / sum((s**2).sum() for s in sharp)
    return [s - ALPHA * (c - along * s) for c, s in zip(clean, sharp, strict=True)]


def cuts(data, size, accumulation, climb):
    """The updates of an epoch, each a list of what climbs together, each a list of micro-batches."""
    batches = [data[i : i + size] for i in range(0, len(data), size)]
    steps = [batches[i : i + accumulation] for i in range(0, len(batches), accumulation)]
    return [[step] if climb == "replay" else [[batch] for batch in step] for step in steps]


def cuts_of_two(data, size, accumulation, climb, replicas):
    """The same for two processes, which take micro-batches in turn."""
    batches = [data[i : i + size] for i in range(0, len(data), size)]
    together = [batches[i : i + 2] for i in range(0, len(batches), 2)]
    steps = []
    for step in (together[i : i + accumulation] for i in range(0, len(together), accumulation)):
        if replicas == "own":
            parts = [[both[rank] for both in step] for rank in (0, 1)]
            steps.append(parts if climb == "replay" else [[batch] for part in parts for batch in part])
        else:
            steps.append([[batch for both in step for batch in both]] if climb == "replay" else step)
    return steps
