"""The music task: the score is the hand count, whatever the batch."""

import weakref

import numpy as np
import pytest
import torch

from conftest import assert_close_to_float64
from lab_cases import benchmark_folder, config, corpus
from noisin.lab import music, rolls
from noisin.lab.music import MusicModel, MusicTask, batch_of


def task(**changes):
    torch.manual_seed(0)
    return MusicTask(config(**changes), corpus())


def hand_count(model, pieces):
    """Count as the protocol says, piece by piece and step by step, in float64."""
    model = model.double().eval()
    total, first, steps = 0.0, 0.0, 0
    for piece in pieces:
        before = torch.zeros(len(piece), 1, 88, dtype=torch.float64)
        before[1:, 0] = torch.from_numpy(piece[:-1]).double()
        with torch.no_grad():
            p = torch.sigmoid(model(before))[:, 0].numpy()
        nll = -(piece * np.log(p) + (1 - piece) * np.log(1 - p)).sum(1)
        total, first, steps = total + nll.sum(), first + nll[0], steps + len(piece)
    model.float()
    return total / steps, (total - first) / (steps - len(pieces))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 64])
@pytest.mark.parametrize("cell", ["lstm", "gru", "tanh", "relu", "sigmoid"])
def test_score_is_the_hand_count(batch_size, cell):
    one = task(cell=cell)
    score = one.score("test", batch_size)
    expected = torch.tensor(hand_count(one.model, one.corpus.splits["test"]))
    eager = torch.tensor(
        [one.score("test", 1)["scored"], one.score("test", 1)["unscored"]], dtype=torch.float32
    )
    got = torch.tensor([score["scored"], score["unscored"]], dtype=torch.float32)
    assert_close_to_float64(got, eager, expected)


def test_hand_count_sees_a_wrong_shift():
    """The count fails on a model that is shown the keys it has to predict."""
    one = task()
    pieces = [np.roll(piece, 1, 0) for piece in one.corpus.splits["test"]]
    assert hand_count(one.model, pieces) != hand_count(one.model, one.corpus.splits["test"])


def test_key_frequencies_score_as_measured_elsewhere():
    """A read-out that knows only key frequencies has a published score on JSB chorales."""
    jsb = rolls.load("jsb-chorales", benchmark_folder())
    one = MusicTask(config(data="jsb-chorales", noise="none"), jsb)
    counts = np.concatenate(jsb.splits["train"])
    rate = (counts.sum(0) + 0.5) / (len(counts) + 1)
    with torch.no_grad():
        one.model.head.weight.zero_()
        one.model.head.bias.copy_(torch.from_numpy(np.log(rate / (1 - rate))))
    score = one.score("test")
    assert f"{score['scored']:.2f} {score['unscored']:.2f}" == "11.06 11.09"


def test_training_batches_hold_each_step_once_with_its_past():
    one = task(noise="none")
    seen = []
    for batch in one.batches(seed=3, epoch=1):
        for b in range(batch.valid.shape[1]):
            size = int(batch.valid[:, b].sum())
            assert batch.valid[:size, b].all()  # padded behind
            seen += [
                (batch.inputs[t, b].numpy().tobytes(), batch.targets[t, b].numpy().tobytes())
                for t in range(size)
            ]
            assert not batch.inputs[size:, b].any()
    silence = np.zeros(88, np.float32).tobytes()
    expected = []
    for piece in one.corpus.splits["train"]:
        keys = [row.astype(np.float32).tobytes() for row in piece]
        expected += list(zip([silence, *keys[:-1]], keys, strict=True))
    assert len(expected) == 52
    assert sorted(seen) == sorted(expected)


def test_order_is_decided_by_seed_and_epoch():
    one = task()

    def targets(seed, epoch, skip=0):
        return [batch.targets.sum().item() for batch in one.batches(seed, epoch, skip)]

    assert len(targets(1, 1)) == one.updates == 4
    assert targets(1, 1) == targets(1, 1)
    assert targets(1, 1)[2:] == targets(1, 1, skip=2)
    assert targets(1, 1) != targets(1, 2)
    assert targets(1, 1) != targets(2, 1)


def test_first_marks_the_start_of_pieces_alone():
    pieces = corpus().splits["train"]
    batch = batch_of([pieces[1], pieces[1], pieces[2]], [0, 6, 0], 6)
    assert batch.valid.sum(0).tolist() == [6, 6, 1]
    assert batch.first.nonzero().tolist() == [[0, 0], [0, 2]]
    np.testing.assert_array_equal(batch.inputs[0, 1].numpy(), pieces[1][5])


def test_loss_averages_log_likelihoods_over_draws():
    one = task(train_samples=8)
    batch = next(one.batches(1, 1))
    one.model.train()
    torch.manual_seed(7)
    total, steps, scale = one.loss(batch)
    torch.manual_seed(7)
    each = one.model.log_likelihood(batch, 8)
    assert each.shape == (8, *batch.valid.shape)
    assert not torch.equal(each[0], each[1])  # the draws differ
    assert steps == scale == int(batch.valid.sum())
    expected = -(each.double().mean(0) * batch.valid).sum()
    assert_close_to_float64(total, expected.float(), expected.detach())


