"""All steps in one launch; without a GPU its programs run in the interpreter, a thread each."""

import inspect
import sys
import threading
from math import prod

import pytest

from cases import pulled_back
from conftest import assert_bit_equal
from mapped import several, together
from noisin.fused import cuda, operator
from test_fused import made
from test_triton import DEVICE, SIZES, assert_eager, every_case, results, triton_walk, walked
from triton_calls import called

tl = pytest.importorskip("triton.language")  # the interpreter looks for it beside what it runs
SEVERAL = 3, 17, 19  # steps, and two tiles of sequences and of units
TILE = {"BLOCK_B": 16, "BLOCK_H": 16, "BLOCK_K": 16}


@pytest.fixture
def threads(monkeypatch):
    """Let the programs of a launch run at once, and count those of each launch."""
    if DEVICE == "cuda":
        pytest.skip("where there is a GPU, its programs run at once")
    from triton.runtime import interpreter

    builder, own, counts = interpreter.interpreter_builder, threading.local(), []
    place = property(lambda self: own.place, lambda self, place: setattr(own, "place", place))
    monkeypatch.setattr(type(builder), "grid_idx", place, raising=False)
    begin = interpreter.GridExecutor.__init__

    def gathered(executor, program, *given, **options):
        programs, failed = [], []

        def alone(where, arguments):
            builder.grid_idx = where
            try:
                program(**arguments)
            except Exception as error:
                failed.append(error)

        def one(**arguments):
            given = builder.grid_idx, arguments
            programs.append(threading.Thread(target=alone, args=given, daemon=True))
            if len(programs) == prod(builder.grid_dim):
                together()

        def together():
            counts.append(len(programs))
            for thread in programs:
                thread.start()
            for thread in programs:
                thread.join(timeout=60)
                assert not thread.is_alive(), "a program waits for ever"
            programs.clear()
            for error in failed:
                raise error

        begin(executor, program, *given, **options)
        executor.fn, one.__signature__ = one, inspect.signature(program)

    monkeypatch.setattr(interpreter.GridExecutor, "__init__", gathered)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield counts
    sys.setswitchinterval(interval)


@pytest.fixture(autouse=True)
def room(monkeypatch):
    """A GPU of eight multiprocessors."""
    if DEVICE == "cpu":
        monkeypatch.setattr(triton_walk, "multiprocessors", lambda device: 8)


def at_once(call):
    """Walk forward and back, in a launch each."""
    triton_walk.Walk([call.forward], persistent=True).forward()
    triton_walk.Walk([call.backward], persistent=True).backward()
    return call


@every_case
def test_one_launch_is_that_of_torchs_operations(mode, options):
    assert_eager(at_once(called(mode, SIZES, device=DEVICE, **options)), mode, **options)


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("LSTM", {"noise": "fresh", "lengths": [2, 3, 1] + 14 * [3]}),
        ("LSTM", {"noise": "untied", "projected": 18, "reverse": True}),
        ("GRU", {"noise": "untied", "reverse": True}),
        ("RNN_TANH", {"noise": "held"}),
    ],
)
def test_programs_wait_for_each_other(mode, options, threads, monkeypatch):
    monkeypatch.setattr(triton_walk, "blocks", lambda *sizes: TILE)
    expected = results(walked(called(mode, SEVERAL, **options)))
    threads.clear()
    assert_bit_equal(results(at_once(called(mode, SEVERAL, **options))), expected)
    assert threads == [4, 4]  # programs of the way forward, and of the way back


def test_replicas_wait_for_their_own(threads, monkeypatch):
    """Layers, whose products are in the kernels: two replicas of three programs each."""
    monkeypatch.setattr(operator, "DEVICES", {"cpu": cuda})
    cases = several(lambda: made("LSTM", "hidden * Gaussian(0.5)", 2, 3, 3, 33), 2)
    expected = pulled_back(*together(cases))
    threads.clear()
    monkeypatch.setattr(cuda, "persistent", True)
    assert_bit_equal(pulled_back(*together(cases)), expected)
    assert threads == [6, 6]


def test_a_launch_a_step_where_there_is_no_room(threads, monkeypatch):
    monkeypatch.setattr(triton_walk, "blocks", lambda *sizes: TILE)
    monkeypatch.setattr(triton_walk, "multiprocessors", lambda device: 3)
    at_once(called("GRU", SEVERAL))
    assert threads == [4] * (3 + 3 + 1)


@pytest.mark.parametrize("sizes", [(3, 0, 5), (1, 1, 1)])
def test_few_sequences(sizes):
    assert_eager(at_once(called("LSTM", sizes, device=DEVICE)), "LSTM", sizes)
