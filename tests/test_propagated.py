"""Layers over moments: against draws where they are exact, against themselves, and refusals."""

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import noisin
from cases import ALL_KINDS, make, seeded
from conftest import Z, assert_bit_equal
from noisin import GRU, LSTM, RNN, Propagation, explain, plain, sampling

T, B, F, H = 4, 3, 3, 5
F64 = torch.float64
PLACES = (
    "input",
    "recurrent",
    "between",
    "output",
    "hidden",
    "candidate",
    "weight_ih",
    "weight_hh",
)
MOMENTS = [f"{site} {op} Gaussian(0.4) @ moments" for site in PLACES for op in "*+"]


def able(kind, noise):
    return "candidate" not in noise or kind in ("LSTM", "GRU")


PAIRS = [(kind, noise) for kind in ALL_KINDS for noise in MOMENTS if able(kind, noise)]


def layer_of(kind, noise, **options):
    torch.manual_seed(3)
    options = {"num_layers": 2, "dtype": F64} | options
    return make(kind, F, H, noise=noise, **options)


def case(kind, noise, time=T, **options):
    return layer_of(kind, noise, **options), seeded(time, B, F, dtype=F64)


def tensors(result):
    """Return all tensors of a result with moments."""
    if isinstance(result, torch.Tensor):
        return [result]
    return [one for part in result for one in tensors(part)]


