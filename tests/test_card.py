"""The model card of a run says what the record says, and its code and its command run."""

import re
import shutil
from pathlib import Path

import pytest
import torch

from noisin.lab import card, evaluate, records
from test_cli import call as call  # a fixture
from test_hub import CASES, FULL, package
from test_hub import done as done  # a fixture
from test_hub import made as made  # a fixture


@pytest.mark.parametrize("name", CASES)
def test_the_card_has_the_scores_of_the_record(done, made, name):
    (record,) = records.read([done[name]])
    folder = made(name)
    found = package.ModelCard.load(folder / "README.md")
    assert (found.data.library_name, found.data.license) == ("noisin", None)
    assert {"noisin", record.config.cell, record.config.task} <= set(found.data.tags)
    told = {
        (r.metric_name, (r.metric_args or {}).get("draws", 0)): r for r in found.data.eval_results
    }
    scores = {0: record.scores["test"], **record.monte_carlo}
    assert len(told) == sum(len(own) for own in scores.values()) >= 2
    for draws, own in scores.items():
        for metric, value in own.items():
            name = card.METRICS.get(metric, metric)
            (one,) = (r for (n, k), r in told.items() if k == draws and n.split(",")[0] == name)
            assert one.metric_value == value
            assert (one.dataset_split, one.dataset_args) == ("test", {"sha256": record.corpus})
    rows = re.findall(r"^\| (train|valid|test) \|(.*)\|$", found.text, re.M)
    assert len(rows) == 3
    for split, cells in rows:
        own = [f"{value:.4f}" for value in record.scores[split].values()]
        averaged = any("factorised" in scores for scores in record.monte_carlo.values())
        assert [one.strip() for one in cells.split("|")] == [*own, *([""] if averaged else [])]
    assert f"# {found.data.model_name}\n" in found.text
    assert f"seed {record.seed} " in found.text
    assert record.config.noise in found.text


def test_a_license_and_a_corpus_that_has_a_name_are_told(done):
    (record,) = records.read([done["music"]])
    model = evaluate.load(done["music"]).task.model
    named = record.model_copy(update={"config": record.config.model_copy(update={"data": "bach"})})
    data = package.ModelCard(card.texts(named, model, "mit")["README.md"]).data
    assert (data.license, data.datasets) == ("mit", ["bach"])
    assert {one.dataset_type for one in data.eval_results} == {"bach"}
    assert package.ModelCard(card.texts(record, model, None)["README.md"]).data.datasets is None


@pytest.mark.parametrize("name", ["bach", "ptb"])
def test_own_data_that_is_called_like_a_corpus_is_not_taken_for_it(done, name):
    (record,) = records.read([done["music"]])
    model = evaluate.load(done["music"]).task.model
    own = record.config.model_copy(update={"data": f"/somewhere/{name}"})
    texts = card.texts(record.model_copy(update={"config": own}), model, None)
    data = package.ModelCard(texts["README.md"]).data
    assert data.datasets is None
    assert {one.dataset_type for one in data.eval_results} == {"custom"}
    assert f'data = "./{name}"' in texts[card.RECIPE]
    assert "somewhere" not in "".join(texts.values())


def test_a_run_that_was_not_tested_has_no_results(done):
    """As the trials of a sweep."""
    (record,) = records.read([done["music"]])
    scores = {split: record.scores[split] for split in ("train", "valid")}
    untested = record.model_copy(update={"scores": scores, "monte_carlo": {}})
    model = evaluate.load(done["music"]).task.model
    found = package.ModelCard(card.texts(untested, model, None)["README.md"])
    assert found.data.eval_results is None
    assert "| valid |" in found.text
    assert "| test" not in found.text


@pytest.mark.parametrize("name", CASES)
def test_the_code_of_the_card_runs(made, name, monkeypatch):
    monkeypatch.chdir(made(name))
    (code,) = re.findall(r"```python\n(.*?)```", Path("README.md").read_text(), re.S)
    names = {}
    with torch.no_grad():
        exec(code.replace("FOLDER", "."), names)
    if name.startswith("series"):
        assert names["mean"].shape == (2, 1, 1)
        low, high = (0, 9) if "counts" in name else (900, 1100)
        assert ((names["mean"] > low) & (names["mean"] < high)).all()
    elif name.startswith("words"):
        assert len(set(names["likely"])) == 5
    else:
        assert names["piece"].shape == (48, 88)


@pytest.mark.parametrize("name", FULL.values())
def test_the_command_of_the_card_does_the_run_again(call, done, made, tmp_path, name):
    (record,) = records.read([done[name]])
    folder = made(name)
    (command,) = re.findall(r"```bash\nnoisin (.*)\n```", (folder / "README.md").read_text())
    data = Path(record.config.data)
    (tmp_path / data.name).symlink_to(data)  # "is looked for where the command is called"
    shutil.copy(folder / card.RECIPE, tmp_path)
    result = call(*command.split(), "--processes", 1)
    assert result.exit_code == 0, result.output
    (again,) = records.read([tmp_path / "runs"])
    assert (again.hash, again.weights) == (record.hash, record.weights)
    for split, scores in record.scores.items():
        # conftest's hook hides generators from no_grad, and oneDNN's LSTM rounds otherwise where
        # a gradient may be asked for
        assert again.scores[split] == pytest.approx(scores, rel=1e-6)


def test_the_command_names_what_else_decided_the_run(done):
    (record,) = records.read([done["music"]])
    there = record.environment.model_copy(update={"processes": 2, "precision": "bf16-mixed"})
    texts = card.texts(
        record.model_copy(update={"environment": there}),
        evaluate.load(done["music"]).task.model,
        None,
    )
    assert "noisin run recipe.toml --devices 2 --precision bf16-mixed\n" in texts["README.md"]


@pytest.mark.parametrize("name", FULL.values())
def test_no_path_of_the_machine_is_told(done, made, name):
    files = list(made(name).iterdir())
    assert {file.name for file in files} >= {"README.md", "config.json", "model.safetensors"}
    for file in files:
        assert str(done[name].parent).encode() not in file.read_bytes(), file.name
        assert b"pytest" not in file.read_bytes(), file.name