def test_more_draws_never_score_worse_and_noise_is_on():
    """Jensen's bound holds exactly for nested groups of draws."""
    one = task(noise="hidden * Gaussian(1.0)")
    scores = one.scores("test", (0, 1, 5, 25))
    assert list(scores) == [0, 1, 5, 25]
    assert scores[1]["unscored"] > scores[5]["unscored"] > scores[25]["unscored"]
    assert scores[1]["scored"] > scores[5]["scored"] > scores[25]["scored"]
    assert scores[0] == one.score("test")
    assert not one.model.rnn.sampling  # and off again


def test_one_draw_is_the_mean_of_the_log_likelihoods():
    """K = 1 scores the objective of training, not the average of the distributions."""
    one = task(noise="input + Gaussian(0.4)")
    torch.manual_seed(2)
    score = one.scores("valid", (1,))[1]
    assert score["unscored"] != one.score("valid")["unscored"]
    drawn = [one.scores("valid", (1,))[1]["unscored"] for _ in range(40)]
    together = one.scores("valid", (1, 40))
    # two estimates of one expectation, from 40 draws each
    spread = float(np.std(drawn, ddof=1))
    off = abs(together[1]["unscored"] - float(np.mean(drawn))) / (spread * (2 / 40) ** 0.5)
    assert off < 6
    assert together[40]["unscored"] < together[1]["unscored"]


@pytest.mark.parametrize("models", [1, 2])
@pytest.mark.parametrize("at_once", [1, 2**15])
def test_factorised_averages_each_keys_probability(models, at_once, monkeypatch):
    """It is the mean of probabilities of one key, its logarithm summed over keys, on any draws."""
    monkeypatch.setattr(music, "AT_ONCE", at_once)  # draws at a time
    one = task(noise="hidden * Gaussian(1.0) @ sequence")
    torch.manual_seed(5)
    others = [MusicModel(config(noise="hidden * Gaussian(1.0)")) for _ in range(models - 1)]
    kept = []  # the probability of what came, [draws, steps, keys], as it was drawn

    def heard(each):
        def call(model, batch, samples=1):
            found = each(model, batch, samples)
            kept.append(found[:, batch.valid & ~batch.first].double().exp())
            return found

        return call

    monkeypatch.setattr(MusicModel, "each", heard(MusicModel.each))
    scores = one.scores("test", (0, 1, 2, 4), others)
    made = 4 if at_once > 1 else 1
    calls = models * (1 + 4 // made)  # a batch: the plain networks, then their draws
    found = {k: [] for k in scores}
    for begin in range(0, len(kept), calls):
        parts = torch.cat(kept[begin : begin + calls]).split([models, 4 * models])
        drawn = parts[1].unflatten(0, (-1, models, made)).transpose(1, 2).flatten(0, 2)
        for k, steps in found.items():
            groups = (drawn if k else parts[0]).unflatten(0, (-1, max(k, 1) * models))
            steps.append(groups.mean(1).log().sum(-1).mean(0))
    for k, steps in found.items():
        expected = -torch.cat(steps).mean().item()
        assert ("factorised" in scores[k]) == (max(k, 1) * models > 1)
        got = scores[k].get("factorised", scores[k]["unscored"])
        assert got == pytest.approx(expected, rel=1e-6)
    assert scores[4]["factorised"] != scores[4]["unscored"]


def test_draws_are_not_kept_until_the_last(monkeypatch):
    """Probabilities of all keys under all draws would be more than the memory holds."""
    one, made = task(noise="hidden * Gaussian(1.0)"), music._drawn
    monkeypatch.setattr(music, "AT_ONCE", 1)
    parts, alive = [], []

    def watched(*given):
        for part in made(*given):
            alive.append(sum(old() is not None for old in parts))
            parts.append(weakref.ref(part))
            yield part

    monkeypatch.setattr(music, "_drawn", watched)
    one.scores("test", (0, 20))
    assert len(parts) >= 20
    assert max(alive) <= 2


def test_factorised_of_one_network_twice_is_its_own_score():
    one = task()
    twice = one.scores("test", (0,), others=[one.model])[0]
    assert twice["factorised"] == pytest.approx(one.score("test")["unscored"], rel=1e-6)


def test_models_are_averaged_as_distributions():
    first, second = task(), task(noise="none")
    torch.manual_seed(5)
    second.model = MusicModel(config(noise="none"))
    same = first.scores("test", (0,), others=[first.model])[0]
    alone = first.score("test")
    assert_close_to_float64(
        torch.tensor(same["unscored"], dtype=torch.float32),
        torch.tensor(alone["unscored"], dtype=torch.float32),
        torch.tensor(alone["unscored"], dtype=torch.float64),
    )
    both = first.scores("test", (0,), others=[second.model])[0]
    assert both["unscored"] < (alone["unscored"] + second.score("test")["unscored"]) / 2


def test_generation_is_seeded_binary_and_free_of_noise():
    one = task()
    pieces = [one.model.generate(9, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert pieces[0].shape == (9, 88)
    assert set(pieces[0].unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(pieces[0], pieces[1])
    assert not torch.equal(pieces[0], pieces[2])
    # nearly no chance is left
    other = one.model.generate(9, torch.Generator().manual_seed(2), temperature=1e-9)
    assert torch.equal(one.model.generate(9, torch.Generator(), temperature=1e-9), other)


def test_start_of_the_network():
    model = MusicModel(config(output_bias=-0.8, nonzeros=2, spectral_radius=1.2, cell="tanh"))
    assert set(model.head.bias.tolist()) == {torch.tensor(-0.8).item()}
    assert (model.rnn.weight_hh_l0 != 0).sum(1).tolist() == [2] * 5
