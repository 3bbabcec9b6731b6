"""Recipes: a base and what differs; whatever is not understood is refused with the near word."""

import tomllib

import pytest

from noisin.lab import LabError, config, recipe

TEXT = """
title = "A table"
seeds = [4, 2]
baseline = "b"
[base]
data = "bach"
hidden_size = 7
[rows.a]
noise = "zaremba(keep=0.5, num_layers=1)"
label = "Zaremba"
published = { test = 8.5, source = "a paper" }
note = "why"
[rows.b]
lr = 0.5
"""


@pytest.fixture
def path(tmp_path):
    (tmp_path / "mine.toml").write_text(TEXT)
    return tmp_path / "mine.toml"


def test_rows_are_the_base_with_what_differs(path):
    read = recipe.load(str(path))
    assert (read.name, read.title, read.seeds, read.baseline) == ("mine", "A table", (4, 2), "b")
    assert list(read.rows) == ["a", "b"]
    a, b = read.rows["a"], read.rows["b"]
    assert (a.label, a.published.test, a.note) == ("Zaremba", 8.5, "why")
    assert (b.label, b.published, b.note) == ("b", None, "")
    # methods are written out: a record does not depend on what their names mean later
    assert a.config.noise == "input * Bernoulli(keep=0.5) & output * Bernoulli(keep=0.5)"
    assert (b.config.noise, b.config.lr, b.config.hidden_size) == ("none", 0.5, 7)
    assert a.config.lr == config.MusicConfig(data="bach").lr


def test_what_a_paper_scores_on_its_corpus_is_not_said_of_another(path):
    for changes, published in (
        (["data=jsb-chorales"], False),
        (["data=bach", "lr=2.0"], True),
        (["task=music"], True),
    ):
        row = recipe.load(str(path), changes).rows["a"]
        assert (row.published is not None, row.note == "why") == (published, published)
        assert row.label == "Zaremba"


def test_set_changes_every_row_and_only_keeps_some(path):
    changes = ["hidden_size=9", "data=some/folder", "seeds=[1]", "noise=input * Gaussian(0.5)"]
    read = recipe.load(str(path), changes, ["a"])
    assert list(read.rows) == ["a"]
    assert (read.baseline, read.seeds) == ("b", (1,))
    config = read.rows["a"].config
    assert (config.hidden_size, config.data) == (9, "some/folder")
    assert config.noise == "input * Gaussian(0.5)"
    assert read.title == "hidden_size=9, data=folder, noise=input * Gaussian(0.5)"


def test_seeds_make_no_other_table(path):
    """Some seeds of a table, run one by one, stand in it with the others."""
    whole, some = recipe.load(str(path)), recipe.load(str(path), ["seeds=[2]"])
    assert some.seeds != whole.seeds
    assert (some.title, some.variant) == (whole.title, whole.variant)


def test_hash_is_of_what_decides_the_run(path):
    base = config.MusicConfig(data="bach")
    assert base.hash(1) == config.MusicConfig(data="bach", lr=2e-3).hash(1)
    # what the data hold decides, not where they lie
    assert base.hash(1) == config.MusicConfig(data="elsewhere").hash(1)
    averaged = config.MusicConfig(data="bach", averaging=0.9)
    longer = config.MusicConfig(data="bach", averaging=0.99)
    assert len({one.hash(1) for one in (base, averaged, longer)}) == 3
    assert len({base.hash(1), base.hash(2), config.MusicConfig(data="bach", lr=1e-3).hash(1)}) == 3


BAD = [
    ("hiden_size = 7", "hidden_size = 7", "unknown key 'hiden_size'; did you mean hidden_size?"),
    ("sedes = [4, 2]", "seeds = [4, 2]", "unknown key 'sedes'; did you mean seeds?"),
    ("hidden_size = 0", "hidden_size = 7", "hidden_size: .*greater than or equal to 1, got 0"),
    ("hidden_size = 'x'", "hidden_size = 7", "hidden_size: .*valid integer.*got 'x'"),
    ("optimizer = 'nt-asgd'\ntrigger = 25", "lr = 0.5", "below patience = 20, which .*; got 25"),
    ("lr = -1", "lr = 0.5", "lr: .*greater than 0, got -1"),
    ("lr = nan", "lr = 0.5", "lr: .*finite.*got nan"),
    ("published = { test = nan,", "published = { test = 8.5,", "test: .*finite.*got nan"),
    ("published = { test = -inf,", "published = { test = 8.5,", "test: .*finite.*got -inf"),
    ("cell = 'lstn'", "lr = 0.5", "cell: .*'lstm'.*got 'lstn'"),
    ("test_samples = [2, 3, 6]", "lr = 0.5", "each must divide the next larger, got"),
    ("[rows.'../x']", "[rows.b]", "a row's name is letters.*got '../x'"),
    ("baseline = ['a']", 'baseline = "b"', "baseline must be a row"),
    ("noise = 'hidden * Gausian(1)'", "lr = 0.5", "unknown word 'Gausian' here, did you mean"),
    ("noise = 'hidden * Gaussian(0)'", "lr = 0.5", "std must be a finite number > 0, got 0"),
    ("noise = 'hiden * Gaussian(1)'", "lr = 0.5", "unknown word 'hiden' here, did you mean hidden"),
    ("seeds = []", "seeds = [4, 2]", "seeds: .*at least 1"),
    ('baseline = "c"', 'baseline = "b"', "baseline must be a row, one of \\['a', 'b'\\]"),
    ("seeds = [1, 1]", "seeds = [4, 2]", "seeds must differ"),
    ("[[rows.b]]", "[rows.b]", "rows.b must be a table"),
    ("[rows]\nb = 5\n[rows.c]\nlike = 'b'", "[rows.b]", "rows.b must be a table"),
    ("seeds = [4, 2", "seeds = [4, 2]", "must be a TOML file"),
]


