"""Published numbers: what the file holds, which are chosen, and what they may stand beside."""

from __future__ import annotations

import math
import re
from typing import Any

import pandas as pd
import pytest
import yaml
from helpers import REPOSITORY

from ciss import comparison, published, reports, results, table_formats, tables
from ciss import config as configuration
from ciss.config import checked, merged
from ciss.experiments import matrix_experiments, parse_experiment
from ciss.reports import ReportedRun

DEFAULTS: dict[str, Any] = yaml.safe_load((REPOSITORY / "config.yaml").read_text())
FILE: dict[str, Any] = yaml.safe_load(published.FILE.read_text())
ENTRIES = [
    (dataset, scenario, entry)
    for dataset, scenarios in FILE["results"].items()
    for scenario, entries in scenarios.items()
    for entry in entries
]
KEYS = sorted({f"{dataset}/{scenario}/{entry['run']}" for dataset, scenario, entry in ENTRIES})
CLASSES = {"voc": 20, "ade": 150, "cityscapes": 19}


def match(name: str, **change: Any) -> published.Match:
    config = checked(merged(DEFAULTS, change))
    return published.match(config, parse_experiment(config, name))


def match_base(name: str, **change: Any) -> published.Match:
    config = checked(merged(DEFAULTS, change))
    return published.match_base(config, parse_experiment(config, name))


# --- The file ------------------------------------------------------------------------------


def test_every_entry_is_complete_and_names_its_sources() -> None:
    fields = {"run", "old", "new", "all", "background", "kind", "sources", "confidence", "note"}
    fields |= {"options"}
    used = {row["source"] for steps in FILE["base_steps"].values() for row in steps.values()}
    for *_, entry in ENTRIES:
        assert entry.keys() <= fields, entry
        assert entry.keys() & {"old", "new", "all"}, entry
        assert all(0 <= entry[name] <= 100 for name in ("old", "new", "all") if name in entry)
        assert entry.get("kind", "comparison") in published.KINDS
        assert entry.get("confidence", "seen") in published.CONFIDENCES
        # What was computed says how.
        assert entry.get("confidence") != "derived" or "note" in entry
        used |= set(entry["sources"])
    assert used == FILE["sources"].keys()


@pytest.mark.parametrize("key", KEYS)
def test_every_key_is_an_experiment_or_a_method_to_come(key: str) -> None:
    dataset, scenario, run = key.split("/")
    config = checked(DEFAULTS)
    if run.startswith("ssul") and "ssul" not in published.methods.names():
        run = "ft"
    assert parse_experiment(config, f"{dataset}_{scenario}_{run}").scenario.name == scenario


@pytest.mark.parametrize("case", ENTRIES, ids=lambda case: "-".join(map(str, case[:2])))
def test_old_new_and_all_agree_with_the_count_of_the_background(case: Any) -> None:
    dataset, scenario, entry = case
    if not {"old", "new", "all"} <= entry.keys() or "do not agree" in entry.get("note", ""):
        return
    base = int(scenario.partition("-")[0]) + entry.get("background", True)
    new = CLASSES[dataset] - int(scenario.partition("-")[0])
    mean = (base * entry["old"] + new * entry["new"]) / (base + new)
    # One decimal may be all that was printed of each of the three.
    assert mean == pytest.approx(entry["all"], abs=0.1), entry


def test_the_published_recipe_is_our_default() -> None:
    config = checked(DEFAULTS)
    ours = [e for name in config["paper"] for e in matrix_experiments(config, name)]
    matches = [published.match(config, experiment) for experiment in ours]
    # But for EWC's importance, which only MiB's preset has as published.
    departing = {e.method.name for e, match in zip(ours, matches, strict=True) if match.departures}
    assert departing == {"ewc"}
    # Of the paper's matrices, so many have numbers to be compared with.
    assert sum(bool(match.key) for match in matches) >= 45
    assert {key.partition("/")[0] for key, *_ in matches if key} == {"voc", "ade", "cityscapes"}


