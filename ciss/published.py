"""Published numbers beside ours: which there are, and which of our runs may be compared.

``published.yaml`` holds the numbers, their sources and how they were trained. For a cell there may
be several: the paper that proposes a run goes first, then other papers' tables, then reruns by
others; among equals the source that has more of old, new and all, then the order of the file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ciss import config as configuration
from ciss import initialisations, methods
from ciss.config import Config, Variant
from ciss.experiments import Experiment
from ciss.files import read_yaml

FILE = Path(__file__).with_name("published.yaml")

#: kinds of a number, in the order in which they are preferred
KINDS = ("paper", "comparison", "rerun")
#: where a number comes from, apart from the source: how sure it is
CONFIDENCES = ("seen", "inferred", "derived")

#: our score for each published one, by whether the background counts
SCORES = {
    True: {"old": "old", "new": "new", "all": "all"},
    False: {"old": "old_without_background", "new": "new", "all": "all_without_background"},
}
#: objectives of step 0 that are a plain cross-entropy
_CROSS_ENTROPY = ("ce", "ce-importance")


@dataclass(frozen=True)
class Number:
    """The published number that is shown for a cell.

    ``others``: lowest and highest of the other numbers that there are for it, or None.
    """

    value: float
    kind: str
    sources: tuple[str, ...]
    confidence: str
    note: str
    others: tuple[float, float] | None


class BaseStep(NamedTuple):
    """What step 0 should reach: mIoU of base classes and background, in percent."""

    miou: float
    sd: float
    source: str


class Match(NamedTuple):
    """What one of our runs is in the papers' terms.

    ``key``: dataset, scenario and run, such as ``voc/15-1/mib_awt``; empty where nothing is
    published. It ends in constants, ``voc/15-1/mib/distillation=10.0``, where some numbers were
    made with others: it stands for the rest then. ``departures``: in what the run was not trained
    as published, one phrase each. ``left_out``: for the numbers that the key leaves out, the same.
    ``otherwise``: how the numbers' authors train, where no settings of ours are like that: no
    difference is to be taken.
    """

    key: str
    departures: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    otherwise: str = ""


@cache
def _file() -> Mapping[str, Any]:
    found: Mapping[str, Any] = read_yaml(FILE)
    return found


def version() -> str:
    """Hash of the file."""
    return hashlib.sha256(FILE.read_bytes()).hexdigest()[:16]


def sources() -> Mapping[str, str]:
    """What the keys of sources stand for."""
    found: Mapping[str, str] = _file()["sources"]
    return found


def entries(key: str) -> list[Mapping[str, Any]]:
    """All that is published of a ``Match.key``, preferred ones first."""
    dataset, scenario, run, *constants = key.split("/")
    own = dict(constant.split("=") for constant in constants)
    found = _file()["results"].get(dataset, {}).get(scenario, [])
    mine = [entry for entry in found if entry["run"] == run and not _others(entry, own)]
    return sorted(mine, key=lambda e: (KINDS.index(_kind(e)), -len(SCORES[True].keys() & e.keys())))


def numbers(key: str, background: bool) -> dict[str, Number]:
    """The numbers to show beside a run: score of ``results.SCORES`` → number.

    ``background``: whether ``old`` and ``all`` count it; only numbers that agree in this are
    taken.
    """
    found = {}
    alike = [entry for entry in entries(key) if entry.get("background", True) == background]
    for name, score in SCORES[background].items():
        having = [entry for entry in alike if name in entry]
        if having:
            first, *rest = having
            values = [float(entry[name]) for entry in rest]
            found[score] = Number(
                float(first[name]),
                _kind(first),
                tuple(first["sources"]),
                first.get("confidence", CONFIDENCES[0]),
                first.get("note", ""),
                (min(values), max(values)) if values else None,
            )
    return found


def base_step(key: str) -> BaseStep:
    """What is published of step 0: ``key`` is a data set and its base classes, ``voc/15``."""
    dataset, base = key.split("/")
    return BaseStep(**_file()["base_steps"][dataset][int(base)])


def match(config: Config, experiment: Experiment) -> Match:
    """Find what is published of an experiment, and in what it was not trained as published."""
    kind = configuration.dataset_entry(config, experiment.dataset)["kind"]
    scenario = experiment.scenario
    method = experiment.method
    parts = [method.kind, *(["m"] if method.memory else []), *([method.fuse] * method.fuses)]
    run = "-".join(parts)
    if experiment.init.kind != methods.describe(method.kind).default_init:
        run = f"{run}_{experiment.init.kind}"
    key = f"{kind}/{scenario.name}/{run}"
    if not entries(key):
        return Match("", ())
    said = _otherwise(method)["said"]
    departures = [*_departures_base(config, experiment, kind)]
    if not scenario.increment:
        return Match(key, tuple(departures), otherwise=said)
    departures += _departures_later(config, experiment, kind, entries(key))
    # Where all have other constants, that is a departure of the run.
    options = experiment.method.options
    apart = [entry for entry in entries(key) if _others(entry, options)]
    if apart and not departures:
        known = sorted({name for entry in apart for name in _options(entry)})
        key = "/".join([key, *(f"{name}={options[name]}" for name in known)])
    where = f"methods.{experiment.method.name}"
    left_out = [
        f"not beside {', '.join(entry['sources'])}: {difference}"
        for entry in apart
        for difference in _differences(options, _options(entry), where)
    ]
    return Match(key, tuple(dict.fromkeys(departures)), tuple(dict.fromkeys(left_out)), said)


def match_base(config: Config, experiment: Experiment) -> Match:
    """Find what is published of an experiment's step 0: the key is as in ``base_step``."""
    kind = configuration.dataset_entry(config, experiment.dataset)["kind"]
    # The name of a step 0 that is overlapped and in the data set's own order is its number alone.
    base = experiment.scenario.track(0)
    known = base.isdecimal() and int(base) in _file()["base_steps"].get(kind, {})
    if not known or experiment.objective not in _CROSS_ENTROPY:
        return Match("", ())
    return Match(f"{kind}/{base}", _departures_base(config, experiment, kind))


