"""The table [search] of a recipe: what it says, what is refused, what a trial gets."""

import pytest

from noisin.lab import LabError, recipe
from noisin.lab.search import Search

TOML = """
title = "T"
seeds = [3, 4]
[base]
task = "music"
data = "bach"
[rows.plain]
[rows.noisy]
noise = "hidden * Gaussian(1.0)"
lr = 0.5
[search]
row = "noisy"
[search.space]
{space}
[search.settings]
{settings}
"""
SPACE = (
    "hidden_size = [4, 8]\nlr = {low = 1e-4, high = 1e-2, log = true}\nstd = {low = 0.1, high = 2}"
)
SETTINGS = 'noise = "hidden * Gaussian({std})"\nspectral_radius = "{std} * 0.5"'


@pytest.fixture
def load(tmp_path):
    def made(space=SPACE, settings=SETTINGS, changes=(), row="noisy"):
        path = tmp_path / "own.toml"
        text = TOML.replace("{space}", space).replace("{settings}", settings)
        path.write_text(text.replace('row = "noisy"', f'row = "{row}"'))
        return recipe.load(str(path), changes)

    return made


def test_a_trial_has_the_rows_settings_and_what_was_drawn(load):
    row = recipe.trial(load(), {"hidden_size": 8, "lr": 0.001, "std": 0.25})
    assert (row.config.hidden_size, row.config.lr) == (8, 0.001)
    assert row.config.noise == "hidden * Gaussian(0.25)"
    assert row.config.spectral_radius == 0.125
    assert row.label == "hidden_size 8, lr 0.001, std 0.25"
    assert recipe.trial(load(), {"hidden_size": 4, "lr": 0.1, "std": 1.0}).config.data == "bach"


def test_none_is_a_choice(load):
    found = load('nonzeros = [2, "none"]', "")
    assert recipe.trial(found, {"nonzeros": "none"}).config.nonzeros is None
    assert recipe.trial(found, {"nonzeros": 2}).config.nonzeros == 2
    found = load('noise = ["none", "hidden * Gaussian(0.5)"]', "")
    assert recipe.trial(found, {"noise": "none"}).config.noise == "none"


def test_what_is_set_for_all_rows_is_not_searched(load):
    found = load(changes=["hidden_size=16", "spectral_radius=1.5"]).search
    assert isinstance(found, Search)
    assert list(found.space) == ["lr", "std"]
    assert list(found.settings) == ["noise"]
    found = load(settings='spectral_radius = "{std}"', changes=["spectral_radius=1.5"]).search
    assert isinstance(found, Search)
    assert list(found.space) == ["hidden_size", "lr"]
    assert load("lr = [0.1]", "", changes=["lr=1"]).search is None  # and can be run


@pytest.mark.parametrize(
    ("space", "settings", "message"),
    [
        ("lr = []", "", "at least 1 item"),
        ("lr = {low = 2, high = 1}", "", "low < high, got low 2 and high 1"),
        ("lr = {low = 0.0, high = 1.0, log = true}", "", "0 < low < high"),
        ("lr = {low = 1.0, high = 2.0, step = 1}", "", "step"),
        ("", "", "at least 1 item"),
        ("lrr = [1.0]", "", "lrr must be a setting"),
        ("std = [1.0]", 'noize = "{std}"', "noize must be a setting"),
        ("lr = [1.0]", 'noise = "hidden * Gaussian({std})"', "must be in the space"),
        ("lr = [1.0]", 'lr = "{lr}"', "not both"),
        ("std = [1.0]", 'noise = "{std.real}"', "as {name}"),
        ("std = [1.0]", 'noise = "{std!r}"', "as {name}"),
        ("std = [1.0]", 'noise = "{std"', "must be text with {name}"),
        ("data = ['bach']", "", "data decides the corpus"),
        ("min_count = [1, 5]", "", "min_count decides the corpus"),
        ("task = ['music']", 'noise = "{task}"', "task decides the corpus"),
        ("lr = {low = -1e308, high = 1.7e308}", "", "within ±1e[+]15"),
    ],
)
def test_what_is_no_space_is_refused(load, space, settings, message):
    with pytest.raises(LabError, match=message):
        load(space, settings)


