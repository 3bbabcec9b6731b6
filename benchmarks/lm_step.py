"""A training step of the medium language model: plain torch, and noise in the hidden state.

    python benchmarks/lm_step.py [--threads 2] [--rounds 11]

Embedding, two LSTM layers of 650 units, a softmax over 10,000 words, clipping and gradient descent.
"""

from __future__ import annotations

import argparse

import torch

from noisin.lab.bench import PLAIN, language_model_steps, table, times


def main() -> None:
    """Time both steps in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=11)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(table(times(language_model_steps(), given.rounds), PLAIN))


if __name__ == "__main__":
    main()
