"""Networks, inputs and noise for the tests, drawn by hypothesis or by hand."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import noisin
from noisin import at
from plain import plain
from plain_weights import terms_at

LAYOUTS = ("padded", "unbatched", "sorted", "unsorted")
KINDS = ("LSTM", "GRU", "tanh", "relu")
ALL_KINDS = (*KINDS, "sigmoid")
SITES = ("input", "between", "hidden", "recurrent", "output")
OUTSIDE = ("input", "between", "output")  # torch's own kernel can run between these
HOLDS = ("step", "sequence", "cumulative")


def make(kind, *args, package=noisin, **kwargs):
    """Return a layer; ``kind`` is LSTM, GRU or a nonlinearity of RNN."""
    if kind in ("LSTM", "GRU"):
        return getattr(package, kind)(*args, **kwargs)
    return package.RNN(*args, nonlinearity=kind, **kwargs)


@dataclass(frozen=True)
class Case:
    """One network and the layout of its input."""

    kind: str
    options: dict
    layout: str
    given: bool  # hx
    time: int
    batch: int
    seed: int

    def ours(self, **kwargs):
        torch.manual_seed(self.seed)
        return make(self.kind, **self.options, **kwargs)

    def theirs(self):
        torch.manual_seed(self.seed)
        return make(self.kind, package=nn, **self.options)

    @property
    def lengths(self):
        """Lengths of a packed input, the longest T, or None."""
        if self.layout not in ("sorted", "unsorted"):
            return None
        generator = torch.Generator().manual_seed(self.seed)
        lengths = torch.randint(1, self.time + 1, (self.batch,), generator=generator)
        lengths[-1] = self.time
        return lengths.sort(descending=True).values if self.layout == "sorted" else lengths

    def tensors(self):
        """Return x [T, B, I] and a given state, each [L·D, B, ·]: leaves that want gradients."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        o = self.options
        rows = o["num_layers"] * (2 if o["bidirectional"] else 1)
        sizes = [(self.time, self.batch, o["input_size"])]
        if self.given:
            sizes.append((rows, self.batch, o.get("proj_size", 0) or o["hidden_size"]))
            if self.kind == "LSTM":
                sizes.append((rows, self.batch, o["hidden_size"]))
        x, *hx = (torch.randn(s, generator=generator, dtype=o["dtype"]) for s in sizes)
        return x.requires_grad_(), tuple(h.requires_grad_() for h in hx)

    def arguments(self, x, hx):
        """Return input and hx in the layout of the case."""
        if self.layout == "unbatched":
            x, hx = x[:, 0], tuple(h[:, 0] for h in hx)
        elif self.options["batch_first"]:
            x = x.transpose(0, 1)
        if self.lengths is not None:
            first = self.options["batch_first"]
            x = pack_padded_sequence(x, self.lengths, first, self.layout == "sorted")
        return x, (None if not hx else hx if self.kind == "LSTM" else hx[0])

    def time_major(self, output):
        """Return an output of the case's layout as [T, B, F]."""
        if isinstance(output, PackedSequence):
            return nn.utils.rnn.pad_packed_sequence(output)[0]
        if self.layout == "unbatched":
            return output[:, None]
        return output.transpose(0, 1) if self.options["batch_first"] else output

    def batched(self, state):
        """Return a final state as (h,) or (h, c), each [L·D, B, ·]."""
        state = state if isinstance(state, tuple) else (state,)
        return tuple(s[:, None] for s in state) if self.layout == "unbatched" else state


def pulled_back(results, leaves):
    """Return the results and the gradients of a fixed random combination of them."""
    generator = torch.Generator().manual_seed(3)
    pull = [torch.randn(r.shape, generator=generator, dtype=torch.float64) for r in results]
    total = sum((r * p.to(r.dtype)).sum() for r, p in zip(results, pull, strict=True))
    how = {"allow_unused": True, "materialize_grads": True, "retain_graph": True}
    grads = torch.autograd.grad(total, leaves, **how)
    return [r.detach() for r in results], list(grads)


