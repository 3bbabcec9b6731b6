"""Models of other packages: made noisy, trained by their own trainers, and given back to torch."""

import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional

import noisin
from conftest import assert_bit_equal
from models import IDS, WORDS, Tagger, kinds
from noisin import regularize, strip
from trainers import QUIET, lightning_warns

pytestmark = pytest.mark.packages

NOISE = "hidden * Gaussian(Learned(0.5)) & weight_hh + Gaussian(0.1) & input * Gaussian(0.1)"


def assert_trained(model, before):
    """Every weight and every learned spread has moved, and noise acts."""
    after = dict(model.named_parameters())
    assert any("rho" in name for name in after)
    assert set(after) == set(before)
    still = [name for name, start in before.items() if torch.equal(after[name], start)]
    assert still == []


def parameters(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_given_back(plain, fresh, run, path):
    """What was stripped is saved, and loaded into a model that noisin never saw."""
    torch.save(plain.state_dict(), path)
    fresh.load_state_dict(torch.load(path, weights_only=True))
    assert kinds(plain) == kinds(fresh)
    assert not any(name.startswith("noisin") for name in map(origin, kinds(plain).values()))
    with torch.no_grad():
        assert_bit_equal(run(plain.eval()), run(fresh.eval()))


def origin(kind):
    return kind.__module__


def forecasts(cell):
    """Return a data set of two sines, and a network for it."""
    numpy = pytest.importorskip("numpy")
    pandas = pytest.importorskip("pandas", reason="pytorch-forecasting reads its frames")
    package = pytest.importorskip("pytorch_forecasting", reason="whose models are regularized")
    time = numpy.arange(40)
    waves = [numpy.sin(time / 5), numpy.cos(time / 5)]
    columns = {"time": numpy.tile(time, 2), "series": numpy.repeat(["a", "b"], len(time))}
    columns["value"] = numpy.concatenate(waves).astype("float32")
    data = package.TimeSeriesDataSet(
        pandas.DataFrame(columns),
        time_idx="time",
        target="value",
        group_ids=["series"],
        max_encoder_length=6,
        max_prediction_length=3,
        time_varying_unknown_reals=["value"],
    )
    sizes = {"hidden_size": 5, "rnn_layers": 2, "dropout": 0.1, "learning_rate": 0.1}
    return data, lambda: package.RecurrentNetwork.from_dataset(data, cell_type=cell, **sizes)


@lightning_warns
@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_a_network_of_pytorch_forecasting(cell, tmp_path):
    """Its recurrent layers are subclasses of torch's, with a ``forward`` of their own."""
    lightning = pytest.importorskip("lightning", reason="which trains it")
    data, network = forecasts(cell)
    net, original = network(), network()
    regularize(net, NOISE)
    assert isinstance(net.rnn, getattr(noisin, cell))
    assert isinstance(net.rnn, type(original.rnn))
    before, loader = parameters(net), data.to_dataloader(batch_size=8, num_workers=0)
    lightning.Trainer(**QUIET).fit(net, loader)
    assert_trained(net, before)
    x, _ = next(iter(loader))
    net.train()
    assert not torch.equal(net(x)["prediction"], net(x)["prediction"])
    assert_given_back(
        strip(net, inplace=True), original, lambda one: one(x)["prediction"], tmp_path / "net.pt"
    )


@lightning_warns
@pytest.mark.filterwarnings("ignore::Warning:darts.*", "ignore::Warning:pytorch_lightning.*")
@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_a_model_of_darts(cell, tmp_path):
    """Its network is built inside of ``fit``, where the callback meets it."""
    numpy = pytest.importorskip("numpy")
    darts = pytest.importorskip("darts", reason="whose models are regularized")
    models = pytest.importorskip("darts.models", reason="whose models are regularized")
    integrations = pytest.importorskip("noisin.integrations.lightning", reason="needs lightning")
    waves = numpy.sin(numpy.arange(60) / 5).astype("float32")
    series = darts.TimeSeries.from_values(waves)
    kinds = {"input_chunk_length": 6, "training_length": 9, "hidden_dim": 5, "n_rnn_layers": 2}
    trainer = QUIET | {"callbacks": [integrations.Regularize(NOISE)]}
    model = models.RNNModel(
        model=cell,
        **kinds,
        n_epochs=2,
        random_state=1,
        pl_trainer_kwargs=trainer | {"max_steps": -1},
    )
    model.fit(series)
    layer = model.model.rnn
    assert isinstance(layer, getattr(noisin, cell))
    assert layer.noise == noisin.parse(NOISE)
    assert layer.spreads()["rho_hidden_l0"] != 0.5
    forecast = model.predict(4).values()
    strip(model.model, inplace=True)  # or the file holds spreads that a plain network lacks
    assert type(model.model.rnn) is getattr(nn, cell)
    model.save(str(tmp_path / "model.pt"))
    again = models.RNNModel.load(str(tmp_path / "model.pt"), trusted=True)
    numpy.testing.assert_array_equal(again.predict(4).values(), forecast)


@lightning_warns
def test_a_lightning_module(tmp_path):
    lightning = pytest.importorskip("lightning", reason="whose module is regularized")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.tagger = Tagger()

        def training_step(self, batch, index):
            ids = batch[0].T
            return functional.cross_entropy(self.tagger(ids).flatten(0, 1), ids.flatten())

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.5)

    module = Module()
    regularize(module, NOISE)
    before = parameters(module)
    batches = torch.utils.data.TensorDataset(IDS.T.repeat(8, 1))
    trainer = lightning.Trainer(**QUIET)
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=8))
    assert_trained(module, before)
    trainer.save_checkpoint(tmp_path / "checkpoint.ckpt")
    again = regularize(Module(), NOISE)
    again.load_state_dict(torch.load(tmp_path / "checkpoint.ckpt")["state_dict"])
    assert_bit_equal(list(again.parameters()), list(module.parameters()))
    plain = strip(module.tagger)
    assert_given_back(plain, Tagger(), lambda one: one(IDS), tmp_path / "tagger.pt")


