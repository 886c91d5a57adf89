"""What the jobs of a report left behind: their logs and benchmarks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from ciss import paths
from ciss.planning import last_row, number_in
from ciss.reports import ReportedRun

#: columns of Snakemake's benchmark files that are shown, by the name they have on the page
_BENCHMARK = {"seconds": "s", "memory (MB)": "max_rss", "load (%)": "mean_load"}
#: how the names of jobs begin that are beside a model and about the classes after it: the
#: scenario follows, and for the latter the initialisation
_ATTRIBUTE, _PRETUNE = "attribute_", "pretune_"


class Job(NamedTuple):
    """A job by the files it wrote; paths are relative to the results folder."""

    #: such as ``train``
    name: str
    #: the folder that it worked in
    place: str
    log: Path
    benchmark: Path


def of_report(
    folder: Path, runs: Sequence[ReportedRun], seeds: Sequence[int], report: str
) -> list[Job]:
    """List the jobs behind a report in the order of the data: those whose log is there.

    ``folder``: of all results.
    """
    # Scenarios that share a step 0 each have an attribution beside its model.
    wanted = {(run.dataset, f"{_ATTRIBUTE}{run.scenario}") for run in runs}
    wanted |= {(run.dataset, f"{_PRETUNE}{run.scenario}_{run.init}") for run in runs}
    return [
        Job(log.stem, place, log.relative_to(folder), benchmark.relative_to(folder))
        for place, pattern in _places(runs, seeds, report)
        for log in sorted((folder / place).glob(f"logs/{pattern}.log"))
        if not log.stem.startswith((_ATTRIBUTE, _PRETUNE))
        or (Path(place).parts[0], log.stem) in wanted
        for benchmark in [log.parent.with_name("benchmarks") / f"{log.stem}.tsv"]
    ]


def _places(
    runs: Sequence[ReportedRun], seeds: Sequence[int], report: str
) -> Iterator[tuple[str, str]]:
    """Folders and which of their jobs belong to the report, as a pattern."""
    tracks = [
        (run.dataset, track) for run in runs for track in (run.step_0.split("/")[0], run.scenario)
    ]
    yield from _once(("data", run.dataset) for run in runs)
    yield "weights", "*"
    yield from _once((run.dataset, "*") for run in runs)
    yield from _once((f"{dataset}/{track}", "*") for dataset, track in tracks)
    yield from _once(
        (str(run.artifact(Path(), paths.STEP, seed, step)), "*")
        for run in runs
        for seed in seeds
        for step in range(len(run.classes_per_step))
    )
    yield from _once(
        (
            str(run._replace(method=run.trained_as, init="").artifact(Path(), paths.STEP, seed, 1)),
            "*",
        )
        for run in runs
        if run.trained_as
        for seed in seeds
    )
    home = paths.REPORT.format(report=report)
    yield from _once((f"{home}/figures/{run.dataset}_{run.scenario}", "*") for run in runs)
    yield home, "table"


def _once(places: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    yield from dict.fromkeys(places)


def read(folder: Path, jobs: Sequence[Job]) -> pd.DataFrame:
    """Return a row a job: ``job``, ``of``, ``finished`` and what its benchmark says.

    A benchmark that is absent or cannot be read leaves NaN: times are no result.
    """
    rows = []
    for job in jobs:
        log = folder / job.log
        finished = datetime.fromtimestamp(log.stat().st_mtime).isoformat(" ", "seconds")
        rows.append(
            {"job": job.name, "of": job.place, "finished": finished}
            | _times(folder / job.benchmark)
        )
    table = pd.DataFrame(rows, columns=["job", "of", "finished", *_BENCHMARK])
    return table.astype(dict.fromkeys(_BENCHMARK, float))


def _times(path: Path) -> dict[str, float | None]:
    row = last_row(path)
    return {name: number_in(row, column) for name, column in _BENCHMARK.items()}
