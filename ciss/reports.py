"""Which runs a report is about, and where their artifacts are."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from ciss import paths, results


class ReportedRun(NamedTuple):
    """One row of a report's tables; ``init`` is empty where it is the method's own."""

    dataset: str
    scenario: str
    method: str
    init: str
    classes_per_step: tuple[int, ...]
    #: track and run of the shared step 0, such as ``15/ce``
    step_0: str
    #: the run whose training of step 1 it fuses; empty where that is its own
    trained_as: str = ""

    @property
    def run(self) -> str:
        """Method and initialisation as in an experiment's name."""
        return f"{self.method}_{self.init}" if self.init else self.method

    @property
    def is_solved(self) -> bool:
        """Whether steps are solved in closed form: step 0 is then the method's own."""
        return "_" in self.step_0.split("/")[1]

    @property
    def step_0_of_dataset(self) -> str:
        """The shared step 0 as ``comparison.base_steps`` names it: ``voc/15/ce``."""
        return f"{self.dataset}/{self.step_0}"

    def artifact(self, folder: Path, pattern: str, seed: int, step: int) -> Path:
        """Path of an artifact of one step; ``pattern`` is one of ``ciss.paths``."""
        track, run = self.step_0.split("/") if step == 0 else (self.scenario, self.run)
        if step == 1 and pattern in paths.OF_TRAINING:
            run = self.trained_as or run
        filled = pattern.format(dataset=self.dataset, track=track, run=run, seed=seed, step=step)
        return folder / filled


class Evaluation(NamedTuple):
    """One step of a run under one seed, and the file that its confusion matrix is in."""

    run: ReportedRun
    seed: int
    step: int
    path: Path


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that ``runs_from`` reads."""
    parser.add_argument("--results", type=Path, required=True, help="folder of all results")
    parser.add_argument(
        "--run",
        nargs=6,
        action="append",
        required=True,
        metavar=("DATASET", "SCENARIO", "METHOD", "INIT", "CLASSES", "STEP_0"),
        help="an experiment: INIT is - for the method's own, CLASSES the outputs added at each "
        "step (16,1,1), STEP_0 the shared step 0 (15/ce)",
    )
    parser.add_argument(
        "--trained-as",
        nargs="+",
        default=[],
        metavar="RUN=OTHER",
        help="runs that fuse what another run trained in step 1",
    )
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument(
        "--partial", action="store_true", help="take what is there; without it, all must be there"
    )


def runs_from(arguments: argparse.Namespace) -> list[ReportedRun]:
    """Read the runs that the arguments describe."""
    trained_as = dict(pair.split("=") for pair in arguments.trained_as)
    found = (
        ReportedRun(
            dataset,
            scenario,
            method,
            "" if init == "-" else init,
            tuple(int(count) for count in counts.split(",")),
            step_0,
        )
        for dataset, scenario, method, init, counts, step_0 in arguments.run
    )
    return [run._replace(trained_as=trained_as.get(run.run, "")) for run in found]


def evaluations(
    folder: Path, runs: Sequence[ReportedRun], seeds: Sequence[int]
) -> Iterator[Evaluation]:
    """Yield all evaluations that a report is made of, whether or not they are there yet."""
    for run in runs:
        for seed in seeds:
            for step in range(len(run.classes_per_step)):
                path = run.artifact(folder, paths.CONFUSION, seed, step)
                yield Evaluation(run, seed, step, path)


def tidy_table(found: Iterable[Evaluation]) -> pd.DataFrame:
    """Read confusion matrices: one row a run, seed, step and class (``results.collect``)."""
    scenarios: dict[tuple[str, str], list[Evaluation]] = {}
    for evaluation in found:
        run = evaluation.run
        scenarios.setdefault((run.dataset, run.scenario), []).append(evaluation)
    parts = [
        results.collect(
            [
                (results.RunKey(dataset, scenario, run.run, seed), step, path)
                for run, seed, step, path in chosen
            ],
            chosen[0].run.classes_per_step,
            {run.run: (run.method, run.init) for run, *_ in chosen},
        )
        for (dataset, scenario), chosen in scenarios.items()
    ]
    return pd.concat(parts, ignore_index=True) if parts else results.collect([], (), {})


def summary_of_all(
    tidy: pd.DataFrame, runs: Sequence[ReportedRun], seeds: Sequence[int]
) -> pd.DataFrame:
    """Summarise the runs (``results.summary``), those of which nothing is there yet included.

    Rows are in the order of ``runs``, then of ``seeds``.
    """
    rows = [
        (
            *(run.dataset, run.scenario, run.run, run.method, run.init, seed),
            *(run.classes_per_step[0] - 1, sum(run.classes_per_step) - 1),
            len(run.classes_per_step),
        )
        for run in runs
        for seed in seeds
    ]
    keys = [*results.KEYS, *results.PROTOCOL]
    every = pd.DataFrame(rows, columns=keys)
    types = every.dtypes.to_dict() | dict.fromkeys(results.SCORES, float)
    return every.merge(results.summary(tidy).astype(types), how="left", on=keys)


def say_missing(missing: Sequence[Evaluation]) -> dict[str, str]:
    """Say of each experiment which evaluations are missing: its seeds and their steps."""
    runs: dict[tuple[str, str, str], dict[int, list[int]]] = {}
    for run, seed, step, _ in missing:
        key = (run.dataset, run.scenario, run.run)
        runs.setdefault(key, {}).setdefault(seed, []).append(step)
    said = {}
    for key, by_seed in runs.items():
        # Seeds that lack the same steps share their words.
        seeds: dict[str, list[int]] = {}
        for seed, steps in by_seed.items():
            seeds.setdefault(_numbers("step", steps), []).append(seed)
        parts = (f"{_numbers('seed', chosen)}: {steps}" for steps, chosen in seeds.items())
        said["_".join(key)] = "; ".join(parts)
    return said


def _numbers(word: str, numbers: Sequence[int]) -> str:
    """Name numbers: ``step 3``, ``steps 1-4``, ``seeds 1, 3``."""
    plural = f"{word}s" if len(numbers) > 1 else word
    if len(numbers) > 2 and list(numbers) == list(range(numbers[0], numbers[-1] + 1)):
        return f"{plural} {numbers[0]}-{numbers[-1]}"
    return f"{plural} {', '.join(map(str, numbers))}"


def learning_curves(
    folder: Path, runs: Sequence[ReportedRun], seeds: Sequence[int], step: int, partial: bool
) -> dict[str, pd.DataFrame]:
    """Read the histories of one step for each run, those of all seeds below each other.

    Runs that are solved in closed form have none. ``partial``: leave out those that are not there.
    """
    curves = {}
    for run in runs:
        if run.is_solved:
            continue
        files = [run.artifact(folder, paths.HISTORY, seed, step) for seed in seeds]
        tables = [pd.read_csv(path) for path in files if path.is_file() or not partial]
        if tables:
            curves[run.run] = pd.concat(tables)
    return curves
