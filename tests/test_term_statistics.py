"""Noise in weights, in the candidate, before the activation and zoneout: mean, variance, hold.

An Elman cell shows its pre-activation, and with it what acted at each step, given the state that
it showed before. Number of samples N in each test; false alarm 2e-9 a comparison (z = 6).
"""

import pytest
import torch
from torch import nn

from cases import ROWS, kinds_of, make, seeded, zeros
from conftest import (
    assert_bit_equal,
    assert_close_to_float64,
    assert_mean,
    assert_uncorrelated,
    assert_variance,
)
from noisin import GRU, LSTM, RNN, Linear, Zoneout, parse, sampling
from noisin.noise import terms_of
from plain import gated, mode_of, plain

F, H, B, N = 3, 2, 2, 1001
DOUBLE = torch.float64


def second_moment(terms, mean):
    """Return E[t²] of a tensor under terms, left to right: each keeps E[t]."""
    square = mean**2
    for term in terms:
        keep = getattr(term.law, "keep", None)
        variance = term.law.std**2 if keep is None else (1 - keep) / keep
        square = square * (1 + variance) if term.operator == "*" else square + variance
    return square


def variance_of_product(noise, site, weight_site, weight, x):
    """Return V[W x] a unit, for x [..., C] under the terms at x, and W under its own."""
    at_x, at_w = ([t for t in terms_of(noise) if t.site.name == s] for s in (site, weight_site))
    squares = second_moment(at_x, x) @ second_moment(at_w, weight).T
    return squares - (x**2) @ (weight**2).T


ONE = [
    "x * Gaussian(0.8) @ E",
    "x + Gamma(0.6) @ E",
    "w * Bernoulli(keep=0.6) @ E",
    "w + Gaussian(0.5) @ E",
]
MANY = [
    "x * Bernoulli(keep=0.6) @ E & w + Gaussian(0.7) @ F",
    "x * Gaussian(0.5) @ E & x + Gaussian(0.5) @ E & w * Gaussian(0.5) @ F & w + Laplace(0.5) @ F",
    "x + Gaussian(0.5) @ E & x * Gaussian(0.5) @ E & w + Gaussian(0.5) @ F & w * Uniform(0.7) @ F",
]
SAMPLE, FORMULA = "sample", "preactivation"
ALONE = [form.replace("E", e) for form in ONE for e in (SAMPLE, FORMULA)]
MIXED = [
    form.replace("@ E", f"@ {e}").replace("@ F", f"@ {f}")
    for form in MANY
    for e in (SAMPLE, FORMULA)
    for f in (SAMPLE, FORMULA)
]
PRODUCTS = [("ih", form) for form in ALONE + MIXED] + [("hh", form) for form in ALONE + MIXED[:4]]


def assert_standard(a, mean, variance):
    """The differences from a mean, over their standard deviation, have mean 0 and variance 1."""
    score = ((a - mean) / variance.sqrt()).flatten(1)
    assert_mean(score, 0.0, 1.0)
    assert_variance(score, 1.0, 0.0)


HIGH = 1000.0  # a bias that no noise here brings below 0: relu shows a itself


@pytest.mark.parametrize(("product", "form"), PRODUCTS)
def test_moments_of_the_preactivation(product, form):
    """N = 1000 steps; sampled or by the formula, each has the moments of the sampled form."""
    site, kind = {"ih": ("input", "relu"), "hh": ("recurrent", "tanh")}[product]
    noise = parse(form.replace("x ", f"{site} ").replace("w ", f"weight_{product} "))
    layer = make(kind, F, H, noise=noise, dtype=DOUBLE)
    w_ih, w_hh, b_ih, b_hh = layer.parameters()
    x = seeded(1, B, F, dtype=DOUBLE).expand(N, B, F)
    with torch.no_grad():
        for i, p in enumerate(layer.parameters()):
            p.copy_(0.4 * seeded(*p.shape, seed=i + 3, dtype=DOUBLE))
        if kind == "relu":
            w_hh.zero_()
            b_ih.add_(HIGH)
        output, _ = layer(x)
        before = torch.cat([torch.zeros_like(output[:1]), output[:-1]])
        mean = x @ w_ih.T + b_ih + before @ w_hh.T + b_hh
        tensor, weight = (x, w_ih) if product == "ih" else (before, w_hh)
        variance = variance_of_product(noise, site, f"weight_{product}", weight, tensor)
    a = output if kind == "relu" else output.atanh()
    # the first state is 0, and may have no variance
    assert_standard(a[1:], mean[1:], variance[1:])