@pytest.mark.parametrize("name", ["ssul", "ssul_awt", "ssul-m", "cfs"])
def test_numbers_of_methods_whose_authors_train_otherwise_say_so(name: str) -> None:
    found = match(f"voc_15-1_{name}")
    assert (found.key, found.departures) == (f"voc/15-1/{name}", ())
    assert " authors train " in found.otherwise
    assert published.numbers(found.key, background=True)["all"].kind == "paper"
    assert not match("voc_15-1_mib_awt").otherwise


def test_what_their_authors_set_is_no_departure_and_anything_else_is() -> None:
    theirs = {
        "model": {"norm": "bn", "weights": "torchvision"},
        "recipe": {"batch": 32, "base": {"epochs": 50, "lr": 0.01}, "later": {"epochs": 50}},
        "methods": {"ssul": {"heads": "conv", "saliency": "/data/maps"}},
    }
    assert match("voc_15-1_ssul", **theirs).departures == ()
    assert match("ade_100-50_ssul").departures == ()
    for change, words in (
        ({"recipe": {"batch": 16}}, "recipe.batch is 16 (published: 24 or 32)"),
        ({"methods": {"ssul": {"confidence": 0.9}}}, "ssul-m.confidence is 0.9 (published: 0.7)"),
        ({"methods": {"ssul-m": {"memory": 50}}}, "ssul-m.memory is 50 (published: 100)"),
        ({"evaluation": {"mode": "full"}}, "evaluation.mode is full (published: crop)"),
    ):
        found = match("voc_15-1_ssul-m", **change).departures
        assert any(words in said for said in found), found
    # With other methods the authors' values of SSUL are departures as before.
    assert match("voc_15-1_mib", recipe={"batch": 32}).departures


def test_no_difference_is_taken_of_numbers_that_were_trained_otherwise() -> None:
    runs = [
        ReportedRun("voc", "15-1", name, "", (16, 1, 1, 1, 1, 1), "x") for name in ("ssul", "plop")
    ]
    made = reports.summary_of_all(reports.tidy_table([]), runs, [1])
    made[results.SCORES] = 60.0
    keys = {f"voc_15-1_{run.run}": f"voc/15-1/{run.run}" for run in runs}
    distances = comparison.distances(made, keys, {"voc_15-1_ssul": "with other batches"})
    assert comparison.say_overall(distances).startswith("6 of 6 published cells")
    (table,) = tables.beside_published(distances, made)
    text = table_formats.markdown(table)
    assert "| SSUL | 60.00 | 77.31 ‡ | – | 60.00 | 36.59 ‡ | – | 60.00 | 67.61 ‡ | – |" in text
    assert "| PLOP | 60.00 | 65.12 | -5.12 |" in text
    assert "‡: its authors train otherwise" in text
    assert r"67.61 $\ddagger$" in table_formats.latex(table)
    report = tables.distance_report(distances, comparison.base_steps(tidy({}), {}, {}), {})
    assert "- `voc_15-1_ssul`: with other batches" in report
    assert "‡" not in table_formats.markdown(
        tables.beside_published(comparison.distances(made, keys), made)[0]
    )


# --- Which number is shown -----------------------------------------------------------------


def test_the_paper_that_proposes_a_run_goes_first_then_tables_then_reruns() -> None:
    plop = published.numbers("voc/15-1/plop", background=True)["all"]
    assert (plop.value, plop.kind) == (54.64, "paper")
    assert plop.others == (49.7, 56.2)
    assert plop.sources[0] == "CFSSeg"
    # Seen in others' tables only: a whole row before single values, then the order of the file.
    mib = published.numbers("voc/15-5/mib", background=True)
    assert {score: number.value for score, number in mib.items()} == {
        "old": 75.3,
        "new": 48.68,
        "all": 68.96,
    }
    assert mib["all"].others == (70.0, 70.2)
    # Nothing but a rerun.
    assert published.numbers("voc/15-1/mib_random", background=True)["all"].kind == "rerun"


