"""What it costs to draw each law, beside a Gaussian.

    python benchmarks/laws.py [--threads 2] [--rounds 30]

The bar: at its default shape no law costs more than twice a Gaussian.
"""

from __future__ import annotations

import argparse

import torch

from noisin import laws
from noisin.lab.bench import table, times

SIZE = (35, 20, 650)  # steps, sequences, units of a medium language model


def main() -> None:
    """Time one draw of a factor of every law."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=30)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    drawn = [
        laws.Bernoulli(keep=0.5) if name == "Bernoulli" else law(1.0)
        for name, law in laws.LAWS.items()
    ]
    functions = {str(law): lambda law=law: law.factor(SIZE) for law in drawn}
    print(f"factors {list(SIZE)}, {given.threads} threads, median of {given.rounds}")
    print(table(times(functions, given.rounds), "Gaussian(1.0)"))


if __name__ == "__main__":
    main()
