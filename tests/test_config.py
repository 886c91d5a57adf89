"""The configuration: what is refused and how, how its levels merge, and what its files hold."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import REPOSITORY
from sentences import assert_refused, run_call

from ciss import config as configuration
from ciss.config import checked, dataset, merged, read_config, scenario, settings
from ciss.errors import CissError
from ciss.experiments import parse_experiment

DEFAULTS: dict[str, Any] = yaml.safe_load((REPOSITORY / "config.yaml").read_text())
SCHEMA: dict[str, Any] = yaml.safe_load(configuration.SCHEMA.read_text())
NAN, INF = float("nan"), float("inf")
#: a matrix that is in order, to be changed by a case
MATRIX = {"dataset": "voc", "scenarios": ["15-1"], "runs": ["ft"]}
#: the configured matrices of VOC with a scenario that fits two classes too
NO_VOC = {
    name: {"scenarios": ["offline"], "runs": ["ft"]}
    for name, matrix in DEFAULTS["matrices"].items()
    if matrix["dataset"] == "voc"
}


def with_change(**change: Any) -> dict[str, Any]:
    """Lay a change over config.yaml, as ``--configfile`` and ``--config`` do."""
    return merged(DEFAULTS, change)


def matrix(**change: Any) -> dict[str, Any]:
    return {"matrices": {"mine": {**MATRIX, **change}}}


FILES = {"images": "i", "masks": "m", "val_fraction": 0.2}


def own(**change: Any) -> dict[str, Any]:
    entry = {"kind": "folders", "root": "x", "classes": ["a", "b"], "files": FILES}
    return {"datasets": {"own": {**entry, **change}}}


WRONG: list[tuple[dict[str, Any], list[str]]] = [
    # a key that does not exist, at every level
    ({"recpie": {}}, ["'recpie'", "did you mean 'recipe'", "evaluation"]),
    ({"runtime": {"worker": 2}}, ["runtime", "'worker'", "'workers'"]),
    ({"model": {"backbon": "x"}}, ["model", "'backbon'", "'backbone'"]),
    ({"recipe": {"momentun": 0.5}}, ["recipe", "'momentun'", "'momentum'"]),
    ({"recipe": {"base": {"epoch": 1}}}, ["recipe.base", "'epoch'", "'epochs'"]),
    ({"attribution": {"step": 5}}, ["attribution", "'step'", "'steps'"]),
    ({"evaluation": {"modes": 5}}, ["evaluation", "'modes'", "'mode'"]),
    ({"figures": {"font": 5}}, ["figures", "'font'", "'font_size'"]),
    ({"datasets": {"voc": {"rot": "x"}}}, ["datasets.voc", "'rot'", "'root'"]),
    (
        {"datasets": {"ade": {"recipe": {"later": {"lrr": 1}}}}},
        ["datasets.ade.recipe.later", "'lrr'", "'lr'"],
    ),
    (
        {"datasets": {"ade": {"scenarios": {"100-10": {"recipee": {}}}}}},
        ["datasets.ade.scenarios.100-10", "'recipee'", "'recipe'"],
    ),
    (
        {"datasets": {"shapes": {"generate": {"sise": 1}}}},
        ["datasets.shapes.generate", "'sise'", "'size'"],
    ),
    ({"matrices": {"my_partial": MATRIX}}, ["matrices.my_partial", "choose another name"]),
    (
        {"initialisations": {"partial": {"initialisation": "awt"}}},
        ["initialisations.partial", "choose another name"],
    ),
    (matrix(run=["ft"]), ["matrices.mine", "'run'", "'runs'"]),
    ({"methods": {"mib": {"distilation": 1}}}, ["methods.mib", "'distilation'", "'distillation'"]),
    (
        {"initialisations": {"awt": {"fractoin": 1}}},
        ["initialisations.awt", "'fractoin'", "'fraction'"],
    ),
    # a value of the wrong type
    ({"recipe": {"batch": "many"}}, ["recipe.batch", "'many'", "integer"]),
    ({"recipe": {"batch": 8.5}}, ["recipe.batch", "8.5", "integer"]),
    ({"recipe": {"base": {"epochs": 2.0}}}, ["recipe.base.epochs", "2.0", "integer"]),
    ({"recipe": {"base": {"epochs": True}}}, ["recipe.base.epochs", "True", "integer"]),
    ({"recipe": {"base": {"lr": [0.1]}}}, ["recipe.base.lr", "[0.1]", "number"]),
    ({"seeds": 1}, ["seeds", "1", "list"]),
    ({"seeds": ["one"]}, ["seeds.0", "'one'", "integer"]),
    ({"datasets": []}, ["datasets", "[]", "mapping"]),
    ({"results": 3}, ["results", "3", "text"]),
    ({"methods": {"mib": {"distillation": "strong"}}}, ["methods.mib", "'strong'", "number"]),
    ({"methods": {"mib": {"distillation": True}}}, ["methods.mib.distillation", "True", "number"]),
    ({"methods": {"ewc": {"normalise": 1}}}, ["methods.ewc.normalise", "1", "true or false"]),
    ({"initialisations": {"awt": {"pooling": 3}}}, ["initialisations.awt.pooling", "3", "text"]),
    # a number out of range
    ({"recipe": {"crop": -512}}, ["recipe.crop", "-512", "at least 16"]),
    ({"recipe": {"weight_decay": -1}}, ["recipe.weight_decay", "-1", "at least 0"]),
    ({"recipe": {"momentum": 1}}, ["recipe.momentum", "1", "less than 1"]),
    ({"recipe": {"base": {"epochs": 0}}}, ["recipe.base.epochs", "0", "at least 1"]),
    ({"recipe": {"later": {"lr": 0}}}, ["recipe.later.lr", "0", "more than 0"]),
    ({"recipe": {"batch": 1}}, ["recipe.batch", "1", "at least 2"]),
    ({"runtime": {"workers": -1}}, ["runtime.workers", "-1", "at least 0"]),
    ({"seeds": [-1]}, ["seeds.0", "-1", "at least 0"]),
    ({"methods": {"mib": {"distillation": -1}}}, ["methods.mib.distillation", "-1", "from 0"]),
    ({"recipe": {"base": {"lr": NAN}}}, ["recipe.base.lr", "nan", "finite"]),
    ({"recipe": {"later": {"lr": INF}}}, ["recipe.later.lr", "inf", "finite"]),
    ({"recipe": {"later": {"lr": "nan"}}}, ["recipe.later.lr", "nan", "finite"]),
    ({"methods": {"mib": {"distillation": NAN}}}, ["methods.mib.distillation", "nan", "number"]),
    ({"methods": {"mib": {"distillation": INF}}}, ["methods.mib.distillation", "inf", "finite"]),
    ({"methods": {"mib": {"distillation": "inf"}}}, ["methods.mib.distillation", "inf", "number"]),
    # lists that are empty or name something twice
    ({"seeds": []}, ["seeds", "[]", "at least 1"]),
    (matrix(scenarios=[]), ["matrices.mine.scenarios", "[]", "at least 1"]),
    (matrix(runs=[]), ["matrices.mine.runs", "[]", "at least 1"]),
    ({"seeds": [1, 2, 1]}, ["seeds", "[1, 2, 1]", "twice"]),
    (matrix(runs=["ft", "ft"]), ["matrices.mine.runs", "'ft'", "twice"]),
    (matrix(runs=["mib", "mib_mib"]), ["matrices.mine", "voc_15-1_mib", "'mib_mib'", "twice"]),
    ({"datasets": {"voc": {"classes": ["cat", "cat"]}}}, ["datasets.voc.classes", "cat", "twice"]),
    ({"prepare": {"checksums": {"a.zip": "12ab"}}}, ["prepare.checksums.a.zip", "12ab", "SHA-256"]),
    ({"prepare": {"miror": "x"}}, ["prepare", "'miror'", "'mirror'"]),
    # a word that is not one of those allowed
    ({"model": {"backbone": "resnet102"}}, ["model.backbone", "'resnet102'", "'resnet101'"]),
    ({"model": {"output_stride": 4}}, ["model.output_stride", "'4'", "8, 16"]),
    ({"model": {"norm": "bm"}}, ["model.norm", "'bm'", "abn, bn, iabn"]),
    ({"recipe": {"precision": "bf61"}}, ["recipe.precision", "'bf61'", "'bf16'"]),
    ({"evaluation": {"mode": "crops"}}, ["evaluation.mode", "'crops'", "'crop'"]),
    ({"attribution": {"method": "capt"}}, ["attribution.method", "'capt'", "captum"]),
    ({"runtime": {"device": "gpu"}}, ["runtime.device", "'gpu'", "auto", "cpu", "cuda"]),
    ({"runtime": {"gpus": "some"}}, ["runtime.gpus", "'some'", "auto", "number of GPUs"]),
    ({"runtime": {"gpus": -1}}, ["runtime.gpus", "-1", "at least 0"]),
    ({"runtime": {"gpus": 1.5}}, ["runtime.gpus", "1.5", "integer"]),
    ({"runtime": {"processes": 2}}, ["runtime.processes", "for a CPU", "runtime.device to cpu"]),
    ({"runtime": {"device": "cuda:1", "gpus": 2}}, ["'cuda:1', one GPU", "asks for 2"]),
    ({"recipe": {"accumulate": 5}}, ["recipe.accumulate", "5", "recipe.batch 24"]),
    ({"recipe": {"batch": 4, "accumulate": 4}}, ["recipe.accumulate", "two images"]),
    (
        {"datasets": {"voc": {"scenarios": {"15-1": {"recipe": {"accumulate": 7}}}}}},
        ["recipe.accumulate", "'voc', scenario 15-1", "recipe.batch 24"],
    ),
    ({"runtime": {"gpus": 25}}, ["24 images", "25 processes", "runtime.gpus lower"]),
    (
        {"runtime": {"gpus": 4}, "datasets": {"ade": {"recipe": {"accumulate": 8}}}},
        ["'ade'", "3 images at a time", "4 processes"],
    ),
    ({"runtime": {"gpus": 2}, "model": {"norm": "iabn"}}, ["'iabn'", "2 GPUs", "'abn'"]),
    ({"preset": "mbi"}, ["preset", "'mbi'", "'mib'", "awt"]),
    ({"preset": ["mib"]}, ["preset", "['mib']", "awt"]),
    (
        {"datasets": {"VOC": {"kind": "voc", "root": "x"}}},
        ["datasets", "'VOC'", "a name has lower-case letters"],
    ),
    (
        {"datasets": {"mine": {"kind": "vco", "root": "x"}}},
        ["datasets.mine.kind", "'vco'", "'voc'"],
    ),
    ({"datasets": {"mine": {"root": "x"}}}, ["datasets.mine", "'kind'", "missing"]),
    ({"datasets": {"mine": {"kind": "voc"}}}, ["datasets.mine.root", "missing", "folder"]),
    ({"datasets": {"voc": {"classes": ["cat", "dgo"]}}}, ["voc.classes", "'dgo'", "'dog'"]),
    ({"datasets": {"voc": {"classes": ["cat", "background"]}}}, ["voc.classes", "background"]),
    (
        {"datasets": {"voc": {"generate": DEFAULTS["datasets"]["shapes"]["generate"]}}},
        ["datasets.voc.generate", "shapes"],
    ),
    # settings of a data set that contradict each other
    ({"datasets": {"shapes": {"root": "x"}}}, ["datasets.shapes", "root and generate", "one"]),
    (
        {"datasets": {"voc": {"model": {"backbone": "resnet50"}}}},
        ["dataset 'voc'", "'published'", "resnet101", "resnet50"],
    ),
    (
        {"datasets": {"voc": {"model": {"weights": "torchvision"}}}},
        ["dataset 'voc'", "'torchvision'", "norm 'abn'", "set model.norm to bn"],
    ),
    (
        {
            "datasets": {"voc": {"classes": ["cat", "dog"]}},
            "matrices": {"mine": {**MATRIX, "scenarios": ["1-1a"]}, **NO_VOC},
        },
        ["matrices.mine", "'voc'", "an order of its own", "'a'"],
    ),
    ({"datasets": {"voc": {"subset": "some"}}}, ["datasets.voc.subset", "'some'", "boolean"]),
    ({"datasets": {"voc": {"background": "ignore"}}}, ["datasets.voc.background", "is a class"]),
    ({"datasets": {"ade": {"background": "void"}}}, ["ade.background", "unlabelled, ignore"]),
    ({"evaluation": {"images": "train"}}, ["evaluation.images", "'train'", "test, val"]),
    ({"datasets": {"voc": {"files": {"images": "i", "masks": "m"}}}}, ["voc.files", "folders"]),
    ({"datasets": {"voc": {"values": {"cat": 1}}}}, ["datasets.voc.values", "folders"]),
    (own(values={"a": 256, "b": 1}), ["own.values.a", "256", "at most 255"]),
    (own(values={"a": [], "b": 3}), ["own.values.a is []", "at least 1"]),
    (own(values={"a": [1, 2.5], "b": 3}), ["own.values.a.1", "2.5", "integer"]),
    (own(void=-1), ["datasets.own.void", "-1", "at least 0"]),
    (own(void=1), ["datasets.own", "1", "'a'", "'void'"]),
    (own(files={"images": "i"}), ["datasets.own.files", "'masks'", "missing"]),
    (own(files={"images": "i", "masks": "m"}), ["datasets.own.files", "in no way"]),
    (own(files={**FILES, "val_fraction": 1}), ["own.files.val_fraction", "less than 1"]),
    (own(files={**FILES, "maks": "m"}), ["datasets.own.files", "'maks'", "'masks'"]),
    (own(files={**FILES, "images": {"train": "t"}}), ["own.files.images", "'val'", "missing"]),
    ({"methods": {"mib100": {"method": "mbi"}}}, ["'mbi'", "'mib'", "plop"]),
    ({"methods": {"mib": {"method": "ft"}}}, ["methods.mib", "built-in", "another name"]),
    ({"initialisations": {"mib": {"initialisation": "awt"}}}, ["initialisations.mib", "built-in"]),
    (
        {
            "methods": {"mine": {"method": "ewc"}},
            "datasets": {"voc": {"methods": {"mine": {"method": "mib"}}}},
        },
        ["datasets.voc", "methods.mine", "ewc", "mib"],
    ),
    (
        {
            "datasets": {
                "voc": {"methods": {"mine": {"method": "ewc"}}},
                "ade": {"methods": {"mine": {"method": "mib"}}},
            },
        },
        ["datasets.voc.methods", "datasets.ade.methods", "mine", "'ewc'", "'mib'", "another name"],
    ),
    (
        {
            "datasets": {
                "voc": {
                    "methods": {"mine": {"method": "ewc"}},
                    "scenarios": {"15-1": {"methods": {"mine": {"method": "mib"}}}},
                },
            },
        },
        ["datasets.voc.scenarios.15-1.methods.mine", "'ewc'", "'mib'", "another name"],
    ),
    ({"initialisations": {"awt": {"pooling": "max"}}}, ["awt.pooling", "'max'", "max_after_mean"]),
    ({"initialisations": {"awt": {"grouping": "class"}}}, ["awt.grouping", "per_class"]),
    ({"initialisations": {"awt": {"fraction": 0}}}, ["awt.fraction", "0", "above 0"]),
    ({"initialisations": {"awt": {"fraction": 2.5}}}, ["awt.fraction", "2.5", "whole"]),
    ({"methods": {"rw": {"interval": 0}}}, ["rw.interval", "0", "at least 1"]),
    ({"methods": {"mibb": {}}}, ["methods.mibb", "'mibb'", "'mib'", "plop"]),
    ({"initialisations": {"awt50": {"initialisation": "atw"}}}, ["'atw'", "'awt'", "random"]),
    (
        {"datasets": {"voc": {"methods": {"mib": {"distilation": 1}}}}},
        ["datasets.voc.methods.mib", "'distilation'", "'distillation'"],
    ),
    (
        {"datasets": {"voc": {"scenarios": {"15-1": {"methods": {"mbi": {}}}}}}},
        ["datasets.voc.scenarios.15-1.methods.mbi", "'mib'"],
    ),
    # scenarios
    ({"datasets": {"voc": {"scenarios": {"15-3": {}}}}}, ["voc.scenarios", "'15-3'", "20 classes"]),
    ({"datasets": {"voc": {"scenarios": {15: {}}}}}, ["voc.scenarios", "'15'", "15-1"]),
    (
        {"datasets": {"voc": {"scenarios": {"15-1-disjiont": {}}}}},
        ["voc.scenarios", "'15-1-disjiont'", "did you mean 'disjoint'"],
    ),
    ({"datasets": {"voc": {"scenarios": {"fifteen": {}}}}}, ["voc.scenarios", "'fifteen'", "15-1"]),
    ({"datasets": {"voc": {"scenarios": {"15-1z": {}}}}}, ["voc.scenarios", "'z'", "a, b, c"]),
    ({"datasets": {"voc": {"scenarios": {"offline": {}}}}}, ["scenarios.offline", "step 0"]),
    (
        {"datasets": {"voc": {"scenarios": {"15-1": {"recipe": {"base": {"lr": 1}}}}}}},
        ["datasets.voc.scenarios.15-1.recipe.base", "shared", "datasets.voc.recipe.base"],
    ),
    # matrices, experiments and what the paper is made of
    (matrix(dataset="vco"), ["matrices.mine", "'vco'", "'voc'"]),
    (matrix(scenarios=["15-3"]), ["matrices.mine", "'15-3'", "do not divide"]),
    (matrix(scenarios=["15-1z"]), ["matrices.mine", "'z'", "a, b, c"]),
    (matrix(runs=["mibb"]), ["matrices.mine", "'mibb'", "'mib'"]),
    (matrix(runs=["mib_atw"]), ["matrices.mine", "'atw'", "'awt'"]),
    (matrix(runs=["mib_awt_awt"]), ["matrices.mine", "voc_15-1_mib_awt_awt"]),
    (matrix(scenarios=["offline"], runs=["ft_mib"]), ["matrices.mine", "voc_offline_ft"]),
    ({"paper": ["paper_vco"]}, ["paper", "'paper_vco'", "'paper_voc'"]),
    ({"experiments": ["voc_15-1_mbi"]}, ["experiments", "voc_15-1_mbi", "'mib'"]),
    ({"experiments": ["voc_15-1"]}, ["experiments", "'voc_15-1'", "dataset_scenario_method"]),
]


@pytest.mark.parametrize(("change", "words"), WRONG, ids=lambda value: str(value)[:70])
def test_a_wrong_configuration_is_one_sentence(change: dict[str, Any], words: list[str]) -> None:
    sentence = assert_refused(lambda: run_call(lambda: checked(with_change(**change))), words)
    assert "\n" not in sentence


@pytest.mark.parametrize(
    "section", ["results", "recipe", "datasets", "prepare", "matrices", "figures"]
)
def test_a_section_that_is_missing_is_named(section: str) -> None:
    config = copy.deepcopy(DEFAULTS)
    del config[section]
    with pytest.raises(CissError, match=f"the key '{section}' is missing"):
        checked(config)


@pytest.mark.parametrize(
    "path", [Path("config.yaml"), *sorted(Path("configs").rglob("*.yaml"))], ids=str
)
def test_the_configurations_of_the_repository_are_valid(path: Path) -> None:
    if path.parent.name == "presets":
        config = checked({**DEFAULTS, "preset": path.stem})
        assert config != checked(DEFAULTS)
        return
    config = read_config(REPOSITORY / "config.yaml", REPOSITORY / path)
    assert config["matrices"]


@pytest.mark.parametrize("path", sorted(Path("configs").glob("*.yaml")), ids=str)
def test_examples_run_on_a_part_of_a_release(path: Path) -> None:
    """Who tries one has a part of VOC at hand; the index would refuse it."""
    config = read_config(REPOSITORY / "config.yaml", REPOSITORY / path)
    used = {
        matrix["dataset"] for name, matrix in config["matrices"].items() if name in config["paper"]
    }
    for name in used:
        assert config["datasets"][name]["kind"] == "shapes" or config["datasets"][name]["subset"]


def test_checking_changes_neither_its_argument_nor_a_valid_configuration() -> None:
    config = copy.deepcopy(DEFAULTS)
    assert checked(config) == DEFAULTS
    assert config == DEFAULTS


@pytest.mark.parametrize("path", ["recipe.batch", "recipe.base.lr", "model.norm", "runtime.gpus"])
def test_a_setting_that_somebody_deleted_is_named(path: str) -> None:
    config = copy.deepcopy(DEFAULTS)
    *sections, key = path.split(".")
    section = config
    for name in sections:
        section = section[name]
    del section[key]
    words = [".".join(sections), f"the key '{key}' is missing; add it"]
    assert_refused(lambda: run_call(lambda: checked(config)), words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["the key 'results' is missing"]),
        (b"recipe: [", ["mine.yaml is no YAML", "in line"]),
        (b"recipe:\n\tcrop: 64\n", ["mine.yaml is no YAML", "line 2"]),
        (b"- recipe\n", ["mine.yaml is no configuration", "['recipe']"]),
        (b"\xff\xfe\x00recipe", ["cannot read the configuration", "mine.yaml", "a YAML file"]),
        (b"model: {norm: bn}\nrecipe: &r {crop: 64}\nmodel: {}\n", ["line 3", "'model'", "lost"]),
        (b"a: {<<: {b: 1}, <<: {c: 1}, d: 1, d: 2}\n", ["mine.yaml, line 1", "'a.d'", "as one"]),
    ],
)
def test_a_file_that_is_no_configuration(content: bytes, words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    assert_refused(lambda: run_call(lambda: read_config(path)), words, tmp_path)


def test_a_configuration_that_is_not_there(tmp_path: Path) -> None:
    words = ["absent.yaml", "No such file", "give a YAML file"]
    assert_refused(lambda: run_call(lambda: read_config(tmp_path / "absent.yaml")), words)


def test_numbers_given_as_text_are_read() -> None:
    """``--config 'recipe={batch: 8}'`` gives '8'."""
    text = {
        "recipe": {"batch": "8", "base": {"lr": "1e-3", "epochs": "2"}},
        "runtime": {"gpus": "2"},
        "seeds": ["4", "5"],
        "model": {"output_stride": "8"},
        "methods": {"mib": {"distillation": "5e-05"}, "ewc": {"normalise": "false"}},
        "initialisations": {"awt": {"fraction": "0.5", "pooling": "avg_after_mean"}},
        "figures": {"width": "5"},
    }
    config = checked(with_change(**text))
    assert config["recipe"]["batch"] == 8
    assert config["recipe"]["base"] == {"lr": 0.001, "epochs": 2}
    assert config["runtime"]["gpus"] == 2
    assert config["seeds"] == [4, 5]
    assert config["model"]["output_stride"] == 8
    assert config["figures"]["width"] == 5
    assert parse_experiment(config, "voc_15-1_mib").method.options["distillation"] == 5e-5
    assert parse_experiment(config, "voc_15-1_ewc").method.options["normalise"] is False
    options = parse_experiment(config, "voc_15-1_mib_awt").init.options
    assert (options["fraction"], options["pooling"]) == (0.5, "avg_after_mean")


def test_mask_values_given_as_text_are_read() -> None:
    text = own(values={"a": "1", "b": ["2", "3"]}, void="9", subset="true", background="ignore")
    config = checked(with_change(**text))
    entry = config["datasets"]["own"]
    assert (entry["values"], entry["void"]) == ({"a": 1, "b": [2, 3]}, 9)
    assert entry["subset"] is True
    assert dataset(config, "own").lookup[[0, 1, 2, 3, 9, 255]].tolist() == [255, 1, 2, 2, 255, -1]


@pytest.mark.parametrize(
    ("name", "images", "evaluated"),
    [("camvid", "test", "test"), ("camvid", "val", "val"), ("voc", "val", "test")],
)
def test_the_evaluated_list(name: str, images: str, evaluated: str) -> None:
    config = checked(with_change(evaluation={"images": images}))
    assert configuration.evaluated_images(config, name) == evaluated


def test_a_variant_keeps_its_kind_where_another_level_changes_an_option() -> None:
    change = {
        "methods": {"mine": {"method": "ewc"}},
        "datasets": {"voc": {"methods": {"mine": {"importance": 2}}}},
    }
    variants = configuration.method_variants(checked(with_change(**change)))
    assert (variants["mine"].kind, variants["plop"].kind) == ("ewc", "plop")


def test_levels_are_merged_key_by_key() -> None:
    change = {
        "recipe": {"crop": 256},
        "datasets": {
            "ade": {
                "recipe": {"batch": 12},
                "scenarios": {"100-10": {"recipe": {"later": {"lr": 0.5}}}},
            }
        },
    }
    config = checked(with_change(**change))
    ade = settings(config, "ade")["recipe"]
    assert (ade["crop"], ade["batch"], ade["momentum"]) == (256, 12, 0.9)
    assert ade["base"] == {"epochs": 60, "lr": 0.02}
    assert ade["later"] == {"epochs": 60, "lr": 0.001}
    later = settings(config, "ade", scenario(config, "ade", "100-10"))["recipe"]
    assert later["later"] == {"epochs": 60, "lr": 0.5}
    assert settings(config, "ade", scenario(config, "ade", "100-5"))["recipe"] == ade
    assert settings(config, "voc")["recipe"]["batch"] == DEFAULTS["recipe"]["batch"]


@pytest.mark.parametrize("name", ["15-1", "15-1a", "15-1-disjoint", "15-1a-disjoint"])
def test_settings_of_a_scenario_hold_for_its_orders_and_setups(name: str) -> None:
    def recipe(*spelled: str) -> dict[str, Any]:
        scenarios = {key: {"recipe": {"crop": 64 + n}} for n, key in enumerate(spelled)}
        config = checked(with_change(datasets={"voc": {"scenarios": scenarios}}))
        return settings(config, "voc", scenario(config, "voc", name))["recipe"]

    assert recipe("15-1")["crop"] == 64
    if name != "15-1":
        assert recipe("15-1", name)["crop"] == 65
    assert recipe("15-5", "5-1")["crop"] == 512


def test_settings_of_a_spelled_out_scenario_hold_for_it_alone() -> None:
    own = {"scenarios": {"15-1a": {"recipe": {"crop": 64}}}}
    config = checked(with_change(datasets={"voc": own}))
    crops = {
        name: settings(config, "voc", scenario(config, "voc", name))["recipe"]["crop"]
        for name in ("15-1", "15-1a", "15-1b", "15-1-disjoint", "offline", "offlinea")
    }
    assert crops.pop("15-1a") == 64
    assert set(crops.values()) == {512}


def test_the_published_grouping_of_ade() -> None:
    config = checked(DEFAULTS)
    for name in ("100-50", "100-10", "100-10-disjoint", "50-50", "100-5", "offline"):
        chosen = settings(config, "ade", scenario(config, "ade", name))
        grouping = chosen["initialisations"].get("awt", {}).get("grouping", "joint")
        assert grouping == ("joint" if name in ("100-5", "offline") else "per_class"), name


def test_a_variant_starts_from_what_it_varies() -> None:
    change = {
        "methods": {
            "plop": {"distillation": 3},
            "plop5": {"method": "plop", "compat": True},
        },
        "datasets": {"voc": {"methods": {"plop5": {"distillation": 7.0}}}},
    }
    config = checked(with_change(**change))
    elsewhere = parse_experiment(config, "ade_100-50_plop5").method
    assert (elsewhere.name, elsewhere.kind) == ("plop5", "plop")
    assert (elsewhere.options["distillation"], elsewhere.options["compat"]) == (3, True)
    assert parse_experiment(config, "voc_15-1_plop5").method.options["distillation"] == 7.0
    assert parse_experiment(config, "voc_15-1_plop").method.options["compat"] is False


def test_the_default_root_of_generated_images_is_in_the_results() -> None:
    assert dataset(checked(DEFAULTS), "shapes").root == Path("results/data/shapes")
    with_home = checked(with_change(datasets={"voc": {"root": "~/voc"}}))
    assert dataset(with_home, "voc").root == Path.home() / "voc"


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from leaves(inner, (*path, str(key)))
    else:
        yield path


def schema_leaves(schema: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Paths of the schema's properties; ``*`` stands for any name, ``**`` for anything."""
    if "$ref" in schema:
        schema = SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]]
    for part in schema.get("allOf", []):
        yield from schema_leaves(part, path)
    for key, inner in schema.get("properties", {}).items():
        yield from schema_leaves(inner, (*path, key))
    if isinstance(schema.get("additionalProperties"), dict):
        yield from schema_leaves(schema["additionalProperties"], (*path, "*"))
    if not {"allOf", "properties", "additionalProperties"} & schema.keys():
        free = schema.get("type") == "object"
        yield (*path, "**") if free else path


