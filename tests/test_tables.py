from __future__ import annotations

import io
import math

import pandas as pd
import pytest

from ciss import results, table_formats, tables
from ciss.style import pretty_name, split_run

PROTOCOLS = {"2-1": (2, 4, 3), "3-1": (3, 4, 2), "offline": (4, 4, 1)}
NAMES = {"ft": ("ft", ""), "mib": ("mib", ""), "mib_awt": ("mib", "awt"), "a&b": ("a&b", "")}


def row(scenario, run, seed, dataset="voc", **scores):
    n_base, n_classes, n_steps = PROTOCOLS[scenario]
    names = (dataset, scenario, run, *NAMES[run], seed, n_base, n_classes, n_steps)
    columns = [*results.KEYS, "n_base", "n_classes", "n_steps"]
    empty = dict.fromkeys(results.SCORES, math.nan)
    return dict(zip(columns, names, strict=True)) | empty | scores


def summary(*rows):
    return pd.DataFrame(rows)


def markdown(rows, **options):
    return "\n".join(map(table_formats.markdown, tables.build(rows, **options)))


def latex(rows):
    return "\n".join(map(table_formats.latex, tables.build(rows)))


def plain(rows):
    return "\n".join(map(table_formats.text, tables.build(rows)))


def scores(value, forgetting=0.0):
    return dict.fromkeys(results.SCORES, value) | {"forgetting": forgetting}


@pytest.fixture
def two_seeds():
    return summary(
        row("2-1", "ft", 0, **scores(20.0, 50.0)),
        row("2-1", "ft", 1, **scores(22.0, 52.0)),
        row("2-1", "mib_awt", 0, **scores(40.0, 5.0)),
        row("2-1", "mib_awt", 1, **scores(41.0, 7.0)),
    )


def test_markdown_has_the_papers_layout(two_seeds):
    lines = markdown(two_seeds).splitlines()
    assert lines[0] == "### Pascal VOC 2012"
    assert lines[2] == "| Method | 2-1 (3 steps): 0-2 | 3-4 | all | avg | forg. |"
    assert lines[4].startswith("| FT | 21.00 ± 1.41 | ")
    assert lines[5] == "| MiB + AWT |" + " **40.50 ± 0.71** |" * 4 + " **6.00 ± 1.41** |"
    assert "n = 2 seeds" in lines[7]
    assert "missing" not in lines[7]


def test_best_is_least_for_forgetting_and_shared_when_equal():
    table = tables.build(
        summary(
            row("2-1", "ft", 0, **scores(30.001, 5.0)),
            row("2-1", "mib", 0, **scores(29.999, 9.0)),
        )
    )[0]
    (_, ft), (_, mib) = table.rows
    assert [cell.best for cell in ft] == [True] * 5
    assert [cell.best for cell in mib] == [True] * 4 + [False]


def test_the_only_run_is_not_called_best():
    text = markdown(summary(row("2-1", "ft", 0, **scores(30.0))))
    assert "**" not in text
    assert "bold" not in text


def test_missing_cells_are_dashes_and_counted():
    text = markdown(
        summary(
            row("2-1", "ft", 0, **scores(20.0)),
            row("2-1", "mib", 0),
            row("3-1", "ft", 0, **(scores(20.0) | {"forgetting": math.nan})),
        )
    )
    assert "| MiB |" + " – |" * 10 in text
    assert "11 of 20 values are missing (–)" in text
    # One class learned later: no range.
    assert "3-1 (2 steps): 0-3 | 4 | all" in text


def test_unequal_numbers_of_seeds_are_shown_in_the_cells(two_seeds):
    text = plain(two_seeds.iloc[:3])
    assert "21.00 ± 1.41 (2) " in text
    assert "40.00 (1)*" in text
    assert "(number of seeds)" in text


def test_offline_has_one_column():
    table = tables.build(summary(row("offline", "ft", 0, **scores(75.0))))[0]
    assert table.groups == (("offline", ("all",)),)
    assert "forg." not in table.caption


