"""Texts turned into token numbers: the same however they are cut and shared out."""

import collections
import os

import numpy as np
import pytest

from noisin.lab import LabError, numbering, tokens


def test_long_lines_are_read_in_parts(tmp_path, monkeypatch):
    """The same tokens, whatever the block; words and letters of several bytes are never cut."""
    monkeypatch.setenv("NOISIN_CACHE", str(tmp_path / "cache"))
    line = "naïve  Straße\t日本語 a bb ccc dddd"
    text = "\ufeff" + f"{line}\n\n{line} {line}\n" * 3 + f"{line}\r\n{line}"
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.txt").write_text(text, encoding="utf-8", newline="")
    whole = tokens.load(str(tmp_path))
    expected = [w for part in text[1:].split("\n") for w in (*part.split(), "<eos>")]
    assert [whole.vocabulary[i] for i in whole.splits["train"]] == expected
    assert whole.lines["train"] == len(text.split("\n")) == 11
    for block in (3, 7, 16):
        monkeypatch.setattr(numbering, "BLOCK", block)
        monkeypatch.setenv("NOISIN_CACHE", str(tmp_path / f"cache-{block}"))
        assert tokens.load(str(tmp_path)).digest() == whole.digest()


@pytest.mark.parametrize("workers", [1, 2])
def test_pieces_are_numbered_as_one_text(tmp_path, monkeypatch, workers):
    """However a text is cut and shared out, vocabulary and tokens are the same."""
    rng = np.random.default_rng(3)
    lines = [rng.integers(0, 40, size) for size in rng.integers(0, 9, 300)]
    text = "\n".join(" ".join(f"{word}é" for word in line) for line in lines)
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")  # no end of its last line
    monkeypatch.setenv("NOISIN_CACHE", str(tmp_path / "cache"))
    whole = tokens.load(str(tmp_path / "text.txt"), min_count=3)
    words = [w for line in text.split("\n")[:240] for w in (*line.split(), "<eos>")]
    counts = collections.Counter(words)
    kept = [w for w, n in counts.most_common() if n >= 3]
    assert whole.vocabulary == (*kept, "<unk>")
    assert [whole.vocabulary[i] for i in whole.splits["train"]] == [
        word if word in kept else "<unk>" for word in words
    ]
    assert [whole.lines[split] for split in ("train", "valid", "test")] == [240, 30, 30]
    monkeypatch.setattr(numbering, "cores", lambda: workers)
    for piece in (1, 50, 1000) if workers == 1 else (700,):
        monkeypatch.setattr(numbering, "PIECE", piece)
        monkeypatch.setenv("NOISIN_CACHE", str(tmp_path / f"cache-{piece}"))
        again = tokens.load(str(tmp_path / "text.txt"), min_count=3)
        assert (again.digest(), again.lines) == (whole.digest(), whole.lines)
        left = {path.name for path in (tmp_path / f"cache-{piece}" / "tokens").glob("*/*")}
        assert left == {"corpus.json", "train.tokens", "valid.tokens", "test.tokens"}


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_no_text_is_named_by_its_line(tmp_path, monkeypatch, workers):
    monkeypatch.setenv("NOISIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(numbering, "PIECE", 20)
    monkeypatch.setattr(numbering, "cores", lambda: workers)
    (tmp_path / "text.txt").write_bytes(b"one two\n" * 17 + b"three \xff\n" + b"four\n" * 20)
    with pytest.raises(LabError, match=r"text\.txt, line 18: text must be UTF-8"):
        tokens.load(str(tmp_path / "text.txt"))
    assert list((tmp_path / "cache" / "tokens").iterdir()) == []


def test_a_killed_worker_is_told_in_words():
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    def results():
        yield 1
        raise TerminatedWorkerError("a worker was killed")

    found = numbering._unless_killed(results())
    assert next(found) == 1
    with pytest.raises(LabError, match="numbers words was killed, perhaps for want of memory"):
        next(found)


def folder_of_texts(path):
    for split, text in (("train", "a b c\n"), ("valid", "a b\n"), ("test", "b c\n")):
        (path / f"{split}.txt").write_text(text)
    return str(path)


def test_changed_text_of_the_same_size_and_time_is_numbered_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("NOISIN_CACHE", str(tmp_path / "cache"))
    before = tokens.load(folder_of_texts(tmp_path))
    path = tmp_path / "test.txt"
    about = path.stat()
    path.write_text("c b\n")
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert path.stat().st_size == about.st_size
    assert tokens.load(str(tmp_path)).hashes["test"] != before.hashes["test"]


def test_text_behind_a_link_may_have_any_name(tmp_path, monkeypatch):
    """The name of the corpus is that of its folder."""
    monkeypatch.setenv("NOISIN_CACHE", str(tmp_path / "cache"))
    before = tokens.load(folder_of_texts(tmp_path))
    path = tmp_path / "test.txt"
    try:
        path.rename(tmp_path / os.fsdecode(b"t\xff.txt"))
    except OSError:  # macOS refuses such a name
        pytest.skip("file names must be UTF-8 here")
    path.symlink_to(tmp_path / os.fsdecode(b"t\xff.txt"))
    assert tokens.load(str(tmp_path)).digest() == before.digest()
