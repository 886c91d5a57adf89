"""The example of docs/results.md: its numbers, by hand and by the code."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest
import torch
from helpers import REPOSITORY

from ciss import metrics, reports, results
from ciss.reports import ReportedRun

PAGE = (REPOSITORY / "docs" / "results.md").read_text(encoding="utf-8")
EXAMPLE = PAGE.partition("## A worked example")[2].partition("\n## ")[0]
MATRICES = [
    [*csv.reader(io.StringIO(text))] for text in re.findall(r"```csv\n(.*?)```", EXAMPLE, re.DOTALL)
]
CLASSES = MATRICES[-1][0][1:]
COUNTS = [[[int(count) for count in row[1:]] for row in rows[1:]] for rows in MATRICES]
RUN = ReportedRun("my", "2-1", "ft", "", (3, 1, 1), "2/ce")


def rows(head: str) -> list[list[str]]:
    """The cells of the table of the example whose first line begins so."""
    table = EXAMPLE.partition(head)[2].partition("\n\n")[0]
    return [[c.strip() for c in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def naive_iou(counts: list[list[int]], i: int) -> float | None:
    if not sum(counts[i]):
        return None
    predicted = sum(row[i] for row in counts)
    return 100 * counts[i][i] / (sum(counts[i]) + predicted - counts[i][i])


def naive_mean(values: list[float | None]) -> float:
    there = [value for value in values if value is not None]
    return sum(there) / len(there)


IOU = [[naive_iou(counts, i) for i in range(len(counts))] for counts in COUNTS]


def number(text: str) -> float | None:
    return None if text in ("", "–") else float(text)


def test_the_page_has_the_example() -> None:
    assert [len(counts) for counts in COUNTS] == [3, 4, 5]
    assert [len(row) for counts in COUNTS for row in counts] == [3] * 3 + [4] * 4 + [5] * 5
    assert CLASSES == ["background", "cat", "dog", "cow", "sheep"]


def test_the_ious_of_the_page() -> None:
    *steps, forgetting = rows("| IoU (%) |")
    for ious, cells in zip(IOU, steps, strict=True):
        shown = [number(cell) for cell in cells[1:]]
        expected = [*ious, *[None] * (5 - len(ious)), naive_mean(ious)]
        assert shown == [None if e is None else pytest.approx(e, abs=0.005) for e in expected]
    for i, cell in enumerate(forgetting[1:5]):
        earlier = [ious[i] for ious in IOU[:2] if i < len(ious)]
        best, last = max(e for e in earlier if e is not None), IOU[2][i]
        assert last is not None
        assert number(cell) == pytest.approx(best - last, abs=0.005)


def test_the_scores_of_the_page_are_those_of_the_code_and_of_a_naive_computation(
    tmp_path: Path,
) -> None:
    evaluations = list(reports.evaluations(tmp_path, [RUN], [1]))
    for one, counts in zip(evaluations, COUNTS, strict=True):
        metrics.write_confusion(one.path, torch.tensor(counts), CLASSES[: len(counts)], {})
    made = results.summary(reports.tidy_table(evaluations)).iloc[0]

    last = IOU[2]
    old, new = naive_mean(last[:3]), naive_mean(last[3:])
    losses = [max(IOU[0][i] or 0, IOU[1][i] or 0) - (last[i] or 0) for i in range(3)]
    naive = {
        "old": old,
        "new": new,
        "all": naive_mean(last),
        "old_without_background": naive_mean(last[1:3]),
        "all_without_background": naive_mean(last[1:]),
        "harmonic": 2 / (1 / old + 1 / new),
        "average_over_steps": sum(map(naive_mean, IOU)) / 3,
        "forgetting": sum(losses) / 3,
    }
    page = {name.strip("`"): float(value) for name, _, value in rows("| score |")}
    assert page.keys() == naive.keys() == set(results.SCORES)
    for score, value in naive.items():
        assert made[score] == pytest.approx(value, rel=1e-12), score
        assert page[score] == pytest.approx(value, abs=0.005), score


def test_the_dog_by_hand() -> None:
    shown = re.search(r"(\d+) / \((\d+) \+ (\d+) \+ (\d+)\) =\s+([\d.]+) %", EXAMPLE)
    assert shown is not None
    found, *missed = (int(shown[i]) for i in range(1, 5))
    assert sum(missed) == sum(COUNTS[2][2]) + sum(row[2] for row in COUNTS[2]) - found
    assert float(shown[5]) == pytest.approx(100 * found / sum(missed), abs=0.005)
