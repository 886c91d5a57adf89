"""How long the index of a data set and the splits of scenarios take.

    python benchmarks/data.py --kind voc --root /data/PascalVOC12

Compares the index with a plain pass that decodes each mask with Pillow and looks for each class in
it, as published code does for every step of every run; both are run in turn, and the smallest time
of each counts. Splits are timed on the index as it is and on one repeated to VOC's 12,031 images.
Beside the seconds that passed stand those of CPUs, which other work on the machine changes less.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ciss.config import read_config
from ciss.datasets import Dataset, list_images, open_dataset
from ciss.experiments import configured_experiments
from ciss.index import build_index
from ciss.scenarios import Scenario
from ciss.splits import split

VOC_IMAGES = 12_031


def plain_pass(dataset: Dataset) -> int:
    """Decode every mask and ask which classes it shows; returns how many were seen."""
    shown = 0
    for pairs in list_images(dataset).values():
        for _, mask in pairs:
            with Image.open(dataset.root / mask) as picture:
                values = np.unique(np.array(picture))
            shown += sum(bool(np.any(values == label)) for label in range(1, dataset.n_classes + 1))
    return shown


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds that passed, and seconds of CPUs of this process and those it started."""
    start, before = time.perf_counter(), cpu_seconds()
    run()
    return time.perf_counter() - start, cpu_seconds() - before


def cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def smallest(measured: list[tuple[float, float]]) -> tuple[float, float]:
    passed, cpu = zip(*measured, strict=True)
    return min(passed), min(cpu)


def paper_scenarios(kind: str) -> list[Scenario]:
    """Scenarios of the configuration's matrices over data sets of this kind, in every setup."""
    config = read_config(Path(__file__).resolve().parent.parent / "config.yaml")
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


def main(arguments: argparse.Namespace) -> None:
    dataset = open_dataset(arguments.kind, arguments.kind, arguments.root)
    print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; best of {arguments.rounds}")
    index = build_index(dataset, is_subset=True)
    times: dict[str, list[tuple[float, float]]] = {"plain": [], "1 worker": [], "2 workers": []}
    for _ in range(arguments.rounds):
        times["plain"].append(timed(lambda: plain_pass(dataset)))
        for workers in (1, 2):
            name = f"{workers} worker" + "s" * (workers > 1)
            times[name].append(
                timed(lambda n=workers: build_index(dataset, workers=n, is_subset=True))
            )
    plain, plain_cpu = smallest(times["plain"])
    for name, measured in times.items():
        passed, cpu = smallest(measured)
        print(
            f"{len(index)} images, {name}: {passed:.2f} s, {plain / passed:.2f} × the plain pass; "
            f"CPU {cpu:.2f} s, {plain_cpu / cpu:.2f} ×"
        )

    scenarios = paper_scenarios(arguments.kind)
    repeated = pd.concat([index] * -(-VOC_IMAGES // len(index)), ignore_index=True)
    for table in (index, repeated.iloc[:VOC_IMAGES].reset_index(drop=True)):
        passed, cpu = smallest(
            [timed(lambda t=table: all_splits(t, dataset, scenarios)) for _ in range(3)]
        )
        names = ", ".join(scenario.name for scenario in scenarios)
        print(f"splits of {names} over {len(table)} images: {passed:.3f} s, CPU {cpu:.3f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", default="voc")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    main(parser.parse_args())