def test_the_background_may_be_left_out():
    values = scores(math.nan) | {
        "old_without_background": 30.0,
        "all_without_background": 25.0,
        "harmonic": 20.0,
    }
    rows = summary(
        row("2-1", "ft", 0, **values),
        row("2-1", "mib", 0, **scores(40.0)),
        row("offline", "ft", 0, **values),
    )
    (table,) = tables.without_background(rows)
    text = table_formats.markdown(table)
    assert "### Pascal VOC 2012, background left out" in text
    assert "| Method | 2-1 (3 steps): 1-2 | 1-4 | harmonic | offline: 1-4 |" in text
    assert "| FT | 30.00 | 25.00 | 20.00 | 25.00 |" in text
    assert "| MiB | **40.00** | **40.00** | **40.00** | – |" in text


def test_each_dataset_has_its_table(two_seeds):
    both = pd.concat([two_seeds, summary(row("3-1", "ft", 0, "my_data", **scores(1.0)))])
    assert [table.title for table in tables.build(both)] == ["Pascal VOC 2012", "my_data"]
    assert latex(both).count(r"\begin{table}") == 2


def test_latex_escapes_and_sets_the_best_in_bold():
    text = latex(
        summary(
            row("2-1", "a&b", 0, "my_data", **scores(20.0, 1.0)),
            row("2-1", "mib", 0, "my_data", **scores(10.0, 2.0)),
            row("3-1", "mib", 0, "my_data", **scores(10.0, 2.0)),
        )
    )
    assert r"a\&b & \textbf{20.00} & " in text
    assert r"\caption{my\_data. mIoU (\%)" in text
    assert r"\multicolumn{5}{c}{2-1 (3 steps)} & \multicolumn{5}{c}{3-1 (2 steps)} \\" in text
    assert r"\cmidrule(lr){2-6} \cmidrule(lr){7-11}" in text
    assert r"0--2 & 3--4 & all" in text
    for character in "±–":
        assert character not in text
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {line.replace(r"\&", "").count("&") for line in body[1:]} == {10}
    for command in (r"\toprule", r"\midrule", r"\bottomrule", r"\end{tabular}"):
        assert text.count(command) == 1


def test_text_lines_up(two_seeds):
    more = pd.concat([two_seeds.iloc[[0, 2]], summary(row("offline", "mib", 0, **scores(75.0)))])
    lines = plain(more).splitlines()
    body = [line for line in lines if " | " in line]
    assert len(body) == 5
    assert len({tuple(i for i, c in enumerate(line) if c == "|") for line in body}) == 1
    assert max(map(len, body)) == len(lines[4])


def test_csv_is_exact_and_wide(two_seeds):
    more = pd.concat([two_seeds, summary(row("offline", "ft", 0, **scores(1 / 3)))])
    table = pd.read_csv(io.StringIO(tables.csv(more))).set_index("name")
    assert list(table.index) == ["FT", "MiB + AWT"]
    assert table.loc["FT", "2-1 old"] == 21
    assert table.loc["FT", "2-1 old sd"] == math.sqrt(2)
    assert table.loc["FT", "offline all"] == pytest.approx(1 / 3, rel=1e-15)
    assert math.isnan(table.loc["MiB + AWT", "offline all"])
    assert table.loc["MiB + AWT", "2-1 seeds"] == 2


def test_per_step():
    rows = pd.DataFrame(
        [
            (step, i, f"c{i}", max(i - 1, 0), value)
            for step, values in enumerate([(80.0, 60.0), (60.0, 30.0, 30.0)])
            for i, value in enumerate(values)
        ],
        columns=["step", "class_index", "class_name", "learned_at", "iou"],
    )
    names = {"dataset": "voc", "scenario": "1-1", "run": "ft", "method": "ft", "init": ""}
    tidy = rows.assign(**names, seed=0, images=5, n_base=1, n_classes=3, n_steps=3)
    (table,) = tables.per_step(tidy)
    text = table_formats.markdown(table)
    assert "| Method | step 0 | step 1 | step 2 |" in text
    assert "| FT | 70.00 | 40.00 | – |" in text
    assert "1 of 3 values are missing" in text
    assert "| FT | 70.00 | 45.00 | – |" in table_formats.markdown(*tables.per_step(tidy, "old"))


def test_pretty_names():
    assert pretty_name("lwf-mc") == "LWF-MC"
    assert pretty_name("plop", "awt") == "PLOP + AWT"
    assert pretty_name("ft", "mib") == "FT + MiB init"
    assert pretty_name("mine", "randchannels") == "mine + random channels"
    assert pretty_name(*split_run("lwf-mc_random")) == "LWF-MC + random"
    assert split_run("mib") == ("mib", "")
