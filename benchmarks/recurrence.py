"""One forward and backward pass of a recurrent layer: torch's own, without noise, and ours with it.

    python benchmarks/recurrence.py [--threads 2] [--rounds 11] [--only LSTM GRU RNN]

Noise is drawn inside what is timed. Beside them run what users write today, a loop over torch's
cell with noise, that loop compiled by torch, and, where they are installed, JAX's scan and Keras'
layer with its ``recurrent_dropout``. Peak memory is that of one pass in a process of its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import nn

from noisin.lab.bench import (
    NOISE,
    NOISY,
    PLAIN,
    WORKS,
    Work,
    limit,
    loop,
    memory,
    passes,
    table,
    times,
)

NOISES = {
    NOISY: NOISE,
    "hidden * Gaussian": "hidden * Gaussian(0.5)",
    "recurrent @ sequence": "recurrent * Bernoulli(keep=0.5) @ sequence",
    "recurrent @ untied": "recurrent * Bernoulli(keep=0.5) @ sequence @ untied",
    "weight_hh @ sequence": "weight_hh * Bernoulli(keep=0.5) @ sequence",
    "weight_hh, fresh": "weight_hh * Bernoulli(keep=0.5)",
    "weight_hh, fresh Gaussian": "weight_hh * Gaussian(0.1)",
    "weight_hh @ preactivation": "weight_hh * Gaussian(0.1) @ preactivation",
    "between, input, output": "zaremba(keep=0.5, num_layers=1)",
}


def compiled(work: Work) -> dict[str, Callable[[], object]]:
    """Return the loop over torch's cell, compiled as a whole."""
    cell = nn.LSTMCell(work.size, work.size)
    x = torch.randn(work.time, work.batch, work.size, requires_grad=True)
    run = torch.compile(loop)
    return {"the loop, torch.compile": lambda: run(cell, x).sum().backward()}


def jax_scan(work: Work) -> dict[str, Callable[[], object]]:
    """Return JAX's scan over an LSTM with `hidden * Bernoulli`, where JAX is installed."""
    try:
        import jax
        from jax import numpy as np
    except ImportError:
        return {}
    size, keys = work.size, jax.random.split(jax.random.PRNGKey(0), 3)
    w, u = (jax.random.normal(key, (4 * size, size)) / size**0.5 for key in keys[:2])
    x = jax.random.normal(keys[2], (work.time, work.batch, size))

    def total(w, u, x, key):
        masks = jax.random.bernoulli(key, 0.5, x.shape) / 0.5

        def step(state, now):
            h, c = state
            a, mask = now
            i, f, g, o = np.split(a + h @ u.T, 4, -1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * np.tanh(g)
            h = jax.nn.sigmoid(o) * np.tanh(c) * mask
            return (h, c), h

        zeros = np.zeros((work.batch, size))
        return jax.lax.scan(step, (zeros, zeros), (x @ w.T, masks))[1].sum()

    run = jax.jit(jax.grad(total, (0, 1, 2)))
    return {"JAX lax.scan, noise": lambda: jax.block_until_ready(run(w, u, x, keys[0]))}


def keras_layer(work: Work) -> dict[str, Callable[[], object]]:
    """Return Keras' LSTM with ``recurrent_dropout`` on torch, where Keras is installed."""
    import os

    os.environ.setdefault("KERAS_BACKEND", "torch")
    try:
        import keras
    except ImportError:
        return {}
    layer = keras.layers.LSTM(work.size, return_sequences=True, recurrent_dropout=0.5)
    x = torch.randn(work.batch, work.time, work.size, requires_grad=True)
    return {"Keras recurrent_dropout": lambda: layer(x, training=True).sum().backward()}


def main() -> None:
    """Measure all sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--only", nargs="*", default=["LSTM", "GRU", "RNN"])
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(f"large product: {limit():.0f} GFLOP/s, {given.threads} threads")
    for work in WORKS:
        if work.kind not in given.only:
            continue
        functions = passes(work, NOISES)
        if work.kind == "LSTM" and work.size < 1000:
            functions |= compiled(work) | jax_scan(work) | keras_layer(work)
        found = times(functions, given.rounds)
        speed = work.operations / found[NOISY] / 1e6
        print(f"{work}: {speed:.0f} GFLOP/s with {NOISE}")
        print(table(found, PLAIN))
        for steps in (work.time, 10 * work.time) if work.size == 650 else (work.time,):
            print(*memory(work._replace(time=steps)), sep="\n")


if __name__ == "__main__":
    main()