def test_numbers_with_and_without_the_background_are_never_mixed() -> None:
    with_it = published.numbers("voc/15-1/mib", background=True)
    without = published.numbers("voc/15-1/mib", background=False)
    assert (with_it["old"].value, with_it["all"].value) == (34.22, 29.29)
    assert without["old_without_background"].value == 35.1
    assert without["all_without_background"].value == 29.7
    assert without.keys().isdisjoint({"old", "all"})
    # A rerun that leaves the background out is no rerun of the number that counts it.
    assert without["all_without_background"].others == (35.16, 35.16)
    assert published.numbers("voc/15-5/ewc", background=True) == {}


def test_nothing_published_is_nothing() -> None:
    assert published.entries("shapes/10-5/mib") == []
    assert published.numbers("voc/15-1/pi", background=True) == {}


# --- Which runs may be compared ------------------------------------------------------------


def test_a_run_is_found_by_what_it_is_not_by_what_it_is_called() -> None:
    assert match("voc_15-1_mib_awt") == published.Match("voc/15-1/mib_awt", ())
    assert match("voc_15-5_mib_mib").key == "voc/15-5/mib"
    assert match("voc_15-1-disjoint_plop").key == "voc/15-1-disjoint/plop"
    assert match("voc_offline_ft").key == "voc/offline/ft"
    # Another name for the same options.
    same = match("voc_15-1_mine_awt", methods={"mine": {"method": "mib", "distillation": 10}})
    assert same == published.Match("voc/15-1/mib_awt", ())
    per_class = match("ade_100-50_mib_awt-perclass")
    assert per_class == published.Match("ade/100-50/mib_awt", ())


def test_what_is_not_published_has_no_key() -> None:
    for name in ("voc_15-1_plop_awt", "voc_15-1a_mib", "voc_17-1_mib", "shapes_10-5_mib"):
        assert match(name) == published.Match("", ())


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("voc_15-1_mib", {"recipe": {"batch": 12}}, "recipe.batch is 12 (published: 24)"),
        (
            "voc_15-1_mib",
            {"recipe": {"later": {"epochs": 3}}},
            "recipe.later.epochs is 3 (published: 30)",
        ),
        (
            "ade_100-50_mib",
            {"datasets": {"ade": {"recipe": {"base": {"epochs": 30}}}}},
            "recipe.base.epochs is 30 (published: 60)",
        ),
        (
            "voc_15-1_mib",
            {"model": {"backbone": "resnet50", "norm": "bn", "weights": "torchvision"}},
            "model.backbone is resnet50 (published: resnet101)",
        ),
        ("voc_15-1_mib", {"evaluation": {"mode": "full"}}, "evaluation.mode is full"),
        (
            "voc_15-5_mib",
            {"methods": {"mib": {"distillation": 100}}},
            "methods.mib.distillation is 100.0 (published: 10.0)",
        ),
        (
            "voc_15-1_mib_awt",
            {"initialisations": {"awt": {"fraction": 0.5}}},
            "initialisations.awt.fraction is 0.5 (published: 0.25)",
        ),
        (
            "cityscapes_14-1_mib_awt",
            {"datasets": {"cityscapes": {"background": "ignore"}}},
            "datasets.cityscapes.background is ignore (published: unlabelled)",
        ),
        ("voc_15-1_mib", {"datasets": {"voc": {"subset": True}}}, "datasets.voc.subset is True"),
        (
            "voc_15-1_mib",
            {"methods": {"mib": {"distillation": 5}}},
            "is 5.0 (published: 100.0 or 10",
        ),
        ("voc_15-1_mib_awt", {"preset": "mib"}, "distillation is 100.0 (published: 10.0)"),
        ("voc_15-5_ewc", {}, "methods.ewc.importance is 100.0 (published: 500.0)"),
        ("voc_15-1_mib", {"recipe": {"accumulate": 4}}, "accumulate is 4 (published: 1 or 2)"),
        (
            "voc_15-1_mib_awt",
            {"attribution": {"method": "captum:LayerActivation"}},
            "attribution.method is captum:LayerActivation (published: closed_form or captum)",
        ),
        ("ade_100-5_mib_awt-perclass", {}, "grouping is per_class (published: joint)"),
        (
            "voc_15-1_mib",
            {"datasets": {"voc": {"scenarios": {"15-1": {"recipe": {"later": {"lr": 0.01}}}}}}},
            "recipe.later.lr is 0.01 (published: 0.001)",
        ),
    ],
)
def test_a_run_that_was_not_trained_as_published_says_why(
    name: str, change: dict[str, Any], words: str
) -> None:
    departures = match(name, **change).departures
    assert any(words in departure for departure in departures), departures


