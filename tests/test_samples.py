"""Samples: tokens with their probabilities and the page that shows them; rolls beside real ones."""

import re

import pytest
import torch
from matplotlib.figure import Figure

import lab_cases
from conftest import assert_bit_equal, assert_close_to_float64
from noisin.lab import evaluate, pages, panels, report, samples, sound, train
from noisin.lab.report import Piece
from noisin.lab.rolls import LOWEST
from noisin.lab.rows import Row
from noisin.lab.train import Job
from noisin.lab.words import Token, text_of
from test_words import corpus as corpus  # a fixture
from test_words import task


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_tokens_have_the_probabilities_of_the_model_at_any_temperature(corpus, temperature):
    """Drawn from the tempered softmax; the probability is that of the untempered one."""
    one, generator = task(corpus), torch.Generator().manual_seed(3)
    one.model.eval()
    given, *drawn = one.generate(25, torch.Generator().manual_seed(3), temperature, ["the"])
    assert given == Token("the")
    ids, state = torch.tensor([[corpus.vocabulary.index(w)] for w in ("<eos>", "the")]), None
    with torch.no_grad():
        for token in drawn:
            logits, state = one.model(ids, state)
            p = torch.softmax(logits[-1:] / temperature, -1).flatten()
            ids = torch.multinomial(p, 1, generator=generator)[None]
            assert token.word == corpus.vocabulary[int(ids)]
            expected = torch.softmax(logits[-1, 0], -1)[int(ids)]
            exact = torch.softmax(logits[-1, 0].double(), -1)[int(ids)]
            assert_close_to_float64(torch.tensor(token.probability), expected, exact)
    assert len(drawn) == 25


def test_text_has_a_line_for_each_end():
    tokens = [Token(word, 0.5) for word in ["a", "<eos>", "<eos>", "<unk>", "b", "<eos>"]]
    assert text_of(tokens) == "a \n\n<unk> b \n"
    assert [token.ends_line for token in tokens] == [False, True, True, False, False, True]


TOKENS = [
    Token("R&D"),
    *(Token(word, p) for word, p in {"<unk>": 0.25, "<eos>": 0.0712, '"b"': 3.2e-5}.items()),
]


def test_words_stand_on_the_shade_of_their_probability(tmp_path):
    report.write([], tmp_path / "r.html", pieces=[Piece("noisy", TOKENS)])
    pages.write("text.html.jinja", tmp_path / "t.html", title="A <title>", tokens=TOKENS)
    for name in ("r.html", "t.html"):
        page = (tmp_path / name).read_text()
        assert re.findall(r'(?:src|href)="(?!data:)[^"#]*"', page) == []
        shown = re.search(r'<p class="tokens">\n(.*?)\n</p>', page, re.S)
        assert shown is not None
        assert shown[1].split("\n") == [
            "<i>R&amp;D</i>",
            '<span class="token" style="--p:0.250" title="0.25">&lt;unk&gt;</span>',
            '<span class="token" style="--p:0.071" title="0.071">↵</span>',
            "<br>",
            '<span class="token" style="--p:0.000" title="3.2e-05">&#34;b&#34;</span>',
        ]
        assert "probability that the model gave it, before any temperature" in page
        assert "Words in italics were given." in page
    assert "<h1>A &lt;title&gt;</h1>" in page
    pages.write("text.html.jinja", tmp_path / "t.html", title="t", tokens=TOKENS[1:])
    assert "italics" not in (tmp_path / "t.html").read_text()


def test_a_roll_stands_beside_the_first_real_piece_that_is_long_enough(tmp_path):
    data = lab_cases.corpus()
    row = Row(config=lab_cases.config(epochs=1), label="noisy", baseline="noisy")
    job = Job("tiny", "A title", "noisy", row, 1, data.digest(), tmp_path / "runs")
    train.run(job, data)
    run = evaluate.load(job.path, corpus=data)
    five, _, eleven = data.splits["valid"]
    for steps, real in ((4, five[:4]), (8, eleven[:8]), (40, eleven)):
        piece = samples.draw_sample(run, tmp_path / "s", {"music": steps}, seed=1)
        assert piece.title == "noisy, seed 1"
        shown = piece.drawing.draw.args[0]
        assert list(shown) == ["sample", "a real piece, of validation"]
        assert_bit_equal(
            [*map(torch.tensor, shown.values())], [*map(torch.tensor, (piece.roll, real))]
        )


def test_rolls_are_drawn_on_one_scale():
    shown = dict(zip(("sample", "real"), lab_cases.rolls([7, 20]), strict=True))
    left, right = Figure().subplots(1, 2)
    panels.draw_rolls(shown, left, right)
    assert left.get_xlim() == right.get_xlim() == (0, 20)
    assert left.get_ylim() == right.get_ylim()
    for axes, (name, roll) in zip((left, right), shown.items(), strict=True):
        assert axes.get_title() == name
        boxes = [path.get_extents() for keys in axes.collections for path in keys.get_paths()]
        corners = [(box.y0 + 0.4, box.x0, box.x1 + 0.08) for box in boxes]
        drawn = [(round(y) - LOWEST, round(start), round(end)) for y, start, end in corners]
        assert sorted(drawn) == sorted(sound.notes_of(roll)) != []
