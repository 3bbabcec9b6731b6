"""What torch.compile makes of the library alone: run as a script, apart from the tests' own hooks.

``python compiled.py CHECK...`` prints a JSON object: for each case what is wrong with it, or null.
The checks of shapes that conftest.py puts around every function are not what a user compiles.
"""

import json
import sys
import warnings

import torch

from cases import make, seeded, zeros
from models import IDS, Tagger
from noisin import Embedding, Linear, regularize, strip
from noisin.functional import recur
from noisin.propagation import mean_of

T, B, F, H = 3, 2, 3, 5
NOISES = (
    *(None, "hidden * Gaussian(0.5)", "input * Gaussian(0.5) & output + Gaussian(0.5)"),
    *("weight_hh + Gaussian(0.5) @ sequence", "weight_hh + Gaussian(0.5)", "Zoneout(hidden=0.5)"),
    "hidden * Gaussian(Learned(0.5))",
)
FORMS = (  # what acts on given draws, and the cells it is tried in
    *(("LSTM", "hidden * Gaussian(0.5)"), ("GRU", "hidden + Gaussian(0.5) @ cumulative")),
    *(("GRU", "recurrent + Gaussian(0.5)"), ("tanh", "recurrent * Gaussian(0.5) @ sequence")),
    *(("LSTM", "candidate * Gaussian(0.5)"), ("GRU", "candidate + Gaussian(0.5) @ sequence")),
    *(("sigmoid", "Zoneout(hidden=0.3)"), ("LSTM", "Zoneout(hidden=0.3, cell=0.5)")),
    *(("LSTM", "input * Gaussian(0.5) @ untied"), ("GRU", "recurrent + Gaussian(0.5) @ untied")),
    *(
        ("tanh", "recurrent * Gaussian(0.5) @ preactivation"),
        ("LSTM", "weight_hh + Gaussian(0.5) @ preactivation"),
        ("GRU", "input * Gaussian(0.5) @ preactivation"),
        ("relu", "weight_ih + Gaussian(Learned(0.5)) @ preactivation"),
    ),
    *(
        ("LSTM", "weight_ih * Bernoulli(keep=0.5) @ sequence"),
        ("GRU", "weight_hh + Gaussian(0.5) @ sequence"),
        ("tanh", "weight_hh + Gaussian(Learned(0.5)) @ sequence"),
        ("sigmoid", "weight_hh * Gaussian(0.5) @ sequence"),
    ),
    *(
        *(("LSTM", "weight_hh + Gaussian(0.5)"), ("GRU", "weight_hh * Bernoulli(keep=0.5)")),
        *(("sigmoid", "weight_hh + Gamma(Learned(0.5))"),),
    ),
    ("LSTM", "hidden * Gaussian(Learned(0.5)) & output + Gaussian(0.5) & input * Gaussian(0.5)"),
)
BROKEN = (  # where matrices are drawn anew at each step outside the fused recurrence
    ("LSTM", "weight_hh + Gaussian(0.5) @ cumulative", False),
    ("GRU", "weight_ih * Gaussian(0.5)", False),
    ("LSTM", "weight_hh + Gaussian(0.5) & recurrent * Bernoulli(keep=0.5) @ moments", False),
)


def same(actual, expected):
    """Return None if all tensors are equal bit for bit."""
    pairs = zip(actual, expected, strict=True)
    return None if all(torch.equal(a, b) for a, b in pairs) else "other results"


def broken(model):
    """Return how often the graph breaks, and why."""
    torch._dynamo.reset()
    found = torch._dynamo.explain(model)(IDS)
    return found.graph_break_count, [str(one.reason) for one in found.break_reasons]


def breaks(kind, noise, training):
    """Compare the breaks of a noisy model with those of the model of torch's layer."""
    count, reasons = broken(regularize(Tagger(kind), noise).train(training))
    at_most, known = broken(Tagger(kind).train(training))
    if count > at_most or len(reasons) > len(known):
        return (
            f"{count} breaks, torch's layer {at_most}; {[why.splitlines()[0] for why in reasons]}"
        )
    return None


def stripped(kind, noise):
    """A stripped model is compiled as torch's."""
    plain, model = strip(regularize(Tagger(kind), noise)), Tagger(kind)
    if broken(plain) != broken(model):
        return "other breaks"
    return same([torch.compile(plain, backend="eager")(IDS)], [model(IDS)])


def gradients(model, output):
    return list(torch.autograd.grad(output.square().sum(), list(model.parameters())))