def test_what_changes_no_result_is_no_departure() -> None:
    change = {
        "runtime": {"workers": 0},
        "evaluation": {"batch": 2},
        "model": {"weights": "/data/resnet101_iabn_sync.pth.tar"},
        "recipe": {"precision": "fp32", "accumulate": 2},
        "attribution": {"method": "captum:LayerActivation"},
    }
    assert match("voc_15-1_mib", **change).departures == ()
    # A setting of another scenario or data set does not matter either.
    other = {"datasets": {"ade": {"recipe": {"later": {"lr": 0.5}}}}}
    assert match("voc_15-1_mib", **other).departures == ()


def test_the_mib_presets_constants_are_published_too() -> None:
    config = checked({**DEFAULTS, "preset": "mib"})
    mib = parse_experiment(config, "voc_15-1_mib")
    assert mib.method.options["distillation"] == 100
    assert published.match(config, mib) == published.Match("voc/15-1/mib", ())
    config = checked(merged({**DEFAULTS, "preset": "mib"}, {"recipe": {"batch": 8}}))
    assert len(published.match(config, mib).departures) == 1


def test_numbers_that_were_made_with_other_constants_are_left_out() -> None:
    found = match("voc_15-1_mib")
    assert found.key == "voc/15-1/mib/distillation=10.0"
    assert found.departures == ()
    said = "methods.mib.distillation is 10.0 (published: 100.0)"
    assert f"not beside DKD, MiB-issue-22: {said}" in found.left_out
    # Of the rest it is not known; MiB's own number is made with 100.
    assert published.numbers(found.key, background=True)["all"].value == 33.53
    assert published.numbers(found.key, background=False) == {}
    own = match("voc_15-1_mib", methods={"mib": {"distillation": 100}})
    assert (own.departures, own.left_out) == ((), ())
    assert published.numbers(own.key, background=False)["new"].value == 13.5
    assert match("voc_15-5_ewc", preset="mib") == published.Match("voc/15-5/ewc", ())


def test_other_classes_of_a_data_set_are_not_the_published_ones() -> None:
    names = configuration.dataset(checked(DEFAULTS), "voc").classes[1:]
    change = {"datasets": {"voc": {"classes": [*reversed(names)]}}}
    assert match("voc_15-1_mib", **change).departures == ("datasets.voc.classes are others",)
    assert match_base("voc_15-1_mib", **change).departures == ("datasets.voc.classes are others",)


# --- Step 0 --------------------------------------------------------------------------------


def test_step_0_is_compared_where_it_is_a_cross_entropy_on_the_published_classes() -> None:
    assert match_base("voc_15-1_mib") == published.Match("voc/15", ())
    assert match_base("voc_15-5_ewc") == published.Match("voc/15", ())
    assert match_base("ade_50-50_ft").key == "ade/50"
    for name in ("voc_15-1_lwf-mc", "voc_15-1-disjoint_mib", "voc_15-1a_mib", "voc_10-1_mib"):
        assert match_base(name) == published.Match("", ())
    # Later steps do not change it.
    assert match_base("voc_15-1_mib", recipe={"later": {"lr": 1}}).departures == ()
    assert match_base("voc_15-1_mib", recipe={"base": {"lr": 1}}).departures != ()


def tidy(ious: dict[tuple[str, int], float]) -> pd.DataFrame:
    """Step 0 of VOC 15-1 in which each class has the same IoU, by run and seed."""
    rows = [
        ("voc", "15-1", run, run, "", seed, 0, i, f"c{i}", 0, iou, 5, 15, 20, 6)
        for (run, seed), iou in ious.items()
        for i in range(16)
    ]
    head = [*results.KEYS, "step", "class_index", "class_name", "learned_at", "iou", "images"]
    return pd.DataFrame(rows, columns=[*head, *results.PROTOCOL])


STEP_0_OF = {("voc", "15-1", run): "voc/15/ce" for run in ("ft", "mib")}


