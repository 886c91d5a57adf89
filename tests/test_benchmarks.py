"""The benchmarks at their smallest: both ways do the same work; the table says what it holds."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import REPOSITORY

sys.path.insert(0, str(REPOSITORY))

from benchmarks import attribution, networks, table, workflow
from benchmarks.__main__ import BENCHMARKS, GPU_ROWS, gpu_rows
from benchmarks.given import Given, given
from benchmarks.reference import attribution as reference
from benchmarks.table import Row
from ciss.models import SegmentationNetwork


@pytest.fixture(scope="module")
def tiny() -> Iterator[Given]:
    with given(None, "shapes", rounds=1, tiny=True) as what:
        yield what


def rows_of(name: str, tiny: Given) -> list[Row]:
    module = importlib.import_module(f"benchmarks.{name}")
    if name == "workflow":  # the rest of it starts Snakemake ten times
        return list(module.first_batch(tiny, networks.TINY, 32, 4))
    return list(module.rows(tiny))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_each_benchmark_makes_rows(name: str, tiny: Given) -> None:
    rows = rows_of(name, tiny)
    assert rows
    assert all(row.ours > 0 and row.rounds >= 1 for row in rows)
    for row in rows:
        if row.published is not None:
            faster = row.unit.endswith("/s")
            quotient = row.ours / row.published if faster else row.published / row.ours
            assert row.ratio == pytest.approx(quotient)


def test_without_captum_the_same_is_attributed_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    given = attribution.inputs(networks.TINY, 64, 3, "cpu")
    model = reference.SummedLogits(given.network)
    image = given.images[:1]
    expected = reference.captum_gradients(model, image, 5, 1)
    largest = float(expected.abs().max())
    for at_once in (1, 2, 5):
        found = reference.gradients_by_hand(model, image, 5, at_once)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6 * largest)
    monkeypatch.setattr(reference, "EXPLAINER", reference.gradients_by_hand)
    attribution.check(given, 4, 2)


def test_a_gpu_that_is_full_takes_fewer_steps_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(given: object, classes: object, steps: int, at_once: int) -> None:
        if at_once > 10:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(attribution, "published", full)
    given = attribution.inputs(networks.TINY, 64, 3, "cpu")
    assert attribution.steps_that_fit(given, 50) == 6


@pytest.mark.workflow
def test_a_finished_project_has_nothing_to_do(tmp_path: Path) -> None:
    (tmp_path / "Floor").write_text(workflow.FLOOR % 2)
    project = workflow.Project(tmp_path / "floor", tmp_path / "Floor", "all")
    assert project.finish() == 10


@pytest.mark.workflow
def test_data_that_are_written_for_a_plan_are_complete(tmp_path: Path) -> None:
    options = workflow.write_data(tmp_path / "data", dict.fromkeys(workflow.SIZES, (3, 2)))
    target = "cityscapes_14-5_ft"
    project = workflow.Project(tmp_path / "p", REPOSITORY / "Snakefile", target, *options)
    said = project.snakemake("--dry-run")
    assert "train_step" in said
    assert "Warning" not in said


def without_new_classes(network: SegmentationNetwork) -> SegmentationNetwork:
    with torch.no_grad():
        network.classifiers[-1].weight.zero_()
    return network


def changed(name: str, attribute: str, change: Callable[[Any], Any]) -> Any:
    """A parameter: a benchmark whose published way gives something else."""
    return pytest.param(name, attribute, change, id=name)


@pytest.mark.parametrize(
    ("name", "attribute", "change"),
    [
        changed("data", "published", lambda lists: [*lists[:-1], ([], [])]),
        changed("input", "crop_and_flip", lambda pair: (pair[0], pair[1] ^ 1)),
        changed("losses", "published", lambda loss: 1.001 * loss),
        changed("training", "_flat", lambda values: values + torch.rand(1)),
        changed("attribution", "published", lambda chosen: ~chosen),
        changed("evaluation", "confusion_matrix", lambda counts: counts.T.copy()),
        changed("transfer", "ours", without_new_classes),
    ],
)
def test_ways_that_differ_are_not_timed(
    name: str,
    attribute: str,
    change: Callable[[Any], Any],
    tiny: Given,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = importlib.import_module(f"benchmarks.{name}")
    original = getattr(module, attribute)
    wrong = lambda *given: change(original(*given))  # noqa: E731
    monkeypatch.setattr(module, attribute, wrong)
    if name == "losses":
        monkeypatch.setitem(module.WAYS, "published", wrong)
    with pytest.raises(SystemExit, match="differ"):
        list(module.rows(tiny))


ROWS = [
    table.compared("Work", "some", "ms", [0.3, 0.2, 0.1], [0.02, 0.01, 0.01], scale=1000),
    table.alone("Work", "more", "s", [4.0, 2.0, 3.0], goal="< 5 s", note="Work: of a kind."),
]


def test_a_row_has_medians_and_the_ratios_of_the_rounds() -> None:
    row = ROWS[0]
    assert (row.published, row.ours, row.rounds) == (pytest.approx(200), pytest.approx(10), 3)
    assert row.ratio == pytest.approx(20)
    assert row.spread == (pytest.approx(10), pytest.approx(20))
    speed = table.rate(row, 1000, "images/s")
    assert (speed.published, speed.ours, speed.unit) == (5, 100, "images/s")


def test_the_table_shows_what_was_not_measured(tmp_path: Path) -> None:
    rows = [*ROWS, *gpu_rows(tmp_path / "absent.json")]
    text = table.plain(rows)
    assert text.count(table.NOT_MEASURED) == len(GPU_ROWS)
    assert "some 200 ms 10.0 ms × 20.0 10.0 – 20.0 3" in " ".join(text.split())
    markdown = table.markdown(rows, table.about("make bench"))
    assert "| some | 200 ms | 10.0 ms | × 20.0 | 10.0 – 20.0 | 3 |  |" in markdown
    assert "| more |  | 3.00 s |  | 2.00 – 4.00 | 3 | < 5 s |" in markdown
    assert "| GPU | here |" in markdown
    assert "- Work: of a kind." in markdown


def test_figures_of_a_gpu_come_from_its_file(tmp_path: Path) -> None:
    table.write(tmp_path, ROWS, table.about("make bench"))
    content = json.loads((tmp_path / "bench.json").read_text())
    content["rows"][0]["beside"] = "a field of its own"
    (tmp_path / "gpu.json").write_text(json.dumps(content))
    found = gpu_rows(tmp_path / "gpu.json")
    assert [(row.what, row.ours) for row in found] == [("some", 10.0), ("more", 3.0)]


def test_a_document_gets_the_table_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    table.into_document(page, "new\n")
    assert page.read_text() == f"before\n{table.BEGIN}\n\nnew\n\n{table.END}\nafter\n"
    page.write_text("no marks\n")
    with pytest.raises(SystemExit, match="needs one line"):
        table.into_document(page, "new\n")


def test_the_page_of_benchmarks_has_the_marks() -> None:
    text = (REPOSITORY / "docs" / "benchmarks.md").read_text()
    assert text.count(table.BEGIN) == text.count(table.END) == 1


def test_one_row_is_what_row_says() -> None:
    assert table.cells(Row("Work", "none", "s"))[2] == table.NOT_MEASURED
