"""Corpora: what is read is what was written, and damage is refused."""

import dataclasses
import functools
import hashlib
import http.server
import os
import shutil
import threading
import time
import typing
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from lab_cases import benchmark_folder, config, corpus, midi_folder
from lab_cases import rolls as random_rolls
from noisin.lab import LabError, data, rolls, sound, store, tasks, tokens
from noisin.lab.config import SeriesConfig, WordsConfig
from noisin.lab.rolls import Note
from noisin.lab.store import SPLITS


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NOISIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("NOISIN_DATA", raising=False)


def test_benchmarks_hold_what_is_published():
    folder = benchmark_folder()
    counts = {
        name: {
            split: tuple(size.values()) for split, size in rolls.load(name, folder).sizes().items()
        }
        for name in rolls.BENCHMARKS
    }
    # from the data's own description
    assert counts == {
        "jsb-chorales": {"train": (229, 13807), "valid": (76, 4602), "test": (77, 4725)},
        "nottingham": {"train": (694, 176561), "valid": (173, 45513), "test": (170, 44463)},
        "piano-midi": {"train": (87, 75911), "valid": (12, 8540), "test": (25, 19036)},
        "muse-data": {"train": (524, 245202), "valid": (135, 82755), "test": (124, 64339)},
    }


def test_round_trip(tmp_path):
    written = corpus()
    rolls.write_npz(written, tmp_path / "x.npz")
    back = rolls.read_npz(tmp_path / "x.npz", "tiny")
    assert back.digest() == written.digest()
    for split in SPLITS:
        assert len(back.splits[split]) == len(written.splits[split])
        for one, other in zip(back.splits[split], written.splits[split], strict=True):
            np.testing.assert_array_equal(one, other)


def test_digest_sees_one_note_and_one_boundary():
    first, second, third = corpus(), corpus(), corpus()
    second.splits["test"][1][2, 40] ^= 1
    a, b = third.splits["valid"][0], third.splits["valid"][1]
    third.splits["valid"][:2] = [np.concatenate([a, b[:1]]), b[1:]]
    assert len({first.digest(), second.digest(), third.digest()}) == 3


@pytest.mark.parametrize("kept", [0, 1, 100, 1000, -1])
def test_truncated_file_is_refused(tmp_path, kept):
    rolls.write_npz(corpus(), tmp_path / "whole.npz")
    raw = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(raw[:kept])
    with pytest.raises(LabError, match=r"cut\.npz: a corpus file must be a whole \.npz"):
        rolls.read_npz(tmp_path / "cut.npz", "cut")


def test_flipped_bytes_are_refused_or_carry_nothing(tmp_path):
    """A damaged file is never read as other notes."""
    rolls.write_npz(corpus(), tmp_path / "whole.npz")
    raw, whole = (tmp_path / "whole.npz").read_bytes(), corpus().digest()
    refused = 0
    for place in np.random.default_rng(0).integers(0, len(raw), 80):
        damaged = bytearray(raw)
        damaged[place] ^= 0xFF
        (tmp_path / "bad.npz").write_bytes(damaged)
        try:
            assert rolls.read_npz(tmp_path / "bad.npz", "bad").digest() == whole
        except LabError:
            refused += 1
    assert refused >= 30


def test_pickled_arrays_are_refused(tmp_path):
    arrays = {f"{s}_{k}": np.array([{}], object) for s in SPLITS for k in ("notes", "lengths")}
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(LabError, match=r"whole \.npz"):
        rolls.read_npz(tmp_path / "x.npz", "x")


@pytest.mark.parametrize("lengths", [[3, 3], [7, -1], [0, 6], []])
def test_lengths_that_do_not_fit_are_refused(tmp_path, lengths):
    arrays = {f"{split}_notes": np.zeros((6, 11), np.uint8) for split in SPLITS}
    arrays |= {f"{split}_lengths": np.array([6], np.int32) for split in SPLITS}
    if lengths != [3, 3]:
        arrays["test_lengths"] = np.array(lengths, np.int32)
    np.savez(tmp_path / "x.npz", **arrays)
    if lengths == [3, 3]:
        assert rolls.read_npz(tmp_path / "x.npz", "x").sizes()["test"] == {"pieces": 1, "steps": 6}
    else:
        with pytest.raises(LabError):
            rolls.read_npz(tmp_path / "x.npz", "x")