def _kind(entry: Mapping[str, Any]) -> str:
    kind: str = entry.get("kind", "comparison")
    return kind


def _options(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """The method's constants with which an entry's numbers were made, as far as they are known."""
    known: Mapping[str, Any] = _file()["options"].get(entry["run"], {})
    return {**known, **entry.get("options", {})}


def _others(entry: Mapping[str, Any], options: Mapping[str, Any]) -> bool:
    """Whether an entry's numbers are known to be made with other constants than ``options``."""
    known = _options(entry)
    return any(str(options[name]) != str(known[name]) for name in known.keys() & options.keys())


def _otherwise(method: Variant) -> Mapping[str, Any]:
    """What the file says of a method whose authors train otherwise; of others, nothing."""
    nothing: Mapping[str, Any] = {"said": "", "settings": {}, "free": []}
    found: Mapping[str, Any] = _file()["trained_otherwise"].get(method.kind, nothing)
    return found


def _settings(method: Variant) -> Config:
    """The settings that the method's numbers were made with, lists where there are several."""
    return configuration.merged(_file()["settings"], _otherwise(method)["settings"])


def _departures_base(config: Config, experiment: Experiment, kind: str) -> tuple[str, ...]:
    """In what step 0 departs from the published training."""
    ours = configuration.settings(config, experiment.dataset)
    entry = configuration.dataset_entry(config, experiment.dataset)
    where = f"datasets.{experiment.dataset}"
    found = [f"{where}.classes are others"] if entry.get("classes") is not None else []
    expected = _file()["dataset"]
    found += _differences({key: entry.get(key, expected[key]) for key in expected}, expected, where)
    settings = _settings(experiment.method)
    expected = {name: part for name, part in settings.items() if name != "attribution"}
    found += _differences(ours, {**expected, "recipe": _phase(expected, kind, "base")})
    return tuple(found)


def _departures_later(
    config: Config, experiment: Experiment, kind: str, numbers: list[Mapping[str, Any]]
) -> tuple[str, ...]:
    """In what the steps after step 0 depart; ``numbers``: the entries of the run."""
    ours = configuration.settings(config, experiment.dataset, experiment.scenario)
    wanted = {"recipe": _phase(_settings(experiment.method), kind, "later")}
    if experiment.needs_attribution:
        wanted["attribution"] = _file()["settings"]["attribution"]
    found = _differences(ours, wanted)
    preset = configuration.preset_settings(config, experiment.dataset, experiment.scenario)
    method, init = experiment.method, experiment.init
    if method.memory:
        memory = {"memory": _file()["memory"].get(kind, 0)}
        found += _differences({"memory": method.memory}, memory, f"methods.{method.name}")
    # Where models are fused, old classifiers were frozen.
    common = {"freeze": "old_classifiers" if method.fuses else "none"}
    found += _differences({"freeze": method.freeze}, common, f"methods.{method.name}")
    own = _file()["scenarios"].get(kind, {}).get(experiment.scenario.name, {})
    for section, variant, registry in (
        ("methods", method, methods),
        ("initialisations", init, initialisations),
    ):
        expected = {
            **registry.describe(variant.kind).defaults,
            **preset.get(section, {}).get(variant.kind, {}),
            **(own.get(variant.kind, {}) if section == "initialisations" else {}),
        }
        if section == "methods":
            expected |= _accepted(expected, numbers)
            free = _otherwise(method)["free"]
            expected = {name: value for name, value in expected.items() if name not in free}
        found += _differences({variant.name: variant.options}, {variant.name: expected}, section)
    return tuple(found)


def _accepted(
    defaults: Mapping[str, Any], numbers: list[Mapping[str, Any]]
) -> dict[str, list[Any]]:
    """Values of options that some number was made with; the default where one does not say."""
    known = [_options(entry) for entry in numbers]
    names = dict.fromkeys(name for options in known for name in options)
    return {
        name: [*dict.fromkeys(options.get(name, defaults[name]) for options in known)]
        for name in names
    }


def _phase(expected: Mapping[str, Any], kind: str, phase: str) -> dict[str, Any]:
    """The published recipe as far as it decides one phase: ``base`` or ``later``."""
    recipe = dict(expected["recipe"])
    phases = {name: recipe.pop(name) for name in ("base", "later")}
    return {**recipe, phase: {"epochs": _file()["epochs"][kind], **phases[phase]}}


def _differences(
    ours: Mapping[str, Any], expected: Mapping[str, Any], where: str = ""
) -> list[str]:
    """Name the settings of ``expected`` that are otherwise in ``ours``."""
    found = []
    for name, value in expected.items():
        here = f"{where}.{name}" if where else name
        mine = ours.get(name)
        if isinstance(value, Mapping):
            found += _differences(mine or {}, value, here)
        elif not _agrees(mine, value):
            wanted = " or ".join(map(str, value)) if isinstance(value, list) else value
            found.append(f"{here} is {mine} (published: {wanted})")
    return found


def _agrees(mine: Any, published: Any) -> bool:
    if isinstance(published, list):
        return any(_agrees(mine, one) for one in published)
    # The published weights may lie in a file of the user's own.
    return mine == published or (
        published == "published" and Path(str(mine)).name.startswith("resnet101_iabn_sync")
    )
