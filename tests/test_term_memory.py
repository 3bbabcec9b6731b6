"""Fresh matrices at each step are made again for the gradient: memory does not grow with T of them.

What autograd saves is counted by its hooks, and what lives at all by watching every operation, so
that a matrix kept anywhere else counts too.
"""

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from cases import make, seeded
from conftest import assert_bit_equal
from noisin import GRU, Linear
from noisin.fused import operator

B, F, H, R = 2, 7, 7, 11  # as many columns in W_ih as in W_hh; nothing else is a multiple of R·C
SHORT, LONG = 5, 50

FRESH = [
    "weight_hh + Gaussian(0.1)",
    "weight_hh * Bernoulli(keep=0.9)",
    "weight_ih * Gaussian(0.1) & weight_ih + Laplace(0.1)",
    "weight_hh * Gaussian(0.1) & weight_hh + Laplace(0.1) & weight_ih + Gaussian(0.1)",
    "adaptive_weight_noise(0.1)",
    "weight_hh * Gaussian(Learned(0.1)) & hidden * Gaussian(0.1)",
    "input * Gaussian(0.1) & weight_ih + Gaussian(0.1) & Zoneout(hidden=0.1)",
    "recurrent * Gaussian(0.1) @ untied & weight_hh + Gaussian(0.1)",
    "recurrent * Gaussian(0.1) @ preactivation & weight_hh + Gaussian(0.1)",
]
FORMULA = [
    "recurrent * Gaussian(0.1) @ preactivation",
    "weight_hh * Gaussian(0.1) @ preactivation",
    "weight_hh + Gaussian(Learned(0.1, per='weight')) @ preactivation",
]
HELD = ["weight_hh + Gaussian(0.1) @ sequence & weight_ih * Gaussian(0.1) @ sequence"]


def matrices(tensor, numel):
    """Return how many matrices of R·C numbers a tensor's memory is, 0 where it is none."""
    if tensor.layout == torch._mkldnn:  # its memory is hidden: packed once a call
        return 0
    count, rest = divmod(tensor.untyped_storage().nbytes(), numel * tensor.element_size())
    return 0 if rest else count


INSIDE = {
    torch.ops.noisin.recurrence.default: operator._recurrence,
    torch.ops.noisin.recurrence_backward.default: operator._recurrence_backward,
}


class Alive(TorchDispatchMode):
    """Counts the living matrices after each operation; keeps the highest count."""

    def __init__(self, numel):
        super().__init__()
        self.numel, self.storages, self.most = numel, {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in INSIDE:  # whose operations no mode sees from here
            with self:
                result = INSIDE[function](*args)
        else:
            result = function(*args, **(kwargs or {}))
        for one in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(one, torch.Tensor) and matrices(one, self.numel):
                reference = StorageWeakRef(one.untyped_storage())
                self.storages[reference.cdata] = reference, matrices(one, self.numel)
        self.storages = {k: v for k, v in self.storages.items() if not v[0].expired()}
        self.most = max(self.most, sum(count for _, count in self.storages.values()))
        return result


def lived(layer, x, numel):
    """Return the most matrices alive at once, forward and backward."""
    with Alive(numel) as alive:
        output = layer(x)
        (output if isinstance(output, torch.Tensor) else output[0]).square().sum().backward()
    return alive.most


def saved(layer, x, numel):
    """Return how many matrices autograd saved in one call."""
    held = {}

    def keep(tensor):
        held[tensor.untyped_storage().data_ptr()] = tensor  # held, so nothing else takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(x)
    return sum(matrices(tensor, numel) for tensor in held.values())


def counted(layer, numel):
    """Return both counts in a short call, and in a long one."""
    xs = [seeded(time, B, F).requires_grad_() for time in (SHORT, LONG)]
    return [(saved(layer, x, numel), lived(layer, x, numel)) for x in xs]


def assert_flat(layer, weight):
    short, long = counted(layer, weight.numel())
    assert long == short
    assert max(long) < LONG / 2


@pytest.mark.parametrize("kind", ["LSTM", "tanh"])
@pytest.mark.parametrize("noise", FRESH + HELD)
def test_fresh_matrices_do_not_pile_up_over_time(noise, kind):
    layer = make(kind, F, H, noise=noise)
    assert layer.weight_ih_l0.numel() == layer.weight_hh_l0.numel()
    assert_flat(layer, layer.weight_hh_l0)


@pytest.mark.parametrize("noise", FORMULA)
def test_nor_do_squares_of_the_formula(noise):
    layer = GRU(F, H, noise=noise)
    assert_flat(layer, layer.weight_hh_l0)


@pytest.mark.parametrize(
    "noise",
    [
        "weight + Gaussian(0.1)",
        "weight * Gaussian(0.1) & weight + Gaussian(0.1)",
        "weight * Gaussian(Learned(0.1, per='weight'))",
        "input * Gaussian(0.1) @ preactivation & weight + Gaussian(0.1)",
        "weight + Gaussian(0.1) @ preactivation",
    ],
)
def test_nor_do_those_of_a_linear(noise):
    layer = Linear(F, R, noise=noise)
    assert_flat(layer, layer.weight)


def test_both_counts_see_matrices_that_pile_up():
    """The same noise by torch's own operations keeps a matrix a step, or all in one piece."""
    weight = torch.nn.Parameter(seeded(R, F))

    def fresh(x):
        return torch.stack([row @ (weight * seeded(R, F, seed=t)).T for t, row in enumerate(x)])

    def at_once(x):
        return x @ (weight * seeded(len(x), R, F)).mT

    for run in (fresh, at_once):
        for time, (kept, alive) in zip((SHORT, LONG), counted(run, R * F), strict=True):
            assert kept >= time
            assert alive >= time


def test_what_is_made_again_is_what_was_there():
    """Whatever torch's generator does between the forward pass and the backward pass."""
    layer, x = make("LSTM", F, H, noise=FRESH[3]), seeded(SHORT, B, F)
    grads = []
    for other in (None, 7):
        torch.manual_seed(0)
        output, _ = layer(x)
        if other is not None:
            torch.manual_seed(other)
            torch.randn(100)
        state = torch.get_rng_state()
        grads.append(torch.autograd.grad(output.square().sum(), list(layer.parameters())))
        assert torch.equal(torch.get_rng_state(), state), "the backward pass drew random numbers"
    assert_bit_equal(*grads)
