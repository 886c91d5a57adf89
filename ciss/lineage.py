"""Whether the files that a step is given belong to it and to each other.

Snakemake passes the right ones; by hand, or among results that were put together from several
places, a file of another step or of another run is one slip away. It has the right kind and often
the right shape, so that without these checks the step would run to its end, on nonsense. What a
file's header does not say, as those of earlier versions, is not held against it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ciss.checkpoint import header_of
from ciss.datasets import Dataset
from ciss.errors import CissError
from ciss.models import SegmentationNetwork

Metadata = Mapping[str, Any]

#: key of a header: SHA-256 of the model that a file was made with
MADE_WITH = "made_with"
#: what a run's files may differ in: a model is also fused, and each file has its own writer
_OF_ONE_FILE = ("fusion", "source")


def check_step(path: Path, network: SegmentationNetwork, step: int) -> None:
    """Raise ``CissError`` unless ``network``, of ``path``, has the classifiers of ``step``."""
    found = len(network.classes_per_step) - 1
    if found != step:
        raise CissError(
            f"{path} is a network of step {found}, and one of step {step} is needed here; give the "
            f"model.safetensors of step {step}"
        )


def is_trained(metadata: Metadata) -> bool:
    """Tell a model from the network that a step starts from, before its training."""
    return "initialisation" not in metadata


def check_trained(path: Path, metadata: Metadata) -> None:
    """Raise ``CissError`` for a network that a step starts from, which was not trained yet."""
    if not is_trained(metadata):
        raise CissError(
            f"{path} is the network that a step starts from, before its training; give the "
            "model.safetensors that train.py makes of it"
        )


def check_classes(
    path: Path,
    network: SegmentationNetwork,
    metadata: Metadata,
    dataset: Dataset,
    new_classes: int = 0,
) -> None:
    """Raise ``CissError`` unless ``dataset`` begins with the classes that ``network`` knows.

    ``new_classes`` are to be learned, which the data set must have beside them (0: none are).
    """
    known = network.n_classes
    names = metadata.get("classes")
    # Of a network that a step starts from, the header tells the names of the step before.
    names = names or metadata.get("before", {}).get("classes") or []
    expected = list(dataset.classes[: len(names)])
    if list(names) != expected:
        label = next(n for n, name in enumerate(names) if [name] != expected[n : n + 1])
        ours = f"'{expected[label]}'" if label < len(expected) else "none"
        raise CissError(
            f"{path} knows other classes than dataset '{dataset.name}': its class {label} is "
            f"'{names[label]}', the data set's is {ours}; give the model and the data set with the "
            "classes and the class order of one experiment"
        )
    if known + new_classes > len(dataset.classes):
        more = f" and {new_classes} are to be added" if new_classes else ""
        raise CissError(
            f"{path} has {known} classes with the background{more}, but dataset '{dataset.name}' "
            f"has {len(dataset.classes)}; give the model of another step, or fewer new classes"
        )


def check_start(
    init_path: Path,
    init: SegmentationNetwork,
    teacher_path: Path,
    teacher: SegmentationNetwork,
    new_classes: int,
) -> None:
    """Raise ``CissError`` unless ``init`` is ``teacher``, widened by a step's ``new_classes``."""
    before, after = teacher.classes_per_step, init.classes_per_step
    if after[:-1] != before or after[-1] != new_classes:
        raise CissError(
            f"{init_path} has {_list(after)} classes a step, and {_list((*before, new_classes))} "
            f"are needed: {new_classes} more than {teacher_path}; give the init.safetensors that "
            "transfer.py makes of that model for this step"
        )
    same = init.config == teacher.config and all(
        torch.equal(value, theirs[name])
        for ours, theirs in (
            (init.body.state_dict(), teacher.body.state_dict()),
            (init.head.state_dict(), teacher.head.state_dict()),
        )
        for name, value in ours.items()
    )
    if not same:
        raise CissError(
            f"{init_path} does not start from {teacher_path}: its encoder is another; give the "
            "model that it was made of, of the same run and seed, and not a model that was "
            "trained since"
        )


def check_one_run(
    path: Path, metadata: Metadata, model_path: Path, model_metadata: Metadata
) -> None:
    """Raise ``CissError`` unless one training wrote a file and the model that goes with it.

    That is, the headers agree in whatever both say of data, step, method and recipe.
    """
    both = (metadata.keys() & model_metadata.keys()) - {*_OF_ONE_FILE}
    # The step first, which says most.
    for key in sorted(both, key=lambda key: (key != "step", key)):
        one, other = metadata[key], model_metadata[key]
        if one != other:
            plain = not isinstance(one, (dict, list)) and not isinstance(other, (dict, list))
            how = f"{key} is {one!r} there and {other!r} here" if plain else f"they differ in {key}"
            raise CissError(
                f"{path} and {model_path} are of different trainings: {how}; give both files of "
                "the same step and run"
            )


def made_with(path: Path | None) -> dict[str, str]:
    """What a header says of the model that a file is made with; of none, nothing."""
    return {} if path is None else {MADE_WITH: header_of(path)[0]}


def check_made_with(path: Path, model_path: Path) -> None:
    """Raise ``CissError`` unless ``path`` was made with the weights in ``model_path``.

    The header of ``path`` has their SHA-256 as ``MADE_WITH``, among the metadata.
    """
    _, content = header_of(path)
    expected = content.get("metadata", content).get(MADE_WITH)
    if expected is not None and expected != header_of(model_path)[0]:
        raise CissError(
            f"{path} was made with another model than {model_path}; give the model that it was "
            "made with, or make it again with this one"
        )


def _list(counts: tuple[int, ...]) -> str:
    return " + ".join(map(str, counts))
