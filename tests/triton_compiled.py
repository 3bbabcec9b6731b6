"""Compile the Triton kernels as a GPU would have it: run as a script, without Triton's interpreter.

``python triton_compiled.py ARCH CACHE`` drives whole calls on tensors of the CPU, on a driver that
launches nothing, and prints what was compiled as JSON. What would be launched is checked on the
way: one launch a step (two with a projection), of arguments that differ in the step alone, or one
launch each way, of programs that start together and wait for each other.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ARCH, os.environ["TRITON_CACHE_DIR"] = int(sys.argv[1]), sys.argv[2]

# behind the environment, which Triton reads when it is imported
import torch  # noqa: E402
import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402

from noisin.fused import triton_launch, triton_walk  # noqa: E402
from triton_calls import called  # noqa: E402

T = 3
FLOAT, BFLOAT, HALF = torch.float32, torch.bfloat16, torch.float16
CALLS = [  # what is launched, cell, B, H, dtype of operands, and what else there is
    *(("walk", "LSTM", 20, 650, dtype, {"noise": "fresh"}) for dtype in (FLOAT, BFLOAT, HALF)),
    *(("walk", "LSTM", 20, 1500, dtype, {}) for dtype in (FLOAT, BFLOAT)),
    ("walk", "LSTM", 256, 1500, FLOAT, {}),
    ("walk", "LSTM", 20, 650, FLOAT, {"noise": "untied", "zoneout": True, "lengths": [T] * 20}),
    ("walk", "LSTM", 20, 650, FLOAT, {"projected": 300, "noise": "fresh"}),
    ("walk", "GRU", 20, 650, FLOAT, {"noise": "held", "reverse": True}),
    *(("walk", "RNN_TANH", batch, 650, HALF, {"noise": "fresh"}) for batch in (20, 16, 1)),
    *(("persistent", "LSTM", 20, 650, one, {"noise": "fresh"}) for one in (FLOAT, BFLOAT, HALF)),
    ("persistent", "LSTM", 20, 650, FLOAT, {"projected": 300}),
    ("persistent", "GRU", 20, 650, FLOAT, {"noise": "untied", "reverse": True}),
    ("steps", "LSTM", 20, 650, FLOAT, {"noise": "fresh", "lengths": [T] * 20}),
    ("steps", "GRU", 20, 650, BFLOAT, {"noise": "fresh"}),
]
if ARCH < 90:
    CALLS = [CALLS[at] for at in (1, 7, 9, 13, 15, 17)]  # still every kernel and every precision
LAUNCHES = []  # of one call: the kernel's name, the step, and all it was given
COMPILED = []  # of one call: the kernel's name, its code, and bytes of shared memory


class Utils:
    """What Triton asks a device."""

    def get_device_properties(self, device):
        return {"max_shared_mem": 99 * 1024}

    def load_binary(self, name, binary, shared, device):
        COMPILED.append((name, binary, shared))
        return self, name, 0, 0, 1024

    def unload_module(self, module):
        pass


class Launcher:
    """Write down what would be launched."""

    def __init__(self, source, metadata):
        self.signature = list(source.signature.values())
        self.together = metadata.launch_cooperative_grid

    def __call__(self, *given):
        (name, *_), args = given[4:9], given[9:]
        assert self.together == name.startswith("all_steps"), name
        flat = list(flattened(self.signature, args))
        LAUNCHES.append((name, args[1], flat))


class Driver:
    """A GPU that is not there."""

    utils, launcher_cls = Utils(), Launcher

    def get_current_target(self):
        return GPUTarget("cuda", ARCH, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


def checked(launch, device, given, found=triton_launch.Launch._found):
    """Return what is launched, which is what Triton itself would take."""
    compiled, told = found(launch, device, given), launch._arguments.told
    options = launch._options
    assert compiled is launch._kernel.warmup(told, *given, grid=launch._grid, **options)
    return compiled


def flattened(kinds, values):
    """Yield what a launcher reads: addresses and numbers, without constants."""
    assert len(kinds) == len(values)
    for kind, value in zip(kinds, values, strict=True):
        if isinstance(kind, tuple):
            yield from flattened(kind, value)
        elif kind != "constexpr":
            yield value.data_ptr() if isinstance(value, torch.Tensor) else value


def assert_alike(launches):
    """All launches of a kernel have the same arguments, but for the step."""
    for name, t, flat in launches:
        first = next(given for kernel, _, given in launches if kernel == name)
        assert all(isinstance(one, int) for one in flat)
        assert sum(a != b for a, b in zip(flat, first, strict=True)) <= 1, (name, t)


def run(way, call):
    """Launch all of a call, and return the names of the kernels in order."""
    LAUNCHES.clear()
    COMPILED.clear()
    b, g = call.buffers, call.gradients
    if way != "steps":
        triton_walk.Walk([call.forward], way == "persistent").forward()
        triton_walk.Walk([call.backward], way == "persistent").backward()
        return [name for name, *_ in LAUNCHES]
    forward, backward = triton_walk.Steps(b), triton_walk.Steps(b, g)
    product = torch.empty_like(b.gates[0])
    for t in b.steps:
        forward.forward(t, product)
        forward.emit(t)
    for t in reversed(b.steps):
        backward.absorb(t)
        backward.backward(t)
    return [name for name, *_ in LAUNCHES]


def expected(way, call):
    """The names of the kernels that a call launches."""
    if way == "steps":
        return ["forward", "emit_state"] * T + ["absorb_state", "backward"] * T
    if way == "persistent":
        return ["all_steps", "all_steps_back"]
    projected = call.projection is not None
    forward = ["step", "project"] if projected else ["step"]
    backward = ["step_back", "project_back"] if projected else ["step_back"]
    return forward * T + backward * T + ["send_back"]


def assert_waiting(folder):
    """All threads have written when a program says that it came, and none reads before all have."""
    kinds = {"came": r"\.release\.", "asks": r"\.acquire\.", "wait": r"bar\.sync"}
    kinds["memory"] = r"(ld|st|red|atom)\.global|cp\.async\.c[ag]"
    paths = [*Path(folder).rglob("all_steps*.ptx")]
    assert paths
    for path in paths:
        lines = path.read_text().splitlines()
        assert not any(".global.nc" in line for line in lines)  # such loads may be older
        seen = [next((k for k, what in kinds.items() if re.search(what, one)), "") for one in lines]
        seen = list(filter(None, seen))
        assert {"came", "asks"} <= set(seen)
        for at, kind in enumerate(seen):
            if kind == "came":
                assert seen[at - 1] == "wait", path
            if kind == "asks":
                assert seen[at + 1] == "wait", path
                assert seen[at - 1] in ("came", "wait"), path


def resources(binary):
    """Return registers of a thread, and bytes of them that were spilled."""
    tool, path = triton.knobs.nvidia.cuobjdump.path, os.path.join(sys.argv[2], "kernel.cubin")
    with open(path, "wb") as file:
        file.write(binary)
    text = subprocess.run([tool, "-res-usage", path], capture_output=True, text=True, check=True)
    found = dict(re.findall(r"(\w+):(\d+)", text.stdout))
    return int(found["REG"]), int(found["STACK"]) + int(found["LOCAL"])


def main():
    torch.set_num_threads(1)
    triton.runtime.driver.set_active(Driver())
    triton_walk.multiprocessors = lambda device: 132
    triton_launch.Launch._found = checked
    found = []
    for way, mode, batch, hidden, dtype, options in CALLS:
        call = called(mode, (T, batch, hidden), operands=dtype, half=dtype, **options)
        names = run(way, call)
        assert names == expected(way, call), names
        assert_alike(LAUNCHES)
        for name, binary, shared in COMPILED:
            registers, spilled = resources(binary)
            found.append(
                {
                    "call": [way, mode, batch, hidden, str(dtype), repr(options)[:60]],
                    "kernel": name,
                    "shared": shared,
                    "registers": registers,
                    "spilled": spilled,
                }
            )
    assert_waiting(sys.argv[2])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
