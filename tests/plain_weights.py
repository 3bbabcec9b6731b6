"""What stands in draws, and products with weights, written out: one product at a time.

Nothing here comes from noisin but the names of terms, and the laws and numbers of a seed.
"""

import operator
from itertools import accumulate
from typing import Any, NamedTuple

import torch

from noisin.streams import Stream


class Entry(NamedTuple):
    """One term and what was drawn for it.

    Args:
        term: the term.
        value: factors, offsets, normal numbers or masks: [T or 1, B, F], in weights [T or 1, R, C].
        variance: σ² of the term where ``value`` is normal numbers, else None.
    """

    term: Any
    value: torch.Tensor
    variance: torch.Tensor | None = None

    @property
    def shared(self):
        """Whether the batch shares it: a matrix."""
        return is_weight(self.term) and self.variance is None

    def of(self, b):
        """Return what one sequence sees."""
        return self if self.shared else self._replace(value=self.value[:, b])

    def now(self, t):
        """Return what one step sees."""
        return self._replace(value=self.value[t if len(self.value) > 1 else 0])

    def part(self, number, count):
        """Return the normal numbers of one of several products that share a site."""
        if self.variance is None:
            return self
        return self._replace(value=self.value.chunk(count, -1)[number])


class Dropout(NamedTuple):
    """torch's own dropout, the last term between layers."""

    operator: str = "*"
    estimate: str = "sample"
    hold: str = "step"
    site: None = None


def is_weight(term):
    site = getattr(term, "site", None)
    return site is not None and site.name.startswith("weight")


def terms_of(noise):
    return () if noise is None else (tuple(noise) if hasattr(noise, "__iter__") else (noise,))


def terms_at(layer, place):
    """Return the terms that act at a place, left to right; torch's dropout comes last."""
    site, _, where = place.partition("_l")
    terms = terms_of(layer.noise)
    if site.startswith("zoneout"):
        return [term for term in terms if getattr(term, site.removeprefix("zoneout_"), 0)]
    index = int(where.removesuffix("_reverse")) if where else None
    size = (layer.num_layers - (site == "between")) if where else 1
    found = [
        term
        for term in terms
        if hasattr(term, "site")
        and term.site.name == site
        and (term.site.layer is None or term.site.layer % size == index)
    ]
    return found + [Dropout()] * (site == "between" and layer.dropout > 0)


def written_out(layer, draws, dtype):
    """Return place -> one ``Entry`` a term, with matrices in place of seeds, in some dtype.

    The matrices are those of the dtype of the layer, rounded or widened afterwards.
    """
    entries = {}
    for place, values in draws.items():
        terms = terms_at(layer, place)
        assert len(values) == len(terms), (place, len(values), len(terms))
        weight = getattr(layer, place) if place.startswith("weight") else None
        entries[place] = [
            entry(term, value, weight, dtype) for term, value in zip(terms, values, strict=True)
        ]
    return entries


def entry(term, drawn, weight, dtype):
    """Return the entry of one term."""
    value, std = drawn if isinstance(drawn, tuple) else (drawn, None)
    std = None if std is None else std.to(dtype)
    if getattr(term, "estimate", None) == "preactivation":
        return Entry(term, value.to(dtype), variance(term.law, dtype) if std is None else std**2)
    if value.dtype == torch.int64:
        value = torch.stack([generated(term, weight, int(seed), std) for seed in value]).to(dtype)
        if std is not None:
            value = std * value + (1 if term.operator == "*" else 0)
        if term.hold == "cumulative":
            combine = operator.mul if term.operator == "*" else operator.add
            value = torch.stack(list(accumulate(value, combine)))
    return Entry(term, value.to(dtype))


def generated(term, weight, seed, std):
    """Return the factor or offset that a seed stands for, or ξ where the spread is learned."""
    options = {"generator": Stream(weight.device, seed), "dtype": weight.dtype}
    if std is not None:
        return term.law.sample(weight.shape, std=torch.ones((), dtype=weight.dtype), **options)
    return (term.law.factor if term.operator == "*" else term.law.sample)(weight.shape, **options)


def variance(law, dtype):
    keep = getattr(law, "keep", None)
    return torch.tensor(law.std**2 if keep is None else (1 - keep) / keep, dtype=dtype)


def perturbed(tensor, one):
    return tensor * one.value if one.term.operator == "*" else tensor + one.value


def root(v):
    """Return √v, flat at 0: no noise is no noise in the neighbourhood either."""
    return torch.where(v > 0, torch.where(v > 0, v, 1).sqrt(), 0)


def product(weight, bias, x, at_x, at_weight, gates=1):
    """Return W x + b under noise, for one step of one sequence.

    Args:
        weight: W [R, C].
        bias: b [R], or None.
        x: [C].
        at_x: entries of this step at x.
        at_weight: entries of this step at W.
        gates: G blocks of rows, each of which may see an x of its own.
    """
    for one in at_weight:
        if one.variance is None:
            weight = perturbed(weight, one)
    blocks = weight.view(gates, -1, len(x))  # [G, H, C]
    seen = x.expand(gates, -1)  # [G, C]
    for one in at_x:
        if one.variance is None:
            seen = perturbed(seen, one._replace(value=one.value.view(-1, len(x))))
    a = rows(blocks, seen) + (0 if bias is None else bias)
    v_x, v_w = torch.zeros_like(seen), torch.zeros_like(blocks)
    for one in at_x:
        if one.variance is not None:
            more = one.variance * (seen**2 + v_x if one.term.operator == "*" else 1 + 0 * seen)
            a = a + root(rows(blocks**2, more)) * one.value
            v_x = v_x + more
    for one in at_weight:
        if one.variance is not None:
            spread = one.variance.expand(weight.shape).reshape(blocks.shape)
            more = spread * (blocks**2 + v_w if one.term.operator == "*" else 1 + 0 * blocks)
            a = a + root(rows(more, seen**2 + v_x)) * one.value
            v_w = v_w + more
    return a


def rows(blocks, seen):
    """Return [G·H] from [G, H, C] and [G, C]: each block with what it sees."""
    return (blocks * seen[:, None]).sum(-1).flatten()


def plain_linear(layer, x, draws, params):
    """Return W x + b for x [T, B, C], step by step and sequence by sequence."""
    entries = written_out(layer, draws, x.dtype)
    here = [
        [
            product(
                params["weight"],
                params.get("bias"),
                x[t, b],
                [one.of(b).now(t) for one in entries.get("input", ())],
                [one.of(b).now(t) for one in entries.get("weight", ())],
            )
            for b in range(x.shape[1])
        ]
        for t in range(x.shape[0])
    ]
    return torch.stack([torch.stack(step) for step in here])