def test_none_can_be_written(tmp_path):
    """For a setting whose default is a number, where TOML has no word for it."""
    text = 'title = "T"\n[base]\ntask = "words"\ndata = "ptb"\n[rows.a]\ninit_uniform = "none"\n'
    (tmp_path / "own.toml").write_text(text)
    assert recipe.load(str(tmp_path / "own.toml")).rows["a"].config.init_uniform is None


def test_a_search_begins_from_a_row(load):
    with pytest.raises(LabError, match=r"row must be one of \['plain', 'noisy'\], got 'other'"):
        load(row="other")


@pytest.mark.parametrize(
    ("drawn", "message"),
    [
        ({"hidden_size": 4, "lr": 0.1, "std": "much"}, "product of numbers"),
        ({"hidden_size": -4, "lr": 0.1, "std": 1.0}, "hidden_size"),
        ({"hidden_size": 4, "lr": 0.1, "std": -1.0}, "std"),
    ],
)
def test_settings_that_do_not_fit_are_refused(load, drawn, message):
    with pytest.raises(LabError, match=message):
        recipe.trial(load(), drawn)


SHARED = """
title = "T"
[base]
data = "bach"
[search]
space = { lr = [0.1, 0.2], hidden_size = [4] }
[rows.plain]
[rows.plain.search]
[rows.noisy]
noise = "hidden * Gaussian(1.0)"
[rows.noisy.search]
space = { std = { low = 0.1, high = 2 }, lr = [0.3] }
settings = { noise = "hidden * Gaussian({std})" }
[rows.fixed]
"""


def read(folder, text, changes=()):
    (folder / "own.toml").write_text(text)
    return recipe.load(str(folder / "own.toml"), changes)


def test_rows_share_a_space_and_add_to_it(tmp_path):
    found = read(tmp_path, SHARED)
    assert list(found.searches) == ["plain", "noisy"]
    assert found.search is None
    plain, noisy = (found.swept(row).search for row in ("plain", "noisy"))
    assert (plain.row, plain.space) == ("plain", {"lr": (0.1, 0.2), "hidden_size": (4,)})
    assert noisy.space["lr"] == (0.3,)  # its own wins
    assert set(noisy.space) == {"lr", "hidden_size", "std"}
    drawn = {"lr": 0.3, "hidden_size": 4, "std": 0.5}
    made = recipe.trial(found.swept("noisy"), drawn).config
    assert (made.noise, made.lr, made.hidden_size) == ("hidden * Gaussian(0.5)", 0.3, 4)
    left = read(tmp_path, SHARED, ["lr=1", "hidden_size=8"])
    assert list(left.searches) == ["noisy"]
    assert left.swept(None).search.row == "noisy"


@pytest.mark.parametrize("row", [None, "fixed", "other"])
def test_one_of_several_searches_is_named(tmp_path, row):
    with pytest.raises(LabError, match="--only must name the row to search, one of plain, noisy"):
        read(tmp_path, SHARED).swept(row)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SHARED.replace("[search]", '[search]\nrow = "noisy"'), "either .search. names a row"),
        (SHARED.replace("[rows.plain.search]", "[rows.plain]\nsearch = 3"), "TOML|tables"),
        (SHARED.replace("[rows.plain.search]", "[rows.plain.search]\nspace = 3"), "be tables"),
        (SHARED.split("[rows.plain.search]")[0], "some row must have a search of its own"),
        (SHARED + "[rows.fixed.search]\nspaces = { lr = [1.0] }", "spaces"),
        (
            SHARED + '[rows.two]\naverage = "plain"\nmodels = 2\n[rows.two.search]\n',
            "row must be one that is trained; two is an average",
        ),
    ],
)
def test_searches_that_fit_no_row_are_refused(tmp_path, text, message):
    with pytest.raises(LabError, match=message):
        read(tmp_path, text)


def test_without_a_search_there_is_none_to_sweep(load):
    with pytest.raises(LabError, match=r"needs a table \[search\]"):
        load("lr = [0.1]", "", changes=["lr=1"]).swept(None)


SEARCHES = [(name, row) for name in recipe.names() for row in recipe.load(name).searches]


@pytest.mark.parametrize(("name", "row"), SEARCHES)
def test_recipes_that_ship_have_spaces_that_can_be_drawn(name, row):
    found = recipe.load(name).swept(row)
    assert found.search is not None
    for end in (1, -1):
        drawn = {
            key: one[end] if isinstance(one, tuple) else (one.low, one.high)[end]
            for key, one in found.search.space.items()
        }
        assert recipe.trial(found, drawn).config
