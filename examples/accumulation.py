"""Batches larger than memory: python examples/accumulation.py [--steps 100]

Two ways to take one step on eight micro-batches, and SAM on the whole batch to compare them with. "replay" runs over
them twice and is the same as the whole batch; "micro" climbs anew for each of them, which is m-SAM, another method.
"""

import argparse

import torch
from torch import nn

from steppe import SAM, accumulated_step

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--steps", type=int, default=100)
arguments = parser.parse_args()

torch.manual_seed(0)
x = torch.rand(2048, 2, dtype=torch.float64) * 2 - 1
y = (x[:, 0] * x[:, 1] > 0).long()
batches = [torch.randint(2048, (256,)) for _ in range(arguments.steps)]


def train(how):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 2)).double()
    opt = SAM(torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9), rho=0.05)

    def backward(indices, divisor=8):
        loss = nn.functional.cross_entropy(model(x[indices]), y[indices]) / divisor
        loss.backward()
        return loss

    for batch in batches:
        if how == "whole":

            def closure(batch=batch):
                opt.zero_grad()
                return backward(batch, divisor=1)

            opt.step(closure)
        else:
            accumulated_step(opt, batch.chunk(8), backward, climb=how)
    return model


whole = nn.utils.parameters_to_vector(train("whole").parameters())
for how in ("replay", "micro"):
    model = train(how)
    apart = (nn.utils.parameters_to_vector(model.parameters()) - whole).norm() / whole.norm()
    accuracy = (model(x).argmax(dim=1) == y).double().mean()
    print(f"{how}: accuracy {accuracy:.3f}, relative distance to the whole batch's weights {apart:.0e}")
