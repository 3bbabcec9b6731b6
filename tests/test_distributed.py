"""DistributedDataParallel over two processes, noise and learned spreads in every layer."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conftest import assert_bit_equal
from processes import HANGS
from ranks import RANKS, STEPS, noisy

SCRIPT = Path(__file__).with_name("ranks.py")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Run the ranks, none of which may warn or look for unused parameters."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder), str(rank)],
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(RANKS)
    ]
    try:
        errors = [rank.communicate(timeout=HANGS)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * RANKS, "\n".join(errors)
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


def test_two_processes_train_a_noisy_model(found):
    """Each draws its own noise, and all of them step by the mean of their gradients."""
    first, second = found
    assert not torch.equal(first["noise"], second["noise"])
    spreads = [name for name, _ in noisy().named_parameters() if "rho" in name]
    assert len(spreads) == 2 + 2 + 1 + 1 + 1
    assert len(first["steps"]) == len(second["steps"]) == STEPS
    for one, other in zip(first["steps"], second["steps"], strict=True):
        assert set(spreads) < set(one["together"]) == set(other["together"])
        for name, gradient in one["together"].items():
            assert_bit_equal(gradient, other["together"][name])
            assert_bit_equal(gradient, one["alone"][name] / RANKS + other["alone"][name] / RANKS)
            assert (gradient != 0).any(), name
            assert not torch.equal(one["alone"][name], other["alone"][name]), name
    start = dict(noisy().named_parameters())
    for name, parameter in first["parameters"].items():
        assert_bit_equal(parameter, second["parameters"][name])
        assert not torch.equal(parameter, start[name]), name
