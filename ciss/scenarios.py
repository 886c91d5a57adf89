"""Scenarios: which classes are learned at which step, and what an experiment's name means.

Classes are numbered in *learning order*: 0 is the background, 1 the first class that is learned.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ciss.errors import CissError

#: how a step's training images are chosen (``ciss.splits.split``); the first needs no suffix
SETUPS = ("overlapped", "disjoint", "partitioned")

_BASE = re.compile(r"(?P<base>[0-9]+)(?P<order>[a-z]?)(?:-(?P<setup>[a-z]+))?")
_SCENARIO = re.compile(r"(?:(?P<base>[0-9]+)-(?P<increment>[0-9]+)|offline)(?P<order>[a-z]?)")


@dataclass(frozen=True)
class Scenario:
    """A class-incremental protocol such as VOC 15-1 over ``n_classes`` foreground classes.

    ``increment`` is 0 for ``offline``, where all classes are learned at step 0. ``order`` is the
    letter of a class order, or empty for the dataset's own.
    """

    base: int
    increment: int
    n_classes: int
    order: str = ""
    setup: str = SETUPS[0]

    def __post_init__(self) -> None:
        if self.increment == 0:
            # With all classes known at step 0 no later class exists, and the setups coincide.
            object.__setattr__(self, "setup", SETUPS[0])

    @property
    def n_steps(self) -> int:
        """Number of steps, step 0 included."""
        if self.increment == 0:
            return 1
        return 1 + (self.n_classes - self.base) // self.increment

    @property
    def classes_per_step(self) -> tuple[int, ...]:
        """Number of classifier outputs added at each step; step 0 counts the background."""
        return (1 + self.base, *[self.increment] * (self.n_steps - 1))

    def new_classes(self, step: int) -> range:
        """Foreground classes learned at ``step``, as positions in the learning order."""
        if not 0 <= step < self.n_steps:
            raise CissError(
                f"step {step} does not exist: {self.name} has steps 0 to {self.n_steps - 1}"
            )
        if step == 0:
            return range(1, self.base + 1)
        first = self.base + 1 + (step - 1) * self.increment
        return range(first, first + self.increment)

    def seen_classes(self, step: int) -> range:
        """Foreground classes learned up to and including ``step``."""
        return range(1, self.new_classes(step).stop)

    @property
    def name(self) -> str:
        """The scenario as an experiment's name spells it, setup included: ``15-1a-disjoint``."""
        steps = f"{self.base}-{self.increment}" if self.increment else "offline"
        return f"{steps}{self.order}{self._setup_suffix}"

    @property
    def base_name(self) -> str:
        """What step 0 depends on: the base classes, their order and the setup (``15``, ``15a``).

        Scenarios with equal base names share their step 0: VOC 15-5 and 15-1 start from one model.
        In each setup the images of step 0 follow from the base classes alone: the partitioned one
        gives every image to one class before any class is given to a step.
        """
        return f"{self.base}{self.order}{self._setup_suffix}"

    def track(self, step: int) -> str:
        """The name under which the artifacts of ``step`` are kept."""
        return self.base_name if step == 0 else self.name

    @property
    def _setup_suffix(self) -> str:
        return "" if self.setup == SETUPS[0] else f"-{self.setup}"


def parse_scenario(name: str, n_classes: int, setup: str = "overlapped") -> Scenario:
    """Read ``15-1``, ``100-10b`` or ``offline`` for a dataset of ``n_classes`` foreground classes.

    Raises ``CissError`` when the name does not have this form, or when the classes that are left
    after the base classes cannot be divided into steps of equal size.
    """
    match = _SCENARIO.fullmatch(name)
    if match is None:
        raise CissError(
            f"scenario '{name}' is not of the form B-I (base classes, classes a step), such as "
            "15-1, with a letter for a class order (15-1a), or 'offline'"
        )
    if setup not in SETUPS:
        raise CissError(f"setup '{setup}' is unknown; choose one of {', '.join(SETUPS)}")
    if match["base"] is None:
        return Scenario(n_classes, 0, n_classes, match["order"], setup)
    base, increment = int(match["base"]), int(match["increment"])
    left = n_classes - base
    if base > n_classes:
        raise CissError(
            f"scenario '{name}' does not fit {n_classes} classes: {base} base classes are more "
            "than there are"
        )
    if base < 1 or increment < 1 or left < increment or left % increment:
        raise CissError(
            f"scenario '{name}' does not fit {n_classes} classes: after {base} base classes "
            f"{left} are left, which steps of {increment} do not divide; "
            "all classes at once is called 'offline'"
        )
    return Scenario(base, increment, n_classes, match["order"], setup)


def parse_base_name(name: str, n_classes: int) -> Scenario:
    """Read a ``Scenario.base_name``: a scenario with that step 0, whatever follows it."""
    match = _BASE.fullmatch(name)
    if match is not None and 1 <= int(match["base"]) <= n_classes:
        base, setup = int(match["base"]), match["setup"] or SETUPS[0]
        found = Scenario(base, n_classes - base, n_classes, match["order"], setup)
        # One spelling a step 0: 015 or 15-overlapped would be trained once more.
        if setup in SETUPS and found.base_name == name:
            return found
    raise CissError(f"'{name}' names no step 0 over {n_classes} classes; expected e.g. 15")
