"""Experiments' names: a grammar that is read and written alike, and what experiments share."""

from __future__ import annotations

import pytest
import yaml
from helpers import REPOSITORY
from hypothesis import given
from hypothesis import strategies as st

from ciss import config as configuration
from ciss import datasets, initialisations, methods, paths
from ciss.errors import CissError
from ciss.experiments import (
    configured_experiments,
    matrix_experiments,
    parse_experiment,
    parse_run,
    transfer_shares,
)

CONFIG = configuration.checked(yaml.safe_load((REPOSITORY / "config.yaml").read_text()))
#: a variant of a method and of an initialisation beside the ones that the code has
VARIED = configuration.checked(
    configuration.merged(
        CONFIG,
        {
            "methods": {"mib100": {"method": "mib", "distillation": 100}},
            "initialisations": {"awt50": {"initialisation": "awt", "fraction": 0.5}},
        },
    )
)


@st.composite
def names(draw: st.DrawFn) -> tuple[str, ...]:
    """Dataset, scenario, setup's suffix, method and initialisation (or none) that fit."""
    dataset = draw(st.sampled_from(sorted(VARIED["datasets"])))
    n_classes = configuration.dataset(VARIED, dataset).n_classes
    base = draw(st.integers(1, n_classes - 1))
    left = n_classes - base
    increment = draw(st.sampled_from([n for n in range(1, left + 1) if left % n == 0]))
    orders = datasets.get_kind(VARIED["datasets"][dataset]["kind"]).ORDERS
    order = draw(st.sampled_from(["", *orders]))
    setup = draw(st.sampled_from(["", "-disjoint", "-partitioned"]))
    method = draw(st.sampled_from([*methods.names(), "mib100"]))
    given_inits = [None, *initialisations.names(), "awt50", "awt-perclass"]
    inits = [init for init in given_inits if (method, init) != ("ssul", "nest")]
    init = None if method == "cfs" else draw(st.sampled_from(inits))
    scenario = f"{base}-{increment}{order}{setup}"
    if draw(st.integers(0, 9)) == 0:
        scenario, init = f"offline{order}", None
    return (dataset, scenario, method, *([init] if init else []))


@given(names())
def test_a_name_can_be_read_back(parts: tuple[str, ...]) -> None:
    experiment = parse_experiment(VARIED, "_".join(parts))
    assert parse_experiment(VARIED, experiment.name) == experiment
    assert parse_run(VARIED, *experiment.name.split("_", 2)) == experiment
    default = methods.describe(experiment.method.kind).default_init
    if parts[3:] in ((), (default,)):
        assert experiment.name == "_".join(parts[:3])
        assert experiment.init.name == default
    else:
        assert experiment.name == "_".join(parts)
        assert experiment.init.name == parts[3]


@given(names(), names())
def test_step_0_is_shared_by_what_is_alike_in_it(
    one: tuple[str, ...], other: tuple[str, ...]
) -> None:
    experiments = [parse_experiment(VARIED, "_".join(parts)) for parts in (one, other)]
    models = {paths.artifact(paths.MODEL, e, 1, 0) for e in experiments}
    alike = {(e.dataset, e.scenario.base_name, e.objective, e.closed_form) for e in experiments}
    assert len(models) == len(alike)
    later = {paths.artifact(paths.MODEL, e, 1, 1) for e in experiments if e.scenario.increment}
    assert len(later) == len({e.name for e in experiments if e.scenario.increment})


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        ("voc_15-5_mib", "voc_15-1_mib_awt", True),
        ("voc_15-1_ft", "voc_15-1_plop", True),
        ("voc_15-1_ewc", "voc_15-1_pi", True),
        ("voc_15-1_ewc", "voc_15-1_ft", False),
        ("voc_15-1_lwf-mc", "voc_15-1_lwf", False),
        ("voc_15-1_dft", "voc_15-5_dft", True),
        ("voc_15-1_dft", "voc_15-1_ft", False),
        ("voc_15-1_ssul", "voc_15-5_ssul_awt", True),
        ("voc_15-1_ssul", "voc_15-1_lwf-mc", False),
        ("voc_15-1_cfs", "voc_15-5_cfs", True),
        ("voc_15-1_cfs", "voc_15-1_lwf-mc", False),
        ("voc_15-1_mib", "voc_15-1-disjoint_mib", False),
        ("voc_15-1_mib", "voc_15-1-partitioned_mib", False),
        ("voc_15-1-partitioned_mib", "voc_15-5-partitioned_ft", True),
        ("voc_15-1_mib", "voc_15-1a_mib", False),
        ("voc_15-1_mib", "shapes_15-1_mib", False),
        ("voc_offline_ft", "voc_offline_mib", True),
    ],
)
def test_sharing_by_example(one: str, other: str, shared: bool) -> None:
    experiments = [parse_experiment(CONFIG, name) for name in (one, other)]
    models = {paths.artifact(paths.MODEL, e, 1, 0) for e in experiments}
    assert (len(models) == 1) == shared


def test_facts_that_the_rules_ask_for() -> None:
    awt = parse_experiment(CONFIG, "voc_15-1_mib_awt")
    assert (awt.needs_attribution, awt.keeps_importances, awt.objective) == (True, False, "ce")
    assert (awt.run, awt.run_at(0), awt.run_at(3)) == ("mib_awt", "ce", "mib_awt")
    ewc = parse_experiment(CONFIG, "voc_15-1_ewc")
    assert (ewc.needs_attribution, ewc.keeps_importances) == (False, True)
    assert ewc.run_at(0) == "ce-importance"
    cfs = parse_experiment(CONFIG, "voc_15-1_cfs")
    assert (cfs.closed_form, cfs.objective, cfs.run_at(0), cfs.run_at(1)) == (
        True,
        "bce",
        "bce_cfs",
        "cfs",
    )
    assert paths.artifact(paths.MODEL, ewc, 4, 2) == "voc/15-1/ewc/seed4/step2/model.safetensors"