@pytest.mark.parametrize("form", ALONE + MIXED[:4])
def test_moments_of_a_linear(form):
    noise = parse(form.replace("x ", "input ").replace("w ", "weight "))
    layer = Linear(F, H, noise=noise, dtype=DOUBLE)
    x = seeded(1, B, F, dtype=DOUBLE).expand(N, B, F)
    with torch.no_grad():
        output, mean = layer(x), nn.functional.linear(x, layer.weight, layer.bias)
        variance = variance_of_product(noise, "input", "weight", layer.weight, x)
    assert_standard(output, mean, variance)


SIDE, SIGNAL, STEPS = 40, 0.3, 3


def acting_matrices(noise):
    """Return the matrix that acted at each step, [T, SIDE²], seen through x = the identity."""
    x = torch.eye(SIDE, dtype=DOUBLE).expand(STEPS, SIDE, SIDE)
    layer = (Linear if noise.startswith("weight ") else RNN)(SIDE, SIDE, noise=noise, dtype=DOUBLE)
    with torch.no_grad():
        for name, p in layer.named_parameters():
            p.fill_(SIGNAL if name in ("weight", "weight_ih_l0") else 0.0)
        output = layer(x)
    return (output if isinstance(layer, Linear) else output[0].atanh()).flatten(1)


@pytest.mark.parametrize("site", ["weight_ih", "weight"])
@pytest.mark.parametrize("hold", ["step", "sequence", "cumulative"])
@pytest.mark.parametrize(("law", "one"), [("Bernoulli(keep=0.8)", 0.25), ("Gamma(0.2)", 0.04)])
@pytest.mark.parametrize("operator", ["*", "+"])
def test_mean_variance_and_hold_of_a_weight(operator, law, one, hold, site):
    """N = 1600 weights of one matrix."""
    matrix = acting_matrices(f"{site} {operator} {law} @ {hold}")
    noise = matrix / SIGNAL if operator == "*" else matrix - SIGNAL
    assert noise.shape == (STEPS, SIDE**2)
    mean = float(operator == "*")
    for t in range(STEPS):
        if hold != "cumulative":
            variance = one
        else:
            variance = (1 + one) ** (t + 1) - 1 if operator == "*" else (t + 1) * one
        assert_mean(noise[t], mean, variance**0.5)
        assert_variance(noise[t], variance, mean)
    together = (noise[0] - mean) * (noise[1] - mean)
    assert_mean(together, 0.0 if hold == "step" else one, together.std())
    if hold == "sequence":
        assert_bit_equal(noise[0], noise[1])
        assert_bit_equal(noise[0], noise[2])
    units = (noise[0] - mean).view(SIDE, SIDE)
    for shared in (units[1:] * units[:-1], units[:, 1:] * units[:, :-1]):
        assert_mean(shared.flatten(), 0.0, shared.std())


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "relu"])
@pytest.mark.parametrize("name", ["weight_ih", "weight_hh"])
@pytest.mark.parametrize("operator", ["*", "+"])
@pytest.mark.parametrize("hold", ["step", "sequence", "cumulative"])
def test_a_matrix_is_shared_by_the_batch_and_fresh_at_each_step(hold, operator, name, kind):
    """Sequences that are the same stay the same; steps that are the same, only if it is held."""
    layer = make(kind, F, H, noise=f"{name} {operator} Gaussian(0.5) @ {hold}")
    with torch.no_grad():
        (layer.weight_ih_l0 if name == "weight_hh" else layer.weight_hh_l0).zero_()
        for bias in (layer.bias_ih_l0, layer.bias_hh_l0):
            bias.fill_(1.0)
        output, _ = layer(seeded(1, 1, F).expand(4, 5, F))
    for b in range(1, 5):
        assert_bit_equal(output[:, b], output[:, 0])
    if name == "weight_ih" and kind == "relu":  # no state: each step shows its own matrix
        same = [torch.equal(output[t], output[0]) for t in range(1, 4)]
        assert same == [hold == "sequence"] * 3


CANDIDATE = {"LSTM": (100.0, -100.0, 0.5, 100.0), "GRU": (100.0, -100.0, 0.5)}


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("hold", ["step", "sequence", "cumulative"])
@pytest.mark.parametrize("operator", ["*", "+"])
def test_mean_variance_and_hold_of_a_candidate(operator, hold, kind):
    """N = 5000 sequences of a cell whose state is the candidate."""
    many, std = 5000, 0.2
    layer = make(kind, F, H, noise=f"candidate {operator} Gaussian({std}) @ {hold}", dtype=DOUBLE)
    with torch.no_grad():
        for p in layer.parameters():
            p.zero_()
        layer.bias_ih_l0.copy_(torch.tensor(CANDIDATE[kind], dtype=DOUBLE).repeat_interleave(H))
        output, _ = layer(torch.zeros(3, many, F, dtype=DOUBLE))
    acted = (output.atanh() if kind == "LSTM" else output).flatten(1)
    clean, mean = torch.tensor(0.5, dtype=DOUBLE).tanh(), float(operator == "*")
    noise = acted / clean if operator == "*" else acted - clean
    for t in range(3):
        if hold != "cumulative":
            variance = std**2
        else:
            variance = (1 + std**2) ** (t + 1) - 1 if operator == "*" else (t + 1) * std**2
        assert_mean(noise[t], mean, variance**0.5)
        assert_variance(noise[t], variance, mean)
    together = (noise[0] - mean) * (noise[1] - mean)
    assert_mean(together, 0.0 if hold == "step" else std**2, together.std())
    units = noise[0].view(many, H) - mean
    assert_uncorrelated(units[:, 0], units[:, 1])
    assert_uncorrelated(units[1:, 0], units[:-1, 0])


