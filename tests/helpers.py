"""What several test modules share."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


def golden_dir() -> Path | None:
    """Folder with the values of the published implementation, or None where there is none."""
    folder = Path(os.environ.get("CISS_GOLDEN", REPOSITORY.parent / "shared" / "golden"))
    return folder if (folder / "manifest.json").is_file() else None


def real_data_dir() -> Path | None:
    """Folder with ``PascalVOC12`` and ``CamVid``, or None where there is none."""
    folder = Path(os.environ.get("CISS_DATA", REPOSITORY.parent / "shared" / "data"))
    return folder if folder.is_dir() else None


def golden_cases(group: str) -> list[Any]:
    """Parameters for ``pytest.mark.parametrize``: the manifest entries of one group.

    One skipped parameter that says why where the folder is absent.
    """
    folder = golden_dir()
    if folder is None:
        reason = "no golden values: set CISS_GOLDEN to the folder that holds manifest.json"
        return [pytest.param(None, marks=[pytest.mark.golden, pytest.mark.skip(reason=reason)])]
    manifest = json.loads((folder / "manifest.json").read_text())
    cases = [case for case in manifest["cases"] if case["name"].startswith(f"{group}/")]
    return [pytest.param(case, id=case["name"], marks=pytest.mark.golden) for case in cases]


def load_case(case: dict[str, Any]) -> dict[str, np.ndarray]:
    """Arrays of one manifest entry."""
    folder = golden_dir()
    assert folder is not None
    with np.load(folder / case["file"], allow_pickle=False) as arrays:
        return dict(arrays)


def relative_difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest absolute difference over the reference's largest magnitude."""
    ours, theirs = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    scale = max(float(np.abs(theirs).max(initial=0.0)), 1e-12)
    return float(np.abs(ours - theirs).max(initial=0.0)) / scale