@pytest.mark.parametrize(("kind", "noise"), PAIRS)
def test_every_place_takes_moments(kind, noise):
    """Variance appears, is never negative, and the mean is the output."""
    layer, x = case(kind, noise)
    moments, _ = layer(x, return_moments=True)
    assert moments.mean.shape == moments.variance.shape == (T, B, H)
    assert (moments.variance >= 0).all()
    assert (moments.variance[1:] > 0).any()  # h_0 is 0: a factor of it shows from the second step
    assert_bit_equal(layer(x)[0], moments.mean)


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("form", ["mixture", "closed"])
def test_without_variance_it_is_the_plain_network(kind, form):
    """To rounding: libraries order the sums of products of other sizes as they like."""
    layer, x = case(kind, None, bidirectional=True)
    layer.propagation = Propagation(form=form)
    moments, state = layer(x, return_moments=True, path="moments")
    output, expected = layer(x, path="reference")
    torch.testing.assert_close(moments.mean, output, rtol=0, atol=1e-14)
    assert all((one == 0).all() for one in tensors(moments.variance))
    final, other = tensors(state)[0], tensors(expected)[0]
    torch.testing.assert_close(final, other, rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("noise", ["weight_ih + Gaussian(0.6)", "weight_ih * Gaussian(0.9)"])
def test_one_step_against_a_million_draws(kind, noise):
    """Gates whose weights have their own normal noise are independent and normal: all is exact
    but the squashing, which errs by less than 1e-4. The cell state of an LSTM is not normal."""
    layer, x = case(kind, f"{noise} @ moments", time=1, num_layers=1)
    x, samples = x[:, :1], 1_000_000
    found, _ = layer(x, return_moments=True)
    total = torch.zeros(3, H, dtype=F64)
    generator, weight = torch.Generator().manual_seed(5), layer.weight_ih_l0.detach()
    bias = (layer.bias_ih_l0 + layer.bias_hh_l0).detach()
    step = 50_000
    for _ in range(samples // step):
        eps = torch.randn(step, *weight.shape, dtype=F64, generator=generator)
        std = float(noise.partition("(")[2][:-1])
        drawn = weight + std * eps if "+" in noise else weight * (1 + std * eps)
        h = one_step(kind, drawn @ x[0, 0] + bias, layer)
        total += torch.stack([h.sum(0), h.square().sum(0), h.pow(4).sum(0)])
    mean, second, fourth = total / samples
    variance = second - mean.square()
    error = 3e-3 if kind == "LSTM" else 1e-4
    slack = Z * (variance / samples).sqrt() + error
    assert ((found.mean[0, 0] - mean).abs() <= slack).all()
    slack = Z * ((fourth - second.square()).clamp(0) / samples).sqrt() + error
    assert ((found.variance[0, 0] - variance).abs() <= slack + 2 * mean.abs() * slack).all()


def one_step(kind, a, layer):
    """Return h_1 from a state of zeros; W_hh adds nothing."""
    gates = a.unflatten(-1, (-1, H)).unbind(-2)
    if kind == "LSTM":
        i, _, g, o = gates
        return o.sigmoid() * torch.tanh(i.sigmoid() * g.tanh())
    if kind == "GRU":
        r, z, n = gates
        inner = layer.bias_hh_l0.detach()[-H:]  # stands in a already, before the reset
        return (1 - z.sigmoid()) * torch.tanh(n - inner + r.sigmoid() * inner)
    return {"tanh": torch.tanh, "relu": torch.relu, "sigmoid": torch.sigmoid}[kind](gates[0])


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("law", ["Bernoulli(keep=0.7)", "Laplace(0.5)", "Gamma(1.0)"])
def test_dropout_of_units_is_noise_in_their_weights(kind, law):
    """Fast dropout and fast adaptive weight noise, with the same variances."""
    layer, x = case(kind, f"recurrent * {law} @ moments")
    other, _ = case(kind, f"weight_hh * {law} @ moments")
    for one, two in zip(
        tensors(layer(x, return_moments=True)), tensors(other(x, return_moments=True)), strict=True
    ):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_only_the_variance_of_a_law_matters(kind):
    results = [
        layer_of(kind, f"hidden * {law} @ moments")(seeded(T, B, F, dtype=F64), return_moments=True)
        for law in ("Gaussian(0.5)", "Gumbel(0.5)", "Bernoulli(keep=0.8)")
    ]
    for other in results[1:]:
        torch.testing.assert_close(tensors(results[0]), tensors(other), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("form", ["mixture", "closed", "wang-manning"])
def test_gradients_over_five_steps(kind, form):
    noise = (
        "input * Bernoulli(keep=0.8) @ moments & recurrent * Bernoulli(keep=0.7) @ moments"
        " & hidden + Gaussian(Learned(0.3)) @ moments & weight_hh + Gaussian(0.1) @ moments"
    )
    torch.manual_seed(3)
    layer = make(kind, 2, 2, noise=noise, dtype=F64)
    layer.propagation = Propagation(form=form)
    x = seeded(5, 1, 2, dtype=F64).requires_grad_()
    leaves = (x, *layer.parameters())

    def results(x, *parameters):
        named = dict(zip(dict(layer.named_parameters()), parameters, strict=True))
        return tuple(tensors(torch.func.functional_call(layer, named, x, {"return_moments": True})))

    assert torch.autograd.gradcheck(results, leaves)


@pytest.mark.parametrize("kind", ["tanh", "GRU", "LSTM"])
@pytest.mark.parametrize("noise", ["recurrent * Gaussian(0.5) @ moments & between * Gaussian(0.5)"])
def test_layouts_agree(kind, noise):
    """Time first, batch first, one sequence, packed, and in pieces with the state of moments."""
    layer, x = case(kind, noise, bidirectional=True)
    draws = layer.draw(x)
    moments, _ = layer(x, draws=draws, return_moments=True)
    first = layer_of(kind, noise, bidirectional=True, batch_first=True)
    turned, _ = first(x.transpose(0, 1), draws=draws, return_moments=True)
    assert_bit_equal(tensors(turned), [one.transpose(0, 1) for one in moments])
    own = {place: tuple(e[:, :1] if e.dim() == 3 else e for e in es) for place, es in draws.items()}
    alone, _ = layer(x[:, 0], draws=own, return_moments=True)
    torch.testing.assert_close(tensors(alone), [one[:, 0] for one in moments])
    lengths = torch.tensor([2, 4, 3])
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    found, state = layer(packed, draws=draws, return_moments=True)
    shorter = {p: tuple(e[:2, :1] if e.dim() == 3 else e for e in es) for p, es in draws.items()}
    expected, last = layer(x[:2, :1], draws=shorter, return_moments=True)
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(pad_packed_sequence(got)[0][:2, :1], wanted)
    of_h, of_last = (s[0] if kind == "LSTM" else s for s in (state, last))
    torch.testing.assert_close([s[:, :1] for s in of_h], list(of_last))


@pytest.mark.parametrize("kind", ["tanh", "GRU", "LSTM"])
def test_a_state_of_moments_goes_on(kind):
    layer, x = case(kind, "recurrent * Gaussian(0.5) @ moments", time=6)
    whole, last = layer(x, return_moments=True)
    first, state = layer(x[:2], return_moments=True)
    second, final = layer(x[2:], state, return_moments=True)
    for one, two, three in zip(whole, first, second, strict=True):
        torch.testing.assert_close(one, torch.cat([two, three]))
    torch.testing.assert_close(tensors(final), tensors(last))
    means, _ = layer(x[2:], state)  # the means alone, of moments that come in
    torch.testing.assert_close(means, second.mean)


@pytest.mark.parametrize("kind", ["tanh", "GRU", "LSTM"])
def test_layers_take_moments_of_layers(kind):
    noise = "recurrent * Gaussian(0.5) @ moments"
    both, x = case(kind, noise)
    torch.manual_seed(3)
    parts = [make(kind, size, H, noise=noise, dtype=F64) for size in (F, H)]
    for index, part in enumerate(parts):
        for name, value in part.named_parameters():
            value.data = getattr(both, name.replace("_l0", f"_l{index}")).data
    expected, _ = both(x, return_moments=True)
    middle, _ = parts[0](x, return_moments=True)
    torch.testing.assert_close(tensors(parts[1](middle)[0]), tensors(expected))


@pytest.mark.parametrize("kind", ["tanh", "GRU", "LSTM"])
@pytest.mark.parametrize("site", ["between", "hidden[1]", "output", "weight_hh[0] @ sequence"])
def test_what_is_drawn_meets_what_is_propagated(kind, site):
    """A factor of 0 draws: with noise of no variance the rest is the moments' alone."""
    site, _, hold = site.partition(" @ ")
    term = f"{site} * Gaussian(0.5){' @ ' + hold if hold else ''}"
    layer, x = case(kind, f"recurrent[0] * Bernoulli(keep=0.7) @ moments & {term}")
    draws = layer.draw(x)
    place = {"between": "between_l0", "hidden[1]": "hidden_l1", "output": "output"}
    place = place.get(site, "weight_hh_l0")
    ones = draws | {place: tuple(torch.ones_like(e) for e in draws[place])}
    alone = layer_of(kind, "recurrent[0] * Bernoulli(keep=0.7) @ moments")
    found, _ = layer(x, draws=ones, return_moments=True)
    expected, _ = alone(x, return_moments=True)
    torch.testing.assert_close(tensors(found), tensors(expected))
    twice = draws | {place: tuple(2 * torch.ones_like(e) for e in draws[place])}
    doubled, _ = layer(x, draws=twice, return_moments=True)
    if site == "output":
        torch.testing.assert_close(doubled.mean, 2 * expected.mean)
        torch.testing.assert_close(doubled.variance, 4 * expected.variance)
    assert not torch.allclose(doubled.mean, expected.mean)


def test_noise_in_weights_drawn_at_each_step_meets_moments():
    layer, x = case(
        "tanh", "input + Gaussian(0.5) @ moments & weight_hh * Gaussian(0.5)", num_layers=1
    )
    draws = layer.draw(x)
    assert draws["weight_hh_l0"][0].dtype == torch.int64
    moments, _ = layer(x, draws=draws, return_moments=True)
    silent = {"input": (torch.zeros((), dtype=F64),), "weight_hh_l0": draws["weight_hh_l0"]}
    sampled = layer_of("tanh", "weight_hh * Gaussian(0.5)", num_layers=1)
    expected, _ = sampled(x, draws={"weight_hh_l0": draws["weight_hh_l0"]})
    torch.testing.assert_close(layer(x, draws=silent)[0], expected)
    assert (moments.variance > 0).all()


def test_evaluation_keeps_moments_and_plain_and_sampling_replace_them():
    noise = "recurrent * Bernoulli(keep=0.6) @ moments & hidden * Gaussian(0.5)"
    layer, x = case("tanh", noise, num_layers=1)
    layer.eval()
    expected, _ = layer_of("tanh", "recurrent * Bernoulli(keep=0.6) @ moments", num_layers=1)(x)
    assert_bit_equal(layer(x)[0], expected)
    with plain(layer):
        assert_bit_equal(layer(x)[0], layer_of("tanh", None, num_layers=1)(x)[0])
    assert_bit_equal(layer(x)[0], expected)
    with sampling(layer):
        drawn = layer.draw(x)
        assert drawn["recurrent_l0"][0].shape == (T, B, H)
        assert not torch.equal(layer(x)[0], layer(x)[0])
        moments, _ = layer(x, return_moments=True)
        assert (moments.variance == 0).all()


def test_moments_are_near_the_average_of_draws():
    """Over 20 steps of an untrained RNN: they share their past, so it is not exact."""
    layer, x = case("tanh", "recurrent * Bernoulli(keep=0.8) @ moments", time=20, num_layers=1)
    layer.eval()
    moments, _ = layer(x, return_moments=True)
    with torch.no_grad(), sampling(layer):
        draws = noisin.unfold(layer(noisin.fold(x, 4000))[0], 4000)
        off = (moments.mean - draws.mean(0)).square().mean() / draws.var(0).mean()
    assert off < 0.02
    ratio = moments.variance.sqrt().mean() / draws.std(0).mean()
    assert 0.8 < ratio < 1.2


def test_learned_spreads_are_trained_through_the_variance():
    for per in ("layer", "unit"):
        layer, x = case("GRU", f"hidden * Gaussian(Learned(0.5, per='{per}')) @ moments")
        layer(x)[0].square().sum().backward()
        assert (layer.rho_hidden_l0.grad != 0).all()
    layer, x = case("tanh", "weight_hh + Gaussian(Learned(0.1, per='weight')) @ moments")
    layer(x)[0].square().sum().backward()
    assert layer.rho_weight_hh_l0.grad.shape == (H, H)
    assert (layer.rho_weight_hh_l0.grad != 0).all()


def test_wang_and_manning_leave_out_the_variance_of_the_input():
    layer, x = case("tanh", "recurrent * Gaussian(0.5) @ moments", num_layers=1)
    full, _ = layer(x, return_moments=True)
    layer.propagation = Propagation(own_variance=False)
    less, _ = layer(x, return_moments=True)
    assert_bit_equal(less.mean[:2], full.mean[:2])
    assert (less.variance[2] < full.variance[2]).all()
    with pytest.raises(ValueError, match="form must be one of"):
        Propagation(form="none")


def test_what_runs_is_explained():
    rows = explain(LSTM(F, H, 3, noise="hidden[1] * Gaussian(0.5) @ moments"))
    assert [row.path for row in rows] == ["torch", "moments", "moments"]
    assert [row.estimate for row in rows] == ["", "moments", ""]


def test_bfloat16():
    layer = RNN(F, H, noise="recurrent * Gaussian(0.5) @ moments", dtype=torch.bfloat16)
    moments, _ = layer(torch.randn(T, B, F, dtype=torch.bfloat16), return_moments=True)
    assert moments.variance.dtype == torch.bfloat16
    assert (moments.variance >= 0).all()


def test_state_dict_is_torchs():
    noise = "recurrent * Gaussian(0.5) @ moments"
    assert list(GRU(F, H, noise=noise).state_dict()) == list(torch.nn.GRU(F, H).state_dict())


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_second_derivatives_in_float32(kind):
    """The compiled functions differentiated again, as torch's operations in float64 are."""
    noise = "input * Bernoulli(keep=0.8) @ moments & recurrent * Gaussian(0.5) @ moments"
    found = []
    for dtype in (torch.float32, F64):
        layer = layer_of(kind, noise, num_layers=1).to(dtype)
        x = seeded(3, 3, F, dtype=F64).to(dtype).requires_grad_()
        out = layer(x, return_moments=True)[0]
        (grad,) = torch.autograd.grad(out.mean.sum() + out.variance.sum(), x, create_graph=True)
        found.append(torch.autograd.grad(grad.square().sum(), x)[0].double())
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(
    "more", [{"return_moments": True}, {"path": "moments"}, {"path": "reference"}]
)
def test_torchs_dropout_alone_counts_as_noise(more):
    layer = LSTM(F, H, 2, dropout=0.5)
    x = torch.randn(T, B, F)
    first, second = (tensors(layer(x, **more))[0] for _ in range(2))
    assert not torch.equal(first, second)
    layer.eval()
    torch.testing.assert_close(tensors(layer(x, **more))[0], layer(x)[0])
