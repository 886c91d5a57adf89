"""The pages of a report: tables that sort, jobs and their logs."""

from __future__ import annotations

import base64
import gzip
import json
import random
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import REPOSITORY, in_browser

from ciss import comparison, jobs, pages, reports, results
from ciss.reports import ReportedRun
from ciss.units import duration

FRAME = pd.DataFrame(
    {
        "run": ["ft", "a < b", "mib"],
        "all": [9.5, 40.25, np.nan],
        "all_sd": [0.5, np.nan, np.nan],
        "seeds": [3, 1, 0],
    }
)


def test_a_table_shows_rounded_numbers_and_keeps_them_whole_for_sorting() -> None:
    html = pages.table(FRAME, {"all": "all_sd"}, digits=1)
    assert "all_sd" not in html
    cells = re.findall(r'<td class="number" data-key="([^"]*)">([^<]*)</td>', html)
    assert cells == [
        *[("9.5", "9.5 ± 0.5"), ("3", "3")],
        *[("40.25", "40.2"), ("1", "1")],
        *[("", "–"), ("0", "0")],
    ]
    assert "a &lt; b" in html
    assert "a < b" not in html


@pytest.mark.browser
def test_a_click_sorts_numbers_from_the_largest_and_absent_ones_last(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(pages.page("A page", pages.table(FRAME, {"all": "all_sd"})))

    def runs(*columns: int) -> list[str]:
        clicks = [f"document.querySelectorAll('thead button')[{n}].click();" for n in columns]
        page = in_browser(path, "".join(clicks)).page
        return re.findall(r"<tr><td>([^<]*)</td>", page)

    assert runs(1) == ["a &lt; b", "ft", "mib"]
    assert runs(1, 1) == ["ft", "a &lt; b", "mib"]
    assert runs(0) == ["a &lt; b", "ft", "mib"]
    assert runs(2, 0, 2) == ["ft", "a &lt; b", "mib"]


def test_nothing_of_a_page_comes_from_elsewhere() -> None:
    html = pages.page("A page", pages.table(FRAME), logs={"0": "text"})
    assert not re.search(r"https?:|src=|<link|@import|url\(", html)


def unpacked(page: str) -> dict[str, str]:
    packed = re.search(r'id="logs">([^<]*)<', page)
    assert packed is not None
    logs: dict[str, str] = json.loads(gzip.decompress(base64.b64decode(packed[1])))
    return logs


@pytest.mark.parametrize(("trainings", "whole"), [(300, True), (1500, False)])
def test_logs_fit_in_a_page_that_browsers_open(trainings: int, whole: bool) -> None:
    """Snakemake embeds it once more in base64; Chromium opens two megabytes."""
    rng = random.Random(0)
    logs = {
        str(number): "\n".join(
            f"12:00:{epoch:02d}  epoch {epoch}/60  loss {rng.random():.4f} (classification "
            f"{rng.random():.4f}  distillation {rng.random():.4f})  new classes "
            f"{100 * rng.random():.1f} %  lr 0.0014  {200 * rng.random():.1f} images/s"
            for epoch in range(60)
        )
        for number in range(trainings)
    }
    buttons = [(key, f"ade/100-5/mib_awt/seed1/step{key}/logs/train.log") for key in logs]
    frame = pd.DataFrame({"of": "ade/100-5/mib_awt/seed1/step10", "seconds": 1.5}, index=[*logs])
    frame["log"] = pd.Series(buttons, index=frame.index, dtype=object)
    page = pages.page("Jobs", pages.table(frame, buttons="log"), logs=logs)
    assert len(base64.b64encode(page.encode())) < 2e6
    assert (unpacked(page) == logs) == whole
    assert unpacked(page)["0"].endswith(logs["0"].splitlines()[-1])
    assert len(unpacked(page)) == trainings


def test_long_logs_lose_their_middle() -> None:
    lines = [str(n) for n in range(1000)]
    short = pages.shortened("\n".join(lines), 100).splitlines()
    assert short == [*lines[:20], "… 900 lines left out …", *lines[-80:]]
    assert pages.shortened("a\nb\n", 2) == "a\nb\n"


@pytest.mark.parametrize(
    ("seconds", "expected"), [(6.6, "7 s"), (250, "4 min 10 s"), (11100, "3 h 05 min")]
)
def test_durations(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


@pytest.mark.parametrize(
    ("counts", "heads"),
    [
        ((16, 5), ["0-15", "16-20"]),
        ((20, 1), ["0-19", "20"]),
        ((21,), []),
    ],
)
def test_the_head_of_a_score_says_its_classes(
    counts: tuple[int, ...], heads: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = f"{counts[0] - 1}-{counts[1]}" if len(counts) > 1 else "offline"
    run = ReportedRun("voc", scenario, "ft", "", counts, "base/ce")
    tidy = reports.tidy_table([])
    results.write_table(tmp_path / "summary.csv", reports.summary_of_all(tidy, [run], [1]))
    results.write_table(tmp_path / "results.csv", tidy)
    results.write_table(tmp_path / "distance.csv", pd.DataFrame(columns=comparison.CELL))
    scripts = REPOSITORY / "workflow_scripts"
    monkeypatch.setattr(sys, "path", [str(scripts), *sys.path])
    html = runpy.run_path(str(scripts / "pages.py"))["tables_page"](tmp_path, "few")
    table = html.partition("IoU of each class")[0]
    shown = re.findall(r"<th[^>]*><button[^>]*>([^<]*)<", table)
    assert shown[:2] == ["method", "experiment"]
    assert [head for head in shown if head[0].isdigit()] == heads
    assert [head in shown for head in ("all", "old without background", "forgetting")] == [
        True,
        bool(heads),
        bool(heads),
    ]


def test_jobs_are_those_of_the_report_in_the_order_of_the_data(tmp_path: Path) -> None:
    runs = [
        ReportedRun("shapes", "10-5", method, "", (11, 5, 5), "10/ce") for method in ("ft", "mib")
    ]
    logs = [
        "data/logs/shapes.log",
        "shapes/logs/index.log",
        "shapes/10/logs/split.log",
        "shapes/10-5/logs/split.log",
        "shapes/10/ce/seed1/step0/logs/attribute_10-5.log",
        "shapes/10/ce/seed1/step0/logs/train.log",
        "shapes/10-5/ft/seed1/step1/logs/train.log",
        "shapes/10-5/mib/seed1/step2/logs/evaluate.log",
        "reports/few/figures/shapes_10-5/logs/figures.log",
        "reports/few/logs/table.log",
    ]
    foreign = [
        "data/logs/other.log",
        "shapes/10-5/ft/seed2/step1/logs/train.log",
        "shapes/10-5/lwf/seed1/step1/logs/train.log",
        # Another scenario shares step 0.
        "shapes/10/ce/seed1/step0/logs/attribute_10-2.log",
        "reports/many/logs/table.log",
    ]
    for name in logs + foreign:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("done\n")
    benchmark = tmp_path / "shapes/10-5/ft/seed1/step1/benchmarks/train.tsv"
    benchmark.parent.mkdir()
    benchmark.write_text("s\th:m:s\tmax_rss\tmean_load\n9.5\t0:00:09\tNA\t50\n")
    found = jobs.of_report(tmp_path, runs, [1], "few")
    assert [str(job.log) for job in found] == logs
    table = jobs.read(tmp_path, found)
    row = table.iloc[6]
    assert (row["job"], row["of"]) == ("train", "shapes/10-5/ft/seed1/step1")
    assert (row["seconds"], row["load (%)"]) == (9.5, 50)
    assert np.isnan(row["memory (MB)"])
    assert table["seconds"].notna().sum() == 1