def plain_with_gradients(layer, x, hx, draws, lengths, dtype):
    """Run the plain loop in a dtype: results, and gradients of x, hx, parameters and draws.

    A state that was not given is 0 and has no gradient. Draws of a learned spread are functions
    of it: their gradient is that of the parameter.
    """

    def leaf(tensor):
        return tensor.detach().to(dtype, copy=True).requires_grad_()

    params = {n: leaf(p) for n, p in layer.named_parameters()}
    x, given = leaf(x), tuple(leaf(h) for h in hx)
    draws = remade(layer, draws, params, leaf)
    state = given or zeros(layer, x)
    leaves = [x, *given, *params.values(), *given_draws(layer, draws)]
    return pulled_back(plain(layer, x, state, draws, lengths, params), leaves)


def is_learned(term):
    return isinstance(getattr(getattr(term, "law", None), "std", None), noisin.Learned)


def given_draws(layer, draws):
    """Return the numbers in draws that are leaves: no seeds, nothing of a learned spread."""
    return [
        value
        for place in sorted(draws)
        for term, value in zip(terms_at(layer, place), draws[place], strict=True)
        if not is_learned(term) and value.is_floating_point()
    ]


def leaf_draws(layer, x, seed=0):
    """Return draws of a seed whose numbers are leaves; learned spreads keep their graph."""
    return remade(
        layer,
        layer.draw(x, generator=torch.Generator().manual_seed(seed)),
        None,
        lambda value: value.detach().requires_grad_(),
    )


def remade(layer, draws, params, leaf):
    """Return draws with leaves, and of the spreads among ``params`` (None: as they were drawn)."""

    def one(place, index, term, value):
        if not is_learned(term):
            return leaf(value) if value.is_floating_point() else value
        if params is None:
            return value
        rho = params[f"rho_{place}" + (f"_{index}" if index else "")]
        std = term.law.std.floor + nn.functional.softplus(rho)
        if isinstance(value, tuple):
            source = value[0]
            source = source.to(std.dtype) if source.is_floating_point() else source
            return type(value)(source, std)
        final = value.detach().to(std.dtype)  # the very numbers, with the slope ξ in the spread
        xi = (final - (1 if term.operator == "*" else 0)) / std.detach()
        return final + (std - std.detach()) * xi

    return {
        place: tuple(
            one(place, index, term, value)
            for index, (term, value) in enumerate(zip(terms_at(layer, place), found, strict=True))
        )
        for place, found in draws.items()
    }


def zeros(layer, x):
    """Return the state that a layer starts from by default."""
    rows = layer.num_layers * (2 if layer.bidirectional else 1)
    sizes = [layer.proj_size or layer.hidden_size]
    sizes += [layer.hidden_size] * (layer.mode == "LSTM")
    return tuple(x.new_zeros(rows, x.shape[1], size) for size in sizes)


def seeded(*size, seed=0, dtype=torch.float32):
    """Return standard normal numbers of a seed."""
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@st.composite
def cases(draw, kinds=KINDS, dtypes=(torch.float32, torch.float64), dropouts=(0.0, 0.4)):
    """Draw a network with any of torch's options, and a layout."""
    kind = draw(st.sampled_from(kinds))
    layers = draw(st.integers(1, 3))
    options = {
        "input_size": draw(st.sampled_from((1, 3, 7))),
        "hidden_size": draw(st.sampled_from((3, 5))),
        "num_layers": layers,
        "bias": draw(st.booleans()),
        "batch_first": draw(st.booleans()),
        # torch warns about dropout in one layer, where it does nothing
        "dropout": draw(st.sampled_from(dropouts)) if layers > 1 else 0.0,
        "bidirectional": draw(st.booleans()),
        "dtype": draw(st.sampled_from(dtypes)),
    }
    if kind == "LSTM":
        options["proj_size"] = draw(st.sampled_from((0, 2)))
    layout = draw(st.sampled_from(LAYOUTS))
    # mostly sizes at which lengths and their order matter
    batch = 1 if layout == "unbatched" else draw(st.sampled_from((3, 3, 3, 1)))
    time = draw(st.sampled_from((5, 5, 2, 1)))
    return Case(kind, options, layout, draw(st.booleans()), time, batch, draw(st.integers(0, 99)))


LAWS = (
    noisin.Gaussian(0.4),
    noisin.Uniform(0.5),
    noisin.Gamma(0.3),
    noisin.Bernoulli(keep=0.7),
)


