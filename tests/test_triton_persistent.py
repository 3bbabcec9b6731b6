"""All steps in one launch; without a GPU its programs run in the interpreter, a thread each."""

import inspect
import sys
import threading
import time
from math import prod

import pytest
import torch

from cases import pulled_back
from conftest import assert_bit_equal
from mapped import several, together
from noisin.fused import cuda, operator
from test_fused import made
from test_triton import DEVICE, SIZES, assert_eager, every_case, results, triton_walk
from triton_calls import called

triton_launch = pytest.importorskip("noisin.fused.triton_launch")
tl = pytest.importorskip("triton.language")  # the interpreter looks for it beside what it runs
ON_GPU = DEVICE == "cuda"
SEVERAL = 35 if ON_GPU else 3, 17, 35  # steps; two tiles of sequences and three of units
TIMES = 50 if ON_GPU else 1
TILE = {"BLOCK_B": 16, "BLOCK_H": 16, "BLOCK_K": 16}
TOGETHER = TILE | {"num_warps": 8, "launch_cooperative_grid": True}


@pytest.fixture(autouse=True)
def room(monkeypatch):
    """Room for eight programs, where they are threads."""
    if not ON_GPU:
        monkeypatch.setattr(triton_walk, "multiprocessors", lambda device: 8)


@pytest.fixture(autouse=True)
def _deadline(monkeypatch):
    """Let a program that waits for ever fail."""
    if ON_GPU:
        return
    from triton.runtime.interpreter import InterpreterBuilder

    poll, end = InterpreterBuilder.create_atomic_rmw, time.monotonic() + 60

    def polled(builder, *given):
        if time.monotonic() > end:
            raise TimeoutError("a program waits for ever")
        return poll(builder, *given)

    monkeypatch.setattr(InterpreterBuilder, "create_atomic_rmw", polled)


@pytest.fixture
def launches(monkeypatch):
    """The programs of each launch."""
    counts, launch = [], triton_walk.Launch.__call__

    def counted(self, *given):
        counts.append(self.programs)
        return launch(self, *given)

    monkeypatch.setattr(triton_walk.Launch, "__call__", counted)
    return counts


@pytest.fixture
def threads(monkeypatch):
    """Let the programs of a launch run at once, and the last of them write late."""
    if ON_GPU:
        yield
        return
    from triton.runtime import interpreter

    builder, own = interpreter.interpreter_builder, threading.local()
    place = property(lambda self: own.place, lambda self, place: setattr(own, "place", place))
    monkeypatch.setattr(type(builder), "grid_idx", place, raising=False)
    begin, store = interpreter.GridExecutor.__init__, type(builder).create_masked_store

    def late(self, *given):
        if [at + 1 for at in own.place[:2]] == [*builder.grid_dim[:2]]:
            time.sleep(0.02)
        return store(self, *given)

    def gathered(executor, program, *given, **options):
        programs, failed = [], []

        def alone(where, arguments):
            builder.grid_idx = where
            try:
                program(**arguments)
            except Exception as error:  # raised when all have ended
                failed.append(error)

        def one(**arguments):
            given = builder.grid_idx, arguments
            programs.append(threading.Thread(target=alone, args=given))
            if len(programs) == prod(builder.grid_dim):
                at_the_same_time()

        def at_the_same_time():
            for thread in programs:
                thread.start()
            for thread in programs:
                thread.join()
            programs.clear()
            for error in failed:
                raise error

        begin(executor, program, *given, **options)
        executor.fn, one.__signature__ = one, inspect.signature(program)

    monkeypatch.setattr(interpreter.GridExecutor, "__init__", gathered)
    monkeypatch.setattr(type(builder), "create_masked_store", late)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(interval)


def at_once(call):
    """Walk forward and back, in a launch each."""
    triton_walk.Walk([call.forward], persistent=True).forward()
    triton_walk.Walk([call.backward], persistent=True).backward()
    return call


@every_case
def test_one_launch_is_that_of_torchs_operations(mode, options):
    assert_eager(at_once(called(mode, SIZES, device=DEVICE, **options)), mode, **options)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("LSTM", {"noise": "fresh", "lengths": [2, 3, 1] + 14 * [SEVERAL[0]]}),
        ("LSTM", {"projected": 7, "noise": "untied", "reverse": True}),
        ("GRU", {"noise": "untied", "reverse": True}),
        ("RNN_TANH", {"noise": "held"}),
    ],
)
def test_programs_wait_for_each_other(mode, options, launches, monkeypatch):
    monkeypatch.setattr(triton_walk, "blocks", lambda *sizes: TOGETHER)
    for _ in range(TIMES):
        found = at_once(called(mode, SEVERAL, device=DEVICE, **options))
        assert_eager(found, mode, SEVERAL, **options)
    assert launches == [6, 6] * TIMES  # on the way forward, and on the way back


@pytest.mark.skipif(not ON_GPU, reason="programs wait as they are launched on a GPU")
@pytest.mark.parametrize("sizes", [(100, 20, 650), (35, 64, 650), (35, 20, 1500)])
@pytest.mark.parametrize("mode", ["LSTM", "GRU"])
def test_nothing_races_at_real_sizes(mode, sizes, launches):
    """As many times as it is tried, not a bit differs."""
    first = results(at_once(called(mode, sizes, device=DEVICE, noise="fresh")))
    for _ in range(100):
        found = results(at_once(called(mode, sizes, device=DEVICE, noise="fresh")))
        assert_bit_equal(found, first)
    assert len(launches) == 2 * 101  # one each way


@pytest.mark.usefixtures("threads")
@pytest.mark.skipif(ON_GPU, reason="layers on the CPU")
def test_replicas_wait_for_their_own(launches, monkeypatch):
    """Two replicas of three programs each."""
    monkeypatch.setattr(operator, "DEVICES", {"cpu": cuda})
    monkeypatch.setattr(cuda, "persistent", True)
    cases = several(lambda: made("LSTM", "hidden * Gaussian(0.5)", 2, 3, 3, 33), 2)
    found = pulled_back(*together(cases))
    assert launches == [6, 6]
    monkeypatch.setattr(cuda, "persistent", False)
    assert_bit_equal(found, pulled_back(*together(cases)))


def test_a_launch_a_step_where_there_is_no_room(launches, monkeypatch):
    monkeypatch.setattr(triton_walk, "blocks", lambda *sizes: TILE)
    monkeypatch.setattr(triton_walk, "multiprocessors", lambda device: 5)
    sizes = 3, *SEVERAL[1:]
    assert_eager(at_once(called("GRU", sizes, device=DEVICE)), "GRU", sizes)
    assert launches == [6] * (3 + 3 + 1)


@pytest.mark.parametrize("sizes", [(3, 0, 5), (1, 1, 1)])
def test_few_sequences(sizes):
    assert_eager(at_once(called("LSTM", sizes, device=DEVICE)), "LSTM", sizes)


@pytest.mark.skipif(ON_GPU, reason="of Triton's interpreter")
def test_the_interpreter_has_room_for_one_program():
    """It takes one after the other: those that wait for each other would wait for ever."""
    assert triton_launch.multiprocessors(torch.device("cpu")) == 1
