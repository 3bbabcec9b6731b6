"""Series: what is forecast from what, in which units, and that nothing leaks across time."""

import numpy as np
import pytest
import torch
from torch.distributions import Normal, Poisson

from conftest import assert_bit_equal, assert_close_to_float64, assert_mean
from lab_cases import table, walk
from noisin.lab import LabError, baselines, evaluate, observations, train
from noisin.lab.config import SeriesConfig
from noisin.lab.forecasts import LEVELS
from noisin.lab.rows import Row
from noisin.lab.series import SeriesModel, SeriesTask
from noisin.lab.train import Job

SPLITS = ("train", "valid", "test")


def config(path, **changes):
    tiny = {"data": str(path), "hidden_size": 6, "batch_size": 3, "window": 7, "warmup": 4}
    tiny |= {"epochs": 4, "horizon": 2, "lr": 0.02}
    tiny |= {"noise": "hidden * Gaussian(0.5)", "test_samples": (1, 2)}
    return SeriesConfig(**{**tiny, **changes})


def task(path, **changes):
    torch.manual_seed(0)
    settings = config(path, **changes)
    return SeriesTask(settings, observations.load(settings))


@pytest.fixture
def path(tmp_path):
    return walk(tmp_path / "own.csv")


def job(path, folder, seed=1, **changes):
    settings = config(path, **changes)
    row = Row(config=settings, label="row", baseline="row")
    corpus = observations.load(settings)
    return Job("tiny", "A title", "row", row, seed, corpus.digest(), folder), corpus


# what is forecast from what


@pytest.mark.parametrize("horizon", [1, 2, 5])
def test_targets_are_the_rows_h_steps_ahead(tmp_path, horizon):
    """Of a count upwards: x_t = t, so that the rows can be read off the batches."""
    path = table(tmp_path / "own.csv", {"x": range(50)})
    one = task(path, horizon=horizon)
    corpus, seen = one.corpus, set()
    for stretch in one.stretches(seed=1, epoch=1):
        batch = one._batch([stretch])
        rows = batch.inputs[:, 0, 0].double() * corpus.std[0] + corpus.mean[0]
        ahead = batch.targets[:, 0, 0].double() * corpus.std[0] + corpus.mean[0]
        assert rows.round().tolist() == list(range(stretch.start, stretch.stop))
        assert ahead.round().tolist() == [
            row + horizon for row in range(stretch.start, stretch.stop)
        ]
        counted = batch.valid[:, 0].tolist()
        assert counted == [row >= stretch.first for row in range(stretch.start, stretch.stop)]
        seen |= {int(row) for row, counts in zip(ahead.round(), counted, strict=True) if counts}
    assert seen == set(range(horizon, 30))  # all that can be trained on, none of validation


class Upwards(SeriesModel):
    """Forecasts x_t + so many, surely: right for x_t = t at one horizon."""

    steps = 0.0

    def forward(self, inputs, state=None):
        return inputs + self.steps, state


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("horizon", [1, 3])
def test_a_known_series_is_forecast_at_its_horizon_and_no_other(tmp_path, split, horizon):
    path = table(tmp_path / "own.csv", {"x": range(50)})
    one = task(path, horizon=horizon, noise="none")
    one.model = Upwards(one.config, 1, 1)
    for ahead in (horizon, horizon + 1, horizon - 2):
        one.model.steps = ahead / one.corpus.std[0]
        assert f"{one.score(split)['rmse']:.4f}" == f"{abs(horizon - ahead):.4f}"


def test_every_step_is_forecast_once(tmp_path):
    rows = 40
    shops = {"shop": ["a", "b"] * rows, "x": np.random.default_rng(0).standard_normal(2 * rows)}
    one = task(table(tmp_path / "own.csv", shops), group="shop", horizon=3)
    for split, expected in zip(SPLITS, (range(3, 24), range(24, 32), range(32, 40)), strict=True):
        (found,) = one.forecasts(split)
        assert found.series == ["a"] * len(expected) + ["b"] * len(expected)
        assert found.rows == [*expected, *expected]
        truth = np.concatenate([one.corpus.series[name][expected] for name in ("a", "b")])
        assert_bit_equal(found.truth, torch.from_numpy(truth))