def test_a_variant_that_is_solved_has_a_step_0_of_its_own_where_it_must() -> None:
    variants = {
        "cfs-small": {"method": "cfs", "features": 64},
        "cfs-sure": {"method": "cfs", "uncertainty": 0.3},
    }
    config = configuration.checked(configuration.merged(CONFIG, {"methods": variants}))
    runs = [
        parse_experiment(config, f"voc_15-1_{name}").run_at(0)
        for name in ("cfs", "cfs-sure", "cfs-small")
    ]
    assert runs == ["bce_cfs", "bce_cfs", "bce_cfs-small"]
    config["datasets"]["voc"]["scenarios"] = {"15-1": {"methods": {"cfs": {"gamma": 2}}}}
    with pytest.raises(CissError, match=r"methods\.cfs\.gamma is 2.* step 0 is shared"):
        parse_experiment(config, "voc_15-1_cfs")


def test_runs_that_differ_in_the_share_of_channels_only() -> None:
    def shares(*runs: str, dataset: str = "voc_15-1") -> dict[str, tuple[str, float]]:
        chosen = [parse_experiment(CONFIG, f"{dataset}_{run}") for run in runs]
        return transfer_shares(chosen, channels=256)

    assert shares("mib", "mib_random", "mib_awt", "mib_randchannels", "ft_awt-10") == {}
    assert shares("ft", "ft_awt-10", "mib_awt", "ft_awt", "mib", "ft_awt-perclass") == {
        "ft": ("random", 0),
        "ft_awt-10": ("awt", 10),
        "ft_awt": ("awt", 25),
    }
    assert shares("mib_random", "mib_awt-50", "mib_awt-75", "mib_randchannels", "mib") == {
        "mib_random": ("random", 0),
        "mib_awt-50": ("awt", 50),
        "mib_awt-75": ("awt", 75),
        "mib_randchannels": ("randchannels", 25),
    }
    counted = configuration.checked(
        {**CONFIG, "initialisations": {"awt-64": {"initialisation": "awt", "fraction": 64}}}
    )
    chosen = [parse_experiment(counted, f"voc_15-1_mib_{init}") for init in ("awt-64", "awt")]
    assert transfer_shares(chosen, channels=256) == {}
    assert transfer_shares(chosen, channels=128)["mib_awt-64"] == ("awt", 50)


def test_options_are_those_of_the_scenario() -> None:
    def grouping(name: str) -> object:
        return parse_experiment(CONFIG, name).init.options["grouping"]

    assert grouping("voc_15-1_mib_awt") == "joint"
    assert grouping("voc_15-1_mib_awt-perclass") == "per_class"
    assert grouping("ade_100-10-disjoint_mib_awt") == "per_class"
    assert grouping("ade_100-5_mib_awt") == "joint"
    varied = parse_experiment(VARIED, "voc_15-1_mib100_awt50")
    assert (varied.method.kind, varied.method.options["distillation"]) == ("mib", 100)
    assert (varied.init.kind, varied.init.options["fraction"]) == ("awt", 0.5)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("voc_15-1", ["dataset_scenario_method"]),
        ("voc_15-1_mib_awt_x", ["did you mean 'voc_15-1_mib_awt'"]),
        ("mib", ["dataset_scenario_method"]),
        ("paper_vo", ["did you mean 'paper_voc'"]),
        ("vco_15-1_mib", ["'vco'", "did you mean 'voc'"]),
        ("voc_15-1_mbi", ["'mbi'", "did you mean 'mib'"]),
        ("voc_15-1_mib_atw", ["'atw'", "did you mean 'awt'"]),
        ("voc_15-1_mib-awt", ["after an underscore: voc_15-1_mib_awt"]),
        ("voc_15-1_lwf-mc-awt-10", ["after an underscore: voc_15-1_lwf-mc_awt-10"]),
        ("voc_15-3_mib", ["'15-3'", "20 classes"]),
        ("voc_15-1k_mib", ["'k'", "a, b, c"]),
        ("camvid_6-1a_mib", ["'a'", "none"]),
        ("voc_offline_ft_mib", ["write voc_offline_ft"]),
        ("voc_15-1-overlap_mib", ["15-1"]),
        ("voc_15-1_cfs_awt", ["closed form", "write voc_15-1_cfs"]),
        ("voc_15-1_ssul_nest", ["nest learns classifiers of a softmax", "such as awt"]),
        ("voc_15-1_ssul-m_nest", ["those of ssul-m are sigmoids"]),
    ],
)
def test_a_wrong_name_is_one_sentence(name: str, words: list[str]) -> None:
    with pytest.raises(CissError) as raised:
        parse_experiment(CONFIG, name)
    message = str(raised.value)
    assert name in message
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_configured_experiments_are_those_of_the_matrices_and_the_list() -> None:
    config = configuration.merged(CONFIG, {"experiments": ["voc_15-1-disjoint_mib_mib"]})
    found = configured_experiments(config)
    assert "voc_15-1-disjoint_mib" in found
    for matrix, entry in config["matrices"].items():
        experiments = list(matrix_experiments(config, matrix))
        assert len(experiments) == len(entry["scenarios"]) * len(entry["runs"])
        assert {e.name for e in experiments} <= found.keys()
    of_matrices = {
        e.name for matrix in config["matrices"] for e in matrix_experiments(config, matrix)
    }
    assert found.keys() == of_matrices | {"voc_15-1-disjoint_mib"}