@pytest.mark.parametrize(
    ("iou", "reached"),
    [(80.4, True), (79.6, True), (81.2, True), (79.59, False), (81.21, False), (60.0, False)],
)
def test_the_gate_of_step_0(iou: float, reached: bool) -> None:
    table = comparison.base_steps(tidy({("ft", 1): iou}), STEP_0_OF, {"voc/15/ce": "voc/15"})
    assert table["reached"].tolist() == [reached]
    said = comparison.say_missed(table)
    if reached:
        assert said == []
    else:
        assert said == [
            f"Step 0 of voc/15/ce has {iou:.2f}, not 80.4 ± 0.8 (MiB-issue-19): look at it before "
            "comparing."
        ]


def test_a_shared_step_0_is_compared_once_for_each_seed() -> None:
    shared = tidy({(run, seed): 80.0 + seed for run in ("ft", "mib") for seed in (0, 1, 2)})
    table = comparison.base_steps(shared, STEP_0_OF, {"voc/15/ce": "voc/15"})
    assert table["seed"].tolist() == [0, 1, 2]
    assert comparison.say_missed(table)[0].startswith("Step 0 of voc/15/ce has 82.00, not")
    assert comparison.base_steps(shared, STEP_0_OF, {}).empty
    assert comparison.say_missed(comparison.base_steps(shared, STEP_0_OF, {})) == []


# --- Ours beside them ----------------------------------------------------------------------

RUNS = [
    ReportedRun("voc", "15-1", "plop", "", (16, 1, 1, 1, 1, 1), "15/ce"),
    ReportedRun("voc", "15-1", "mib", "", (16, 1, 1, 1, 1, 1), "15/ce"),
    ReportedRun("voc", "15-1", "mib", "awt", (16, 1, 1, 1, 1, 1), "15/ce"),
    ReportedRun("voc", "15-1", "pi", "", (16, 1, 1, 1, 1, 1), "15/ce-importance"),
]
BESIDE = {f"voc_15-1_{run.run}": f"voc/15-1/{run.run}" for run in RUNS[:3]}


def summary(seeds: int) -> pd.DataFrame:
    """PLOP and MiB have all seeds, MiB + AWT has nothing yet, PI no published number."""
    made = reports.summary_of_all(reports.tidy_table([]), RUNS, range(seeds))
    for run, value in (("plop", 60.0), ("mib", 30.0), ("pi", 10.0)):
        mine = made["run"] == run
        for score in results.SCORES:
            made.loc[mine, score] = [value + 2 * seed for seed in range(seeds)]
    return made


def test_differences_are_to_the_mean_over_seeds() -> None:
    distances = comparison.distances(summary(3), BESIDE).set_index(["run", "score", "background"])
    plop = distances.loc[("plop", "all", True)]
    assert (plop["ours"], plop["sd"], plop["seeds"]) == (62.0, 2.0, 3)
    assert plop["difference"] == pytest.approx(62 - 54.64)
    assert plop["others_lowest"] == 49.7
    # Each with its like: 30 beside 34.22 with the background and 35.1 without.
    for score, background, value in (
        ("old", True, 34.22),
        ("new", True, 13.5),
        ("old_without_background", False, 35.1),
        ("new", False, 13.5),
    ):
        assert distances.loc[("mib", score, background), "difference"] == pytest.approx(32 - value)
    awt = distances.loc[("mib_awt", "all", True)]
    assert (awt["published"], awt["seeds"]) == (49.1, 0)
    assert math.isnan(awt["difference"])
    assert "pi" not in distances.index.get_level_values("run")


def test_the_table_beside_published_numbers() -> None:
    (table,) = tables.beside_published(comparison.distances(summary(3), BESIDE), summary(3))
    text = table_formats.markdown(table)
    assert "### Pascal VOC 2012 15-1, beside published numbers" in text
    head = "| Method | 0-15: ours | publ. | diff. | 16-20: ours | publ. | diff. | all: ours |"
    assert head in text
    assert "| PLOP | 62.00 ± 2.00 | 65.12 | -3.12 | 62.00 ± 2.00 | 21.11 | +40.89 |" in text
    assert "| MiB + AWT | – | 59.1 | – | – | 17.2 | – | – | 49.1 | – | CFSSeg |" in text
    assert re_found(text, r"^\| MiB \| .*34\.22 .*\| 29\.29 .*\| CFSSeg \|$")
    assert re_found(text, r"^\| MiB, no background \| .*35\.1 .*\| 29\.7 .*\| DKD \|$")
    assert "PI" not in text
    assert "†" not in text