def test_wrong_hash_is_refused(tmp_path):
    rolls.write_npz(corpus(), tmp_path / "jsb_chorales.npz")
    with pytest.raises(LabError, match=r"must have sha256 d6029dc4.*got"):
        rolls.load("jsb-chorales", tmp_path)


def test_places_are_tried_in_order(tmp_path, monkeypatch):
    for place in ("given", "environment", "cache"):
        (tmp_path / place).mkdir()
        rolls.write_npz(corpus(), tmp_path / place / "nottingham.npz")
    monkeypatch.setenv("NOISIN_DATA", str(tmp_path / "environment"))
    found = [rolls.locate("nottingham", tmp_path / "given"), rolls.locate("nottingham")]
    monkeypatch.delenv("NOISIN_DATA")
    found.append(rolls.locate("nottingham"))
    shutil.rmtree(tmp_path / "cache")
    found.append(rolls.locate("nottingham"))
    names = [path and path.parent.name for path in found]
    assert names == ["given", "environment", "cache", None]


class Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A web server on this machine in place of the source."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(Silent, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(rolls, "SOURCE", f"http://127.0.0.1:{server.server_port}/")
        yield folder
        server.shutdown()


def write_mat(path, splits):
    """Write a set as its source does: a cell array of float pieces for each split."""
    cells = {}
    for split, key in zip(SPLITS, ("traindata", "validdata", "testdata"), strict=True):
        cells[key] = np.empty((1, len(splits[split])), object)
        for index, piece in enumerate(splits[split]):
            cells[key][0, index] = piece.astype(float)
    savemat(path, cells)


def test_fetch_downloads_checks_and_caches(tmp_path, served):
    whole = rolls.load("piano-midi", benchmark_folder())
    write_mat(served / "Piano_midi.mat", whole.splits)
    path = rolls.fetch("piano-midi")
    assert path == tmp_path / "cache" / "piano_midi.npz"
    assert rolls.load("piano-midi").digest() == whole.digest()


def test_fetch_refuses_another_set_and_keeps_nothing(tmp_path, served):
    write_mat(served / "JSB_Chorales.mat", corpus().splits)
    with pytest.raises(LabError, match="must have sha256 d6029dc4"):
        rolls.fetch("jsb-chorales")
    assert [p for p in (tmp_path / "cache").rglob("*") if p.is_file() and p.suffix != ".lock"] == []


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"MATLAB 5.0" + b"\0" * 300])
def test_fetch_refuses_what_is_no_set(tmp_path, served, content):
    (served / "JSB_Chorales.mat").write_bytes(content)
    with pytest.raises(LabError, match="no set of piano rolls"):
        rolls.fetch("jsb-chorales")
    assert [p for p in (tmp_path / "cache").rglob("*") if p.is_file() and p.suffix != ".lock"] == []


class Cutting(Silent):
    """Breaks the connection after some bytes, and sends parts that are asked for."""

    longest = 3 * store.BLOCK
    asked: typing.ClassVar[list] = []
    parts = True

    def do_GET(self):
        data = Path(self.translate_path(self.path)).read_bytes()
        asked = self.headers.get("Range")
        self.asked.append(asked)
        begin = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.parts else 0
        if begin >= len(data):
            self.send_error(416)
            return
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(data) - begin))
        self.end_headers()
        self.wfile.write(data[begin : begin + self.longest])


