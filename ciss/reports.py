"""Which runs a report is about, and where their artifacts are."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
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

    @property
    def run(self) -> str:
        """Method and initialisation as in an experiment's name."""
        return f"{self.method}_{self.init}" if self.init else self.method

    def artifact(self, folder: Path, pattern: str, seed: int, step: int) -> Path:
        """Path of an artifact of one step; ``pattern`` is one of ``ciss.paths``."""
        track, run = self.step_0.split("/") if step == 0 else (self.scenario, self.run)
        filled = pattern.format(dataset=self.dataset, track=track, run=run, seed=seed, step=step)
        return folder / filled


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
    parser.add_argument("--seeds", type=int, nargs="+", required=True)


def runs_from(arguments: argparse.Namespace) -> list[ReportedRun]:
    """Read the runs that the arguments describe."""
    return [
        ReportedRun(
            dataset,
            scenario,
            method,
            "" if init == "-" else init,
            tuple(int(count) for count in counts.split(",")),
            step_0,
        )
        for dataset, scenario, method, init, counts, step_0 in arguments.run
    ]


def tidy_table(folder: Path, runs: Sequence[ReportedRun], seeds: Sequence[int]) -> pd.DataFrame:
    """Read all confusion matrices: one row a run, seed, step and class (``results.collect``)."""
    parts = []
    for dataset, scenario in dict.fromkeys((run.dataset, run.scenario) for run in runs):
        chosen = [run for run in runs if (run.dataset, run.scenario) == (dataset, scenario)]
        confusions = [
            (
                results.RunKey(dataset, scenario, run.run, seed),
                step,
                run.artifact(folder, paths.CONFUSION, seed, step),
            )
            for run in chosen
            for seed in seeds
            for step in range(len(run.classes_per_step))
        ]
        named = {run.run: (run.method, run.init) for run in chosen}
        parts.append(results.collect(confusions, chosen[0].classes_per_step, named))
    return pd.concat(parts, ignore_index=True)


def learning_curves(
    folder: Path, runs: Sequence[ReportedRun], seeds: Sequence[int], step: int
) -> dict[str, pd.DataFrame]:
    """Read the histories of one step for each run, those of all seeds below each other."""
    return {
        run.run: pd.concat(
            [pd.read_csv(run.artifact(folder, paths.HISTORY, seed, step)) for seed in seeds]
        )
        for run in runs
    }
