"""Every row that ships starts, makes two updates and leaves a record."""

import pytest

from lab_cases import corpus as music
from lab_cases import walk
from noisin.lab import observations, recipe, records, tokens, train
from noisin.lab.train import Job

ROWS = [(name, row) for name in recipe.names() for row in recipe.load(name).rows]
SMALL = {"hidden_size": 8, "epochs": 1, "batch_size": 3, "nonzeros": None, "test_samples": (1,)}


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A slice of text that makes two updates of three streams and windows of five."""
    folder = tmp_path_factory.mktemp("words")
    text = "a b c d e f\nb c\nd\n a e c b\nf f a\n\n b\n"
    for split in ("train", "valid", "test"):
        (folder / f"{split}.txt").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NOISIN_CACHE", str(folder / "cache"))
        return tokens.load(str(folder))


def test_all_rows_are_here():
    """The published settings: Tables 2 and 3, Tables 1 and 2 with both readings, Table 1."""
    counts = {name: sum(recipe == name for recipe, _ in ROWS) for name in recipe.names()}
    assert counts == {
        "bach": 3,
        "fast-dropout": 12,
        "beyond-music": 17,
        "initialization": 9,
        "jsb-chorales": 5,
        "muse-data": 5,
        "music-sets": 3 * 7 + 6,
        "noisin": 4 * (2 + 2 * 8) + 4,
        "noisin-first": 6 * 4 + 2 + 2,
        "nottingham": 5,
        "piano-midi": 5,
        "ognawala-bayer": 9 + 5,
        "overfitting": 2,
        "ptb": 3,
        "wikitext-2": 3,
        "laws": 41,
        "series": 3,
        "zaremba": 2 + 3,
    }


def test_published_numbers_are_those_of_the_papers():
    """Spot checks against the tables, and how many there are."""
    first, second = recipe.load("noisin-first").rows, recipe.load("noisin").rows
    assert sum(row.published is not None for row in first.values()) == 26
    assert sum(row.published is not None for row in second.values()) == 76  # both readings
    published = {
        name: row.published.test for name, row in {**first, **second}.items() if row.published
    }
    assert published["sigmoid-2-dropout"] == 152.2
    assert published["wikitext-2-learned"] == 104.7
    assert published["ptb-medium-bernoulli"] == 71.4
    assert published["ptb-large-dropout-beta"] == 66.2
    assert published["wikitext-2-medium-dropout-bernoulli"] == 94.4
    assert published["wikitext-2-large-chisquare"] == 92.9
    assert second["ptb-medium-bernoulli"].config.noise == "hidden * Bernoulli(keep=0.41)"


@pytest.mark.parametrize(("name", "row"), ROWS, ids=["/".join(row) for row in ROWS])
def test_row_runs(name, row, words, tmp_path):
    chosen = recipe.load(name).rows[row]
    if chosen.config.task == "words":
        corpus, small = words, {**SMALL, "window": 5, "min_count": 1, "train_share": 1.0}
    elif chosen.config.task == "series":
        own = {"data": str(walk(tmp_path / "own.csv", rows=45)), "window": 5, "horizon": 2}
        chosen = chosen.model_copy(update={"config": chosen.config.model_copy(update=own)})
        corpus, small = observations.load(chosen.config), SMALL
    else:
        corpus, small = music(), {**SMALL, "chunk": 13}
    chosen = chosen.model_copy(update={"config": chosen.config.model_copy(update=small)})
    job = Job(name, name, row, chosen, 1, corpus.digest(), tmp_path)
    record = train.run(job, corpus)
    assert record.updates == 2
    assert record.status == "finished", record.reason
    assert records.read([job.path]) == [record]
    assert (record.monte_carlo == {}) == (record.config.noise == "none")