def test_stretches_move_from_epoch_to_epoch_and_are_as_many(path):
    one = task(path, window=8)
    epochs = [sorted(one.stretches(1, epoch)) for epoch in range(1, 6)]
    count = 54 - 2  # of 90 rows 54 are trained on
    for found in epochs:
        assert len(found) == -(-count // 8) + 1
        assert {stretch.stop - stretch.first for stretch in found} == {8}
        assert {stretch.first - stretch.start for stretch in found} <= {0, 1, 2, 3, 4}
        rows = {row for _, _, first, stop in found for row in range(first, stop)}
        assert rows == set(range(count))
    assert len({tuple(found) for found in epochs}) > 1
    assert one.updates == len(list(one.batches(1, 1))) == 3
    assert len(list(one.batches(1, 1, skip=2))) == 1
    assert task(path, window=99).stretches(1, 1) == [("", 0, 0, count)]


# nothing leaks


def test_what_comes_later_changes_nothing_about_training(path, tmp_path):
    """Other validation and test rows: the same batches; other test rows: the same weights."""
    one = task(path)
    lines = path.read_text().splitlines()
    later = tmp_path / "later.csv"
    later.write_text("\n".join([*lines[:55], *(f"{i % 3},{-i}" for i in range(36))]))
    other = task(later)
    assert one.corpus.digest() != other.corpus.digest()
    for batch, again in zip(one.batches(1, 1), other.batches(1, 1), strict=True):
        assert_bit_equal(batch, again)
    tested = tmp_path / "tested.csv"
    tested.write_text("\n".join([*lines[:73], *(f"{i % 3},{-i}" for i in range(18))]))
    runs = [train.run(*job(p, tmp_path / p.stem)) for p in (path, tested)]
    assert runs[0].weights == runs[1].weights
    for split, same in zip(SPLITS, (True, True, False), strict=True):
        assert (runs[0].scores[split] == runs[1].scores[split]) == same


def test_standardization_is_of_the_training_rows(path):
    corpus = task(path).corpus
    trained = corpus.series[""][:54]
    assert_bit_equal(torch.from_numpy(corpus.mean), torch.from_numpy(trained.mean(0)))
    assert_bit_equal(torch.from_numpy(corpus.std), torch.from_numpy(trained.std(0)))
    assert (corpus.mean != corpus.series[""].mean(0)).all()


def test_forecasts_see_no_row_behind_theirs(path, tmp_path):
    """A change of the last rows changes no forecast of the rows before them."""
    one = task(path)
    lines = path.read_text().splitlines()
    (tmp_path / "last.csv").write_text("\n".join([*lines[:81], *(["9,9"] * 10)]))
    other = task(tmp_path / "last.csv")
    other.model.load_state_dict(one.model.state_dict())
    (first,), (second,) = one.forecasts("test"), other.forecasts("test")
    known = 8 + 2  # test begins at row 72; forecasts of rows below 80 + h read rows below 80
    assert_bit_equal(first.laws.mean[:, :, :known], second.laws.mean[:, :, :known])
    assert not torch.equal(first.laws.mean[:, :, known], second.laws.mean[:, :, known])


# scores in the units of the file


def by_hand(one, split, dtype):
    """Score the plain network a step at a time, with torch's laws in the units of the file."""
    corpus, ahead = one.corpus, one.config.horizon
    model = one.model.to(dtype).eval()
    values = corpus.series[""]
    rows = corpus.cuts[""].rows(split)
    first = max(rows.start, ahead) - ahead
    state, total = None, torch.zeros((), dtype=dtype)
    for t in range(max(0, first - one.config.warmup), rows.stop - ahead):
        x = torch.from_numpy((values[t] - corpus.mean) / corpus.std).to(dtype)
        with torch.no_grad():
            parameters, state = model(x[None, None], state)
        if t >= first:
            truth = torch.from_numpy(values[t + ahead, list(corpus.targets)]).to(dtype)
            scale, center = torch.tensor(corpus.scale), torch.tensor(corpus.center)
            if one.config.head == "poisson":
                law = Poisson(parameters[0, 0].exp())
            else:
                std = model.head.log_std.exp() * scale.to(dtype)
                law = Normal((parameters[0, 0] * scale + center).to(dtype), std)
            total -= law.log_prob(truth).sum().detach()
    model.float()
    return total / (rows.stop - ahead - first)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("head", ["gaussian", "poisson"])
def test_nll_is_that_of_the_laws_in_the_units_of_the_file(tmp_path, head, split):
    rng = np.random.default_rng(0)
    columns = {
        "x": 1000 + 50 * rng.standard_normal(90),
        "n": rng.poisson(4, 90),
        "y": rng.random(90),
    }
    changes = {"targets": ["n"] if head == "poisson" else ["y", "x"], "head": head}
    one = task(table(tmp_path / "own.csv", columns), **changes)
    got = torch.tensor(one.score(split)["nll"])
    eager, expected = (by_hand(one, split, dtype) for dtype in (torch.float32, torch.float64))
    assert_close_to_float64(got, eager, expected)


def test_loss_of_training_is_in_the_same_units(path):
    """One window over the whole training part is what is scored of it."""
    one = task(path, noise="none", window=99)
    loss = one.loss(next(one.batches(1, 1)))
    got, score = (loss.total / loss.steps).detach(), torch.tensor(one.score("train")["nll"])
    assert loss.steps == loss.scale == 52
    assert_close_to_float64(got, score, by_hand(one, "train", torch.float64))


def test_units_of_the_file_do_not_change_what_is_learned(path, tmp_path):
    """A column in other units: its errors change by the factor, the likelihood by its logarithm."""
    values = np.loadtxt(path, delimiter=",", skiprows=1)
    columns = {"x": values[:, 0], "y": 64 * values[:, 1]}  # a power of 2: no rounding
    other = task(table(tmp_path / "other.csv", columns))
    first, second = task(path).score("test"), other.score("test")
    assert f"{second['rmse y']:.6g}" == f"{64 * first['rmse y']:.6g}"
    assert f"{second['rmse x']:.6g}" == f"{first['rmse x']:.6g}"
    assert f"{second['nll']:.6g}" == f"{first['nll'] + np.log(64):.6g}"


def test_baselines_are_laws_around_the_last_value_and_the_mean(tmp_path):
    rng = np.random.default_rng(0)
    x = np.cumsum(rng.standard_normal(90))
    one = task(table(tmp_path / "own.csv", {"x": x}), horizon=3)
    last, mean = baselines.of_series(one.corpus)
    steps = x[3:54] - x[:51]
    law = Normal(*map(torch.tensor, (steps.mean(), steps.std())))
    expected = -law.log_prob(torch.tensor(x[72:] - x[69:87])).mean().item()
    assert (last.label, f"{last.scores['test']:.9g}") == (
        "the last value, 3 steps before",
        f"{expected:.9g}",
    )
    assert last.corpus == mean.corpus == one.corpus.digest()
    assert last.scores["test"] < mean.scores["test"]
    counts = table(tmp_path / "counts.csv", {"n": rng.poisson(4, 90)})
    found = baselines.of_series(task(counts, head="poisson").corpus)
    assert [one.label for one in found] == ["the last value, 2 steps before", "the mean"]
    rising, told = task(table(tmp_path / "up.csv", {"x": range(50)})).corpus, []
    assert [one.label for one in baselines.of_series(rising, told.append)] == ["the mean"]
    assert told == ["no baseline by the last value: its spread or rate is 0 in some column"]


# noise, draws and models


NOISES = (
    "hidden * Gaussian(0.5)",
    "weight_hh * Gaussian(0.2) & input * Gaussian(0.3) @ sequence",
    "recurrent * Bernoulli(keep=0.7) @ moments & output * Bernoulli(keep=0.7) @ moments",
)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("head", ["gaussian", "poisson"])
def test_more_draws_never_score_worse(tmp_path, noise, cell, head):
    path = table(tmp_path / "own.csv", {"n": np.random.default_rng(0).poisson(4, 90)})
    one = task(path, noise=noise, cell=cell, head=head)
    scores = one.scores("test", (0, 1, 2, 8))
    found = []
    for samples in ((2,), (2, 2)):
        torch.manual_seed(3)
        found.append(one.scores("test", samples))
    assert found[0] == found[1]
    assert scores[1]["nll"] > scores[2]["nll"] > scores[8]["nll"]
    assert len({score["rmse"] for score in scores.values()}) == 4
    batch = next(one.batches(1, 1))
    one.loss(batch).total.backward()
    assert all(p.grad.isfinite().all() for p in one.model.parameters())


@pytest.mark.parametrize("noise", ["none", *NOISES[:2]])
def test_shares_of_a_batch_add_up(path, noise):
    one = task(path, noise=noise, train_samples=2)
    batch = next(one.batches(1, 1))
    parts = [one.part(batch, rank, 5) for rank in range(5)]  # some of them of no stretch
    assert sum(one.counts(part)[0] for part in parts) == one.counts(batch)[0]
    if noise == "none":
        total = sum(one.loss(part).total.detach() for part in parts)
        whole = one.loss(batch).total.detach()
        assert_close_to_float64(total, whole, whole.double())


def test_noise_at_row_is_refused(path):
    with pytest.raises(ValueError, match="series have no embedding for noise at row"):
        task(path, noise="row * Bernoulli(keep=0.5)")


@pytest.mark.parametrize("changes", [{}, {"optimizer": "nt-asgd", "trigger": 1, "lr": 0.3}])
def test_resumed_equals_undisturbed(path, tmp_path, changes):
    whole = train.run(*job(path, tmp_path / "whole", **changes))
    for update in (1, 3, 4, 9):
        asked = iter(range(10**6))
        one, corpus = job(path, tmp_path / f"cut-{update}", **changes)
        with pytest.raises(train.Stopped):
            train.run(one, corpus, stopping=lambda last=update, asked=asked: next(asked) > last)
        resumed = train.run(one, corpus)
        assert resumed.weights == whole.weights
        assert resumed.scores == whole.scores
        assert resumed.monte_carlo == whole.monte_carlo


def test_models_are_averaged_and_a_run_is_loaded_again(path, tmp_path):
    runs = []
    for seed in (1, 2):
        one, corpus = job(path, tmp_path, seed)
        record = train.run(one, corpus)
        runs.append(evaluate.load(one.path))
        assert evaluate.evaluate(runs[-1:])[0] == record.scores["test"]
    alone = [evaluate.evaluate([run])[0]["nll"] for run in runs]
    assert evaluate.evaluate(runs)[0]["nll"] < sum(alone) / 2
    with pytest.raises(LabError, match="log-probabilities are of tokens; row is of series"):
        evaluate.log_probabilities(runs[0], "test")


# intervals


def test_intervals_of_a_known_law_cover_what_they_say(tmp_path):
    """Weights of zero forecast the training mean and spread, which white noise keeps."""
    rng = np.random.default_rng(0)
    path = table(tmp_path / "own.csv", {"x": 5 + 3 * rng.standard_normal(12_000)})
    one = task(path, noise="none", valid_share=0.1)
    for parameter in one.model.parameters():
        torch.nn.init.zeros_(parameter)
    (found,) = one.forecasts("test")
    assert len(found.rows) == 2400
    for level in LEVELS:
        tail = (1 - level) / 2
        low, high = found.mixture.quantile(tail), found.mixture.quantile(1 - tail)
        inside = (low <= found.truth) & (found.truth <= high)
        assert_mean(inside[:, 0], level, (level * (1 - level)) ** 0.5)


def test_intervals_of_runs_by_draws_targets_and_levels(path, tmp_path):
    one, corpus = job(path, tmp_path)
    train.run(one, corpus)
    run = evaluate.load(one.path)
    found = evaluate.intervals([run], "test", (4,), LEVELS)
    assert list(found) == [0, 4]
    for targets in found.values():
        assert list(targets) == ["x", "y"]
        for coverages in targets.values():
            assert [c.level for c in coverages] == list(LEVELS)
            assert [c.count for c in coverages] == [18] * 3
            widths = [c.width for c in coverages]
            assert sorted(widths) == widths
    again = evaluate.intervals([run], "test", (4,), LEVELS)
    assert again == found
    plain, other = job(path, tmp_path, noise="none")
    train.run(plain, other)
    with pytest.raises(LabError, match="draws need noise"):
        evaluate.intervals([evaluate.load(plain.path)], "test", (4,), LEVELS)