def results(kind, noise):
    """Outputs and gradients of a compiled model, from one seed, are those of the model."""
    model = regularize(Tagger(kind), noise)
    found = []
    for one in (torch.compile(model, backend="eager"), model):
        torch.manual_seed(1)
        output = one(IDS)
        found.append([output, *gradients(model, output)])
    return same(*found)


def lengths(noise):
    """Ten lengths give no graph more than torch's layer does, and the model's results."""
    graphs = []
    for one in (noise, None):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        model = regularize(Tagger(), one)
        compiled = torch.compile(model, backend="eager")
        for time in range(1, 11):
            ids = IDS[:1].expand(time, -1)
            torch.manual_seed(1)
            found = compiled(ids)
            torch.manual_seed(1)
            wrong = same([found], [model(ids)])
            if wrong:
                return wrong
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    return f"{graphs[0]} graphs, torch's layer {graphs[1]}" if graphs[0] > graphs[1] else None


def functional(kind, noise, fullgraph=True):
    """The functional entry on given draws is one graph, or breaks and goes on; gradients, too."""
    torch.manual_seed(0)
    layer, x = make(kind, F, H, noise=noise), seeded(T, B, F)
    draws = layer.draw(x, generator=torch.Generator().manual_seed(0))
    args = (layer.stack, layer.all_weights, x, zeros(layer, x))
    found = []
    for run in (torch.compile(recur, fullgraph=fullgraph, backend="eager"), recur):
        output, final = run(*args, noise=layer.noise, draws=draws)
        output, final = mean_of(output), map(mean_of, final)
        grads = torch.autograd.grad(output.square().sum(), layer.parameters(), retain_graph=True)
        found.append([output, *final, *grads])
    return same(*found)


def dense(kind, noise, fullgraph):
    """Layers without a recurrence compile with noise as they do without, for inputs of any size."""
    torch.manual_seed(0)
    layer = Linear(F, H, noise=noise) if kind == "linear" else Embedding(7, H, noise=noise)
    compiled = torch.compile(layer, backend="eager", fullgraph=fullgraph)
    found = []
    for one in (compiled, layer):
        torch.manual_seed(1)
        outputs = []
        for time in range(2, 6):
            x = seeded(time, B, F) if kind == "linear" else IDS[:1].expand(time, -1)
            outputs.append(one(x))
        found.append(outputs)
    return same(*found)


DENSE = (
    *(("linear", None, True), ("linear", "input * Gaussian(0.5)", True)),
    *(("linear", "weight * Gaussian(0.5)", False), ("linear", "weight + Laplace(0.5)", False)),
    *(("linear", "input + Bernoulli(keep=0.5) @ sequence", True),),
    *(("linear", "weight * Gaussian(Learned(0.5)) @ sequence", True),),
    *(("linear", "weight * Gaussian(0.5) @ preactivation", True),),
    ("linear", "weight + Gaussian(0.5) & input * Bernoulli(keep=0.5) @ moments", False),
    *(("embedding", None, True), ("embedding", "row * Gaussian(0.5)", True)),
    *(("embedding", "row * Bernoulli(keep=0.5) @ sequence", True),),
)
OTHERS = [(kind, noise) for kind in ("GRU", "tanh") for noise in (NOISES[1], NOISES[4])]
PAIRS = [*(("LSTM", noise) for noise in NOISES), *OTHERS]
ZONEOUT = ("LSTM", NOISES[5])  # which acts in evaluation, too
CHECKS = {
    "breaks": (breaks, [*((*pair, True) for pair in PAIRS), (*ZONEOUT, False), (*PAIRS[1], False)]),
    "stripped": (stripped, [pair for pair in PAIRS[1:7] if pair != ZONEOUT]),
    "results": (results, PAIRS),
    "lengths": (lengths, [(noise,) for noise in (None, NOISES[1], NOISES[3], NOISES[4])]),
    "functional": (functional, [*FORMS, *BROKEN]),
    "dense": (dense, DENSE),
}


def main(names):
    """Run checks over their cases; a warning is an error, as in all tests."""
    warnings.simplefilter("error")
    # dynamo looks at the gradient of each tensor, and hides this warning by a filter of its own
    warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
    torch._dynamo.config.fail_on_recompile_limit_hit = True  # as step after step would
    torch.set_num_threads(1)
    found = {}
    for name in names:
        check, cases = CHECKS[name]
        for case in cases:
            torch._dynamo.reset()
            try:
                found[f"{name} {case}"] = check(*case)
            except Exception as error:  # whatever dynamo raises is what is reported
                found[f"{name} {case}"] = f"{type(error).__name__}: {str(error)[:300]}"
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
