"""Settings for every test: one thread, no clock, the helpers importable; a clone of the project."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Before torch is imported: tests run side by side on few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))

from helpers import copy_project, only_one

# How long an example takes depends on what else the machine does. In CI (every service sets CI) the
# examples are the same in each run, so that a change is not blamed for what it did not do.
settings.register_profile("ciss", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "ciss")


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the processes of pytest-xdist share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def clone(shared: Path) -> Path:
    """The repository as a fresh clone has it; not to be changed."""
    with only_one(shared / "clone.lock"):
        if not (shared / "a clone").is_dir():
            copy_project(shared / "a clone")
    return shared / "a clone"


@pytest.fixture(autouse=True)
def _nothing_is_left_of_a_script() -> Iterator[None]:
    """Take back what a script that ran in this process set for the whole of it."""
    log = logging.getLogger("ciss")
    before = list(log.handlers)
    yield
    # What they write to ends with the test.
    for handler in set(log.handlers) - set(before):
        log.removeHandler(handler)
        handler.close()
    if torch := sys.modules.get("torch"):
        # Results depend on the number in their last bits.
        if torch.get_num_threads() != 1:
            torch.set_num_threads(1)
        if torch.are_deterministic_algorithms_enabled():
            torch.use_deterministic_algorithms(False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests on SLURM: they mostly wait, and the others run meanwhile."""
    items.sort(key=lambda item: item.get_closest_marker("slurm") is None)
