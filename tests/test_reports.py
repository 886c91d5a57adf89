"""Which evaluations a report is made of, and what it says of those that are missing."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest
import torch

from ciss import metrics, reports, results
from ciss.errors import CissError
from ciss.reports import ReportedRun

CLASSES = ["background", "cat", "dog", "cow"]
MIB = ReportedRun("voc", "1-1", "mib", "", (2, 1, 1), "1/ce")
AWT = ReportedRun("voc", "1-1", "mib", "awt", (2, 1, 1), "1/ce")
OFFLINE = ReportedRun("voc", "offline", "ft", "", (4,), "3/ce")
RUNS = [MIB, AWT, OFFLINE]


def write(folder: Path, run: ReportedRun, seed: int, *steps: int) -> None:
    for one in reports.evaluations(folder, [run], [seed]):
        if one.step in steps:
            n = sum(run.classes_per_step[: one.step + 1])
            metrics.write_confusion(one.path, torch.eye(n).long(), CLASSES[:n], {"images": 1})


def found(folder: Path, *seeds: int) -> list[reports.Evaluation]:
    return [one for one in reports.evaluations(folder, RUNS, seeds) if one.path.is_file()]


def test_evaluations_are_all_runs_times_seeds_times_steps(tmp_path: Path) -> None:
    every = list(reports.evaluations(tmp_path, RUNS, [1, 2]))
    assert len(every) == (3 + 3 + 1) * 2
    # Step 0 is one file for both.
    assert len({one.path for one in every}) == (1 + 2 + 2 + 1) * 2
    assert every[4].path == tmp_path / "voc/1-1/mib/seed2/step1/confusion.csv"


def test_all_runs_have_a_row_even_those_that_have_nothing(tmp_path: Path) -> None:
    write(tmp_path, AWT, 2, 0, 1, 2)
    tidy = reports.tidy_table(found(tmp_path, 1, 2))
    summary = reports.summary_of_all(tidy, RUNS, [1, 2])
    assert summary[["run", "seed"]].to_numpy().tolist() == [
        ["mib", 1],
        ["mib", 2],
        ["mib_awt", 1],
        ["mib_awt", 2],
        ["ft", 1],
        ["ft", 2],
    ]
    assert summary["all"].notna().tolist() == [False, False, False, True, False, False]
    assert (summary["n_steps"] == [3, 3, 3, 3, 1, 1]).all()
    # The shared step 0 is a row of both runs.
    steps = results.by_step(tidy)
    assert steps[["run", "step"]].to_numpy().tolist() == [
        ["mib", 0],
        ["mib_awt", 0],
        ["mib_awt", 1],
        ["mib_awt", 2],
    ]


def test_nothing_at_all_is_a_summary_of_nothing() -> None:
    summary = reports.summary_of_all(reports.tidy_table([]), RUNS, [1])
    assert len(summary) == 3
    assert summary[results.SCORES].isna().all(axis=None)
    assert math.isnan(results.over_seeds(summary)["all"].iloc[0])


def test_a_complete_report_is_the_summary_itself(tmp_path: Path) -> None:
    for run in RUNS:
        for seed in (1, 2):
            write(tmp_path, run, seed, 0, 1, 2)
    tidy = reports.tidy_table(found(tmp_path, 1, 2))
    pd.testing.assert_frame_equal(reports.summary_of_all(tidy, RUNS, [1, 2]), results.summary(tidy))


def test_a_missing_file_is_an_error_unless_it_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, MIB, 1, 0, 1)
    with pytest.raises(CissError, match=r"step2/confusion\.csv does not exist"):
        reports.tidy_table(reports.evaluations(tmp_path, [MIB], [1]))


def test_what_is_missing_is_said_by_run(tmp_path: Path) -> None:
    write(tmp_path, MIB, 1, 0, 1, 2)
    write(tmp_path, MIB, 2, 0)
    write(tmp_path, MIB, 3, 0)
    write(tmp_path, AWT, 3, 1)
    there = found(tmp_path, 1, 2, 3)
    every = reports.evaluations(tmp_path, RUNS, [1, 2, 3])
    assert reports.say_missing([one for one in every if one not in there]) == {
        "voc_1-1_mib": "seeds 2, 3: steps 1, 2",
        "voc_1-1_mib_awt": "seeds 1, 2: steps 1, 2; seed 3: step 2",
        "voc_offline_ft": "seeds 1-3: step 0",
    }


def test_histories_that_are_not_there_are_left_out_of_a_partial_report(tmp_path: Path) -> None:
    path = MIB.artifact(tmp_path, "{dataset}/{track}/{run}/seed{seed}/step{step}/history.csv", 2, 1)
    path.parent.mkdir(parents=True)
    path.write_text("epoch,iou_new\n1,0.5\n")
    curves = reports.learning_curves(tmp_path, [MIB, AWT], [1, 2], step=1, partial=True)
    assert list(curves) == ["mib"]
    assert len(curves["mib"]) == 1
    with pytest.raises(FileNotFoundError):
        reports.learning_curves(tmp_path, [MIB], [1, 2], step=1, partial=False)