@pytest.mark.parametrize("parts", [True, False])
def test_fetch_goes_on_where_the_connection_broke(tmp_path, monkeypatch, parts):
    """A server that knows no parts sends all of it again."""
    data = np.random.default_rng(0).bytes(10 * store.BLOCK)
    (tmp_path / "whole").write_bytes(data)
    monkeypatch.setattr(Cutting, "asked", [])
    monkeypatch.setattr(Cutting, "parts", parts)
    handler = functools.partial(Cutting, directory=str(tmp_path))
    target, sha = tmp_path / "cache" / "new" / "corpus", hashlib.sha256(data).hexdigest()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        given = (f"http://127.0.0.1:{server.server_port}/whole", target, sha, print, "Put it there")
        for begun in (3, 6, 9) if parts else (3, 3):
            with pytest.raises(LabError, match="could not be downloaded"):
                store.download(*given)
            assert target.with_name("corpus.begun").stat().st_size == begun * store.BLOCK
            assert not target.exists()
        monkeypatch.setattr(Cutting, "longest", len(data))
        store.download(*given)
        assert target.read_bytes() == data
        places = (3, 6, 9) if parts else (3, 3)
        assert Cutting.asked == [None, *(f"bytes={place * store.BLOCK}-" for place in places)]
        # what was begun is longer than the file: it is of another one
        target.rename(target.with_name("corpus.begun"))
        with target.with_name("corpus.begun").open("ab") as file:
            file.write(b"more")
        store.download(*given)
        server.shutdown()
    assert target.read_bytes() == data
    assert [path.name for path in target.parent.iterdir()] == ["corpus"]


def test_fetch_without_a_network_says_what_to_do(monkeypatch):
    nowhere = "http://127.0.0.1:9/"  # nothing listens there
    monkeypatch.setattr(rolls, "SOURCE", nowhere)
    with pytest.raises(LabError, match=r"could not be downloaded.* as .*JSB_Chorales\.mat$"):
        data.fetch("jsb-chorales")
    ptb = dataclasses.replace(tokens.BENCHMARKS["ptb"], source=nowhere)
    monkeypatch.setitem(tokens.BENCHMARKS, "ptb", ptb)
    with pytest.raises(LabError, match=r"could not be downloaded.* as .*train\.txt, or name the"):
        data.fetch("ptb")
    assert data.fetch("lorenz") is None  # it is computed


@pytest.mark.parametrize(
    ("note", "tolerance", "steps"),
    [
        (Note(60, 0, 1), 0, [0]),
        (Note(60, 0, 0.5), 0, [0]),  # sounds at 0
        (Note(60, 0.5, 1), 0, []),  # over before 1
        (Note(60, 0.5, 1.5), 0, [1]),
        (Note(60, 0.1, 0.9), 0.2, [0]),  # a late onset counts as on the grid
        (Note(60, 0.5, 1.1), 0.2, []),  # a late end too
        (Note(60, 0.9, 3.05), 0.2, [1, 2]),
        (Note(60, 2, 2.1), 0.2, [2]),  # short, but it starts on the grid
        (Note(20, 0, 1), 0, []),  # below the lowest key
        (Note(109, 0, 1), 0, []),
    ],
)
def test_roll_has_the_keys_that_sound_at_each_quarter(note, tolerance, steps):
    other = Note(72, 0, 4)
    keys = rolls.roll([note, other], tolerance=tolerance)
    assert keys.shape == (4, 88)
    assert keys[:, 72 - 21].tolist() == [1, 1, 1, 1]
    keys[:, 72 - 21] = 0
    assert np.argwhere(keys).tolist() == [[step, note.pitch - 21] for step in steps]


def test_midi_files_come_back_as_they_were_written(tmp_path):
    folder = midi_folder(tmp_path / "midi")
    read = rolls.load(str(folder))
    pieces = [roll for split in SPLITS for roll in read.splits[split]]
    expected = {np.trim_zeros(r.any(1), "b").size: r for r in random_rolls(range(20, 27), 5)}
    assert len(pieces) == len(expected) == 7
    for piece in pieces:
        np.testing.assert_array_equal(piece, expected[len(piece)][: len(piece)])
    assert [len(read.splits[s]) for s in SPLITS] == [5, 1, 1]
    assert rolls.load(str(folder)).digest() == read.digest()


def test_midi_folder_skips_what_cannot_be_read_and_says_so(tmp_path):
    folder = midi_folder(tmp_path / "midi")
    (folder / "junk.mid").write_bytes(b"this is no music")
    assert [s.split(":")[0] for s in rolls.load(str(folder)).skipped] == ["junk.mid"]


def latin(folder, name):
    """Return a path below a folder whose name is Latin-1, or skip."""
    path = folder / os.fsdecode(name.encode("latin-1"))
    try:
        path.touch()
    except OSError:  # macOS refuses such a name
        pytest.skip("file names must be UTF-8 here")
    path.unlink()
    return path


