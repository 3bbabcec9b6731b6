"""The methods of the papers, by name. Each returns terms; every probability is one to keep.

In the text form and in a recipe the same calls may be written: ``zaremba(keep=0.5)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import and_

from noisin import at, noise
from noisin.laws import Bernoulli, Gaussian, Law, Learned
from noisin.noise import Modifier, Noise, Site, Term, moments, sequence, step


def _dropout(rates: Sequence[tuple[Site, float | None]], *modifiers: Modifier) -> Term:
    """Return Bernoulli noise at each site whose keep probability is given and below 1."""
    terms: list[Term] = []
    for site, keep in rates:
        if keep is None or _keeps_all(keep):
            continue
        term = site * Bernoulli(keep=keep)
        for modifier in modifiers:
            term = term @ modifier
        terms.append(term)
    if not terms:
        sites = ", ".join(site.name for site, _ in rates)
        raise ValueError(f"at least one keep probability below 1 is needed, of {sites}; got none")
    return reduce(and_, terms)


def _keeps_all(keep: float) -> bool:
    """Return whether nothing is dropped; True is no probability, and Bernoulli refuses it."""
    return keep == 1 and not isinstance(keep, bool)


def _held(term: Noise, hold: str) -> Noise:
    """Return the term, held as the word says."""
    words = {"step": step, "sequence": sequence}
    if hold not in words:
        raise ValueError(f"hold must be one of {', '.join(words)}; got {hold!r}")
    return term @ words[hold]


def _flag(name: str, value: object) -> None:
    """Refuse anything but True and False, so that "no" is not taken for yes."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def noisin(law: Law, *, additive: bool = False) -> Noise:
    """Unbiased noise in the hidden state: z_t = h_t ⊙ (1 + ε), or h_t + ε.

    Args:
        law: distribution of ε.
        additive: add ε instead.

    Examples:
        >>> from noisin import Gaussian
        >>> noisin(Gaussian(0.5), additive=True)
        hidden + Gaussian(0.5)

    References:
        Dieng, Ranganath, Altosaar, Blei: NOISIN: unbiased regularization for recurrent neural
        networks, equations 4 and 5.
    """
    _flag("additive", additive)
    return at.hidden + law if additive else at.hidden * law


def zaremba(*, keep: float, num_layers: int = 2) -> Term:
    """Dropout on the connections that are not recurrent, fresh at each step.

    Args:
        keep: probability that a unit is kept.
        num_layers: layers of the network; one layer has no ``between``.

    Raises:
        ValueError: ``keep`` is no probability below 1, or ``num_layers`` below 1. A layer that
            is alone refuses the term ``between`` of two.

    Examples:
        >>> zaremba(keep=0.5)
        input * Bernoulli(keep=0.5) & between * Bernoulli(keep=0.5) & output * Bernoulli(keep=0.5)

    References:
        Zaremba, Sutskever, Vinyals: Recurrent neural network regularization, section 3.2.
    """
    if not isinstance(num_layers, int) or isinstance(num_layers, bool) or num_layers < 1:
        raise ValueError(f"num_layers must be an int >= 1, got {num_layers!r}")
    between = [(at.between, keep)] if num_layers > 1 else []
    return _dropout([(at.input, keep), *between, (at.output, keep)])


def variational(
    *,
    input: float | None = None,
    recurrent: float | None = None,
    output: float | None = None,
    between: float | None = None,
    untied: bool = False,
) -> Term:
    """Dropout with one mask a sequence, recurrent connections included.

    Args:
        input: probability that a unit of x_t is kept; None or 1 leaves the site alone.
        recurrent: the same for h_{t-1} on its way into the recurrent weights.
        output: the same for the last layer's h_t.
        between: the same for h_t on its way to the next layer.
        untied: a mask a gate instead of one for all, but at the output, where there are none.

    Examples:
        >>> variational(recurrent=0.7)
        recurrent * Bernoulli(keep=0.7) @ sequence

    References:
        Gal, Ghahramani (2016): A theoretically grounded application of dropout in recurrent
        neural networks.
    """
    _flag("untied", untied)
    inside = [(at.input, input), (at.between, between), (at.recurrent, recurrent)]
    if not untied:
        return _dropout([*inside, (at.output, output)], sequence)
    gated = _dropout(inside, sequence, noise.untied)
    if output is None or _keeps_all(output):
        return gated
    return gated & _dropout([(at.output, output)], sequence)