@st.composite
def working_noise(draw, layers, most=3):
    """Draw one to three terms that act in a stack of so many layers; often none inside."""
    terms = []
    sites = draw(st.sampled_from((SITES, OUTSIDE)))
    for _ in range(draw(st.integers(1, most))):
        name = draw(st.sampled_from([s for s in sites if layers > 1 or s != "between"]))
        site = getattr(at, name)
        if name in ("between", "hidden", "recurrent") and draw(st.booleans()):
            size = layers - (name == "between")
            site = site[draw(st.integers(-size, size - 1))]
        law = draw(st.sampled_from(LAWS)) @ getattr(noisin, draw(st.sampled_from(HOLDS)))
        terms.append(site * law if draw(st.booleans()) else site + law)
    noise = terms[0]
    for term in terms[1:]:
        noise = noise & term
    return noise


# Every site and form there is besides those of SITES and HOLDS; for two layers.
ROWS = [
    "candidate * Bernoulli(keep=0.6)",
    "candidate + Gaussian(0.5) @ sequence",
    "candidate * Gaussian(0.5) @ cumulative & candidate[0] + Gaussian(0.5)",
    "weight_hh + Gaussian(0.3)",
    "weight_hh[0] * Bernoulli(keep=0.7) & weight_ih[-1] * Gaussian(0.3)",
    "weight_ih + Laplace(0.3)",
    "weight_ih * Bernoulli(keep=0.7) @ sequence",
    "weight_hh + Gaussian(0.3) @ sequence & weight_hh * Gaussian(0.3)",
    "weight_ih + Gaussian(0.2) @ cumulative & weight_hh * Gaussian(0.2) @ cumulative",
    "weight_hh + Gaussian(Learned(0.3, floor=0.1))",
    "weight_ih * Gaussian(Learned(0.3, per='unit'))",
    "weight_ih + Gaussian(Learned(0.3, per='weight')) @ cumulative",
    "weight_hh * Uniform(Learned(0.3, per='weight')) @ sequence",
    "weight_ih + Gaussian(Learned(0.3, per='unit')) @ preactivation",
    "weight_hh * Gaussian(Learned(0.3, per='weight')) @ preactivation",
    "input * Bernoulli(keep=0.7) @ preactivation",
    "input + Gaussian(0.3) @ preactivation @ sequence",
    "between * Gaussian(Learned(0.3, per='unit')) @ preactivation",
    "recurrent * Gaussian(0.3) @ preactivation & recurrent + Gumbel(0.3) @ preactivation",
    "weight_ih * Gaussian(0.3) @ preactivation & weight_ih + Gaussian(0.3) @ preactivation",
    "weight_hh + Gaussian(0.3) @ preactivation @ sequence",
    "recurrent + Gaussian(0.3) @ preactivation & weight_hh * Gaussian(0.3) @ preactivation",
    "between * Gaussian(0.3) @ preactivation & weight_ih + Gaussian(0.3)",
    "recurrent * Gaussian(0.3) & weight_hh + Gaussian(0.3) @ preactivation",
    "input * Bernoulli(keep=0.7) @ untied",
    "between + Gaussian(0.3) @ untied @ sequence",
    "recurrent * Gaussian(Learned(0.3, per='unit')) @ untied",
    "recurrent * Gaussian(0.3) & recurrent + Gaussian(0.3) @ untied & recurrent * Gaussian(0.3)",
    "recurrent * Gaussian(0.3) @ untied & weight_hh + Gaussian(0.3) @ preactivation",
    "between * Gaussian(0.3) @ untied & weight_ih * Gaussian(0.3) @ sequence",
    "Zoneout(hidden=0.3)",
    "Zoneout(hidden=0.3, cell=0.5)",
    "Zoneout(cell=0.5) & hidden * Gaussian(0.3) & candidate + Gaussian(0.3)",
    "hidden + Gaussian(0.3) & Zoneout(hidden=0.3) & output * Gaussian(0.3)",
    "variational(input=0.7, recurrent=0.8, between=0.7, untied=True)",
    "adaptive_weight_noise(0.2, floor=0.1)",
]


def kinds_of(row):
    """Return the cells that a row has a meaning in."""
    if "cell=" in row:
        return ("LSTM",)
    return ("LSTM", "GRU") if "candidate" in row else ALL_KINDS
