from __future__ import annotations

import math

import pandas as pd
import pytest
import torch

from ciss import metrics, results
from ciss.errors import CissError
from ciss.results import RunKey

NAMES = ["background", "cat", "dog", "cow"]
STEPS = (2, 1, 1)
RUNS = {"mib": ("mib", ""), "mib_awt": ("mib", "awt")}


def write(folder, run, seed, step, hits, images=10):
    """A file whose class i has IoU 100 · hits[i] / 10 (None: absent), the errors being void."""
    n = 2 + step
    matrix = torch.zeros(n, n, dtype=torch.int64)
    for i, hit in enumerate(hits):
        if hit is not None:
            matrix[i, i] = hit
            matrix[i, (i + 1) % n] += 10 - hit
    path = folder / f"{run}-{seed}-{step}.csv"
    metrics.write_confusion(path, matrix, NAMES[:n], {"images": images})
    return RunKey("voc", "1-1", run, seed), step, path


@pytest.fixture
def tidy(tmp_path):
    files = [
        write(tmp_path, "mib", 0, 0, [10, 10]),
        write(tmp_path, "mib", 0, 1, [10, 10, 10]),
        write(tmp_path, "mib", 0, 2, [10, 0, 10, None]),
        write(tmp_path, "mib", 1, 0, [10, 10]),
        write(tmp_path, "mib_awt", 0, 0, [10, 10]),
        write(tmp_path, "mib_awt", 0, 2, [10, 10, 10, 10]),
    ]
    return results.collect(files, STEPS, RUNS)


def test_tidy_has_a_row_for_every_run_step_and_seen_class(tidy):
    assert len(tidy) == (2 + 3 + 4) + 2 + (2 + 4)
    last = tidy[(tidy["run"] == "mib_awt") & (tidy["step"] == 2)]
    assert last["learned_at"].to_list() == [0, 0, 1, 2]
    assert last["class_name"].to_list() == NAMES
    assert last["iou"].to_list() == [100] * 4
    assert set(last["init"]) == {"awt"}
    assert set(last["images"]) == {10}
    assert (tidy[["n_base", "n_classes", "n_steps"]] == [1, 3, 3]).all(axis=None)
    absent = tidy[(tidy["run"] == "mib") & (tidy["step"] == 2) & (tidy["class_name"] == "cow")]
    assert absent["iou"].isna().all()


def test_tables_survive_the_file(tidy, tmp_path):
    for table in (tidy, results.summary(tidy), results.by_step(tidy)):
        results.write_table(tmp_path / "table.csv", table)
        pd.testing.assert_frame_equal(results.read_table(tmp_path / "table.csv"), table)
    with pytest.raises(CissError, match="does not exist"):
        results.read_table(tmp_path / "none.csv")


def test_by_step(tidy):
    steps = results.by_step(tidy).set_index(["run", "seed", "step"])
    assert len(steps) == 6
    # Class 1's ten misses fall to class 2, whose IoU they halve.
    assert steps.loc[("mib", 0, 2), "old"] == 50
    assert steps.loc[("mib", 0, 2), "new"] == 50
    assert steps.loc[("mib", 0, 2), "all"] == 50
    assert steps.loc[("mib", 0, 2), "all_without_background"] == 25
    assert math.isnan(steps.loc[("mib", 0, 0), "new"])


def test_summary_says_what_is_missing(tidy):
    table = results.summary(tidy).set_index(["run", "seed"])
    assert len(table) == 3
    whole = table.loc[("mib", 0)]
    assert whole["average_over_steps"] == pytest.approx((100 + 100 + 50) / 3)
    assert whole["forgetting"] == 50
    assert whole["harmonic"] == 50
    unfinished = table.loc[("mib", 1)]
    assert unfinished[results.SCORES].isna().all()
    gap = table.loc[("mib_awt", 0)]
    assert gap["all"] == 100
    assert gap[["average_over_steps", "forgetting"]].isna().all()


def test_forgetting_by_class_of_finished_runs(tidy):
    table = results.forgetting_by_class(tidy)
    assert set(table["run"]) == {"mib"}
    assert set(table["seed"]) == {0}
    assert table["forgetting"].to_list()[:3] == [0, 100, 50]
    assert table["forgetting"].isna().to_list() == [False, False, False, True]


def test_over_seeds(tmp_path):
    files = [
        write(tmp_path, "mib", seed, step, [hits] * (2 + step))
        for seed, hits in enumerate((4, 6, 8))
        for step in range(3)
        if (seed, step) != (2, 2)
    ]
    summary = results.summary(results.collect(files, STEPS, RUNS))
    table = results.over_seeds(summary)
    assert len(table) == 1
    row = table.iloc[0]
    first, second = (100 * hits / (20 - hits) for hits in (4, 6))
    assert row["all"] == pytest.approx((first + second) / 2)
    assert row["all_sd"] == pytest.approx(abs(second - first) / math.sqrt(2))
    assert row["seeds"] == 2
    assert row["init"] == ""


def test_single_seed_has_no_deviation(tidy):
    table = results.over_seeds(results.summary(tidy)).set_index("run")
    assert math.isnan(table.loc["mib_awt", "all_sd"])
    assert table["seeds"].to_list() == [1, 1]


def test_file_of_another_step_is_an_error(tmp_path):
    key, _, path = write(tmp_path, "mib", 0, 1, [1, 1, 1])
    with pytest.raises(CissError, match="has 3 classes; step 2 of voc 1-1 knows 4"):
        results.collect([(key, 2, path)], STEPS, RUNS)


def test_step_given_twice_and_mixed_scenarios_are_errors(tmp_path):
    key, step, path = write(tmp_path, "mib", 0, 0, [1, 1])
    with pytest.raises(ValueError, match="twice"):
        results.collect([(key, step, path)] * 2, STEPS, RUNS)
    other = RunKey("voc", "1-2", "mib", 0)
    with pytest.raises(ValueError, match="one scenario"):
        results.collect([(key, step, path), (other, step, path)], STEPS, RUNS)


def test_offline_has_no_new_classes_and_forgets_nothing(tmp_path):
    path = tmp_path / "offline.csv"
    metrics.write_confusion(path, torch.eye(4).long(), NAMES, {})
    tidy = results.collect([(RunKey("voc", "offline", "ft", 0), 0, path)], (4,), {"ft": ("ft", "")})
    row = results.summary(tidy).iloc[0]
    assert row["all"] == row["old"] == row["average_over_steps"] == 100
    assert row[["new", "harmonic", "forgetting"]].isna().all()
    assert tidy["images"].isna().all()


def test_nothing_gives_empty_tables():
    tidy = results.collect([], STEPS, RUNS)
    assert results.summary(tidy).empty
    assert results.by_step(tidy).empty
    assert results.over_seeds(results.summary(tidy)).empty
    assert results.forgetting_by_class(tidy).empty
