"""Noise that regularizes recurrent networks.

    from noisin import LSTM, at, Bernoulli

    layer = LSTM(650, 650, num_layers=2, noise=at.hidden * Bernoulli(keep=0.41))

``noisin.at`` has the sites, ``noisin.laws`` the laws, ``noisin.methods`` the papers' methods.
"""

from noisin import at, diagnostics, init, methods, optim, penalties
from noisin.dense import Embedding, Linear
from noisin.explanation import explain
from noisin.inference import fold, plain, predict, predictive, sampling, unfold
from noisin.laws import (
    Bernoulli,
    Beta,
    ChiSquare,
    Gamma,
    Gaussian,
    Gumbel,
    Laplace,
    Law,
    Learned,
    Logistic,
    Uniform,
)
from noisin.layers import GRU, LSTM, RNN
from noisin.likelihood import BernoulliHead, CategoricalHead, GaussianHead, PoissonHead
from noisin.noise import (
    Noise,
    Term,
    Terms,
    cumulative,
    moments,
    preactivation,
    sample,
    sequence,
    step,
    tied,
    untied,
)
from noisin.propagated import Propagation
from noisin.propagation import Moments
from noisin.recurrence import Recurrence
from noisin.replicas import Replicas
from noisin.schedule import StrengthSchedule
from noisin.surgery import regularize, strip
from noisin.text import parse
from noisin.zoneout import Zoneout

__version__ = "0.1.0"

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Bernoulli",
    "BernoulliHead",
    "Beta",
    "CategoricalHead",
    "ChiSquare",
    "Embedding",
    "Gamma",
    "Gaussian",
    "GaussianHead",
    "Gumbel",
    "Laplace",
    "Law",
    "Learned",
    "Linear",
    "Logistic",
    "Moments",
    "Noise",
    "PoissonHead",
    "Propagation",
    "Recurrence",
    "Replicas",
    "StrengthSchedule",
    "Term",
    "Terms",
    "Uniform",
    "Zoneout",
    "at",
    "cumulative",
    "diagnostics",
    "explain",
    "fold",
    "init",
    "methods",
    "moments",
    "optim",
    "parse",
    "penalties",
    "plain",
    "preactivation",
    "predict",
    "predictive",
    "regularize",
    "sample",
    "sampling",
    "sequence",
    "step",
    "strip",
    "tied",
    "unfold",
    "untied",
]
