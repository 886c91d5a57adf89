"""Cost in the large: fitted exponents, and the sums behind the GPU hours."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from helpers import REPOSITORY

sys.path.insert(0, str(REPOSITORY))

from benchmarks import scaling
from benchmarks.scaling import Cost, Work, exponent, shared, unshared, works
from ciss.config import read_config
from ciss.planning import chosen_experiments

CONFIG = read_config(REPOSITORY / "config.yaml")


def of(*names: str) -> list[tuple[str, Work]]:
    return list(works(CONFIG, chosen_experiments(CONFIG, names), Path("absent")))


def trainings(found: list[tuple[str, Work]]) -> list[Work]:
    return [work for _, work in found if work.rule == "train" and work.kind != "forward"]


def trained(found: list[tuple[str, Work]]) -> list[tuple[str, Work]]:
    return [(run, work) for run, work in found if work.rule == "train"]


def test_exponents_are_slopes_of_logarithms() -> None:
    assert exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2)
    assert exponent([100, 200, 400], [5, 5, 5]) == pytest.approx(0)


def test_the_table_of_growth_has_every_size() -> None:
    table = scaling.growth(lambda factor, size: {"work": Cost(size / 1000, 8.0 * size**2)})
    rows = table.splitlines()[2:]
    assert len(rows) == len(scaling.SIZES)
    assert rows[0].startswith("| images: work | 100, 200, 400 | 0.100, 0.200, 0.400 s | 1.00 |")
    assert rows[0].endswith("| 2.00 |")


def test_a_size_is_measured() -> None:
    found = scaling.one("images", 12)
    assert [*found] == ["index", "epoch of step 0", "evaluation"]
    assert all(cost.seconds > 0 for cost in found.values())


def test_step_0_is_shared_across_methods_and_scenarios_and_nothing_else_is() -> None:
    everything = of("voc_15-1_ft", "voc_15-1_mib_awt", "voc_15-5_mib_awt", "voc_15-5_lwf-mc")
    alone, together = trainings(unshared(everything)), trainings(shared(everything))
    assert len(alone) == 6 + 6 + 2 + 2
    # ce for three of the runs, bce for LWF-MC.
    assert len(alone) - len(together) == 2
    saved = sum(work.images for work in alone) - sum(work.images for work in together)
    assert saved == 2 * 30 * 9568
    for work in together:
        if "/step0/" not in work.output:
            assert [w.output for w in alone].count(work.output) == 1


def test_images_are_those_of_published_lists_and_epochs_count() -> None:
    first, second = trainings(of("voc_15-5_mib"))
    assert (first.images, second.images) == (9568 * 30, 2145 * 30)
    assert (first.kind, second.kind) == (scaling.WITHOUT_TEACHER, scaling.WITH_TEACHER)
    assert [work.kind for work in trainings(of("voc_15-5_ft"))] == [scaling.WITHOUT_TEACHER] * 2
    for name in ("plop", "cfs"):
        once = [work for _, work in of(f"voc_15-5_{name}") if work.output.endswith(":once")]
        assert [(work.kind, work.images) for work in once] == [("forward", 2145)]
    assert [work.kind for work in trainings(of("voc_15-5_plop"))] == ["ft", "plop"]
    assert len(trainings(of("voc_15-5_cfs"))) == 1
    assert len([1 for _, work in of("voc_15-5_mib_awt") if work.rule == "attribute"]) == 1


def test_splits_of_the_results_say_more_than_lists(tmp_path: Path) -> None:
    folder = tmp_path / "voc" / "15"
    folder.mkdir(parents=True)
    rows = [f"0,{subset},a,b" for subset in ("train", "train", "train", "test")]
    (folder / "split.csv").write_text("\n".join(["step,subset,image,mask", *rows]) + "\n")
    chosen = chosen_experiments(CONFIG, ["voc_15-5_ft"])
    found = [work for _, work in works(CONFIG, chosen, tmp_path)]
    assert [work.images for work in found if "/step0/" in work.output] == [3 * 30, 1]


def test_an_unknown_data_set_needs_its_split() -> None:
    with pytest.raises(SystemExit, match="nothing is known of the images of shapes 10: make its"):
        of("shapes_10-5_ft")


def test_measured_speeds_take_the_place_of_the_assumption(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    rows = [
        {"what": name, "unit": unit, "ours": value}
        for name, unit, value in (
            ("ft, images from files", "images/s", 100.0),
            ("mib, images from files", "images/s", 50.0),
            ("mib", "images/s", 55.0),
            ("mib: peak memory", "GiB", 20.0),
        )
    ]
    sections = {"training-voc-24": {"tiny": False, "rows": rows}}
    path.write_text(json.dumps({"sections": sections}))
    speeds = scaling.measured_speeds(path)
    assert speeds == {("ft", "voc"): 100.0, ("mib", "voc"): 50.0}
    first, second = trainings(of("voc_15-5_mib"))
    assert scaling.seconds(CONFIG, first, speeds) == 1 / 100
    assert scaling.seconds(CONFIG, second, speeds) == 1 / 50
    forward = next(work for _, work in of("voc_15-5_mib") if work.rule == "evaluate")
    # A third of a training image's FLOPs, but for the gradient of the images.
    assert scaling.seconds(CONFIG, forward, speeds) == pytest.approx(1 / 300, rel=0.01)
    everything = of("voc_15-5_ft", "voc_15-5_mib")
    later, base = 2145 * 30 * (1 / 100 + 1 / 50), 9568 * 30 / 100
    for found, bases in ((unshared(everything), 2), (shared(everything), 1)):
        spent = scaling.add_up(CONFIG, trained(found), speeds)
        assert spent.hours == pytest.approx((bases * base + later) / 3600)
        assert (spent.runs, spent.trainings) == (2, bases + 2)
    text = scaling.hours(CONFIG, ["voc_15-5_ft", "voc_15-5_mib"], Path("absent"), path)
    assert "From measured images a second (ft voc: 100, mib voc: 50)" in text
    sections["training-voc-24"]["tiny"] = True
    path.write_text(json.dumps({"sections": sections}))
    assert scaling.measured_speeds(path) == {}
    assert "Assumption, not a measurement" in scaling.hours(
        CONFIG, ["voc_15-5_ft"], Path("absent"), path
    )


def test_the_page_has_the_marks() -> None:
    page = (REPOSITORY / "docs" / "benchmarks.md").read_text()
    assert page.count(scaling.BEGIN) == page.count(scaling.END) == 1
