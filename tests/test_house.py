"""What holds for the repository as a whole: layers, and versions that agree wherever they stand."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import yaml
from helpers import REPOSITORY
from packaging.requirements import Requirement
from packaging.version import Version


def imported_modules(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module


def pins() -> dict[str, Version]:
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {
        requirement.name.lower(): Version(next(iter(requirement.specifier)).version)
        for requirement in requirements
    }


def test_library_and_scripts_do_not_know_snakemake() -> None:
    files = [*REPOSITORY.glob("ciss/**/*.py"), *REPOSITORY.glob("workflow_scripts/*.py")]
    assert len(files) > 40
    for path in files:
        used = {module.partition(".")[0] for module in imported_modules(path)}
        assert "snakemake" not in used, path


def test_the_library_does_not_know_its_scripts() -> None:
    for path in REPOSITORY.glob("ciss/**/*.py"):
        used = {module.partition(".")[0] for module in imported_modules(path)}
        assert not used & {"workflow_scripts", "repository", "tests"}, path


def test_the_conda_environment_pins_what_the_tests_run_on() -> None:
    environment = yaml.safe_load((REPOSITORY / "envs" / "ciss.yaml").read_text())
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    wanted = {Requirement(line).name.lower() for line in project["dependencies"]}
    pinned = {Requirement(line).name.lower(): Requirement(line) for line in pip}
    assert pinned.keys() == wanted
    for name, requirement in pinned.items():
        assert pins()[name] in requirement.specifier, name


def test_the_pins_lie_in_the_project_s_ranges() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    chosen = (extras[name] for name in ("workflow", "export", "dev"))
    lines = [*project["dependencies"], *(line for extra in chosen for line in extra)]
    for requirement in map(Requirement, lines):
        if requirement.name == project["name"]:  # dev takes other extras in
            continue
        assert pins()[requirement.name.lower()] in requirement.specifier, requirement