def re_found(text: str, pattern: str) -> bool:
    return re.search(pattern, text, re.MULTILINE) is not None


def test_ours_is_there_where_nothing_is_published_of_a_cell() -> None:
    run = ReportedRun("voc", "15-1", "lwf", "", (16, 1, 1, 1, 1, 1), "15/ce")
    made = reports.summary_of_all(reports.tidy_table([]), [run], [1])
    made[results.SCORES] = 40.0
    distances = comparison.distances(made, {"voc_15-1_lwf": "voc/15-1/lwf"})
    (table,) = tables.beside_published(distances, made)
    text = table_formats.markdown(table)
    assert "| LWF | 40.00 | – | – | 40.00 | – | – | 40.00 | 5.5 | +34.50 | RCIL |" in text


def test_what_was_not_printed_so_is_marked_and_its_sources_are_told_apart() -> None:
    run = ReportedRun("ade", "100-50", "mib", "awt", (101, 50), "100/ce")
    made = reports.summary_of_all(reports.tidy_table([]), [run], [1])
    made[results.SCORES] = 40.0
    distances = comparison.distances(made, {"ade_100-50_mib_awt": "ade/100-50/mib_awt"})
    (table,) = tables.beside_published(distances, made)
    text = table_formats.markdown(table)
    assert "| 40.9 † | -0.90 | 40.00 | 24.9 † | +15.10 | 40.00 | 35.6 | +4.40 |" in text
    assert "| old, new: AWT-best; all: AWT-results |" in text
    assert "inferred or derived" in text


def test_the_distance_report_has_a_line_for_each_cell() -> None:
    distances = comparison.distances(summary(1), BESIDE)
    steps = comparison.base_steps(tidy({("ft", 1): 70.0}), STEP_0_OF, {"voc/15/ce": "voc/15"})
    text = tables.distance_report(distances, steps, {"voc_15-1_ft": "recipe.batch is 12"})
    lines = text.splitlines()
    assert sum(line.startswith(r"| voc\_15-1\_") for line in lines) == len(distances) == 15
    assert "12 of 15 published cells have a result of ours" in text
    assert "the largest in voc_15-1_plop new (+39.23)" in text
    assert "| voc/15/ce seed 1 | 70.00 | 80.4 ± 0.8 | -10.40 | NO | MiB-issue-19 |" in text
    assert (
        r"| voc\_15-1\_mib | 1-15 | 30.00 | 35.1 | -5.10 | 42.15 | DKD, MiB-issue-22 | paper |"
        in text
    )
    assert r"| voc\_15-1\_plop | 0-20 | 60.00 | 54.64 | +5.36 | 49.7-56.2 | CFSSeg," in text
    assert "- `voc_15-1_ft`: recipe.batch is 12" in text
    for key in ("CFSSeg", "DKD", "MiB-issue-19"):
        assert f"- `{key}`: " in text
    assert "- `cssegmentation`" not in text


def test_without_published_numbers_there_are_no_tables_and_one_sentence() -> None:
    distances = comparison.distances(summary(1), {})
    assert tables.beside_published(distances, summary(1)) == []
    steps = comparison.base_steps(tidy({("ft", 1): 70.0}), STEP_0_OF, {})
    assert tables.distance_report(distances, steps, {}) == (
        "# Distance to the papers\n\nNothing is published of these experiments.\n"
    )


def test_a_report_of_which_nothing_is_there_yet() -> None:
    nothing = reports.summary_of_all(reports.tidy_table([]), RUNS, [1])
    distances = comparison.distances(nothing, BESIDE)
    said = comparison.say_overall(distances)
    assert said == "None of 15 published cells has a result of ours yet."