def weight_noise(
    std: float | Learned, *, multiplicative: bool = False, hold: str = "step"
) -> Noise:
    """Gaussian noise on the recurrent weights.

    Args:
        std: standard deviation.
        multiplicative: scale the weights instead of adding to them.
        hold: ``"step"``: a fresh matrix at each step, or ``"sequence"``.

    Examples:
        >>> weight_noise(0.075, hold="sequence")
        weight_hh + Gaussian(0.075) @ sequence

    References:
        Ognawala, Bayer: Regularizing recurrent networks, equations 11 and 12.
    """
    _flag("multiplicative", multiplicative)
    law = Gaussian(std)
    return _held(at.weight_hh * law if multiplicative else at.weight_hh + law, hold)


def drop_connect(*, keep: float, hold: str = "step") -> Noise:
    """Dropout of single recurrent weights.

    Args:
        keep: probability that a weight is kept.
        hold: ``"step"``: a fresh mask at each step, or ``"sequence"``.

    Examples:
        >>> drop_connect(keep=0.8)
        weight_hh * Bernoulli(keep=0.8)

    References:
        Ognawala, Bayer: Regularizing recurrent networks, section 9.
    """
    return _held(at.weight_hh * Bernoulli(keep=keep), hold)


def fast_dropout(
    *, input: float | None = None, recurrent: float | None = None, output: float | None = None
) -> Term:
    """Dropout by moments: mean and variance are propagated, nothing is drawn.

    Args:
        input: probability that a unit of x_t is kept; None or 1 leaves the site alone.
        recurrent: the same for h_{t-1} on its way into the recurrent weights.
        output: the same for the last layer's h_t.

    Examples:
        >>> fast_dropout(recurrent=0.8)
        recurrent * Bernoulli(keep=0.8) @ moments

    References:
        Bayer et al.: On fast dropout and its applicability to recurrent networks, section 2.2.
    """
    rates = [(at.input, input), (at.recurrent, recurrent), (at.output, output)]
    return _dropout(rates, moments)


def recurrent_dropout(*, keep: float, hold: str = "step") -> Noise:
    """Dropout of the candidate, so that the cell state is never erased.

    Args:
        keep: probability that a unit of the candidate is kept.
        hold: ``"step"``: a fresh mask at each step, or ``"sequence"``.

    Examples:
        >>> recurrent_dropout(keep=0.7)
        candidate * Bernoulli(keep=0.7)

    References:
        Semeniuta, Severyn, Barth (2016): Recurrent dropout without memory loss.
    """
    return _held(at.candidate * Bernoulli(keep=keep), hold)


def adaptive_weight_noise(init: float, *, floor: float = 0.0) -> Term:
    """Gaussian noise on all weights of the recurrence, a learned spread a weight.

    It belongs with the cost ``noisin.penalties.complexity`` in the loss: without it, or a floor,
    the spreads shrink to nothing.

    Args:
        init: standard deviation at the start.
        floor: lower bound of the standard deviation.

    Examples:
        >>> adaptive_weight_noise(0.1)[1]
        weight_hh + Gaussian(Learned(0.1, per="weight")) @ sequence

    References:
        Graves (2011): Practical variational inference for neural networks. Bayer et al.,
        section 2.2.2, equations 5 and 6.
    """
    law = Gaussian(Learned(init, floor, per="weight"))
    return at.weight_ih + law @ sequence & at.weight_hh + law @ sequence


METHODS = {
    method.__name__: method
    for method in (
        noisin,
        zaremba,
        variational,
        weight_noise,
        drop_connect,
        fast_dropout,
        recurrent_dropout,
        adaptive_weight_noise,
    )
}
