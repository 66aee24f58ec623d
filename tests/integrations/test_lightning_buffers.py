"""What a step in Lightning leaves in buffers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytest.importorskip("lightning.pytorch")
from lightning_problem import QUIET, STEPS, Traced, batches, fit

from steppe import GSAM, MSAM, SAM
from steppe.integrations.lightning import SharpnessAwareCallback
from steppe.passes import frozen_buffers, frozen_norm_stats
from test_buffers import contents

pytestmark = QUIET
NORM = 3


class ByHand(Traced):
    """Manual optimization, through one of the doors."""

    def __init__(self, door):
        super().__init__()
        self.door, self.automatic_optimization = door, False

    def training_step(self, batch, batch_idx):
        opt = self.optimizers()

        def backward():
            loss = self.loss(*batch)
            self.manual_backward(loss)
            return loss

        def closure():
            opt.zero_grad()
            return backward()

        if self.door == "step":
            opt.step(closure)
            return
        closure()
        with opt.optimizer.ascended():
            backward()
        opt.step()


def passed(n=STEPS):
    """The network after one plain pass over each batch."""
    net = Traced().net
    for x, _ in batches(n):
        net(x)
    return net


@pytest.mark.parametrize("opt", [SAM, GSAM, MSAM])
@pytest.mark.parametrize("k", [1, 2])
def test_a_step_leaves_behind_what_one_pass_leaves(opt, k):
    module = Traced(opt)
    fit(module, accumulate_grad_batches=k)
    if opt is MSAM:  # whose one pass is where it climbs to, and all that it leaves counts
        assert contents(module.net[:2]) == contents(passed()[:2])
        assert contents(module.net) != contents(passed())
    else:
        assert contents(module.net) == contents(passed())


@pytest.mark.parametrize("door", ["step", "ascended"])
def test_with_manual_optimization_too(door):
    module = ByHand(door)
    fit(module, sam=SharpnessAwareCallback(same_random_state=door == "step"))
    assert contents(module.net) == contents(passed())


@pytest.mark.parametrize("k", [1, 2])
def test_the_pass_over_the_whole_batch_counts(k):
    """It is the one at w + delta, so that only what comes before the weights is that of a plain loop."""
    module, sam = Traced(), SharpnessAwareCallback(fraction=0.5)
    fit(module, sam=sam, accumulate_grad_batches=k)
    assert contents(module.net[:2]) == contents(passed()[:2])
    assert contents(module.net) != contents(passed())
    assert module.net[NORM].num_batches_tracked == STEPS


@pytest.mark.parametrize("norm_stats", [True, False])
@pytest.mark.parametrize("others", [True, False])
def test_each_may_be_let_go(norm_stats, others):
    module = Traced()
    fit(module, sam=SharpnessAwareCallback(freeze_norm_stats=norm_stats, freeze_buffers=others))
    expected = passed()
    assert module.net[NORM].num_batches_tracked == (1 if norm_stats else 2) * STEPS
    module.net[NORM] = expected[NORM] = nn.Identity()
    assert (contents(module.net) == contents(expected)) == others


def test_training_is_the_plain_loop():
    module, net = Traced(lr=0.1), Traced().net
    fit(module)
    opt = SAM(torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9), rho=0.5)
    for x, y in batches():
        opt.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        with opt.ascended(), frozen_norm_stats(net), frozen_buffers(net, norm_stats=False):
            nn.functional.cross_entropy(net(x), y).backward()
        opt.base.step()
    assert contents(module.net) == contents(net)
    assert all(map(torch.equal, module.net.parameters(), net.parameters()))
