"""Training: it learns, it resumes exactly, it stops at what is not finite."""

import dataclasses
import math
import sys

import pytest
import torch

from conftest import assert_bit_equal
from lab_cases import config, corpus
from noisin.lab import LabError, checkpoint, records, train, trainer
from noisin.lab.music import MusicTask
from noisin.lab.rows import Row
from noisin.lab.train import Job


def job(folder, **changes):
    row = Row(config=config(**changes), label="row", baseline="row")
    return Job("tiny", "A title", "row", row, 1, corpus().digest(), folder)


def told(record):
    """Return what two equal runs must share: all but the clock and the place."""
    kept = record.model_dump(exclude={"seconds", "environment", "history", "peak_memory"})
    return kept, [epoch.model_dump(exclude={"seconds"}) for epoch in record.history]


class StopAfter:
    """Asks to stop at the n-th question."""

    def __init__(self, count):
        self.count = count

    def __call__(self):
        self.count -= 1
        return self.count < 0


OPTIMIZERS = ["adam", "sgd", "nesterov-rmsprop"]


@pytest.mark.parametrize("averaging", [0.0, 0.5])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_resumed_equals_undisturbed(tmp_path, optimizer, averaging):
    """Stopped in the middle of epochs, at their ends and before the first update."""
    noise = "hidden * Gaussian(Learned(0.5, floor=0.1)) & input * Bernoulli(keep=0.8) @ sequence"
    settings = {"optimizer": optimizer, "noise": noise, "num_layers": 2, "averaging": averaging}
    whole = train.run(job(tmp_path / "whole", **settings), corpus())
    assert whole.updates == 16
    for updates in (0, 1, 3, 4, 5, 11):
        resumed = job(tmp_path / f"cut-{updates}", **settings)
        stop = StopAfter(updates)
        with pytest.raises(train.Stopped):
            train.run(resumed, corpus(), stopping=stop)
        assert not (resumed.path / "record.json").exists()
        torch.manual_seed(12345)  # what else uses the generator meanwhile does not matter
        torch.randn(3)
        assert told(train.run(resumed, corpus())) == told(whole)


def test_stopped_at_every_update(tmp_path):
    whole = train.run(job(tmp_path / "whole"), corpus())
    often = job(tmp_path / "often")
    stops = 0
    while not (often.path / "record.json").exists():
        try:
            train.run(often, corpus(), stopping=StopAfter(2 + stops))
        except train.Stopped:
            stops += 1
    assert stops >= 4  # scoring asks, too, and begins anew: each time there is more patience
    assert told(records.read([often.path])[0]) == told(whole)


def test_scoring_is_stopped_too(tmp_path):
    """The last update is done: what is left asks between batches, and begins anew."""
    asked = StopAfter(10**6)
    whole = train.run(job(tmp_path / "whole"), corpus(), stopping=asked)
    questions = 10**6 - asked.count
    assert questions > whole.updates + len(whole.history)  # validation and the final scores ask
    late = job(tmp_path / "late")
    with pytest.raises(train.Stopped):
        train.run(late, corpus(), stopping=StopAfter(questions - 1))
    assert not (late.path / "record.json").exists()
    assert told(train.run(late, corpus())) == told(whole)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    one, other = job(tmp_path), job(tmp_path, lr=1e-3)
    for each in (one, other):
        with pytest.raises(train.Stopped):
            train.run(each, corpus(), stopping=StopAfter(3))
    name = "checkpoint.safetensors"
    (other.path / name).write_bytes((one.path / name).read_bytes())
    with pytest.raises(LabError, match=r"other settings or another seed.*Delete it"):
        train.run(other, corpus())