def test_midi_file_whose_name_is_not_utf8_is_skipped(tmp_path):
    folder = midi_folder(tmp_path / "midi")
    before = rolls.load(str(folder)).digest()
    shutil.copy(folder / "piece-0.mid", latin(folder, "für.mid"))
    found = rolls.load(str(folder))
    assert found.digest() == before
    assert found.skipped == (r"'f\udcfcr.mid': the name of a file must be UTF-8",)


def test_data_whose_name_is_not_utf8_is_refused(tmp_path):
    """Records hold the name, and JSON is UTF-8."""
    path = latin(tmp_path, "für")
    path.mkdir()
    path.joinpath("train.txt").touch()
    series = SeriesConfig(data=str(path / "train.txt"))
    for one in (config(data=str(path)), WordsConfig(data=str(path)), series):
        with pytest.raises(LabError, match=r"data must be a path in UTF-8; got '.*f\\udcfcr"):
            tasks.load(one)


@pytest.mark.parametrize("split", SPLITS)
def test_split_of_single_steps_is_refused(tmp_path, monkeypatch, split):
    """Nothing is scored of a piece of one step, wherever it comes from."""
    found = corpus()
    found.splits[split][:] = random_rolls([1, 1])
    rule = f"each split must have a piece of at least 2 steps, .* the longest of {split} has 1"
    rolls.write_npz(found, tmp_path / "cache" / rolls.BACH)
    with pytest.raises(LabError, match=f"^bach: {rule}$"):
        rolls.load("bach")
    rolls.write_npz(found, tmp_path / "x.npz")
    known = dataclasses.replace(rolls.BENCHMARKS["piano-midi"], file="x.npz", digest=found.digest())
    monkeypatch.setitem(rolls.BENCHMARKS, "piano-midi", known)
    with pytest.raises(LabError, match=f"^piano-midi: {rule}$"):
        rolls.load("piano-midi", tmp_path)


def test_midi_folder_of_single_steps_is_refused(tmp_path):
    for interval in range(1, 6):
        chord = np.zeros((1, 88), np.uint8)
        chord[0, [30, 30 + interval]] = 1
        sound.write_midi(chord, tmp_path / f"{interval}.mid")
    with pytest.raises(LabError, match=r"at least 2 steps, .* the longest of train has 1"):
        rolls.load(str(tmp_path))


@pytest.mark.parametrize("readable", [0, 2])
def test_midi_folder_without_enough_is_refused(tmp_path, readable):
    folder = midi_folder(tmp_path / "midi", readable) if readable else tmp_path
    (folder / "junk.mid").write_bytes(b"junk")
    rule = "at least 3 pieces" if readable else r"hold MIDI files .* none of them readable \(junk"
    with pytest.raises(LabError, match=rule):
        rolls.load(str(folder))


@pytest.mark.usefixtures("bach")
def test_bach_is_read_once_and_holds_each_piece_once():
    said, later = [], []
    corpus = rolls.load("bach", say=said.append)
    again = rolls.load("bach", say=later.append)
    assert len(said) <= 1  # unless another test came first
    assert not later
    assert corpus.digest() == again.digest()
    # tables that are published rest on these splits
    assert corpus.digest() == "86e2299b5414be7f19404d21c005473b0a3787b952bf5283b323a88e3c74752f"
    pieces = [roll for split in SPLITS for roll in corpus.splits[split]]
    assert len(pieces) == 365
    assert len({(len(p), p.tobytes()) for p in pieces}) == len(pieces)
    assert max(int(p.sum(1).max()) for p in pieces) == 4  # four voices
    assert 3.5 < np.mean([p.sum(1).mean() for p in pieces]) < 4


def test_those_who_come_at_once_read_bach_once(monkeypatch):
    def slowly():
        read.append(1)
        time.sleep(0.3)
        return corpus()

    read, said = [], []
    monkeypatch.setattr(rolls, "_chorales", slowly)
    with ThreadPoolExecutor(3) as pool:
        found = [*pool.map(lambda _: rolls.load("bach", say=said.append), range(3))]
    assert (len(read), len(said)) == (1, 1)
    assert {one.digest() for one in found} == {corpus().digest()}


def test_unknown_corpus_lists_the_known():
    with pytest.raises(LabError, match=r"bach, jsb-chorales, nottingham.*got 'jsb'"):
        rolls.load("jsb")
