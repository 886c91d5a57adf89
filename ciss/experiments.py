"""Experiments: what a name such as ``voc_15-1_mib_awt`` stands for.

    {dataset}_{scenario}[-SETUP]_{method}[_{initialisation}]

The setup is ``disjoint`` or ``partitioned``, none for overlapped. The name of an experiment leaves
the initialisation out where it is the method's own.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ciss import initialisations, methods
from ciss.config import (
    Config,
    Variant,
    base_run,
    initialisation_variant,
    method_variant,
    scenario,
    settings,
)
from ciss.datasets.base import UNKNOWN
from ciss.errors import CissError
from ciss.names import nearest
from ciss.scenarios import Scenario


@dataclass(frozen=True)
class Experiment:
    """A method with an initialisation on a scenario of a dataset; seeds are apart."""

    dataset: str
    scenario: Scenario
    method: Variant
    init: Variant
    #: the run under which step 0 is kept, shared by all experiments that begin alike
    base_run: str

    @property
    def name(self) -> str:
        """The canonical name, under which targets, tables and files know it."""
        return f"{self.dataset}_{self.scenario.name}_{self.run}"

    @property
    def run(self) -> str:
        """Method and initialisation: ``mib`` or ``mib_awt``."""
        return self._run_of(self.method.name)

    @property
    def objective(self) -> str:
        """The base objective, with which step 0 is trained."""
        return methods.describe(self.method.kind).base_objective

    @property
    def needs_attribution(self) -> bool:
        """Whether the initialisation looks at attributed channels."""
        return initialisations.describe(self.init.kind).needs_attribution

    @property
    def needs_pretuning(self) -> bool:
        """Whether the initialisation is learned on the step's images."""
        return initialisations.describe(self.init.kind).needs_pretuning

    @property
    def keeps_importances(self) -> bool:
        """Whether importances travel beside the model."""
        return methods.describe(self.method.kind).keeps_importances

    @property
    def closed_form(self) -> bool:
        """Whether steps are solved and not trained."""
        return methods.describe(self.method.kind).closed_form

    def run_at(self, step: int) -> str:
        """The run under which the artifacts of ``step`` are kept."""
        return self.base_run if step == 0 else self.run

    def trained_run_at(self, step: int) -> str:
        """The run under which the training of ``step`` is kept.

        It is another one where a model is fused after it that trained as a run without fusion: in
        step 1, before which nothing was fused.
        """
        if step == 1 and self.method.trains_as:
            return self._run_of(self.method.trains_as)
        return self.run_at(step)

    def _run_of(self, method: str) -> str:
        if self.init.name == methods.describe(self.method.kind).default_init:
            return method
        return f"{method}_{self.init.name}"


def parse_experiment(config: Config, name: str, others: Iterable[str] = ()) -> Experiment:
    """Read an experiment's name; options are those that hold for its dataset and scenario.

    Raises ``CissError`` that says which part is wrong and what is nearest; ``others``, which are
    names of no experiments, may have been meant too.
    """
    parts = name.split("_")
    if len(parts) not in (3, 4):
        raise CissError(
            f"'{name}' is no experiment: names have the form dataset_scenario_method or "
            f"dataset_scenario_method_initialisation{_nearest(config, name, others)}"
        )
    try:
        parsed = scenario(config, parts[0], parts[1])
        chosen = settings(config, parts[0], parsed)
        _check_hyphen(chosen, parts)
        method = method_variant(chosen["methods"], parts[2])
        default = methods.describe(method.kind).default_init
        init = initialisation_variant(
            chosen["initialisations"], parts[3] if len(parts) == 4 else default
        )
        step_0 = base_run(config, parts[0], method, parsed.name)
    except CissError as error:
        raise CissError(f"experiment '{name}': {error}") from None
    if parsed.increment == 0 and len(parts) == 4:
        raise CissError(
            f"experiment '{name}': offline training has no later step, so no initialisation "
            f"of new classifiers; write {'_'.join(parts[:3])}"
        )
    experiment = Experiment(parts[0], parsed, method, init, step_0)
    if experiment.closed_form and len(parts) == 4:
        raise CissError(
            f"experiment '{name}': {method.name} computes its classifiers in closed form, so "
            f"nothing initialises them; write {'_'.join(parts[:3])}"
        )
    if methods.describe(method.kind).has_unknown:
        _check_unknown(experiment, name)
    return experiment


