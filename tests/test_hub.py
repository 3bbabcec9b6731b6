"""Models for the Hugging Face Hub: a folder builds the run's model again, or is refused."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from conftest import assert_bit_equal
from lab_cases import midi_folder, table, walk
from noisin import sampling, strip
from noisin.lab import LabError, card, evaluate, hub, records, tasks, train
from noisin.lab.config import MusicConfig, SeriesConfig, WordsConfig
from noisin.lab.rows import Row
from noisin.lab.tokens import EOS
from noisin.lab.train import Job
from test_cli import call as call  # a fixture

package = pytest.importorskip("huggingface_hub", reason="whose format this is (extra `hub`)")

TINY = {"hidden_size": 5, "epochs": 2, "batch_size": 3, "test_samples": (1, 2), "lr": 0.02}
LEARNED = "hidden + Gaussian(Learned(0.5, floor=0.1)) & output * Bernoulli(keep=0.5)"
CASES = {
    "music": (MusicConfig, {"noise": "hidden * Gaussian(0.5)"}),
    "music, learned": (MusicConfig, {"noise": LEARNED, "learned_state": True}),
    "music, moments": (MusicConfig, {"noise": "hidden * Gaussian(0.5) @ moments"}),
    "music, start": (MusicConfig, {"cell": "tanh", "nonzeros": 2, "spectral_radius": 1.1}),
    "words": (WordsConfig, {"noise": LEARNED, "cell": "gru", "embedding_size": 3}),
    "words, tied": (WordsConfig, {"noise": "row * Bernoulli(keep=0.9) @ sequence", "tied": True}),
    "words, zoneout": (WordsConfig, {"noise": "Zoneout(hidden=0.1, cell=0.2)", "window": 4}),
    "series": (SeriesConfig, {"noise": LEARNED, "targets": ("y",), "horizon": 2}),
    "series, counts": (SeriesConfig, {"cell": "sigmoid", "head": "poisson", "targets": ("n",)}),
}
FULL = {"music": "music, learned", "words": "words, tied", "series": "series"}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Return the folder of a finished run of each case."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "midi").mkdir()
    text = "the cat sat on the mat\nthé dog sat\n\non the mat the cat sat\n" * 6
    (folder / "own text.txt").write_text(text)
    counts = np.random.default_rng(0).integers(0, 9, 60)
    data = {
        "music": midi_folder(folder / "midi"),
        "words": folder / "own text.txt",
        "series": walk(folder / "own.csv"),
        "series, counts": table(folder / "n.csv", {"x": np.arange(60) % 7, "n": counts}),
    }
    patch = pytest.MonkeyPatch()
    patch.setenv("NOISIN_CACHE", str(folder / "cache"))
    found = {}
    for name, (kind, changes) in CASES.items():
        path = data.get(name, data[name.partition(",")[0]])
        config = kind(**{**TINY, "data": str(path), **changes})
        corpus = tasks.load(config)
        row = Row(config=config, label="row", baseline="row", note=f"seen in {folder}")
        job = Job("tiny", f"data={folder}", "row.1+2", row, 3, corpus.digest(), folder)
        assert train.run(job, corpus).status == "finished"
        found[name] = job.path
    yield found
    patch.undo()


@pytest.fixture
def made(done, tmp_path):
    """Return a function that exports the run of a case."""

    def make(name, **options):
        hub.save_pretrained(done[name], tmp_path / name, **options)
        return tmp_path / name

    return make


def called(model):
    """Call a model on random input of its kind."""
    torch.manual_seed(1)
    if hasattr(model, "embedding"):
        x = torch.randint(model.embedding.num_embeddings, (7, 2))
    else:
        x = torch.rand(7, 2, model.rnn.input_size)
    with torch.no_grad():
        return model(x)


@pytest.mark.parametrize("name", CASES)
def test_the_model_is_that_of_the_run_bit_for_bit(done, made, name):
    model, run = hub.from_pretrained(made(name)), evaluate.load(done[name]).task.model
    assert type(model) is type(run)
    assert not any(part.training for part in model.modules())
    ours, theirs = model.state_dict(), run.state_dict()
    assert list(ours) == list(theirs)
    assert_bit_equal(list(ours.values()), list(theirs.values()))
    assert_bit_equal(called(model), called(run))
    with sampling(model), sampling(run):
        assert_bit_equal(called(model), called(run))


def test_loading_leaves_the_generator_as_it_was(made):
    folder = made("music, start")
    before = torch.get_rng_state()
    hub.from_pretrained(folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_tied_weights_are_one(made):
    model = hub.from_pretrained(made("words, tied"))
    assert model.head.weight is model.embedding.weight


@pytest.mark.parametrize("name", FULL.values())
def test_the_layers_can_be_stripped(made, name):
    model = hub.from_pretrained(made(name))
    x = torch.randn(7, 2, model.rnn.input_size)
    ours = model.rnn(x)
    plain = strip(model.rnn)
    assert type(plain) in (nn.LSTM, nn.GRU, nn.RNN)
    assert_bit_equal(plain(x), ours)


def test_about_tells_what_the_model_needs(done, made):
    folder = made("words")
    words = hub.vocabulary(folder)
    assert words == evaluate.load(done["words"]).task.corpus.vocabulary
    assert {"thé", EOS} <= set(words)
    assert hub.about(folder).inputs == hub.about(folder).outputs == len(words)
    folder = made("series")
    corpus, columns = evaluate.load(done["series"]).task.corpus, hub.about(folder).columns
    assert (columns.inputs, columns.targets) == (("x", "y"), ("y",))
    for name in ("mean", "std", "center", "scale"):
        assert list(getattr(columns, name)) == getattr(corpus, name).tolist()
    assert hub.about(made("series, counts")).columns.scale == (1.0,)
    with pytest.raises(LabError, match=r"a vocabulary is of words; .* is a model of series"):
        hub.vocabulary(folder)


# whole, or not at all


@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt()])
@pytest.mark.parametrize("there", [True, False])
def test_nothing_is_left_of_a_folder_that_could_not_be_finished(
    done, tmp_path, monkeypatch, error, there
):
    folder = tmp_path / "model"
    if there:
        folder.mkdir()

    def failing(*_):
        assert len(list(tmp_path.rglob("model.safetensors"))) == 1  # in the middle of it
        raise error

    monkeypatch.setattr(card, "texts", failing)
    with pytest.raises((LabError, KeyboardInterrupt), match=r"could not be written; no space|^$"):
        hub.save_pretrained(done["music"], folder)
    assert list(tmp_path.rglob("*")) == ([folder] if there else [])


def test_what_is_there_stays(done, tmp_path, monkeypatch):
    full, file, empty = tmp_path / "full", tmp_path / "file", tmp_path / "empty"
    full.mkdir()
    empty.mkdir()
    (full / "mine").write_text("mine")
    file.write_text("mine")
    monkeypatch.chdir(empty)
    for folder, rule in (
        (full, "must be empty or not there yet; got a folder of 1 entries"),
        (file, "must be a folder, got a file"),
        (file / "below", "must be a folder that can be written"),
        (Path(), "must be another than the working one"),
    ):
        with pytest.raises(LabError, match=rule):
            hub.save_pretrained(done["music"], folder)
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert left == ["empty", "file", "full", "full/mine"]


def test_an_empty_folder_and_folders_that_are_not_there_are_filled(done, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "a" / "b"):
        files = hub.save_pretrained(done["words"], folder)
        assert files == sorted(path.name for path in folder.iterdir())
        assert files == [
            *("README.md", "config.json", "model.safetensors", "recipe.toml", "vocabulary.json"),
        ]
        assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []


def test_a_run_that_is_not_finished_is_refused(done, tmp_path):
    run = shutil.copytree(done["music"], tmp_path / "run")
    (record,) = records.read([run])
    lost = record.model_copy(update={"status": "diverged", "reason": "loss is nan"})
    records.write(lost, run / "record.json")
    with pytest.raises(LabError, match="must have finished; this one diverged, loss is nan"):
        hub.save_pretrained(run, tmp_path / "model")
    (run / "record.json").unlink()
    with pytest.raises(LabError, match=r"a run is a folder with a record.json"):
        hub.save_pretrained(run, tmp_path / "model")
    assert not (tmp_path / "model").exists()


# damaged


def changed(folder, **settings):
    """Change ``config.json``: its own fields, or settings of the run."""
    about = json.loads((folder / "config.json").read_text())
    for name, value in settings.items():
        (about if name in about else about["settings"])[name] = value
    (folder / "config.json").write_text(json.dumps(about))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "vocabulary.json"])
def test_a_file_that_is_missing_cut_or_changed_is_refused(made, name):
    folder = made("words, tied")
    whole = (folder / name).read_bytes()
    middle = len(whole) * 2 // 3
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    for data in (None, b"", whole[:middle], flipped, b"\xff" + whole, b"[]"):
        (folder / name).unlink()
        if data is not None:
            (folder / name).write_bytes(data)
        if name == "config.json" and data == flipped:
            continue  # a digit of a setting: nothing tells it from another one
        with pytest.raises(LabError, match=re.escape(name)):
            hub.from_pretrained(folder)
        (folder / name).write_bytes(whole)
    hub.from_pretrained(folder)


def test_weights_of_another_run_are_refused(made):
    folder, other = made("words"), made("words, tied")
    shutil.copy(other / "model.safetensors", folder)
    with pytest.raises(LabError, match=r"model.safetensors: the weights must have sha256 \w{64}"):
        hub.from_pretrained(folder)


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"hidden_size": 10**12}, "Storage size"),
        ({"hidden_size": 10**6}, "sizes are not those of the weights"),  # nor is memory taken
        ({"outputs": 10**12}, "sizes are not those of the weights"),
        ({"num_layers": 3}, "sizes are not those of the weights"),
        ({"noise": "hidden * Gausian(1)"}, "settings.words.noise: .*did you mean Gaussian"),
        ({"noise": "hidden[7] * Gaussian(1.0)"}, "layer"),
        ({"task": "music"}, "settings.music"),
        ({"vocabulary": None}, "words have a vocabulary and series have columns"),
        ({"format_version": 2}, "format_version: Input should be 1"),
        ({"embedding_size": 4, "tied": True}, "tied weights need"),
    ],
    ids=str,
)
def test_a_config_that_does_not_fit_is_refused(made, settings, rule):
    folder = made("words")
    changed(folder, **settings)
    with pytest.raises(
        LabError, match=rf"config.json must be as `noisin export` writes it.*{rule}"
    ):
        hub.from_pretrained(folder)


# folders and repositories


def test_a_path_that_is_no_model_is_refused(tmp_path, done):
    with pytest.raises(LabError, match="a model is a folder as `noisin export` writes it; got"):
        hub.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(LabError, match=r"must hold config.json"):
        hub.from_pretrained(done["music"])  # a run, not a model
    with pytest.raises(LabError, match=r"revision is of a repository; .* is a folder"):
        hub.from_pretrained(tmp_path, revision="main")


def test_a_repository_is_fetched_by_the_package(made, monkeypatch):
    folder, calls = made("words"), []

    def fetch(repository, **options):
        calls.append((repository, options))
        return str(folder)

    monkeypatch.setattr(package, "snapshot_download", fetch)
    model = hub.from_pretrained("someone/model", revision="v1")
    assert_bit_equal(called(model), called(hub.from_pretrained(folder)))
    assert hub.vocabulary("someone/model") == hub.vocabulary(folder)
    assert hub.about("someone/model") == hub.about(folder)
    wanted = ["config.json", "model.safetensors", "vocabulary.json"]
    assert calls[0] == ("someone/model", {"allow_patterns": wanted, "revision": "v1"})
    assert len(calls) == 3


def test_a_repository_that_cannot_be_fetched_is_told_in_one_line(tmp_path, monkeypatch):
    """Names are checked before any network, and `local_files_only` asks for none."""
    got = r"a folder, or a repository of the Hub that can be fetched; got "
    with pytest.raises(LabError, match=rf"{got}'not/a/name' \(HFValidationError: .*\)$"):
        hub.from_pretrained("not/a/name")
    with pytest.raises(LabError, match=rf"{got}'a/b' \(LocalEntryNotFoundError: [^\n]*\)$"):
        hub.from_pretrained("a/b", local_files_only=True, cache_dir=tmp_path)


def test_without_the_package_a_folder_can_be_read_and_nothing_else(done, made, monkeypatch):
    folder = made("music")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    hub.from_pretrained(folder)
    rule = r"needs the package huggingface_hub: pip install \"noisin\[hub\]\"$"
    with pytest.raises(LabError, match=rule):
        hub.from_pretrained("someone/model")
    with pytest.raises(LabError, match=rule):
        hub.save_pretrained(done["music"], folder.parent / "model")
    assert not (folder.parent / "model").exists()


# the command


def test_export(call, done, tmp_path):
    result = call("export", done["words"], "model", "--license", "mit")
    assert result.exit_code == 0, result.output
    assert result.output.startswith("model: README.md, config.json, model.safetensors")
    assert package.ModelCard.load(tmp_path / "model" / "README.md").data.license == "mit"
    told = call("export", done["words"], "other", "--json")
    assert json.loads(told.output)["files"] == sorted(p.name for p in Path("other").iterdir())
    for words, rule in (
        ([done["words"], "model"], "must be empty or not there yet"),
        (["model", "new"], "a run is a folder with a record.json"),
    ):
        bad = call("export", *words)
        assert (bad.exit_code, bad.stderr.count("\n")) == (2, 1)
        assert rule in bad.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "model", "other"]
