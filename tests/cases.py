"""Networks, inputs and noise for the tests, drawn by hypothesis or by hand."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import noisin
from noisin import at
from plain import plain

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
    grads = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
    return [r.detach() for r in results], list(grads)


def plain_with_gradients(layer, x, hx, draws, lengths, dtype):
    """Run the plain loop in a dtype: results, and gradients of x, hx, weights and draws.

    A state that was not given is 0 and has no gradient.
    """

    def leaf(tensor):
        return tensor.detach().to(dtype, copy=True).requires_grad_()

    params = {n: leaf(p) for n, p in layer.named_parameters() if not n.startswith("rho")}
    x, given = leaf(x), tuple(leaf(h) for h in hx)
    draws = {place: tuple(leaf(v) for v in values) for place, values in draws.items()}
    state = given or zeros(layer, x)
    leaves = [x, *given, *params.values(), *(v for k in sorted(draws) for v in draws[k])]
    return pulled_back(plain(layer, x, state, draws, lengths, params), leaves)


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