@pytest.mark.parametrize("law", ["Bernoulli(keep=0.7)", "Gamma(0.5)"])
@pytest.mark.parametrize("operator", ["*", "+"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_candidate_noise_keeps_the_mean_of_the_state(kind, operator, law):
    """E[c_t | the past], E[h_t | the past] of a GRU, and their variances; N = 10,000."""
    many = 10_000
    layer = make(kind, F, H, noise=f"candidate {operator} {law}", dtype=DOUBLE)
    x = seeded(1, 1, F, dtype=DOUBLE)
    hx = tuple(seeded(*z.shape, seed=i + 1, dtype=DOUBLE) for i, z in enumerate(zeros(layer, x)))
    std = 0.5 if "Gamma" in law else (0.3 / 0.7) ** 0.5

    def state(candidate):
        w_ih, w_hh, b_ih, b_hh = layer.parameters()
        a, r = x[0, 0] @ w_ih.T + b_ih, hx[0][0, 0] @ w_hh.T + b_hh
        h, c = gated(mode_of(layer), a, r, hx[0][0, 0], hx[-1][0, 0], None, candidate)
        return c if kind == "LSTM" else h

    with torch.no_grad():
        expanded = tuple(s.expand(1, many, H).contiguous() for s in hx)
        _, final = layer(x.expand(1, many, F), expanded if kind == "LSTM" else expanded[0])
        mean = state(lambda g: g)
        # the state is linear in the candidate
        slope = state((lambda g: 2 * g) if operator == "*" else (lambda g: g + 1)) - mean
    samples = (final[1] if kind == "LSTM" else final)[0]
    assert_mean(samples, mean, std * slope.abs())
    assert_variance(samples, (std * slope) ** 2, mean)


@pytest.mark.parametrize("hold", ["step", "sequence"])
@pytest.mark.parametrize("site", ["input", "between", "recurrent"])
@pytest.mark.parametrize(("kind", "gates"), [("LSTM", 4), ("GRU", 3)])
def test_untied_gates_draw_on_their_own(kind, gates, site, hold):
    """N = 2000 draws a unit; each of mean 1 and the law's variance, no two of them together."""
    layer = make(kind, F, F, 2, noise=f"{site} * Gaussian(0.5) @ untied @ {hold}")
    steps, many = (20, 100) if hold == "step" else (1, 2000)
    for (value,) in layer.draw(torch.zeros(20, many, F)).values():
        assert value.shape == (steps, many, gates * F)
        value = value.detach().flatten(0, 1)
        assert_mean(value, 1.0, 0.5)
        assert_variance(value, 0.25, 1.0)
        for other in range(1, gates * F):
            assert_uncorrelated(value - 1, value.roll(other, 1) - 1)


@pytest.mark.parametrize("hold", ["step", "sequence"])
@pytest.mark.parametrize("site", ["input", "weight_ih"])
def test_normal_numbers_of_the_formula_are_one_a_unit_a_sequence_and_a_step(site, hold):
    """What a constant input shows: fresh or held in time, never shared by the batch."""
    layer = RNN(F, H, noise=f"{site} * Gaussian(0.5) @ preactivation @ {hold}")
    with torch.no_grad():
        layer.weight_hh_l0.zero_()
        output, _ = layer(torch.ones(6, 5, F))
    assert (output[:, 1:] != output[:, :-1]).all()
    assert ((output[1:] == output[:-1]) == (hold == "sequence")).all()


def torchs(kind, layer):
    """Return torch's own layer of the same weights."""
    plain = make(kind, F, H, 2, package=nn)
    plain.load_state_dict({k: v for k, v in layer.state_dict().items() if "rho" not in k})
    return plain


@pytest.mark.parametrize("row", [r for r in ROWS if "Zoneout" not in r])
def test_noise_is_off_in_evaluation_and_on_while_sampling(row):
    kind = kinds_of(row)[0]
    layer, x = make(kind, F, H, 2, noise=row), seeded(4, B, F)
    torch.manual_seed(5)
    noisy = layer(x)
    layer.eval()
    before = torch.get_rng_state()
    clean = layer(x)
    assert torch.equal(before, torch.get_rng_state()), "evaluation used random numbers"
    assert_bit_equal(clean, torchs(kind, layer)(x))
    with sampling(layer):
        torch.manual_seed(5)
        assert_bit_equal(layer(x), noisy)
    assert not torch.equal(noisy[0], clean[0])
    assert_bit_equal(layer(x), clean)


KEPT = [
    ("LSTM", 0.3, 0.0),
    ("LSTM", 0.0, 0.6),
    ("LSTM", 0.3, 0.6),
    ("GRU", 0.3, 0),
    ("tanh", 0.6, 0),
]


def zoneout_of(hidden, cell):
    given = {name: p for name, p in (("hidden", hidden), ("cell", cell)) if p}
    return Zoneout(**given)


@pytest.mark.parametrize(("kind", "hidden", "cell"), KEPT)
def test_rate_and_expectation_of_zoneout(kind, hidden, cell):
    """One step from one state, N = 10,000 sequences."""
    many = 10_000
    layer = make(kind, F, H, noise=zoneout_of(hidden, cell), dtype=DOUBLE)
    x = seeded(1, 1, F, dtype=DOUBLE)
    hx = tuple(seeded(*z.shape, seed=i + 1, dtype=DOUBLE) for i, z in enumerate(zeros(layer, x)))
    expanded = tuple(s.expand(1, many, H).contiguous() for s in hx)

    def step(x, hx):
        with torch.no_grad():
            output, final = layer(x, hx if kind == "LSTM" else hx[0])
        final = final if kind == "LSTM" else (final,)
        assert_bit_equal(output[-1], final[0][-1])  # one mask serves state and output
        return [s[0] for s in final]

    samples = step(x.expand(1, many, F), expanded)
    layer.eval()
    expected = step(x, hx)
    layer.noise = None
    taken, masks = step(x, hx), []
    for sample, mean, new, old, p in zip(
        samples, expected, taken, hx, (hidden, cell), strict=False
    ):
        kept = sample == old[0]
        if not p:
            assert not kept.any()
            assert_bit_equal(mean, new)
            continue
        between = p * old[0] + (1 - p) * new
        assert_close_to_float64(mean, between, between)
        assert_mean(kept.double(), p, (p * (1 - p)) ** 0.5)
        spread = (p * (1 - p)) ** 0.5 * (old[0] - new).abs()[0]
        assert_mean(sample, mean[0], spread)
        assert_variance(sample, spread**2, mean[0])
        masks += [kept[:, 0].double() - p, kept[:, 1].double() - p]
    for i, mask in enumerate(masks):
        assert_uncorrelated(mask[1:], mask[:-1])
        for other in masks[:i]:
            assert_uncorrelated(mask, other)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("kind", "hidden", "cell"), KEPT)
def test_zoneout_in_evaluation_is_its_expectation(kind, hidden, cell, bidirectional):
    """Masks become probabilities at every step, other noise is off, nothing is drawn."""
    noise = zoneout_of(hidden, cell)
    layer = make(kind, F, H, 2, noise=noise, bidirectional=bidirectional)
    x = seeded(5, B, F)
    hx = tuple(seeded(*z.shape, seed=i + 1) for i, z in enumerate(zeros(layer, x)))
    draws = {
        place: tuple(torch.full_like(v, cell if "cell" in place else hidden) for v in values)
        for place, values in layer.draw(x).items()
    }
    references = []
    with torch.no_grad():
        for dtype in (torch.float32, DOUBLE):
            params = {n: p.to(dtype) for n, p in layer.named_parameters()}
            wide = {k: tuple(v.to(dtype) for v in vs) for k, vs in draws.items()}
            state = tuple(h.to(dtype) for h in hx)
            references.append(plain(layer, x.to(dtype), state, wide, None, params))
        for other in (None, parse("output * Gaussian(0.5)")):
            layer.noise = noise if other is None else noise & other
            layer.eval()
            before = torch.get_rng_state()
            output, final = layer(x, hx if kind == "LSTM" else hx[0])
            assert torch.equal(before, torch.get_rng_state()), "evaluation used random numbers"
            final = final if kind == "LSTM" else (final,)
            assert_close_to_float64([output, *final], *references)
    with sampling(layer):
        assert not torch.equal(layer(x)[0], layer(x)[0])


@pytest.mark.parametrize("kind", [LSTM, GRU])
def test_masks_of_zoneout_are_fresh_at_each_step(kind):
    """N = 5000 units; a mask is 0 or 1."""
    layer = kind(F, 50, noise="Zoneout(hidden=0.3)")
    (mask,) = layer.draw(torch.zeros(4, 100, F))["zoneout_hidden_l0"]
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    mask = mask.flatten(1)
    for t in range(4):
        assert_mean(mask[t], 0.3, 0.21**0.5)
        for s in range(t):
            assert_uncorrelated(mask[t] - 0.3, mask[s] - 0.3)
