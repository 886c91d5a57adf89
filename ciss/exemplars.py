"""Exemplar memory: images of earlier steps that a later step trains on again.

Which ones is decided from the index and the splits alone, before any training, so that methods and
initialisations share the choice. An exemplar keeps the labels that were known of it: of the classes
of each step in which the learner had it before its eyes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from ciss.datasets import Dataset
from ciss.errors import CissError
from ciss.labels import training_lookup
from ciss.loading import Lookup
from ciss.row_files import as_csv, read_rows, write_rows
from ciss.scenarios import Scenario
from ciss.splits import presence

#: ``known``: the steps whose classes' labels an exemplar has, as in "0 2"
COLUMNS = ("step", "image", "mask", "chosen_for", "known")


def choose(
    index: pd.DataFrame,
    dataset: Dataset,
    scenario: Scenario,
    rows: pd.DataFrame,
    images: int,
    seed: int,
) -> pd.DataFrame:
    """Choose up to ``images`` exemplars for each step after 0, balanced by class.

    ``rows`` are the split's, of all steps. Before a step, its exemplars are chosen among those of
    the step before and the images that this one trained on. In turn each class learned so far, in
    an order drawn anew for each step, takes an image that shows it with its label, drawn among
    those left, until there are ``images``: as many for each class, give or take one, as long as
    it has any (Cha et al., SSUL, NeurIPS 2021). What another class was given before it takes last,
    so that classes do not lose theirs with the steps. Returns the columns ``COLUMNS``;
    ``chosen_for`` is the class, a position in the learning order. An image is there once a step.
    """
    if images < 1:
        raise CissError(f"a memory of {images} images is none; give at least 1")
    shown = dict(zip(index["image"], presence(index, dataset), strict=True))
    train = rows[rows["subset"] == "train"]
    masks = dict(zip(train["image"], train["mask"], strict=True))
    trained = {step: set(part["image"]) for step, part in train.groupby("step")}
    memory: dict[str, set[int]] = {}
    chosen: dict[str, int] = {}
    parts = []
    for step in range(1, scenario.n_steps):
        # What the step before had before its eyes: its exemplars, and its own images.
        candidates = {**memory, **{image: {step - 1} for image in trained[step - 1] - {*memory}}}
        rng = np.random.default_rng([seed, step])
        chosen = _take_turns(rng, candidates, chosen, shown, scenario, step, images)
        memory = {
            image: candidates[image] | ({step} if image in trained[step] else set())
            for image in chosen
        }
        parts += [
            (step, image, masks[image], chosen[image], " ".join(map(str, sorted(known))))
            for image, known in sorted(memory.items())
        ]
    return pd.DataFrame(parts, columns=list(COLUMNS))


def _take_turns(
    rng: np.random.Generator,
    candidates: Mapping[str, set[int]],
    given: Mapping[str, int],
    shown: Mapping[str, npt.NDArray[np.bool_]],
    scenario: Scenario,
    step: int,
    images: int,
) -> dict[str, int]:
    """Return the chosen images, each with the class that took it, as ``given`` the step before."""
    order = rng.permutation(sorted(candidates)).tolist()
    queues: dict[int, list[str]] = {}
    for label in rng.permutation(scenario.seen_classes(step - 1)).tolist():
        own = next(s for s in range(step) if label in scenario.new_classes(s))
        with_it = [image for image in order if own in candidates[image] and shown[image][label]]
        # The next one is at the end.
        queues[label] = sorted(with_it, key=lambda image: given.get(image, label) == label)
    chosen: dict[str, int] = {}
    while queues and len(chosen) < images:
        for label, queue in list(queues.items()):
            while queue and queue[-1] in chosen:
                queue.pop()
            if not queue:
                del queues[label]
            elif len(chosen) < images:
                chosen[queue.pop()] = label
    return chosen


def lookups(
    dataset: Dataset, known: Iterable[str], classes_per_step: Sequence[int]
) -> list[Lookup]:
    """Return for each entry of the column ``known`` the table from raw values to training labels.

    uint8[256] as ``training_lookup``: classes of the known steps keep their label, all else is
    background. ``classes_per_step`` are a network's, the background among those of step 0.
    """
    ends = np.cumsum([0, *classes_per_step]).tolist()
    steps = [range(max(first, 1), end) for first, end in pairwise(ends)]
    tables: dict[str, Lookup] = {}
    for entry in known:
        if entry not in tables:
            labels = [label for step in entry.split() for label in steps[int(step)]]
            tables[entry] = training_lookup(dataset.lookup, labels)
    return [tables[entry] for entry in known]


def select(table: pd.DataFrame, step: int) -> pd.DataFrame:
    """Return the exemplars of one step. Raises ``CissError`` where it has none."""
    chosen = table[table["step"] == step].reset_index(drop=True)
    if chosen.empty:
        raise CissError(f"there are no exemplars for step {step}; choose them again")
    return chosen


def exemplars_hash(table: pd.DataFrame) -> str:
    """Return the SHA-256 of exemplars in their order: equal ones, equal hash."""
    return hashlib.sha256(as_csv(table, COLUMNS).encode()).hexdigest()


def write_exemplars(path: Path, table: pd.DataFrame) -> None:
    """Write exemplars as CSV, whole or not at all."""
    write_rows(path, table, COLUMNS)


def read_exemplars(path: Path) -> pd.DataFrame:
    """Read what ``write_exemplars`` wrote; ``CissError`` where the file is not a whole list."""
    return read_rows(path, "list of exemplars", COLUMNS, numbers=("step", "chosen_for"))
