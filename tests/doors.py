"""The ways in which a step is taken."""

from __future__ import annotations

import pytest

from problems import through_ascended
from steppe import accumulated_step

DOORS = ["step", "ascended", "backward", "replay", "micro"]

over_doors = pytest.mark.parametrize("door", DOORS)


def take(door, opt, backward, zeroes=True):
    """Take one step through a door, and say in how many passes; a closure may forget to zero gradients."""
    passes = []

    def counted():
        passes.append(1)
        return backward()

    def closure():
        if zeroes:
            opt.zero_grad()
        return counted()

    opt.zero_grad()
    if door == "step":
        opt.step(closure)
    elif door in ("ascended", "backward"):
        through_ascended(opt, counted) if door == "ascended" else opt.backward(counted)
        opt.base.step()
    else:
        accumulated_step(opt, [None], lambda _: counted(), climb=door)
    return len(passes)


def backward_of(problem, batch):
    def backward():
        loss = problem.loss(batch)
        loss.backward()
        return loss

    return backward


def count(opt):
    """Return how many steps the engine has counted."""
    return int(opt.state["engine"].get("step", 0))
