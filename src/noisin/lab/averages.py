"""Rows that average the predictive distributions of several models of another row."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from noisin.lab import evaluate, records
from noisin.lab.config import CorpusKey, corpus_key
from noisin.lab.files import make_folder
from noisin.lab.records import Record
from noisin.lab.rows import Row
from noisin.lab.task import Corpus
from noisin.lab.train import Job


def seeds_of(models: int, seeds: Sequence[int]) -> list[int]:
    """Return the seeds that averages begin at, so that no model is in two of them.

    Args:
        models: how many models an average has, of consecutive seeds.
        seeds: of the recipe; where no so many follow each other, one average begins at the first.
    """
    if models == 1:
        return list(seeds)
    found: list[int] = []
    for seed in sorted(seeds):
        own = range(seed, seed + models)
        if set(own) <= set(seeds) and (not found or seed >= found[-1] + models):
            found.append(seed)
    return found or [seeds[0]]


def members(job: Job, rows: Mapping[str, Row] = {}) -> list[Job]:
    """Return the runs that an average is of; of a run itself.

    Args:
        job: the average.
        rows: those of its recipe; where the averaged one is not among them, its runs have its
            settings and its name, and nothing else of it is known.
    """
    if job.row.models == 1:
        return [job]
    about = {"label": job.row.average, "average": "", "models": 1, "published": None, "note": ""}
    row = rows.get(job.row.average) or job.row.model_copy(update=about)
    seeds = range(job.seed, job.seed + job.row.models)
    return [replace(job, name=job.row.average, row=row, seed=seed) for seed in seeds]


def runs(jobs: Sequence[Job], table: Sequence[Job] = ()) -> list[Job]:
    """Return what must be trained for runs and averages, each once.

    Args:
        jobs: the runs and averages.
        table: those of all rows of the recipe, which say what the models of averages are called.
    """
    rows = {job.name: job.row for job in (*table, *jobs)}
    return list({one.path: one for job in jobs for one in members(job, rows)}.values())


def do(
    jobs: Sequence[Job],
    corpora: Mapping[CorpusKey, Corpus],
    say: Callable[[str], None],
) -> None:
    """Score the averages whose models are trained; of a model that diverged there is none.

    Args:
        jobs: runs and averages.
        corpora: by ``corpus_key``.
        say: told each average.
    """
    for job in jobs:
        path = job.path / "record.json"
        if job.row.models > 1 and not path.exists():
            record = _record(job, corpora[corpus_key(job.row.config)])
            if record is not None:
                make_folder(job.path)
                records.write(record, path)
                say(f"{job.run_title}: the average of {job.row.models} models is scored")


def _record(job: Job, corpus: Corpus) -> Record | None:
    """Score an average by validation and test; None where a model of it is missing."""
    paths = [one.path for one in members(job)]
    if not all((path / "record.json").is_file() for path in paths):
        return None
    parts = records.read(paths)
    if any(part.status == "diverged" for part in parts):
        return None
    models = [evaluate.load(path, corpus=corpus) for path in paths]
    scores = {split: evaluate.evaluate(models, split)[0] for split in ("valid", "test")}
    weights = " ".join(part.weights for part in parts)
    return parts[0].model_copy(
        update={
            "recipe": job.recipe,
            "title": job.title,
            "row": job.name,
            "label": job.row.label,
            "baseline": job.row.baseline,
            "published": job.row.published,
            "note": job.row.note,
            "seed": job.seed,
            "hash": job.hash,
            "parameters": sum(part.parameters for part in parts),
            "updates": sum(part.updates for part in parts),
            "seconds": sum(part.seconds for part in parts),
            "best_epoch": 0,
            "scores": scores,
            "monte_carlo": {},
            "weights": hashlib.sha256(weights.encode()).hexdigest(),
            "history": [],
            "models": job.row.models,
        }
    )
