"""Mean and variance of a random tensor, carried through operations.

Only the first two moments of each number are kept, and the numbers of one tensor are taken to be
independent of each other. What is linear, a product, a sum or a rectifier is exact then; the
squashing functions are approximated, for a number that is taken to be normal.

The largest errors of their mean and variance, over means in [-10, 10] and variances in [0, 100]:

===============  ============  ================  =======  ===========
form             mean of tanh  variance of tanh  sigmoid  at variance 0
===============  ============  ================  =======  ===========
``mixture``      2.9e-5        5.1e-5            1.3e-5   exact
``closed``       3.5e-2        6.3e-2            1.7e-2   exact
``wang-manning`` 3.5e-2        1.1e-1            2.8e-2   wrong
===============  ============  ================  =======  ===========

References:
    Bayer et al.: On fast dropout and its applicability to recurrent networks, section 2.2.
    Wang, Manning (2013): Fast dropout training.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional

from noisin.noise import Operator
from noisin.shapes import Float

Variance = float | Tensor
Form = Literal["mixture", "closed", "wang-manning"]

# tanh x ≈ Σ c erf(q x), Σ c = 1
_SHARES = (0.0886673456, 0.4178972674, 0.4140872391, 0.0793481479)
_SURE = 12  # standard deviations; Φ(-12) is 2e-33
_SLOPES = (0.4764472635, 0.7087913120, 1.0357799047, 1.4978223619)


class Moments(NamedTuple):
    """Mean and variance of each number of a random tensor.

    Args:
        mean: E[t].
        variance: V[t] >= 0, of the same shape.

    Examples:
        >>> Moments(torch.zeros(3), torch.ones(3)).variance
        tensor([1., 1., 1.])
    """

    mean: Tensor
    variance: Tensor


torch.serialization.add_safe_globals([Moments])  # a state on file is read by torch.load


def mean_of(x: Tensor | Moments) -> Tensor:
    """Return a tensor as it is; of moments the mean."""
    return x.mean if isinstance(x, Moments) else x


def exact(x: Tensor | Moments) -> Moments:
    """Return a tensor as moments with variance 0; moments as they are."""
    return x if isinstance(x, Moments) else Moments(x, torch.zeros_like(x))


def checked(x: Moments) -> Moments:
    """Return moments, or refuse a variance that is not of the shape and kind of the mean.

    Raises:
        ValueError: they differ in shape, dtype or device, or are no tensors.
    """
    mean, variance = x
    if not isinstance(mean, Tensor) or not isinstance(variance, Tensor):
        got = f"{type(mean).__name__} and {type(variance).__name__}"
        raise ValueError(f"Moments must hold two tensors, got {got}")
    first, second = ((tuple(t.shape), t.dtype, t.device) for t in x)
    if first != second:
        raise ValueError(f"mean and variance must be alike; got {first} and {second}")
    return x


def each(function: Callable[..., Tensor], *parts: Tensor | Moments) -> Any:
    """Return a function of tensors, or of the means and of the variances of moments.

    Args:
        function: of as many tensors, linear.
        *parts: tensors, or moments of some of them.
    """
    if not any(isinstance(part, Moments) for part in parts):
        return function(*parts)
    pairs = [exact(part) for part in parts]
    return Moments(function(*(m for m, _ in pairs)), function(*(v for _, v in pairs)))


def added_variance(
    mean: Float[Tensor, "*size"],
    variance: Float[Tensor, "*size"],
    operator: Operator,
    noise: Variance,
) -> Float[Tensor, "*size"]:
    """Return what independent noise of mean 0 adds to the variance of a random tensor.

    V[t (1 + ε)] - V[t] = V[ε] (E[t]² + V[t]), and V[t + ε] - V[t] = V[ε]: exact for any law.

    Args:
        mean: E[t].
        variance: V[t].
        operator: how the noise acts.
        noise: V[ε], a number or a tensor that broadcasts to t.
    """
    if operator == "*":
        return noise * (mean.square() + variance)
    return torch.as_tensor(noise, dtype=mean.dtype, device=mean.device).expand_as(mean)


def deviation(variance: Tensor) -> Tensor:
    """Return the square root, with a gradient of 0 where the variance is 0."""
    positive = variance > 0
    return torch.where(positive, torch.where(positive, variance, 1).sqrt(), 0)


def noisy(x: Moments, operator: Operator, noise: Variance) -> Moments:
    """Return the moments of t (1 + ε) or t + ε, exact for independent noise of mean 0.

    Args:
        x: moments of t.
        operator: ``"*"`` or ``"+"``.
        noise: V[ε].
    """
    return Moments(x.mean, x.variance + added_variance(x.mean, x.variance, operator, noise))


def linear(
    x: Moments,
    weight: Float[Tensor, "R F"],
    bias: Float[Tensor, " R"] | None = None,
    weight_variance: Float[Tensor, "R F"] | None = None,
) -> Moments:
    """Return the moments of a = W x + b, exact for independent x and W.

    E[a] = E[W] E[x] + b and V[a] = (E[W]² + V[W]) V[x] + V[W] E[x]², squares by element: equations
    (1), (2) and, with noisy weights, (5), (6) of the paper. A fixed factor of x, such as the
    paper's keep probability p, stands in the weights or in x.

    Args:
        x: moments of the input, [..., F].
        weight: E[W].
        bias: b.
        weight_variance: V[W]; 0 without it.
    """
    mean = functional.linear(x.mean, weight, bias)
    variance = functional.linear(x.variance, weight.square())
    if weight_variance is not None:
        second = x.mean.square() + x.variance
        variance = variance + functional.linear(second, weight_variance)
    return Moments(mean, variance)


def total(first: Moments, second: Moments) -> Moments:
    """Return the moments of the sum of two independent tensors; exact."""
    return Moments(first.mean + second.mean, first.variance + second.variance)


def product(first: Moments, second: Moments) -> Moments:
    """Return the moments of the product of two independent tensors; exact.

    E[s t] = E[s] E[t]; V[s t] = V[s] E[t]² + E[s]² V[t] + V[s] V[t].
    """
    (m, v), (n, w) = first, second
    return Moments(m * n, v * n.square() + (m.square() + v) * w)


def mixed(gate: Moments, old: Moments, new: Moments) -> Moments:
    """Return the moments of z s + (1 - z) t, of three independent tensors; exact.

    Args:
        gate: of z.
        old: of s.
        new: of t.
    """
    (z, of_z), (s, of_s), (t, of_t) = gate, old, new
    variance = of_z * (s - t).square() + (z.square() + of_z) * of_s
    return Moments(t + z * (s - t), variance + ((1 - z).square() + of_z) * of_t)


def relu(x: Moments) -> Moments:
    """Return the moments of max(a, 0) for normal a; exact.

    With s = √V[a], r = E[a] / s and g(r) = r Φ(r) + φ(r): E = s g(r), V = s² (Φ(r) - g(r) g(-r)),
    a form that loses no digits where E[y²] - E[y]² would lose all of them.
    """
    return _wide(_relu, x)


def tanh(x: Moments, form: Form = "mixture") -> Moments:
    """Return the moments of the hyperbolic tangent of normal numbers.

    ``mixture``: tanh as a sum of four error functions, each of which is exact, corrected to be
    tanh itself at variance 0. ``closed``: with r = √(1 + π V[a] / 2), E = tanh(E[a] / r) and
    V = (1 - E²)(1 - 1 / r), what differentiating the mean gives. ``wang-manning``: their sigmoid
    of 2 a; its variance is not 0 where that of a is.

    Args:
        x: moments of a.
        form: which approximation; their errors are in the table of this module.
    """
    if form == "wang-manning":
        m, v = sigmoid(Moments(2 * x.mean, 4 * x.variance), form)
        return Moments(2 * m - 1, 4 * v)
    return _wide({"mixture": _tanh_mixture, "closed": _tanh_closed}[checked_form(form)], x)


def sigmoid(x: Moments, form: Form = "mixture") -> Moments:
    """Return the moments of the logistic function of normal numbers.

    Args:
        x: moments of a.
        form: which approximation.
    """
    return _wide(_SIGMOIDS[checked_form(form)], x)


def checked_form(form: str) -> Form:
    """Return the name of a form, or refuse an unknown one."""
    if form not in get_args(Form):
        raise ValueError(f"form must be one of {', '.join(get_args(Form))}; got {form!r}")
    return form  # pyright: ignore[reportReturnType]


def integrated(function: Callable[[Tensor], Tensor], x: Moments, step: float = 0.01) -> Moments:
    """Return the moments of f(a) for normal a by numerical integration: the yardstick.

    The trapezoidal rule in z = (a - E[a]) / √V[a] over [-12, 12], in float64.

    Args:
        function: f, by element.
        x: moments of a.
        step: of z; at most 0.1 / √V[a] for a function as steep as tanh.
    """
    mean, std = x.mean.double(), x.variance.double().sqrt()
    weight = first = second = 0.0
    for z in torch.arange(-12, 12 + step / 2, step, dtype=torch.float64).tolist():
        density = math.exp(-z * z / 2)
        value = function(mean + z * std)
        weight, first = weight + density, first + density * value
        second = second + density * value.square()
    center = first / weight
    return Moments(torch.as_tensor(center), torch.as_tensor(second / weight - center**2).clamp(0))


def _wide(function: Callable[[Tensor, Tensor], Moments], x: Moments) -> Moments:
    """Compute 16-bit numbers in float32."""
    dtype = x.mean.dtype
    if dtype not in (torch.bfloat16, torch.float16):
        return function(*x)
    mean, variance = function(x.mean.float(), x.variance.float())
    return Moments(mean.to(dtype), variance.to(dtype))


def _tanh_closed(mean: Tensor, variance: Tensor) -> Moments:
    widened = 1 + math.pi / 2 * variance
    root = widened.sqrt()
    m = torch.tanh(mean / root)
    return Moments(m, (1 - m.square()) * (math.pi / 2 * variance / (widened + root)))


def _sigmoid_closed(mean: Tensor, variance: Tensor) -> Moments:
    widened = 1 + math.pi / 8 * variance
    root = widened.sqrt()
    m = torch.sigmoid(mean / root)
    return Moments(m, m * (1 - m) * (math.pi / 8 * variance / (widened + root)))


def _sigmoid_wang_manning(mean: Tensor, variance: Tensor) -> Moments:
    slope, offset = 4 - 2 * math.sqrt(2), math.log(1 + math.sqrt(2))
    m = torch.sigmoid(mean / (1 + math.pi / 8 * variance).sqrt())
    root = (1 + math.pi / 8 * slope**2 * variance).sqrt()
    return Moments(m, (torch.sigmoid(slope * (mean - offset) / root) - m.square()).clamp(0))


def _tanh_mixture(mean: Tensor, variance: Tensor) -> Moments:
    plain = torch.tanh(mean)
    shift, spread = _mixture(mean, variance, plain)
    return Moments(plain + shift, spread)


def _sigmoid_mixture(mean: Tensor, variance: Tensor) -> Moments:
    plain = torch.sigmoid(mean)
    shift, spread = _mixture(mean / 2, variance / 4, 2 * plain - 1)
    return Moments(plain + shift / 2, spread / 4)


_SIGMOIDS = {
    "mixture": _sigmoid_mixture,
    "closed": _sigmoid_closed,
    "wang-manning": _sigmoid_wang_manning,
}


def _mixture(mean: Tensor, variance: Tensor, plain: Tensor) -> tuple[Tensor, Tensor]:
    """Return by how much E tanh(a) differs from tanh(E a), which is ``plain``, and V tanh(a).

    With M = Σ c erf(k E a), k = q / √(1 + 2 q² V a): the mean of the mixture; its slope S = ∂M / ∂E
    gives the second moment, E tanh² = 1 - E tanh'.
    """
    shift = drop = torch.zeros_like(mean)
    for share, slope in zip(_SHARES, _SLOPES, strict=True):
        flat = slope / (1 + 2 * slope**2 * variance).sqrt()
        here, there = flat * mean, slope * mean
        shift = shift + share * (torch.erf(here) - torch.erf(there))
        slopes = slope * torch.exp(-there.square()) - flat * torch.exp(-here.square())
        drop = drop + 2 / math.sqrt(math.pi) * share * slopes
    return shift, (drop - shift * (2 * plain + shift)).clamp(0)


def _relu(mean: Tensor, variance: Tensor) -> Moments:
    near = mean.square() < _SURE**2 * variance  # else the sign is sure, and the rest underflows
    std = torch.where(near, variance, 1).sqrt()
    ratio = torch.where(near, mean, 0) / std
    above, below = _excess(ratio), _excess(-ratio)
    spread = std.square() * (torch.special.ndtr(ratio) - above * below).clamp(0)
    passed = (mean > 0).to(variance.dtype)
    return Moments(
        torch.where(near, std * above, torch.relu(mean)),
        torch.where(near, spread, variance * passed),
    )


def _excess(ratio: Tensor) -> Tensor:
    """Return E max(z + r, 0) of a standard normal z: r Φ(r) + φ(r), without loss for r < 0."""
    density = torch.exp(-ratio.square() / 2) / math.sqrt(2 * math.pi)
    low = ratio.clamp(max=0)
    tail = 1 + low * math.sqrt(math.pi / 2) * torch.special.erfcx(-low / math.sqrt(2))
    high = ratio.clamp(min=0)
    return torch.where(ratio < 0, density * tail, high * torch.special.ndtr(high) + density)