class Scores(nn.Module):
    """Reads words [B, T] and scores the class of each sequence."""

    def __init__(self, noise=None):
        super().__init__()
        self.tagger = Tagger(num_layers=2)
        regularize(self.tagger, noise)

    def forward(self, ids):
        return self.tagger(ids.T)[-1]


def classifier(**settings):
    """Return a classifier of skorch, and sequences of words whose class is their first word."""
    skorch = pytest.importorskip("skorch", reason="whose classifier trains the module")
    fit = {"lr": 0.5, "max_epochs": 3, "batch_size": 8, "train_split": None, "verbose": 0}
    net = skorch.NeuralNetClassifier(Scores, criterion=nn.CrossEntropyLoss, **fit, **settings)
    ids = torch.randint(WORDS, (32, 4), generator=torch.Generator().manual_seed(1))
    return net, ids.numpy(), ids[:, 0].numpy()


def test_a_classifier_of_skorch(tmp_path):
    net, ids, first = classifier(module__noise=NOISE)
    net.initialize()
    before = parameters(net.module_)
    net.fit(ids, first)
    assert_trained(net.module_, before)
    found = torch.from_numpy(net.predict_proba(ids))
    plain, words = strip(net.module_).eval(), torch.from_numpy(ids)
    with torch.no_grad():
        assert_bit_equal(found, plain(words).softmax(-1))
    assert_given_back(
        strip(net.module_.tagger), Tagger(num_layers=2), run_tagger, tmp_path / "s.pt"
    )


def run_tagger(tagger):
    return tagger(IDS)


def test_a_search_of_scikit_learn_over_noise():
    """Noise is a text, so that it is a hyperparameter like any other."""
    net, ids, first = classifier()
    selection = pytest.importorskip("sklearn.model_selection", reason="which searches")
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import FunctionTransformer

    pipeline = Pipeline([("reversed", FunctionTransformer(reversed_words)), ("net", net)])
    noises = ["none", "hidden * Gaussian(0.5)", "hidden * Bernoulli(keep=0.5) & " + NOISE]
    torch.manual_seed(0)
    search = selection.GridSearchCV(pipeline, {"net__module__noise": noises}, cv=2)
    search.fit(ids, first)
    assert len(search.cv_results_["params"]) == len(noises)
    best = search.best_estimator_["net"]
    assert best.module_.tagger.rnn.noise == noisin.parse(best.module__noise)
    assert pickle.loads(pickle.dumps(search)).predict(ids).tolist() == search.predict(ids).tolist()


def reversed_words(ids):
    return ids[:, ::-1].copy()
