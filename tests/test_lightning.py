"""The callback for Lightning: what it logs is what is there, and strength follows the steps."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import noisin
from models import IDS, Tagger
from noisin.diagnostics import spectral_radius
from trainers import QUIET, lightning_warns

lightning = pytest.importorskip("lightning", reason="whose trainer calls the callback")
from noisin.integrations.lightning import NoiseMonitor, Regularize  # noqa: E402 (needs lightning)

pytestmark = [pytest.mark.packages, lightning_warns]
NOISE = "hidden * Gaussian(0.5) & input * Gaussian(Learned(0.5))"


class Module(lightning.LightningModule):
    def __init__(self, noise=NOISE, **options):
        super().__init__()
        self.tagger = Tagger(**options)
        noisin.regularize(self.tagger, noise)

    def training_step(self, batch, index):
        ids = batch[0].T
        return functional.cross_entropy(self.tagger(ids).flatten(0, 1), ids.flatten())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


class Kept(lightning.pytorch.loggers.Logger):
    """Keeps what is logged, by step."""

    name, version = "kept", 0

    def __init__(self):
        super().__init__()
        self.steps = {}

    def log_hyperparams(self, *_, **__):
        pass

    def log_metrics(self, metrics, step=None):
        self.steps[step] = metrics


class Watch(lightning.Callback):
    """Looks at the layer when the callback does."""

    def __init__(self):
        self.found, self.strengths = [], []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        rnn = module.tagger.rnn
        weights = [p for name, p in rnn.named_parameters() if name.startswith("weight_hh")]
        grads = torch.cat([p.grad.flatten() for p in rnn.parameters()])
        radius = max(radius for weight in weights for radius in spectral_radius(weight.detach()))
        self.found.append({"radius/tagger.rnn": radius, "gradient/tagger.rnn": grads.norm()})
        self.found[-1] |= {f"spread/tagger.rnn.{name}": s for name, s in rnn.spreads().items()}
        self.strengths.append(rnn.strength)


def fit(module, *callbacks, checkpoint=None, **settings):
    """Train; return the trainer, and what was logged by step."""
    ids = torch.utils.data.TensorDataset(IDS.T.repeat(8, 1))
    loader = torch.utils.data.DataLoader(ids, batch_size=8)  # three batches an epoch
    kept = Kept()
    trainer = lightning.Trainer(**QUIET | {"logger": kept} | settings, callbacks=list(callbacks))
    trainer.fit(module, loader, ckpt_path=checkpoint)
    return trainer, kept.steps


@pytest.mark.parametrize(
    ("noise", "options", "spreads"),
    [
        ("hidden * Gaussian(0.5) & input * Gaussian(Learned(0.5))", {}, 1),
        ("hidden[1] * Gaussian(Learned(0.5))", {"num_layers": 2, "bidirectional": True}, 2),
        (None, {"kind": "GRU"}, 0),
    ],
)
def test_what_is_logged_is_what_the_optimizer_meets(noise, options, spreads):
    watch = Watch()
    _, logged = fit(Module(noise, **options), NoiseMonitor(every=1), watch, gradient_clip_val=1e-3)
    assert len(watch.found) == len(logged) == 6
    for found, own in zip(watch.found, logged.values(), strict=True):
        assert own == pytest.approx({name: float(value) for name, value in found.items()})
        assert sum(name.startswith("spread/") for name in own) == spreads
    assert watch.found[0]["gradient/tagger.rnn"] > 1e-2  # before clipping
    assert logged[0]["radius/tagger.rnn"] != logged[5]["radius/tagger.rnn"]


def test_what_has_no_radius_or_no_gradient_is_left_out():
    module = Module()
    module.narrow = nn.LSTM(2, 6, proj_size=3)
    module.plain = nn.GRU(2, 6)
    _, logged = fit(module, NoiseMonitor(every=1), max_steps=1)
    assert set(logged[0]) == {
        "radius/tagger.rnn",
        "gradient/tagger.rnn",
        "spread/tagger.rnn.rho_input",
        "radius/plain",
    }


def test_every_so_many_steps():
    trainer, logged = fit(Module(), NoiseMonitor(every=4))
    assert sorted(logged) == [0, 4]
    assert trainer.callback_metrics == {name: pytest.approx(x) for name, x in logged[4].items()}
    with pytest.raises(ValueError, match=r"NoiseMonitor: every must be >= 1, got 0"):
        NoiseMonitor(every=0)


def ramp(step):
    return 0.25 + step / 8


def test_strength_follows_the_steps_of_the_optimizer(tmp_path):
    watch, after = Watch(), Watch()
    each = {"accumulate_grad_batches": 2}
    trainer, logged = fit(
        Module(), NoiseMonitor(every=1, strength=ramp), watch, max_steps=3, **each
    )
    assert watch.strengths == [0.25, 0.375, 0.5]
    assert [own["strength"] for own in logged.values()] == watch.strengths
    assert trainer.lightning_module.tagger.rnn.strength == 0.625  # of the step that follows
    trainer.save_checkpoint(tmp_path / "three.ckpt")
    monitor = NoiseMonitor(strength=ramp)
    fit(Module(), monitor, after, checkpoint=tmp_path / "three.ckpt", max_steps=5, **each)
    assert after.strengths == [0.625, 0.75]


def test_a_strength_needs_noise():
    with pytest.raises(ValueError, match=r"must have a layer with noise .*, got Module"):
        fit(Module(noise=None), NoiseMonitor(strength=ramp))


def test_the_same_noise_comes_to_other_layers_too():
    noise = "input * Gaussian(0.5)"
    module = Module(noise=None)
    both = Regularize(noise, where="tagger.rnn"), Regularize(noise, where="tagger.read")
    fit(module, *both, max_steps=1)
    assert module.tagger.rnn.noise == module.tagger.read.noise == noisin.parse(noise)


def test_noise_comes_before_the_optimizer_and_once():
    module, callback = Module(noise=None), Regularize(NOISE, where="tagger.rnn")
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    fit(module, callback)
    rnn = module.tagger.rnn
    assert rnn.noise == noisin.parse(NOISE)
    assert type(module.tagger.read) is nn.Linear
    spread = rnn.rho_input.detach().clone()
    assert rnn.spreads() != {"rho_input": pytest.approx(0.5)}  # trained
    assert not any(torch.equal(p, before.get(name, p + 1)) for name, p in module.named_parameters())
    fit(module, callback, max_steps=0)
    assert torch.equal(module.tagger.rnn.rho_input, spread)
    with pytest.raises(ValueError, match=r"where must name layers"):
        fit(Module(noise=None), Regularize(NOISE, where="nowhere"))


@pytest.mark.parametrize("where", [None, "tagger.rnn"])
@pytest.mark.parametrize("hook", ["setup", "configure_model"])
def test_noise_comes_to_networks_that_are_built_later(hook, where, tmp_path):
    class Late(Module):
        def __init__(self):
            lightning.LightningModule.__init__(self)
            self.built = 0

        def build(self):
            self.built += 1
            self.tagger = Tagger()

    def setup(self, stage):
        self.build()

    setattr(Late, hook, setup if hook == "setup" else Late.build)
    callbacks = Regularize(NOISE, where=where), Regularize("weight * Gaussian(0.1)", "tagger.read")
    module = Late()
    for count in (1, 2):
        trainer, _ = fit(module, *callbacks, max_steps=2)
        assert module.built == count
        assert module.tagger.rnn.noise == noisin.parse(NOISE)
        assert module.tagger.read.noise == noisin.parse("weight * Gaussian(0.1)")
        assert module.tagger.rnn.spreads() != {"rho_input": pytest.approx(0.5)}  # trained
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    spread = module.tagger.rnn.rho_input.detach().clone()
    fit(module, *callbacks, checkpoint=tmp_path / "two.ckpt", max_steps=2)
    assert torch.equal(module.tagger.rnn.rho_input, spread)


def test_it_watches_a_parametrized_matrix():
    module = Module()
    nn.utils.parametrizations.weight_norm(module.tagger.rnn, "weight_hh_l0")
    start = spectral_radius(module.tagger.rnn.weight_hh_l0.detach()).max().item()
    _, logged = fit(module, NoiseMonitor(every=1))
    assert logged[0]["radius/tagger.rnn"] == pytest.approx(start)
    assert len({one["radius/tagger.rnn"] for one in logged.values()}) == 6
