"""All cases of the published implementation, and the runner that checks them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import REPOSITORY, golden_cases, golden_dir
from parity import GROUPS, Case, Cases, check_case
from parity.__main__ import main
from parity.case import relative_difference

from ciss.training import poly_lr

#: a trajectory whose stated noise is above this would not notice a change of a few percent
NOISY = 1e-3


@cache
def cases() -> Cases:
    folder = golden_dir()
    assert folder is not None
    return Cases(folder)


def one_of_each_kind() -> list[Any]:
    """Cases whose arrays differ in name from those before; no case that rounding dominates."""
    kinds: dict[frozenset[str], Any] = {}
    for group in GROUPS:
        for parameter in golden_cases(group):
            case = parameter.values[0]
            if case is None:
                return [parameter]
            noise = case.get("float32_vs_float64_max_rel_diff", {"": 0.0})
            kind = {name for part in case["arrays"] for name in part["names"]}
            stem = frozenset(
                [group, *(re.sub(r"\d|module.*|/body.*|/head.*", "", n) for n in kind)]
            )
            if max(noise.values()) < NOISY:
                kinds.setdefault(stem, parameter)
    return list(kinds.values())


@pytest.mark.parametrize("entry", [p for group in GROUPS for p in golden_cases(group)])
def test_agrees_with_the_published_implementation(entry: dict[str, Any]) -> None:
    outcome = check_case(cases(), entry)
    assert not outcome.problems, str(outcome)


@pytest.mark.parametrize("entry", one_of_each_kind())
def test_every_result_that_is_changed_is_noticed(entry: dict[str, Any]) -> None:
    module = GROUPS[entry["name"].partition("/")[0]]
    case = cases().load(entry)
    results = {
        name for name in case.arrays if not any(re.fullmatch(p, name) for p in module.INPUTS)
    }
    changed = {
        name: perturbed(array, number) if name in results else array
        for number, (name, array) in enumerate(case.arrays.items())
    }
    # A cache of its own: what is made of changed arrays is nobody else's, and the other way round.
    case = Case(entry["name"], entry, changed, Cases(cases().folder))
    module.check(case)
    noticed = {name for name, found in case.comparisons.items() if any(c.fails for c in found)}
    assert results - noticed == set()


def perturbed(array: np.ndarray, number: int) -> np.ndarray:
    """Change the largest entry by some percent, or an integer by one, or a truth value."""
    array = np.array(array)
    flat = array.reshape(-1)
    if array.dtype == bool:
        flat[0] = ~flat[0]
    elif array.dtype.kind in "iu":
        flat[0] = 3 if flat[0] == 255 else flat[0] + 1
    else:
        largest = int(np.argmax(np.where(np.isfinite(flat), np.abs(flat), -1)))
        # each array by another factor: they are made from each other
        changed = flat[largest] * (1.01 + 0.001 * number) or 1e-3
        flat[largest] = changed if np.isfinite(changed) else 1.0
    return array


def rates(iterations: int = 10) -> dict[str, np.ndarray]:
    lr = [[poly_lr(0.02, t, iterations, 0.9)] for t in range(iterations + 1)]
    return {"lr_0": np.array(lr)}


def write_cases(folder: Path, cases: dict[str, dict[str, np.ndarray]], **entry: Any) -> Path:
    """Write cases laid out as the published ones; by default of the schedule."""
    entries = []
    for number, (name, arrays) in enumerate(cases.items()):
        np.savez(folder / f"{number}.npz", **arrays)
        names = {key: f"{value.dtype}{list(value.shape)}" for key, value in arrays.items()}
        given = {
            "name": name,
            "set": "test",
            "file": f"{number}.npz",
            "hyperparameters": {"configurations": [[0.02, 10, 0.9, 1]]},
            "arrays": [{"meaning": "", "names": names}],
        }
        entries.append({**given, **entry})
    (folder / "manifest.json").write_text(json.dumps({"cases": entries}))
    return folder


def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    code = main(["--cases", str(folder)])
    return code, capsys.readouterr().out.splitlines()


def test_runner_prints_a_line_a_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_cases(tmp_path, {"7_optim/a": rates(), "7_optim/b": rates()})
    assert run(tmp_path, capsys) == (
        0,
        [
            "passed 7_optim/a  0.0e+00 (lr_0)",
            "passed 7_optim/b  0.0e+00 (lr_0)",
            "2 passed, 0 failed",
        ],
    )


def test_runner_fails_on_a_perturbed_array(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = rates()
    wrong["lr_0"][3] *= 1 + 1e-4
    write_cases(tmp_path, {"7_optim/a": rates(), "7_optim/b": wrong})
    code, lines = run(tmp_path, capsys)
    assert code == 1
    assert lines[1].startswith("FAILED 7_optim/b")
    assert "lr_0 differs by 7" in lines[1]
    assert lines[2] == "1 passed, 1 failed"


def test_runner_fails_on_what_it_does_not_know(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_cases(tmp_path, {"13_new/a": rates(), "10_trajectory/a": rates(), "7_optim/c": {}})
    code, lines = run(tmp_path, capsys)
    assert code == 1
    assert lines[0].startswith("FAILED 13_new/a")
    assert "unknown case: no such group" in lines[0]
    assert "unknown case: neither a run" in lines[1]
    assert "not checked: lr_0" in lines[1]
    assert "nothing was compared" in lines[2]
    assert lines[3] == "0 passed, 3 failed"


def test_runner_fails_on_an_unknown_preset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_cases(
        tmp_path,
        {"10_trajectory/XYZ_kd0": {"s0/parts": np.zeros((1, 1))}, "10_trajectory/setup": rates()},
        hyperparameters={"see": "10_trajectory/setup"},
    )
    _, lines = run(folder, capsys)
    assert "unknown case: preset 'XYZ_kd0'" in lines[0]


def test_runner_fails_on_an_unchecked_array(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_cases(tmp_path, {"7_optim/a": {**rates(), "lr_of_another_kind": np.zeros(3)}})
    code, lines = run(tmp_path, capsys)
    assert code == 1
    assert lines[0].endswith("; not checked: lr_of_another_kind")


def test_runner_fails_on_missing_files_arrays_and_cases(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_cases(tmp_path, {"7_optim/a": rates()}, arrays=[{"names": {"lr_0": "", "lr_1": ""}}])
    assert "not in its file: lr_1" in run(tmp_path, capsys)[1][0]
    (tmp_path / "0.npz").unlink()
    code, lines = run(tmp_path, capsys)
    assert code == 1
    assert "cannot be read: FileNotFoundError" in lines[0]
    assert run(write_cases(tmp_path, {}), capsys) == (1, ["0 passed, 0 failed"])
    assert run(tmp_path / "absent", capsys)[0] == 2


def test_a_comparison_that_fails_is_not_covered_by_another() -> None:
    case = Case("a", {}, {"x": np.ones(2)}, None)  # type: ignore[arg-type]
    case.close("x", np.array([1.0, 1.1]), 1e-3)
    case.close("x", np.array([1.0, 1.2]), 1.0)
    assert [c.fails for c in case.comparisons["x"]] == [True, False]


def test_relative_difference() -> None:
    theirs = np.array([[1.0, 100.0], [np.nan, np.inf]])
    ours = np.array([[1.1, 100.0], [np.nan, np.inf]])
    assert relative_difference(ours, theirs) == pytest.approx(1e-3)
    assert relative_difference(ours, theirs, columns=True) == pytest.approx(0.1)
    assert relative_difference(np.nan_to_num(ours), theirs) == np.inf
    assert relative_difference(ours[0], theirs) == np.inf
    assert relative_difference(np.array([np.nan]), np.array([1.0])) == np.inf


def test_runner_runs_from_the_repository(tmp_path: Path) -> None:
    write_cases(tmp_path, {"7_optim/a": rates()})
    command = [sys.executable, "-m", "tests.parity", "--cases", str(tmp_path)]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("1 passed, 0 failed\n")
