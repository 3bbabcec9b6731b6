"""Words: perplexity is the hand count, whatever the window; every token is predicted once."""

import math

import numpy as np
import pytest
import torch

from conftest import assert_bit_equal, assert_close_to_float64
from lab_cases import benchmark_folder
from noisin.lab import LabError, data, evaluate, records, tokens, train
from noisin.lab.config import WordsConfig
from noisin.lab.rows import Row
from noisin.lab.train import Job
from noisin.lab.words import WordModel, WordTask, text_of

TEXT = "the cat sat on the mat\n\nthe dog sat\n  on the  cat \nthe mat sat\na dog\n"


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    monkeypatch.setenv("NOISIN_CACHE", str(tmp_path / "cache"))
    for split, repeats in (("train", 6), ("valid", 2), ("test", 3)):
        (tmp_path / f"{split}.txt").write_text(TEXT * repeats)
    return tokens.load(str(tmp_path))


def config(**changes):
    tiny = {"data": "x", "hidden_size": 6, "batch_size": 3, "window": 4, "epochs": 2}
    tiny |= {"noise": "hidden * Gaussian(0.5)", "test_samples": (1, 2)}
    return WordsConfig(**{**tiny, **changes})


def task(corpus, **changes):
    torch.manual_seed(0)
    return WordTask(config(**changes), corpus)


def hand_count(model, words):
    """Predict one token at a time in float64, from <eos> and a state of zeros."""
    model = model.double().eval()
    known = {word: number for number, word in enumerate(words.vocabulary)}
    before, state, total = known["<eos>"], None, 0.0
    for token in words.splits["test"].tolist():
        with torch.no_grad():
            logits, state = model(torch.tensor([[before]]), state)
        p = np.exp(logits[0, 0].numpy())
        total -= math.log(p[token] / p.sum())
        before = token
    model.float()
    return math.exp(total / len(words.splits["test"]))


@pytest.mark.parametrize("window", [1, 2, 7, 256])
@pytest.mark.parametrize("cell", ["lstm", "gru", "sigmoid"])
def test_perplexity_is_the_hand_count(corpus, window, cell):
    one = task(corpus, cell=cell)
    check_hand_count(one, corpus, window)


def check_hand_count(one, corpus, window):
    got = torch.tensor(one.scores("test", (0,), window=window)[0]["perplexity"])
    eager = torch.tensor(one.scores("test", (0,), window=1)[0]["perplexity"])
    expected = torch.tensor(hand_count(one.model, corpus), dtype=torch.float64)
    assert_close_to_float64(got, eager, expected)


def test_every_token_is_predicted_once(corpus):
    one = task(corpus)
    count = len(corpus.splits["test"])
    assert count == 3 * (17 + 6)  # words and one <eos> a line, the empty line's too
    whole = torch.cat(list(one.log_likelihoods("test")))
    assert whole.shape == (count,)
    for streams in (1, 2, 10, count, count + 5):
        parts = torch.cat(list(one.log_likelihoods("test", streams=streams)))
        assert parts.shape == (count,)


def test_streams_start_from_zeros_and_one_stream_does_not(corpus):
    one = task(corpus)
    count = len(corpus.splits["test"])
    alone = torch.cat(list(one.log_likelihoods("test", streams=count)))
    assert not torch.equal(alone, torch.cat(list(one.log_likelihoods("test"))))