def fits(path: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    if pattern and pattern[-1] == "**":
        return fits(path[: len(pattern) - 1], pattern[:-1])
    return len(path) == len(pattern) and all(
        wanted in ("*", key) for key, wanted in zip(path, pattern, strict=True)
    )


def test_every_setting_has_a_place_in_the_schema() -> None:
    patterns = list(schema_leaves(SCHEMA))
    empty = {path[0] for path in leaves(DEFAULTS) if len(path) == 1}
    for path in leaves(DEFAULTS):
        if path in {("methods",), ("prepare", "checksums")}:
            continue  # empty: a mapping without a leaf
        assert any(fits(path, pattern) for pattern in patterns), path
    assert {"results", "seeds", "paper", "experiments"} <= empty


def test_everything_in_the_schema_is_shown_in_config_yaml() -> None:
    """Settings of a dataset or a scenario are those of the sections, which are shown once."""
    shown = list(leaves(DEFAULTS))
    below = {("datasets", "*", section) for section in configuration.SECTIONS}
    below |= {("datasets", "*", "scenarios", "*", section) for section in configuration.SECTIONS}
    for pattern in schema_leaves(SCHEMA):
        if any(pattern[: len(part)] == part for part in below) or pattern[-1] == "**":
            continue
        if pattern == ("prepare", "checksums", "*"):
            continue  # empty
        text = (REPOSITORY / "config.yaml").read_text()
        # What has no default is in a comment; the keys of `files` are described with the kind.
        own = {("datasets", "*", key) for key in ("classes", "values", "void")}
        if pattern[:3] in own | {("matrices", "*", "seeds")}:
            assert f"{pattern[2]}:" in text
            continue
        if pattern[:3] == ("datasets", "*", "files"):
            assert pattern[3] in (REPOSITORY / "docs" / "add-a-dataset.md").read_text()
            continue
        assert any(fits(path, pattern) for path in shown), pattern


def test_a_preset_replaces_defaults_and_nothing_that_was_chosen() -> None:
    preset = checked(merged(DEFAULTS, {"preset": "mib"}))
    assert settings(preset, "voc")["recipe"]["base"]["lr"] == 0.01
    assert parse_experiment(preset, "voc_15-1_mib").method.options["distillation"] == 100
    assert parse_experiment(preset, "voc_15-5_mib").method.options["distillation"] == 10
    assert parse_experiment(preset, "ade_100-10_ewc").method.options["importance"] == 500
    # The same value, as text from the command line, is no contradiction.
    checked(merged(DEFAULTS, {"preset": "mib", "recipe": {"base": {"lr": "0.01"}}}))
    with pytest.raises(CissError, match=r"recipe\.base\.lr is 0\.5, but preset 'mib' sets 0\.01"):
        checked(merged(DEFAULTS, {"preset": "mib", "recipe": {"base": {"lr": "0.5"}}}))
    with pytest.raises(CissError, match=r"methods\.ewc\.importance is 9"):
        checked(merged(DEFAULTS, {"preset": "mib", "methods": {"ewc": {"importance": 9}}}))
    with pytest.raises(CissError, match=r"preset 'mbi' is unknown .did you mean 'mib'"):
        checked(merged(DEFAULTS, {"preset": "mbi"}))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"results": "a{b}"}, "results is 'a{b}': Snakemake takes braces"),
        ({"results": "a\nb"}, r"results is 'a\nb': Snakemake takes"),
        ({"results": "-a"}, "results is '-a', which programs take for an option"),
        ({"prediction": {"output": "a}"}}, "prediction.output is 'a}': Snakemake takes braces"),
        ({"prediction": {"output": "--a"}}, "prediction.output is '--a', which programs take"),
        (
            {"datasets": {"voc": {"model": {"weights": "{a}.pth"}}}},
            "model.weights of dataset 'voc' is '{a}.pth': Snakemake takes braces",
        ),
        (own(classes=["a", "-b"]), "datasets.own.classes lists -b, which programs take"),
    ],
)
def test_names_that_snakemake_or_programs_misread(change: dict[str, Any], says: str) -> None:
    with pytest.raises(CissError) as raised:
        checked(with_change(**change))
    assert str(raised.value).startswith(says)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("spelled", ["results", "results/", "./results", ".//results"])
def test_a_folder_has_one_spelling(spelled: str) -> None:
    """Else the same results would be others for Snakemake."""
    assert checked(with_change(results=spelled))["results"] == "results"
    chosen = checked(with_change(results="~/x", prediction={"output": f"{spelled}/out"}))
    assert chosen["results"] == str(Path.home() / "x")
    assert chosen["prediction"]["output"] == "results/out"
    assert chosen["prediction"]["overlay"] == DEFAULTS["prediction"]["overlay"]