@pytest.mark.parametrize("kind", ["l1_recurrent", "l2_input", "l2_output"])
def test_penalties_shrink_the_weights_that_they_name(tmp_path, kind):
    strength = {kind: 1.0}
    sizes = []
    for changes in ({}, strength):
        at = job(tmp_path / str(len(changes)), noise="none", epochs=20, patience=20, **changes)
        train.run(at, corpus())
        tensors, _ = checkpoint.load(at.path / "checkpoint.safetensors")
        sizes.append({name: t.abs().sum().item() for name, t in tensors.items()})
    names = {"l1_recurrent": "rnn.weight_hh_l0", "l2_input": "rnn.weight_ih_l0"}
    name = f"model.{names.get(kind, 'head.weight')}"
    assert sizes[1][name] < sizes[0][name] / 2


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_recurrent_weights_may_have_steps_of_their_own(tmp_path, optimizer):
    """A hundredth of the step moves them about a hundredth as far; the others as ever."""
    moved = []
    for factor in (1.0, 0.01):
        settings = {"noise": "none", "optimizer": optimizer, "epochs": 1, "lr": 0.1}
        at = job(tmp_path / str(factor), lr_recurrent=factor, **settings)
        with pytest.raises(train.Stopped):
            train.run(at, corpus(), stopping=StopAfter(0))
        start = checkpoint.load(at.path / "checkpoint.safetensors")[0]
        with pytest.raises(train.Stopped):
            train.run(at, corpus(), stopping=StopAfter(1))
        after = checkpoint.load(at.path / "checkpoint.safetensors")[0]
        names = ("model.rnn.weight_hh_l0", "model.rnn.weight_ih_l0")
        moved.append([(after[name] - start[name]).norm().item() for name in names])
    (whole, others), (little, same) = moved
    assert same == pytest.approx(others, rel=1e-5)
    assert little == pytest.approx(whole / 100, rel=1e-2)


def test_averaging_keeps_the_average_and_trains_as_before(tmp_path):
    """w̄ begins with the weights after the first update and moves a third of the way each time."""
    settings = {"epochs": 1, "noise": "none"}  # four updates
    plain, found = job(tmp_path / "plain", **settings), {}
    for updates in (1, 2, 3):
        with pytest.raises(train.Stopped):
            train.run(plain, corpus(), stopping=StopAfter(1))
        found[updates] = checkpoint.load(plain.path / "checkpoint.safetensors")[0]
    whole = train.run(plain, corpus())
    at = job(tmp_path / "averaged", averaging=2 / 3, **settings)
    averaged = train.run(at, corpus())
    assert averaged.history[0].train == whole.history[0].train
    assert averaged.history[0].valid != whole.history[0].valid
    tensors = checkpoint.load(at.path / "checkpoint.safetensors")[0]
    kept = checkpoint.load(at.path / "model.safetensors")[0]
    for name, last in checkpoint.under("model", tensors).items():
        first, second, third = (found[n][f"model.{name}"] for n in (1, 2, 3))
        second = 2 / 3 * first + second / 3
        third = 2 / 3 * second + third / 3
        torch.testing.assert_close(kept[name], 2 / 3 * third + last / 3)


def test_a_done_run_is_not_done_again(tmp_path):
    first = train.run(job(tmp_path), corpus())
    (job(tmp_path).path / "checkpoint.safetensors").unlink()
    assert train.run(job(tmp_path), corpus(), stopping=StopAfter(0)) == first


def test_seed_noise_and_corpus_decide_the_run(tmp_path):
    one = job(tmp_path)
    other = Job("tiny", "A title", "row", one.row, 2, one.corpus, tmp_path)
    assert one.hash == job(tmp_path / "elsewhere").hash
    hashes = {one.hash, other.hash, job(tmp_path, noise="none").hash}
    hashes.add(Job("tiny", "A title", "row", one.row, 1, "another", tmp_path).hash)
    assert len(hashes) == 4
    with pytest.raises(LabError, match=r"must stay as it is while .* was another"):
        train.run(Job("tiny", "A title", "row", one.row, 1, "another", tmp_path), corpus())
    assert list(tmp_path.iterdir()) == []
    runs = [train.run(one, corpus()), train.run(other, corpus())]
    assert runs[0].weights != runs[1].weights


def test_rows_of_a_seed_share_start_and_order(tmp_path):
    """Without a difference in noise the rows of a seed are one run: they are paired."""
    weak = train.run(job(tmp_path, noise="hidden * Gaussian(1e-30)", epochs=1), corpus())
    plain = train.run(job(tmp_path, noise="none", epochs=1), corpus())
    assert f"{weak.history[0].train:.5f}" == f"{plain.history[0].train:.5f}"


def test_training_learns_and_keeps_the_best_epoch(tmp_path):
    record = train.run(job(tmp_path, noise="none", epochs=60, patience=5), corpus())
    valid = [epoch.valid["unscored"] for epoch in record.history]
    assert record.best_epoch == valid.index(min(valid)) + 1
    assert valid[0] - min(valid) > 1
    assert record.scores["valid"]["unscored"] == min(valid)
    ended_early = len(valid) == record.best_epoch + 5 < 60
    assert ended_early or len(valid) == 60


