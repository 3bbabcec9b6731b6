"""One of two processes that train a noisy model together: run as a script by test_distributed.py.

``python ranks.py FOLDER RANK`` writes what it found to FOLDER/RANK.pt.
"""

import copy
import sys
import warnings

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from models import IDS, Tagger
from noisin import regularize

RANKS = 2
NOISE = (
    "hidden * Gaussian(Learned(0.5)) & weight_hh + Gaussian(Learned(0.3, per='unit'))"
    " & weight_ih * Gaussian(0.3) @ sequence & input + Gaussian(Learned(0.3))"
)
STEPS = 3


def noisy():
    """Return the model that all ranks start from."""
    model = regularize(Tagger(num_layers=2), NOISE)
    regularize(model, "row * Gaussian(Learned(0.3))", where="words")
    return regularize(model, "weight * Gaussian(Learned(0.3))", where="read")


def step(model, rank, number):
    """Run one batch of a rank, noise of its own; return the output."""
    torch.manual_seed(100 * number + rank)
    output = model(IDS.roll(rank + number, 0))
    output.square().mean().backward()
    return output.detach()


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def main(folder, rank):
    """Train for a few steps, beside a copy that each time sees this rank's batch alone."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=RANKS)
    model = DistributedDataParallel(noisy())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    torch.manual_seed(rank)
    found = {"noise": model(IDS).detach(), "steps": []}
    for number in range(STEPS):
        alone = copy.deepcopy(model.module)
        alone.zero_grad()
        output = step(alone, rank, number)
        optimizer.zero_grad()
        assert torch.equal(step(model, rank, number), output)
        both = {"alone": gradients(alone), "together": gradients(model.module)}
        found["steps"].append(both)
        optimizer.step()
    found["parameters"] = {name: p.detach() for name, p in model.module.named_parameters()}
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
