"""What it costs to draw each law, beside a Gaussian; and a layer with each.

    python benchmarks/laws.py [--threads 2] [--rounds 30]

The bars: at its default shape no law costs more than twice a Gaussian, and a layer of 650 units
with it no more than 1.1 times a layer with a Gaussian.
"""

from __future__ import annotations

import argparse

from noisin import laws
from noisin.lab.bench import FACTOR, Work, drawing, passes, running, table, times


def main() -> None:
    """Time one draw of a factor of every law, then a layer's pass with it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=30)
    given = parser.parse_args()
    with running(given.threads):
        print(f"factors {list(FACTOR)}, {given.threads} threads, median of {given.rounds}")
        print(table(times(drawing(), given.rounds), "Gaussian(1.0)"))
        time, batch, size = FACTOR
        work = Work("LSTM", batch, time, size)
        noises = {
            name: f"hidden * {name}({'keep=0.5' if name == 'Bernoulli' else '0.5'})"
            for name in laws.LAWS
        }
        found = passes(work, noises)
        print(f"{work}, forward and backward with each")
        print(table(times({name: found[name] for name in noises}, given.rounds), "Gaussian"))


if __name__ == "__main__":
    main()
