"""The music task by moments: start, padding, scores of the three networks, the recipe."""

import json

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy as cross_entropy

from lab_cases import benchmark_folder, config, corpus
from noisin import Moments, plain
from noisin.lab import recipe, records
from noisin.lab.music import MusicModel, MusicTask, batch_of, padded_in_front
from test_cli import call as call  # a fixture

NOISE = "fast_dropout(input=0.9, recurrent=0.8, output=0.5)"
FAST = {"noise": NOISE, "cell": "tanh"}


def task(**changes):
    torch.manual_seed(0)
    return MusicTask(config(**{**FAST, **changes}), corpus())


def test_the_read_out_sees_moments_or_the_mean():
    whole, mean = task(), task(final_moments=False)
    inputs = torch.zeros(4, 2, 88)
    logits, alone = whole.model(inputs), mean.model(inputs)
    assert isinstance(logits, Moments)
    assert (logits.variance > 0).all()
    assert isinstance(alone, torch.Tensor)
    torch.testing.assert_close(alone, logits.mean)


def test_the_score_is_the_cross_entropy_of_the_average_sigmoid():
    one = task()
    one.model.eval()
    total, steps = 0.0, 0
    for roll in one.corpus.splits["valid"]:
        batch = batch_of([roll], [0], len(roll))
        mean, variance = (t.double() for t in one.model(batch.inputs))
        p = torch.sigmoid(mean / (1 + np.pi / 8 * variance).sqrt())
        parts = cross_entropy(p, batch.targets.double(), reduction="none").sum(-1)
        total, steps = total + parts[1:].sum().item(), steps + len(roll) - 1
    assert one.score("valid")["unscored"] == pytest.approx(total / steps, rel=1e-6)


def test_moments_plain_and_draws_give_three_scores_of_one_network():
    one = task()
    moments = one.score("test")["unscored"]
    torch.manual_seed(1)
    both = one.scores("test", (0, 4))
    assert both[0]["unscored"] == moments
    with plain(one.model):
        off = one.score("test")["unscored"]
    assert len({moments, off, both[4]["unscored"]}) == 3


def test_silence_in_front_counts():
    one = task(padding="front")
    batch = next(iter(one.batches(1, 1)))
    assert batch.inputs.shape == (6, 3, 88)
    assert batch.valid.all()
    assert one.loss(batch).steps == 6 * 3
    roll = np.eye(88, dtype=np.uint8)[:4]
    moved = padded_in_front(batch_of([roll, roll[:2]], [0, 0], 6), 6)
    assert moved.targets.argmax(-1).T.tolist() == [[0, 0, 0, 1, 2, 3], [0, 0, 0, 0, 0, 1]]
    assert moved.targets.sum(-1).T.tolist() == [[0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1]]
    assert moved.inputs.sum(-1).T.tolist() == [[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 1]]
    assert moved.inputs[3:, 0].argmax(-1).tolist() == [0, 1, 2]


@pytest.mark.parametrize("cell", ["tanh", "lstm"])
def test_the_first_state_is_trained(cell):
    one = task(learned_state=True, cell=cell)
    assert len(one.model.first) == (2 if cell == "lstm" else 1)
    one.loss(next(iter(one.batches(1, 1)))).total.backward()
    assert all((state.grad != 0).any() for state in one.model.first)
    before = one.score("valid")["unscored"]
    with torch.no_grad():
        one.model.first[0].fill_(0.9)
    assert one.score("valid")["unscored"] != before
    assert one.model.generate(5, torch.Generator().manual_seed(1)).shape == (5, 88)


def test_weights_start_as_told():
    model = MusicModel(config(**FAST, hidden_size=200, init_std=0.3, init_std_input=0.02))
    for weight, std in (
        (model.rnn.weight_ih_l0, 0.02),
        (model.rnn.weight_hh_l0, 0.3),
        (model.head.weight, 0.3),
    ):
        assert weight.std().item() == pytest.approx(std, rel=0.03)


def test_the_recurrent_mean_is_scaled_and_nothing_else():
    one, other = task(), task(recurrent_mean=0.25)
    inputs = (torch.rand(2, 3, 88) < 0.1).float()
    with torch.no_grad():
        for model in (one.model, other.model):
            model.rnn.noise = None
    first, second = (m.rnn(inputs, path="moments")[0] for m in (one.model, other.model))
    assert torch.equal(first[0], second[0])
    weights = dict(one.model.rnn.named_parameters())
    a = inputs[1] @ weights["weight_ih_l0"].T + weights["bias_ih_l0"] + weights["bias_hh_l0"]
    expected = torch.tanh(a + 0.25 * first[0] @ weights["weight_hh_l0"].T)
    torch.testing.assert_close(second[1], expected)


def test_the_recipe_starts_where_the_paper_does():
    """Its weights carry the keep probability: ours start at p times the published figures."""
    rows = {name: row.config for name, row in recipe.load("fast-dropout").rows.items()}
    radii = {name: rows[name].spectral_radius for name in rows}
    keep = {"jsb-printed": 0.8, "piano": 0.7, "nottingham": 0.6, "muse": 0.7}
    for name, p in keep.items():
        assert radii[name] == pytest.approx(1.2 * p)
        assert f"recurrent * Bernoulli(keep={p}) @ moments" in rows[name].noise
    assert {row.clip for row in rows.values()} == {225.0}
    assert rows["jsb-precursor"].recurrent_mean == 0.25


def test_evaluate_scores_the_plain_network_on_request(call, tmp_path):
    folder = benchmark_folder()
    sets = ["hidden_size=4", "epochs=1", "seeds=[1]", "test_samples=[1]", "nonzeros=3"]
    changes = [word for one in sets for word in ("--set", one)]
    command = ("run", "fast-dropout", "--only", "jsb-printed", "--data-dir", folder)
    result = call(*command, *changes)
    assert result.exit_code == 0, result.output
    (run,) = (p.parent for p in (tmp_path / "runs").rglob("record.json"))
    (epoch,) = records.read([run])[0].history
    assert len(epoch.squared_radius) == len(epoch.spectral_radius) == 1
    assert epoch.squared_radius[0] != epoch.spectral_radius[0]
    shown = [
        call("evaluate", run, "--data-dir", folder, *more)
        for more in ((), ("--plain",), ("--samples", 2))
    ]
    assert "moments" in shown[0].output
    assert "noise off" in shown[1].output
    assert "average of 2 draws" in shown[2].output
    scores = [
        json.loads(call("evaluate", run, "--data-dir", folder, "--json", *more).output)["0"]
        for more in ((), ("--plain",))
    ]
    assert scores[0] != scores[1]
    refused = call("evaluate", run, "--data-dir", folder, "--plain", "--samples", 2)
    assert refused.exit_code == 2
