"""One model, several threads: what one of them switches, and what it reaches."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from cases import seeded
from noisin import LSTM, Linear, plain, predict, regularize, sampling

NOISE = "hidden * Gaussian(0.5)"
X = seeded(4, 2, 3)


@pytest.mark.parametrize(("context", "switch"), [(sampling, "sampling"), (plain, "silent")])
def test_the_last_to_leave_puts_a_switch_back(context, switch):
    """Whoever entered first."""
    layer = LSTM(3, 5, noise=NOISE)
    first, second = context(layer), context(layer)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert getattr(layer, switch)
    second.__exit__(None, None, None)
    assert not getattr(layer, switch)


@pytest.mark.parametrize("training", [True, False])
def test_predictions_of_several_threads_leave_a_model_as_it_was(training):
    model = nn.Sequential(Linear(3, 5, noise="input * Gaussian(0.5)"), nn.Dropout(0.5))
    model.train(training)
    both = threading.Barrier(2)

    def link(result):
        both.wait(10)  # within the other one's prediction
        return result

    with ThreadPoolExecutor(2) as pool:
        for _ in range(3):
            found = [pool.submit(predict, model, X, samples=3, link=link) for _ in range(2)]
            for one in found:
                one.result()
    assert [one.training for one in model.modules()] == [training] * 3
    assert not model[0].sampling


def test_threads_in_a_layer_of_the_users_own_hide_nothing_from_each_other():
    """One calls torch's forward while the other has not come to it yet."""
    late, done = threading.Event(), threading.Event()

    class Own(nn.Linear):
        def forward(self, x):
            if threading.current_thread() is not threading.main_thread():
                late.set()
                done.wait(10)
                return super().forward(x)
            result = super().forward(x)
            thread.start()
            assert late.wait(10)
            return result

    layer = regularize(Own(3, 5), "input * Gaussian(0.5)", where="")
    thread = threading.Thread(target=layer, args=(X,))
    assert layer(X).shape == (4, 2, 5)
    done.set()
    thread.join()


def test_a_layer_that_is_not_reached_is_still_told():
    class Deaf(nn.Linear):
        def forward(self, x):
            return x @ self.weight.t()

    layer = regularize(Deaf(3, 5), "input * Gaussian(0.5)", where="")
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"must call super\(\).forward"):
            layer(X)
    assert torch.equal(layer.eval()(X), X @ layer.weight.t())
