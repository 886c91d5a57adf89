"""How long the index of a data set and the splits of scenarios take.

    python benchmarks/data.py --kind voc --root /data/PascalVOC12

Published code decodes every mask again for each step, to see which images show the step's classes,
and keeps the lists for later runs of the scenario; timed is the first run. Here the index looks at
each image and mask once, checks them on the way, and splits are look-ups. Both give the same lists
of images, and take turns. Splits alone are timed on the index as it is and on one repeated to VOC's
12,031 images.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.given import Given, given
from benchmarks.reference.data import Pair, images_that_show
from benchmarks.table import REPOSITORY, Row, alone, alternate, compared, plain
from ciss.config import read_config
from ciss.datasets import Dataset, list_images
from ciss.experiments import configured_experiments
from ciss.index import build_index
from ciss.scenarios import Scenario, parse_scenario
from ciss.splits import select, split

GROUP = "Index and splits"
VOC_IMAGES = 12_031

#: images of each step: (those that train, those that test)
Lists = list[tuple[list[Pair], list[Pair]]]


def published(dataset: Dataset, scenario: Scenario) -> Lists:
    """Look through all masks for each step."""
    listing = list_images(dataset)
    return [
        (
            images_that_show(
                dataset.root, listing["train"], dataset.lookup, scenario.new_classes(step)
            ),
            images_that_show(dataset.root, listing["val"], dataset.lookup, range(1, 1 + seen[-1])),
        )
        for step in range(scenario.n_steps)
        for seen in [scenario.seen_classes(step)]
    ]


def ours(dataset: Dataset, scenario: Scenario) -> Lists:
    """Build the index, and look the steps up in it."""
    index = build_index(dataset, is_subset=True)
    rows = split(index, dataset, scenario, range(scenario.n_steps))
    return [
        tuple(
            list(select(rows, step, subset).itertuples(index=False, name=None))
            for subset in ("train", "test")
        )
        for step in range(scenario.n_steps)
    ]  # type: ignore[misc]


def paper_scenarios(kind: str) -> list[Scenario]:
    """Scenarios of the configuration's matrices over data sets of this kind, in every setup."""
    config = read_config(REPOSITORY / "config.yaml")
    found = {
        experiment.scenario
        for experiment in configured_experiments(config).values()
        if config["datasets"][experiment.dataset]["kind"] == kind
    }
    return sorted(found, key=lambda scenario: scenario.name)


def all_splits(index: pd.DataFrame, dataset: Dataset, scenarios: list[Scenario]) -> int:
    """Make the split of each base and of each scenario, as the workflow does; returns rows."""
    bases = {scenario.base_name: scenario for scenario in scenarios}
    rows = sum(len(split(index, dataset, scenario, [0])) for scenario in bases.values())
    return rows + sum(
        len(split(index, dataset, scenario, range(1, scenario.n_steps))) for scenario in scenarios
    )


def rows(what: Given, scenario: str = "", splits: bool = False) -> Iterator[Row]:
    """Compare index and splits of a scenario; with ``splits``, time these alone too.

    Without a scenario, the last quarter of the classes comes one by one: VOC's 15-1.
    """
    dataset = what.dataset
    scenario = scenario or f"{dataset.n_classes - dataset.n_classes // 4}-1"
    chosen = parse_scenario(scenario, dataset.n_classes)
    if published(dataset, chosen) != ours(dataset, chosen):
        raise SystemExit(f"the lists of {scenario} differ")
    times = alternate(
        {
            "published": lambda: published(dataset, chosen),
            "ours": lambda: ours(dataset, chosen),
        },
        what.rounds,
        warm_up=False,
    )
    images = sum(len(pairs) for pairs in list_images(dataset).values())
    yield compared(
        GROUP,
        f"{scenario}: {chosen.n_steps} steps, {images:,} images",
        "s",
        times["published"],
        times["ours"],
        note="Index and splits: CPU time of all steps of a run; the index also checks every image "
        "and mask, and is made once for all runs.",
    )
    if splits:
        yield from rows_of_splits(what, times["ours"])


def rows_of_splits(what: Given, index_seconds: list[float]) -> Iterator[Row]:
    dataset = what.dataset
    yield alone(GROUP, "index and splits", "s", index_seconds)
    index = build_index(dataset, is_subset=True)
    scenarios = paper_scenarios("voc")
    repeated = pd.concat([index] * -(-VOC_IMAGES // len(index)), ignore_index=True)
    for table in (index, repeated.iloc[:VOC_IMAGES].reset_index(drop=True)):
        times = alternate({"": lambda t=table: all_splits(t, dataset, scenarios)}, what.rounds)
        names = ", ".join(scenario.name for scenario in scenarios)
        yield alone(GROUP, f"splits of {names} over {len(table):,} images", "s", times[""])


def main(arguments: argparse.Namespace) -> None:
    with given(arguments.root, arguments.kind, arguments.rounds) as what:
        found = [row for s in arguments.scenarios for row in rows(what, s, splits=True)]
    print(plain(found))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", default="voc")
    parser.add_argument("--root", type=Path, help="folder of the images (default: generated ones)")
    parser.add_argument("--scenarios", nargs="+", default=["15-5", "15-1"])
    parser.add_argument("--rounds", type=int, default=3)
    main(parser.parse_args())