def test_training_windows_are_the_text_in_order(corpus):
    one = task(corpus, batch_size=4, window=5)
    text = corpus.splits["train"].astype(np.int64)
    length = len(text) // 4
    windows = list(one.batches(seed=1, epoch=1))
    assert len(windows) == one.updates == -(-length // 5)
    targets = torch.cat([w.targets for w in windows]).t()
    inputs = torch.cat([w.inputs for w in windows]).t()
    for stream in range(4):
        own = text[stream * length : (stream + 1) * length]
        assert targets[stream].tolist() == own.tolist()
        before = text[stream * length - 1] if stream else corpus.vocabulary.index("<eos>")
        assert inputs[stream].tolist() == [before, *own[:-1]]


@pytest.mark.parametrize("noise", ["none", "hidden * Gaussian(0.7) @ moments"])
def test_state_is_carried_and_cut(corpus, noise):
    """Two windows see what one long window sees, and gradients end between them."""
    short, whole = task(corpus, noise=noise), task(corpus, noise=noise, window=8)
    losses = []
    for number, batch in enumerate(short.batches(1, 1)):
        losses.append(short.loss(batch).total)
        if number == 1:
            break
    together = whole.loss(next(whole.batches(1, 1))).total
    both = losses[0] + losses[1]
    assert_close_to_float64(both.detach(), together.detach(), together.detach().double())
    losses[1].backward()
    assert all(not part.requires_grad for part in short.carried().values())


def test_a_share_of_the_text_is_its_start(corpus):
    whole, part = task(corpus), task(corpus, train_share=0.25)
    assert part.updates == -(-(round(0.25 * len(corpus.splits["train"])) // 3) // 4) < whole.updates
    count = sum(len(parts) for parts in part.log_likelihoods("train"))
    assert count == round(0.25 * len(corpus.splits["train"]))
    first = torch.cat(list(whole.log_likelihoods("train")))[:count]
    assert_close_to_float64(torch.cat(list(part.log_likelihoods("train"))), first, first)
    assert part.score("train")["nll"] != whole.score("train")["nll"]


def test_batch_beyond_the_text_is_refused(corpus):
    with pytest.raises(LabError, match="batch_size must be at most the 138 tokens"):
        task(corpus, batch_size=139)


def test_loss_is_summed_over_the_window_or_averaged_over_tokens(corpus):
    for loss, scale in (("window", 3), ("token", 12)):
        one = task(corpus, loss=loss)
        got = one.loss(next(one.batches(1, 1)))
        assert (got.steps, got.scale) == (12, scale)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "nt-asgd"])
@pytest.mark.parametrize("cell", ["lstm", "tanh"])
def test_resumed_equals_undisturbed(corpus, tmp_path, optimizer, cell):
    """Position, carried state and the running average are in the checkpoint."""
    changes = {"optimizer": optimizer, "cell": cell, "epochs": 6, "lr": 0.5, "trigger": 1}
    if optimizer == "nt-asgd":
        changes |= {"lr": 5.0, "patience": 6}

    def job(name):
        row = Row(config=config(**changes), label="row", baseline="row")
        return Job("tiny", "A title", "row", row, 1, corpus.digest(), tmp_path / name)

    whole = train.run(job("whole"), corpus)
    asked = [0]

    def stop_at(update):
        asked[0] = 0

        def stopping():
            asked[0] += 1
            return asked[0] > update

        return stopping

    for update in (1, 12, 13, 40):
        with pytest.raises(train.Stopped):
            train.run(job(f"cut-{update}"), corpus, stopping=stop_at(update))
        resumed = train.run(job(f"cut-{update}"), corpus)
        assert resumed.weights == whole.weights
        assert resumed.scores == whole.scores
        assert resumed.monte_carlo == whole.monte_carlo


def run_of(corpus, folder, **changes):
    row = Row(config=config(**changes), label="row", baseline="row")
    return train.run(Job("t", "t", "row", row, 1, corpus.digest(), folder), corpus)


def test_step_size_follows_the_schedule(corpus, tmp_path):
    record = run_of(corpus, tmp_path, lr=0.5, lr_hold=2, lr_factor=0.5, epochs=5)
    assert [epoch.lr for epoch in record.history] == [0.5, 0.5, 0.25, 0.125, 0.0625]
    steady = run_of(corpus, tmp_path, lr=0.5, epochs=5)
    assert [e.train for e in steady.history[:2]] == [e.train for e in record.history[:2]]
    assert steady.history[2].train != record.history[2].train


def test_averaging_changes_what_is_scored_and_not_the_training(corpus, tmp_path):
    """The running weights go on as in plain sgd; validation sees their mean since the trigger."""
    changes = {"lr": 8.0, "epochs": 12, "patience": 12, "trigger": 1, "noise": "none"}
    plain = run_of(corpus, tmp_path, optimizer="sgd", **changes)
    averaged = run_of(corpus, tmp_path, optimizer="nt-asgd", **changes)
    assert [e.train for e in plain.history] == [e.train for e in averaged.history]
    valid = [[e.valid["nll"] for e in record.history] for record in (plain, averaged)]
    same = [one == other for one, other in zip(*valid, strict=True)]
    trigger = same.index(False)
    assert trigger >= 2  # an epoch without a better score comes first
    assert valid[0][trigger - 1] > min(valid[0][: trigger - 1])
    assert not any(same[trigger:])
    assert min(valid[1]) < min(valid[0])


def test_tied_weights_are_one(corpus):
    tied = WordModel(config(tied=True), 50)
    assert tied.head.weight is tied.embedding.weight
    loose = WordModel(config(), 50)
    counts = [sum(p.numel() for p in model.parameters()) for model in (tied, loose)]
    assert counts[1] - counts[0] == 50 * 6
    with pytest.raises(ValueError, match="embedding_size = hidden_size, got 5 and 6"):
        WordModel(config(tied=True, embedding_size=5), 50)


def test_published_sizes_say_that_weights_are_tied():
    """13 and 51 million parameters, as the NOISIN paper counts."""
    sizes = []
    with torch.device("meta"):
        for hidden in (650, 1500):
            model = WordModel(config(tied=True, hidden_size=hidden), 10_000)
            sizes.append(round(sum(p.numel() for p in model.parameters()) / 1e6, 2))
    assert sizes == [13.28, 51.03]


def test_embedding_takes_its_share_of_the_noise(corpus):
    noise = "row * Bernoulli(keep=0.5) @ sequence & hidden * Gaussian(0.5)"
    one = task(corpus, noise=noise)
    assert str(one.model.embedding.noise) == "row * Bernoulli(keep=0.5) @ sequence"
    assert str(one.model.rnn.noise) == "hidden * Gaussian(0.5)"
    one.model.train()
    ids = torch.arange(5)[:, None].repeat(2, 3)
    vectors = one.model.embedding(ids)
    dropped = (vectors == 0).all(-1)
    assert 0 < dropped.sum() < dropped.numel()
    assert torch.equal(dropped, dropped[:, :1].expand_as(dropped))  # wherever the word stands
    assert torch.equal(dropped[:5], dropped[5:])


def test_start_is_uniform_and_spreads_keep_theirs():
    noise = "hidden * Gaussian(Learned(0.5, floor=0.1))"
    model = WordModel(config(init_uniform=0.05, noise=noise), 500)
    weights = [p for name, p in model.named_parameters() if "rho" not in name]
    assert max(p.abs().max().item() for p in weights) <= 0.05
    assert all(p.abs().max() > 0.02 for p in weights)
    assert [f"{value:.6f}" for value in model.rnn.spreads().values()] == ["0.500000"] * 2


def test_more_draws_never_score_worse(corpus):
    one = task(corpus, noise="hidden * Gaussian(1.0)")
    scores = one.scores("test", (0, 1, 2, 8))
    found = []
    for samples in ((2,), (2, 2)):
        torch.manual_seed(3)
        found.append(one.scores("test", samples))
    assert found[0] == found[1]
    assert scores[1]["nll"] > scores[2]["nll"] > scores[8]["nll"]
    assert scores[0]["nll"] != scores[1]["nll"]
    for score in scores.values():
        assert f"{score['perplexity']:.9g}" == f"{math.exp(score['nll']):.9g}"


def test_models_are_averaged_and_tokens_have_probabilities(corpus, tmp_path):
    runs = []
    for seed in (1, 2):
        row = Row(config=config(), label="row", baseline="row")
        job = Job("tiny", "A title", "row", row, seed, corpus.digest(), tmp_path / "runs")
        train.run(job, corpus)
        runs.append(evaluate.load(job.path, corpus=corpus))
    alone = [evaluate.evaluate([run])[0]["nll"] for run in runs]
    assert [run.record.scores["test"]["nll"] for run in runs] == alone
    assert evaluate.evaluate(runs)[0]["nll"] < sum(alone) / 2
    listed = evaluate.log_probabilities(runs[0], "test")
    assert [one["token"] for one in listed[:7]] == [
        "the",
        "cat",
        "sat",
        "on",
        "the",
        "mat",
        "<eos>",
    ]
    total = sum(one["log_prob"] for one in listed)
    assert f"{-total / len(listed):.9g}" == f"{alone[0]:.9g}"
    drawn = evaluate.sample_text(runs[0], 30, seed=1, prompt=["the", "cat"])
    assert text_of(drawn).startswith("the cat")
    assert drawn == evaluate.sample_text(runs[0], 30, seed=1, prompt=["the", "cat"])
    with pytest.raises(LabError, match=r"the prompt must be of known words; got zebra"):
        evaluate.sample_text(runs[0], 3, seed=1, prompt=["zebra"])


def test_another_vocabulary_is_refused(corpus, tmp_path):
    row = Row(config=config(data=str(tmp_path)), label="row", baseline="row")
    job = Job("tiny", "A title", "row", row, 1, corpus.digest(), tmp_path / "runs")
    train.run(job, corpus)
    assert len(records.read([job.path])) == 1
    (tmp_path / "train.txt").write_text(TEXT * 6 + "zebra\n")
    with pytest.raises(LabError, match="the corpus must be that of the run"):
        evaluate.load(job.path)


# text files


def test_benchmarks_hold_what_is_published(tmp_path, monkeypatch):
    monkeypatch.setenv("NOISIN_CACHE", str(tmp_path))
    folder = benchmark_folder()
    unknown = {}
    for name in tokens.BENCHMARKS:
        assert "sha256" in data.verify(name, folder)  # raises where the counts differ
        words = tokens.load(name, folder)
        unknown[name] = [words.unknown(split) for split in words.splits]
    # from the data's own description; nothing but <unk> itself is out of vocabulary
    assert unknown == {"ptb": [45020, 3485, 4794], "wikitext-2": [54625, 11718, 15218]}


def test_numbers_give_the_text_back(corpus):
    ids = corpus.splits["train"]
    words = [corpus.vocabulary[i] for i in ids]
    lines = " ".join(words).split("<eos>")
    expected = [" ".join(line.split()) for line in (TEXT * 6).split("\n")]
    assert [line.strip() for line in lines] == expected
    assert corpus.vocabulary[:2] == ("the", "<eos>") or corpus.vocabulary[:2] == ("<eos>", "the")
    assert isinstance(ids, np.memmap)  # mapped, not read


def test_rare_and_unseen_words_are_unknown(tmp_path, monkeypatch):
    monkeypatch.setenv("NOISIN_CACHE", str(tmp_path / "cache"))
    lines = ["a a b"] * 8 + ["a c"] + ["a z"]
    (tmp_path / "own.txt").write_text("\n".join(lines) + "\n")
    words = tokens.load(str(tmp_path / "own.txt"), min_count=2)
    assert words.lines == {"train": 8, "valid": 1, "test": 1}
    assert sorted(words.vocabulary) == ["<eos>", "<unk>", "a", "b"]
    assert [words.unknown(split) for split in words.splits] == [0, 1, 1]


@pytest.mark.parametrize("end", ["", "\n", "\n" * 9, "\n \n\t\r\n"])
def test_blank_lines_at_the_end_are_not_what_is_tested(tmp_path, monkeypatch, end):
    monkeypatch.setenv("NOISIN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "own.txt").write_text("\n".join([*["a b"] * 8, "", "a z"]) + end, newline="")
    words = tokens.load(str(tmp_path / "own.txt"))
    assert list(words.lines.values()) == [8, 1, 1]
    assert [len(words.splits[split]) for split in words.splits] == [24, 1, 3]


BAD = {
    "empty": (b"", "at least 3 lines"),
    "one line": (b"a single line\n", "at least 3 lines are needed, one for each split; got 1"),
    "latin-1": ("naïve\n".encode("latin-1") * 9, "line 1: text must be UTF-8"),
    "blank": (b"\n" * 9, r"at least 3 lines are needed.*got 0"),
    "no words": (b"\n" * 9 + b"a", "a corpus must have words"),
}


@pytest.mark.parametrize("name", BAD)
def test_text_that_is_none_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.setenv("NOISIN_CACHE", str(tmp_path / "cache"))
    content, rule = BAD[name]
    (tmp_path / "own.txt").write_bytes(content)
    with pytest.raises(LabError, match=rule):
        tokens.load(str(tmp_path / "own.txt"))
    left = [p for p in (tmp_path / "cache" / "tokens").rglob("*") if p.is_file()]
    assert left == []


def test_cut_token_file_is_refused(corpus, tmp_path):
    path = next((tmp_path / "cache" / "tokens").rglob("valid.tokens"))
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(LabError, match=r"token files must be whole; valid\.tokens must hold"):
        tokens.load(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "rule"),
    [("test.tokens", "must have the sha256"), ("corpus.json", "must have (<eos>|words)")],
)
def test_damage_that_keeps_the_size_is_refused(corpus, tmp_path, name, rule):
    path = next((tmp_path / "cache" / "tokens").rglob(name))
    old = path.read_bytes()
    path.write_bytes(old.replace(b"<eos>", b"<eot>") if name == "corpus.json" else old[::-1])
    assert path.stat().st_size == len(old)
    assert path.read_bytes() != old
    with pytest.raises(LabError, match=rule):
        tokens.load(str(tmp_path))


def test_what_was_begun_is_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("NOISIN_CACHE", str(tmp_path / "cache"))
    for split, text in (("train", b"a b\n"), ("valid", b"a b\n"), ("test", b"\xff\n")):
        (tmp_path / f"{split}.txt").write_bytes(text)
    with pytest.raises(LabError, match="line 1: text must be UTF-8"):
        tokens.load(str(tmp_path))
    assert list((tmp_path / "cache" / "tokens").iterdir()) == []


def test_changed_text_is_numbered_anew(corpus, tmp_path):
    (tmp_path / "test.txt").write_text(TEXT)
    again = tokens.load(str(tmp_path))
    assert again.digest() != corpus.digest()
    assert len(again.splits["test"]) == 23
    assert_bit_equal(
        torch.from_numpy(again.splits["train"].astype(np.int64)),
        torch.from_numpy(corpus.splits["train"].astype(np.int64)),
    )