def _check_hyphen(chosen: Config, parts: list[str]) -> None:
    """Raise ``CissError`` where a hyphen joins method and initialisation, as in mib-awt."""
    known = {*methods.names(), *chosen["methods"]}
    if parts[2] in known:
        return
    starts = {*initialisations.names(), *chosen["initialisations"]}
    for hyphen in re.finditer("-", parts[2]):
        method, start = parts[2][: hyphen.start()], parts[2][hyphen.end() :]
        if method in known and start in starts:
            raise CissError(
                f"method '{parts[2]}' is unknown; an initialisation comes after an underscore: "
                f"{'_'.join([*parts[:2], method, start])}"
            )


def _check_unknown(experiment: Experiment, name: str) -> None:
    """Raise ``CissError`` for what does not go with an unknown beside the background."""
    method = experiment.method.name
    if experiment.needs_pretuning:
        raise CissError(
            f"experiment '{name}': {experiment.init.name} learns classifiers of a softmax over all "
            f"classes, and those of {method} are sigmoids beside an unknown; choose another "
            "initialisation, such as awt"
        )
    classes = experiment.scenario.n_classes
    if 1 + classes > UNKNOWN:
        raise CissError(
            f"experiment '{name}': with {classes} classes no label is left for the unknown that "
            f"{method} tells from the background; choose {UNKNOWN - 1} classes or fewer, or "
            "another method"
        )


def parse_run(config: Config, dataset: str, scenario_name: str, run: str) -> Experiment:
    """Read the parts of an experiment's name that a path holds."""
    return parse_experiment(config, f"{dataset}_{scenario_name}_{run}")


def matrix_experiments(config: Config, matrix: str) -> Iterator[Experiment]:
    """Yield the experiments of a matrix: its scenarios times its runs."""
    entry = config["matrices"][matrix]
    for scenario_name in entry["scenarios"]:
        for run in entry["runs"]:
            yield parse_experiment(config, f"{entry['dataset']}_{scenario_name}_{run}")


def matrix_seeds(config: Config, matrix: str) -> list[int]:
    """Return the seeds of a matrix."""
    seeds: list[int] = config["matrices"][matrix].get("seeds", config["seeds"])
    return seeds


def configured_experiments(config: Config) -> dict[str, Experiment]:
    """Return all experiments that the configuration lists, by canonical name."""
    found = [parse_experiment(config, name) for name in config.get("experiments", [])]
    for matrix in config["matrices"]:
        found.extend(matrix_experiments(config, matrix))
    return {experiment.name: experiment for experiment in found}


def transfer_shares(chosen: Iterable[Experiment], channels: int) -> dict[str, tuple[str, float]]:
    """Find runs of one scenario that differ in how many channels they transfer.

    Returns run → which channels (``awt``, ``randchannels``; ``random`` transfers none) and their
    share of ``channels`` in percent, for the methods that come with at least two shares of AWT;
    empty where none does. Variants of AWT with other options than the first one's are left out.
    """
    found: dict[str, dict[str, tuple[str, float]]] = {}
    others: dict[str, dict[str, object]] = {}
    for experiment in chosen:
        kind, method = experiment.init.kind, experiment.method.name
        if kind not in ("awt", "randchannels", "random"):
            continue
        options = initialisations.options_of(kind, experiment.init.options)
        fraction = options.pop("fraction", 0)
        if kind == "awt" and others.setdefault(method, options) != options:
            continue
        share = 100 * (fraction / channels if fraction > 1 else fraction)
        found.setdefault(method, {})[experiment.run] = (kind, share)
    return {
        run: entry
        for runs in found.values()
        if len({share for kind, share in runs.values() if kind == "awt"}) > 1
        for run, entry in runs.items()
    }


def _nearest(config: Config, name: str, others: Iterable[str]) -> str:
    # As spelled, not parsed: the names listed may themselves be what is wrong.
    known = [*others, "paper", *config["matrices"], *config.get("experiments", [])]
    for entry in config["matrices"].values():
        for scenario_name, run in itertools.product(entry["scenarios"], entry["runs"]):
            known.append(f"{entry['dataset']}_{scenario_name}_{run}")
    near = nearest(name, [other for other in known if other != name], cutoff=0.6)
    return f"; did you mean '{near}'?" if near else ", such as voc_15-1_mib_awt"