def test_patience_ends_training(tmp_path):
    record = train.run(job(tmp_path, lr=1e-9, epochs=50, patience=3), corpus())
    assert len(record.history) <= record.best_epoch + 3


def test_noise_changes_training(tmp_path):
    """Fails if noise were silently left out: strong noise keeps the objective high."""
    strong = train.run(job(tmp_path, noise="hidden + Gaussian(5.0)", epochs=8), corpus())
    plain = train.run(job(tmp_path, noise="none", epochs=8), corpus())
    assert strong.history[-1].train > plain.history[-1].train + 1
    assert strong.monte_carlo[1]["unscored"] > strong.test


def test_learned_spread_is_recorded_and_moves(tmp_path):
    noise = "hidden * Gaussian(Learned(0.5, floor=0.1))"
    record = train.run(job(tmp_path, noise=noise, epochs=8), corpus())
    spreads = [epoch.spreads["rnn.rho_hidden_l0"] for epoch in record.history]
    assert len(set(spreads)) == 8
    assert min(spreads) > 0.1


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_what_is_not_finite_stops_the_run(tmp_path, monkeypatch, broken):
    """NaN at update 6: the record says so and the checkpoint before stays."""
    real, calls = MusicTask.loss, []

    def loss(self, batch):
        whole = real(self, batch)
        calls.append(whole)
        if len(calls) < 6:
            return whole
        if broken == "loss":
            return whole._replace(total=whole.total * math.nan)
        total = whole.total  # finite, its gradient is not
        return whole._replace(total=total + 0 * torch.sqrt(total - total.detach()))

    monkeypatch.setattr(trainer, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(trainer, "SAVE_SHARE", 0.0)
    monkeypatch.setattr(MusicTask, "loss", loss)
    record = train.run(job(tmp_path), corpus())
    assert record.status == "diverged"
    assert "at update 6 (epoch 2, update 2); the norm was " in record.reason
    assert "noise: hidden * Gaussian(0.5)" in record.reason
    assert ("not finite in rnn.weight_ih_l0, rnn.weight_hh_l0" in record.reason) == (
        broken == "gradient"
    )
    assert record.scores == {}
    tensors, state = checkpoint.load(job(tmp_path).path / "checkpoint.safetensors")
    assert state["counters"]["epoch"] == 2
    assert all(t.isfinite().all() for n, t in tensors.items() if n.startswith("model."))


def damages(whole):
    """Cut short, emptied, overwritten, and with a single bit of a weight turned."""
    turned = bytearray(whole)
    turned[-5] ^= 1
    return [b"", whole[:100], whole[: len(whole) // 2], b"\xff" * 200, bytes(turned)]


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(trainer, "SAVE_SHARE", 0.0)
    expected = train.run(job(tmp_path / "whole"), corpus())
    cut = job(tmp_path / "cut")
    with pytest.raises(train.Stopped):
        train.run(cut, corpus(), stopping=StopAfter(5))
    path = cut.path / "checkpoint.safetensors"
    before, last = path.with_name("checkpoint-before.safetensors").read_bytes(), path.read_bytes()
    for index, damaged in enumerate(damages(last)):
        at = job(tmp_path / f"cut-{index}")
        at.path.mkdir(parents=True)
        (at.path / path.name).write_bytes(damaged)
        (at.path / "checkpoint-before.safetensors").write_bytes(before)
        with pytest.warns(UserWarning, match="the checkpoint before it is used"):
            checkpoint.load_last(at.path / path.name)
        assert not (at.path / path.name).exists()  # or it would push the good one out
        (at.path / path.name).write_bytes(damaged)
        with pytest.warns(UserWarning, match="the checkpoint before it is used"):
            assert told(train.run(at, corpus())) == told(expected)
    path.unlink()  # killed between two renamings
    assert told(train.run(cut, corpus())) == told(expected)


def test_damaged_checkpoints_alone_are_refused(tmp_path):
    with pytest.raises(train.Stopped):
        train.run(job(tmp_path), corpus(), stopping=StopAfter(3))
    path = job(tmp_path).path / "checkpoint.safetensors"
    before = path.with_name("checkpoint-before.safetensors")
    for damaged in damages(path.read_bytes()):
        path.write_bytes(damaged)
        before.write_bytes(damaged)
        with pytest.raises(LabError, match=r"whole safetensors file.*Delete it to begin anew"):
            train.run(job(tmp_path), corpus())
    checkpoint.save(path, {"model.x": torch.zeros(2)}, {})
    with pytest.raises(LabError, match="not a checkpoint of this run"):
        train.run(job(tmp_path), corpus())


def test_progress_is_told_within_epochs_too(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "TELL_EVERY", 0.0)
    told = []
    record = train.run(job(tmp_path), corpus(), told.append)
    assert [(p.epoch, p.within) for p in told[:5]] == [
        *((0, 0.25), (0, 0.5), (0, 0.75)),
        *((1, 0.0), (1, 0.25)),
    ]
    assert math.isnan(told[0].valid)
    assert [p.valid for p in told if not p.within] == [
        epoch.valid["unscored"] for epoch in record.history
    ]
    assert told[-1].left == 0
    assert all(p.left > 0 for p in told[:-1])


def test_curves_can_be_watched(tmp_path, monkeypatch):
    """And a run that goes on writes on."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setattr(trainer, "TELL_EVERY", 0.0)
    watched = dataclasses.replace(job(tmp_path), curves=True)
    with pytest.raises(train.Stopped):
        train.run(watched, corpus(), stopping=StopAfter(9))
    record = train.run(watched, corpus())
    events = reader.EventAccumulator(str(watched.path / "curves"))
    events.Reload()
    valid = {one.step: one.value for one in events.Scalars("valid/unscored")}
    assert valid == {
        4 * epoch.epoch: pytest.approx(epoch.valid["unscored"]) for epoch in record.history
    }
    assert {1, 2, 3, 5} <= {one.step for one in events.Scalars("train/gradient norm")}


def test_curves_need_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(LabError, match="pip install tensorboard"):
        train.run(dataclasses.replace(job(tmp_path), curves=True), corpus())


def test_a_checkpoint_is_written_within_an_epoch(tmp_path, monkeypatch):
    """And no oftener than its writing is worth."""
    monkeypatch.setattr(trainer, "SAVE_EVERY", 0.0)
    saved = []
    real = train.Trainer.save
    monkeypatch.setattr(
        train.Trainer, "save", lambda self: (saved.append((self.epoch, self.index)), real(self))
    )
    monkeypatch.setattr(trainer, "SAVE_SHARE", 0.0)
    train.run(job(tmp_path / "often"), corpus())
    assert {(1, 0), (1, 1), (1, 3), (2, 0), (4, 2), (5, 0)} <= set(saved)
    saved.clear()
    monkeypatch.setattr(trainer, "SAVE_SHARE", 1e9)
    train.run(job(tmp_path / "seldom"), corpus())
    assert saved == [(1, 0), (5, 0)]


def test_checkpoint_gives_everything_back(tmp_path):
    tensors = {"a": torch.randn(3, 5).t(), "b": torch.tensor(2), "c": torch.zeros(0)}
    state = {"x": 0.1 + 0.2, "y": [1, None, "ü"]}
    checkpoint.save(tmp_path / "c.safetensors", tensors, state)
    back, told_back = checkpoint.load(tmp_path / "c.safetensors")
    assert told_back == state
    assert sorted(back) == ["a", "b", "c"]
    for name, tensor in tensors.items():
        assert_bit_equal(back[name], tensor)


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "c.safetensors"
    checkpoint.save(path, {"a": torch.zeros(2)}, {})
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("noisin.lab.files.os.fsync", full)
    with pytest.raises(LabError, match="No space left"):
        checkpoint.save(path, {"a": torch.ones(2)}, {})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["c.safetensors"]


def test_hash_of_weights_sees_names_shapes_and_bits():
    base = {"a": torch.zeros(2, 3), "b": torch.ones(4)}
    flipped = {**base, "b": torch.tensor([1, 1, 1, 1 + 1e-7])}
    shaped = {**base, "a": torch.zeros(3, 2)}
    named = {"a": base["a"], "c": base["b"]}
    hashes = [checkpoint.weights_hash(w) for w in (base, flipped, shaped, named)]
    assert len(set(hashes)) == 4
    assert checkpoint.weights_hash({"b": base["b"], "a": base["a"]}) == hashes[0]