@pytest.mark.parametrize(("new", "old", "rule"), BAD)
def test_what_is_wrong_is_told(path, new, old, rule):
    assert TEXT.count(old) == 1
    path.write_text(TEXT.replace(old, new))
    with pytest.raises(LabError, match=rule):
        recipe.load(str(path))


@pytest.mark.parametrize(
    ("changes", "only", "rule"),
    [
        (["hidden"], [], "--set takes key=value, got 'hidden'"),
        (["hiden_size=3"], [], "--set: unknown key 'hiden_size'; did you mean hidden_size?"),
        ([], ["c"], "--only takes a row of .*one of .'a', 'b'.; got 'c'"),
        (["noise=none"], [], "--set noise would make all rows one method"),
    ],
)
def test_bad_options_are_told(path, changes, only, rule):
    with pytest.raises(LabError, match=rule.replace("?", r"\?")):
        recipe.load(str(path), changes, only)


@pytest.mark.parametrize(
    "value", ["\U0001f3b5 a\u2028b", 'c:\\ "x"\n\t\x00\x1f\x7f', [1, 2], 1e-05, True]
)
def test_settings_are_written_as_they_are_read(value):
    text = config.toml_recipe("\U0001f3b5", [1], "a b", [f"x = {config.toml(value)}"])
    read = tomllib.loads(text)
    assert read == {"title": "\U0001f3b5", "seeds": [1], "rows": {"a b": {"x": value}}}


def test_an_error_of_the_base_is_told_once(path):
    with pytest.raises(LabError) as caught:
        recipe.load(str(path), ["hidden_size=0"])
    assert str(caught.value).count("hidden_size") == 1
    with pytest.raises(LabError) as caught:
        recipe.load(str(path), ["seeds=[-1]"])
    assert str(caught.value).splitlines()[1:] == []


def test_unknown_recipe_names_the_near_one():
    with pytest.raises(LabError, match=r"got 'bahc'; did you mean bach\?"):
        recipe.load("bahc")


def test_no_recipe_is_a_binary_file(tmp_path):
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LabError, match="must be a TOML file"):
        recipe.load(str(tmp_path / "x.toml"))


LIKE = """
[base]
data = "bach"
[rows.a]
lr = 0.5
baseline = "b"
label = "A"
published = { test = 1.0, source = "A paper" }
[rows.b]
like = "a"
hidden_size = 7
[rows.c]
like = "b"
lr = 0.25
baseline = "c"
"""


def test_a_row_like_another_takes_its_settings_and_nothing_said_of_it(tmp_path):
    path = tmp_path / "like.toml"
    path.write_text(LIKE)
    a, b, c = recipe.load(str(path)).rows.values()
    assert (a.config.lr, b.config.lr, c.config.lr) == (0.5, 0.5, 0.25)
    assert (a.config.hidden_size, b.config.hidden_size, c.config.hidden_size) == (200, 7, 7)
    assert (b.label, b.published, b.baseline, c.baseline) == ("b", None, "b", "c")
    assert a.published is not None
    (alone,) = recipe.load(str(path), only=["c"]).rows.values()
    assert alone == c


@pytest.mark.parametrize("other", ['"z"', '"c"', "3", '"a*"'])
def test_a_row_is_like_an_earlier_one(tmp_path, other):
    path = tmp_path / "like.toml"
    path.write_text(LIKE.replace('like = "a"', f"like = {other}"))
    with pytest.raises(LabError, match=r"row b: like must be an earlier row, one of \['a'\]"):
        recipe.load(str(path))
