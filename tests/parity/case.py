"""One case: its stored values, what is compared with them, and what was left unlooked at."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

try:
    import helpers
except ImportError:  # not under pytest
    from tests import helpers

Array = npt.NDArray[Any]

CPU = torch.device("cpu")

#: of an array's largest magnitude, for functions that are computed once in float32
TOLERANCE = 2e-5


class UnknownCaseError(Exception):
    """The runner has no check for a case of this kind."""


@dataclass
class Comparison:
    """How far an array of ours is from the stored one, relatively."""

    difference: float
    tolerance: float

    @property
    def fails(self) -> bool:
        """Whether that is too far."""
        return not self.difference <= self.tolerance


@dataclass
class Case:
    """A case of the manifest while it is checked.

    ``name``: ``group/case``; ``entry``: all that the manifest says of it; ``arrays``: its file.
    """

    name: str
    entry: Mapping[str, Any]
    arrays: Mapping[str, Array]
    cases: Cases
    comparisons: dict[str, list[Comparison]] = field(default_factory=dict)
    #: where the case's tensors lie, and hence what computes with them
    device: torch.device = CPU

    @property
    def hyper(self) -> Mapping[str, Any]:
        """The manifest's hyperparameters."""
        values: Mapping[str, Any] = self.entry["hyperparameters"]
        return values

    def __contains__(self, array: str) -> bool:
        return array in self.arrays

    def array(self, name: str) -> Array:
        """Return a stored array."""
        if name not in self.arrays:
            raise UnknownCaseError(f"the case has no array '{name}'")
        return self.arrays[name]

    def tensor(self, name: str) -> Tensor:
        """Return a copy of a stored array, on the case's device."""
        return torch.from_numpy(np.array(self.array(name))).to(self.device)

    def matching(self, pattern: str) -> Iterator[re.Match[str]]:
        """Matches of ``pattern`` with whole array names."""
        for name in self.arrays:
            if match := re.fullmatch(pattern, name):
                yield match

    def part(self, prefix: str) -> dict[str, Array]:
        """Arrays whose name starts with ``prefix``, without it."""
        return {
            name.removeprefix(prefix): array
            for name, array in self.arrays.items()
            if name.startswith(prefix)
        }

    def close(
        self,
        name: str,
        ours: Tensor | Array | float,
        tolerance: float = TOLERANCE,
        *,
        columns: bool = False,
    ) -> None:
        """Compare with a stored array, where the case has it.

        Relative to its largest magnitude or, with ``columns``, to that of each entry of the last
        axis (but at least a thousandth of the former). NaN and infinities must be the same.
        """
        if name in self.arrays:
            theirs = self.arrays[name]
            self.record(name, relative_difference(_numpy(ours), theirs, columns), tolerance)

    def exact(
        self, name: str, ours: Tensor | Array | int, where: Tensor | Array | None = None
    ) -> None:
        """Compare integers or truth values, where the case has them: the share that differs.

        Entries that are not in ``where`` do not count: exact ties, where either choice is right.
        """
        if name not in self.arrays:
            return
        theirs, values = self.arrays[name], _numpy(ours)
        if values.shape != theirs.shape:
            self.record(name, float("inf"), 0.0)
            return
        differs = values != theirs
        if where is not None:
            differs &= _numpy(where)
        self.record(name, float(differs.mean()) if differs.size else 0.0, 0.0)

    def record(self, name: str, difference: float, tolerance: float) -> None:
        """Note a comparison; an array may have several, none of which may fail."""
        self.comparisons.setdefault(name, []).append(Comparison(difference, tolerance))

    def unchecked(self, inputs: Iterable[str]) -> list[str]:
        """Names of arrays that nothing was compared with and no pattern of ``inputs`` lists."""
        patterns = [re.compile(pattern) for pattern in inputs]
        return [
            name
            for name in self.arrays
            if name not in self.comparisons
            and not any(pattern.fullmatch(name) for pattern in patterns)
        ]


class Cases:
    """The cases of a folder with a ``manifest.json``."""

    def __init__(self, folder: Path, device: torch.device = CPU) -> None:
        self.folder = folder
        self.device = device
        text = (folder / "manifest.json").read_text(encoding="utf-8")
        self.entries: list[dict[str, Any]] = json.loads(text)["cases"]
        #: what several cases need, such as a trajectory's first step
        self.cache: dict[Any, Any] = {}

    def load(self, entry: Mapping[str, Any], device: torch.device | None = None) -> Case:
        """Read a case's file; its tensors will be on ``device``, by default that of the cases."""
        with np.load(self.folder / entry["file"], allow_pickle=False) as file:
            arrays = dict(file)
        return Case(entry["name"], entry, arrays, self, device=device or self.device)

    def beside(self, case: Case, name: str | None = None, array: str | None = None) -> Case:
        """Find the case called ``name``, or the one of ``case``'s group that has ``array``.

        One of the same set goes first, then one of the same folder, then one of the folder that
        the tests use. Raises ``UnknownCaseError`` where there is none.
        """
        group = case.name.partition("/")[0] + "/"
        found = [
            entry
            for entry in self.entries
            if (entry["name"] == name if name else entry["name"].startswith(group))
            and (array is None or any(array in part["names"] for part in entry["arrays"]))
        ]
        found.sort(key=lambda entry: entry.get("set") != case.entry.get("set"))
        if not found:
            usual = helpers.golden_dir()
            if usual is not None and usual.resolve() != self.folder.resolve():
                if "usual" not in self.cache:
                    self.cache["usual"] = Cases(usual, self.device)
                return cast("Cases", self.cache["usual"]).beside(case, name, array)
            raise UnknownCaseError(f"it needs case {name or f'{group}* with array {array!r}'}")
        key = ("case", found[0]["file"])
        if key not in self.cache:
            self.cache[key] = self.load(found[0])
        return cast("Case", self.cache[key])


def relative_difference(ours: Array, theirs: Array, columns: bool = False) -> float:
    """Largest absolute difference over the reference's largest magnitude; see ``Case.close``."""
    if ours.shape != theirs.shape:
        return float("inf")
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    finite = np.isfinite(theirs)
    same = np.array_equal(ours[~finite], theirs[~finite], equal_nan=True)
    if not same or not np.isfinite(ours[finite]).all():
        return float("inf")
    magnitude = np.abs(np.where(finite, theirs, 0.0))
    largest = float(magnitude.max(initial=0.0))
    scale: Array | float = largest
    if columns:
        leading = tuple(range(magnitude.ndim - 1))
        scale = np.maximum(magnitude.max(axis=leading, initial=0.0), 1e-3 * largest)
    distance = np.abs(np.where(finite, ours, 0.0) - np.where(finite, theirs, 0.0))
    return float((distance / np.maximum(scale, 1e-12)).max(initial=0.0))


def _numpy(values: Tensor | Array | float) -> Array:
    if isinstance(values, Tensor):
        return values.detach().cpu().numpy()
    return np.asarray(values)
