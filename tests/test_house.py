"""What holds for the repository as a whole: layers, and versions that agree wherever they stand."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml
from helpers import REPOSITORY
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from ciss.runtime import OLDEST_TORCH
from ciss.training import Recipe


def imported_modules(path: Path) -> Iterator[str]:
    return imported_modules_of(path.read_text(encoding="utf-8"))


def imported_modules_of(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module


def library() -> dict[str, set[str]]:
    """Each module of ciss/, a package counting as one, and which others it imports, anywhere."""
    found: dict[str, set[str]] = {}
    for path in (REPOSITORY / "ciss").rglob("*.py"):
        name = path.relative_to(REPOSITORY / "ciss").parts[0].removesuffix(".py")
        if name == "__init__":
            continue
        used = found.setdefault(name, set())
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "ciss":
                used |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ciss."):
                used.add(str(node.module).split(".")[1])
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
                used |= {module.split(".")[1] for module in names if module.startswith("ciss.")}
    return {name: used - {name, "__version__"} for name, used in found.items()}


def layers() -> list[list[str]]:
    """The modules of each layer, the lowest first, as CONTRIBUTING.md has them."""
    text = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.partition("| layer | modules |\n| --- | --- |\n")[2].partition("\n\n")[0]
    return [re.findall(r"`(\w+)`", row.split("|")[2]) for row in table.splitlines()]


def climbing(modules: dict[str, set[str]], order: list[list[str]]) -> list[str]:
    """Imports of a higher layer."""
    height = {name: number for number, names in enumerate(order) for name in names}
    return [
        f"{name} imports {other}"
        for name, used in sorted(modules.items())
        for other in sorted(used)
        if height[other] > height[name]
    ]


def test_no_layer_imports_a_higher_one() -> None:
    modules, order = library(), layers()
    listed = [name for names in order for name in names]
    assert len(order) == 8
    assert len(set(listed)) == len(listed)
    assert sorted(set(modules) ^ set(listed)) == [], "not in CONTRIBUTING.md, or only there"
    assert climbing(modules, order) == []
    climbs = climbing({**modules, "files": {"training"}}, order)
    assert climbs == ["files imports training"]


def settings() -> dict[tuple[str, ...], Any]:
    """Every key that the configuration may have, by its path, and the schema's part of it."""
    schema = yaml.safe_load((REPOSITORY / "schemas" / "config.schema.yaml").read_text())

    def walk(node: dict[str, Any], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rpartition("/")[2]]
        for name, inner in node.get("properties", {}).items():
            yield (*path, name), inner
            yield from walk(inner, (*path, name))
        if isinstance(node.get("additionalProperties"), dict):
            yield from walk(node["additionalProperties"], (*path, "*"))

    return dict(walk(schema, ()))


def explained(name: str, config: str, documents: str) -> bool:
    """Whether a comment stands beside or above a key, or a document speaks of it."""
    lines = config.splitlines()
    for above, line in zip(["", *lines], lines, strict=False):
        found = re.search(rf"(?:^|[{{,\s]){name}:", line)
        if found and ("#" in line[found.end() :] or above.lstrip().startswith("#")):
            return True
    return re.search(rf"`(?:[\w.]+\.)?{name}(?:: [^`]*)?`|\b{name}:", documents) is not None


def test_every_setting_is_described_and_used() -> None:
    config = (REPOSITORY / "config.yaml").read_text()
    pages = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
    documents = "\n".join(path.read_text(encoding="utf-8") for path in pages)
    folders = ("ciss/**/*.py", "rules/*.smk", "workflow_scripts/*.py")
    code = "\n".join(
        path.read_text(encoding="utf-8") for name in folders for path in REPOSITORY.glob(name)
    )

    def used(name: str) -> bool:
        # By its name, or as a field of the dataclass that takes the whole section.
        return re.search(rf'["\']{name}["\']|^    {name}: \w', code, re.MULTILINE) is not None

    names = {path[-1] for path in settings()}
    assert len(names) > 60
    assert [name for name in sorted(names) if not used(name)] == []
    assert [name for name in sorted(names) if not explained(name, config, documents)] == []
    assert not used("momentun")
    assert not explained("momentun", config, documents)


def test_fractions_of_the_recipe_are_its_float_fields() -> None:
    """Rules import no torch, so they have the names once more: 1 and 1.0 are one setting."""
    text = (REPOSITORY / "rules" / "settings.smk").read_text()
    (listed,) = re.findall(r"^RECIPE_FRACTIONS = (\(.*?\))$", text, re.MULTILINE)
    types = get_type_hints(Recipe)
    assert set(ast.literal_eval(listed)) == {name for name in types if types[name] is float}


def test_config_yaml_has_every_setting_but_those_of_single_data_sets() -> None:
    config = yaml.safe_load((REPOSITORY / "config.yaml").read_text())

    def has(path: tuple[str, ...]) -> bool:
        inner = config
        for name in path:
            if name not in inner:
                return False
            inner = inner[name]
        return True

    plain = [path for path in settings() if "*" not in path]
    assert len(plain) > 40
    assert [".".join(path) for path in plain if not has(path)] == []


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


def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    return found


def test_scripts_refuse_what_the_project_does_not_run_on() -> None:
    """They say it before anything that would read the project's file could be imported."""
    scripts = (REPOSITORY / "workflow_scripts" / "repository.py").read_text()
    (python,) = re.findall(r"^OLDEST_PYTHON = \((\d+), (\d+)\)$", scripts, re.MULTILINE)
    assert project()["requires-python"].startswith(f">={'.'.join(python)},")
    assert f"torch>={OLDEST_TORCH}" in project()["dependencies"]


def drifted(environment: str, extras: list[str]) -> list[str]:
    """Say where a conda environment differs from the project's dependencies and the pins."""
    entries = yaml.safe_load(environment)["dependencies"]
    (pip,) = [entry["pip"] for entry in entries if isinstance(entry, dict)]
    lines = project()["dependencies"] + [
        line for extra in extras for line in project()["optional-dependencies"][extra]
    ]
    wanted = {
        name: f"{name}=={pins()[name]}" for name in (Requirement(line).name for line in lines)
    }
    return sorted(set(pip) ^ set(wanted.values()))


#: the extras of an environment, beside what the project always needs
ENVIRONMENTS = {"ciss": [], "export": ["export"]}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_conda_environment_pins_what_the_tests_run_on(name: str) -> None:
    path = REPOSITORY / "envs" / f"{name}.yaml"
    assert drifted(path.read_text(), ENVIRONMENTS[name]) == []
    other = re.sub(r"numpy==\S+", "numpy==2.0.0", path.read_text())
    assert drifted(other, ENVIRONMENTS[name]) == ["numpy==2.0.0", f"numpy=={pins()['numpy']}"]
    assert len(drifted(path.read_text(), ["workflow"])) > 3


def test_every_rule_s_environment_is_one_of_these() -> None:
    used = {
        name
        for path in (REPOSITORY / "rules").glob("*.smk")
        for name in re.findall(r'"\.\./envs/(\w+)\.yaml"', path.read_text())
    }
    found = {path.stem for path in (REPOSITORY / "envs").glob("*.yaml")}
    assert used == found == ENVIRONMENTS.keys()


def test_containers_have_the_same_versions() -> None:
    """Their packages come by the constraints themselves; Python is that of the environments."""
    docker = (REPOSITORY / "container" / "Dockerfile").read_text()
    apptainer = (REPOSITORY / "container" / "ciss.def").read_text()
    bases = re.findall(r"^FROM (\S+)$", docker, re.MULTILINE)
    bases += re.findall(r"^From: (\S+)$", apptainer, re.MULTILINE)
    assert len(bases) == 2
    assert bases[0] == bases[1]
    pinned = re.fullmatch(r"python:(3\.\d+)\.\d+-slim-\w+@sha256:[0-9a-f]{64}", bases[0])
    assert pinned
    assert Version(pinned[1]) in SpecifierSet(project()["requires-python"])
    for path in (REPOSITORY / "envs").glob("*.yaml"):
        assert f"- python ={pinned[1]}" in path.read_text(), path
    for text in (docker, apptainer):
        (command,) = re.findall(r"pip install .*", text)
        assert command == (
            "pip install --constraint constraints.txt --editable '.[workflow,export]'"
        )
    # The last user is the one that it runs as.
    assert re.findall(r"^USER (\S+)$", docker, re.MULTILINE)[-1] not in ("root", "0")


def test_containers_have_all_that_a_run_needs() -> None:
    wanted = {"Snakefile", "config.yaml", "pyproject.toml", "constraints.txt", "README.md"}
    folders = "ciss configs envs profiles report rules schemas workflow_scripts"
    wanted |= {"LICENSE", *folders.split()}
    ignored = (REPOSITORY / ".dockerignore").read_text()
    assert set(re.findall(r"^!(\S+)$", ignored, re.MULTILINE)) == wanted
    apptainer = (REPOSITORY / "container" / "ciss.def").read_text()
    copied = re.findall(r"^    (\S+) /opt/ciss/(\S+)$", apptainer, re.MULTILINE)
    assert all(source == target for source, target in copied)
    assert {source for source, _ in copied} == wanted
    assert all((REPOSITORY / name).exists() for name in wanted)


def test_the_pins_lie_in_the_project_s_ranges() -> None:
    extras = project()["optional-dependencies"]
    chosen = (extras[name] for name in ("workflow", "export", "dev"))
    lines = [*project()["dependencies"], *(line for extra in chosen for line in extra)]
    for requirement in map(Requirement, lines):
        if requirement.name == project()["name"]:  # dev takes other extras in
            continue
        assert pins()[requirement.name.lower()] in requirement.specifier, requirement


#: Calls that run what they are given, or write where an archive says.
UNSAFE = re.compile(
    r"(eval|exec|os\.system|os\.popen|pickle\.loads?|\w*\.?(Unpickler|unsafe_load)|yaml\.load"
    r"|.*\.extractall|.*\.extract|shutil\.unpack_archive|.*\.read_pickle|torch\.jit\.load)"
)
#: Modules that do so in whatever they are asked for; pickle is imported for its exceptions.
UNSAFE_MODULES = {"joblib", "dill", "cloudpickle", "marshal", "shelve"}
#: Names that would hide one of these calls.
UNSAFE_SOURCES = {"torch", "pickle", "yaml", "numpy", "os", "shutil", "pandas"}
UNSAFE_NAMES = {"load", "loads", "Unpickler", "unpack_archive", "read_pickle", "system", "popen"}


def unsafe_calls(source: str) -> list[str]:
    """Calls that could run or write what a file holds: none has a place in this project."""
    found = [name for name in imported_modules_of(source) if name.split(".")[0] in UNSAFE_MODULES]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module in UNSAFE_SOURCES:
            found += [name.name for name in node.names if name.name in UNSAFE_NAMES]
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        flags = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if (
            UNSAFE.fullmatch(called)
            or (called == "torch.load" and flags.get("weights_only") != "True")
            or flags.get("allow_pickle", "False") != "False"
            or flags.get("shell", "False") != "False"
        ):
            found.append(ast.unparse(node))
    return found


def test_no_file_is_read_in_a_way_that_runs_it() -> None:
    for folder in ("ciss", "workflow_scripts", "benchmarks"):
        for path in (REPOSITORY / folder).rglob("*.py"):
            assert not unsafe_calls(path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize(
    "call",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "pickle.load(file)",
        "pd.read_pickle(path)",
        "import joblib",
        "from torch import load",
        "from pickle import loads as read",
        "yaml.load(text, Loader)",
        "tarfile.open(path).extractall(folder)",
        "subprocess.run(f'rm {path}', shell=True)",
        "eval(text)",
    ],
)
def test_what_runs_a_file_is_noticed(call: str) -> None:
    assert unsafe_calls(call)
    safe = "import pickle; torch.load(p, weights_only=True), np.load(p), network.eval(), run([p])"
    assert not unsafe_calls(safe)


#: Numbers. Wildcards too go unquoted: their patterns allow no character that a shell knows.
UNQUOTED = {"threads", "params.batch", "params.classes", "params.shown", "params.step"}


def test_commands_of_rules_quote_what_may_be_a_path() -> None:
    quoted = 0
    for path in (REPOSITORY / "rules").glob("*.smk"):
        for command in re.findall(r"shell:\n((?:\s+\"[^\n]*\"\n)+)", path.read_text()):
            for field in re.findall(r"\{([^}]+)\}", command):
                quoted += field.endswith(":q")
                assert (
                    field.endswith(":q") or field in UNQUOTED or field.startswith("wildcards.")
                ), f"{path.name}: {{{field}}}"
    assert quoted > 100


def test_planning_does_not_load_torch() -> None:
    """Each start of Snakemake would pay 190 MB and a second; a job on a cluster has two."""
    lines = [
        line
        for path in sorted((REPOSITORY / "rules").glob("*.smk"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.match(r"(import|from) ciss\b", line)
    ]
    assert "import ciss.config" in lines
    code = "\n".join(["import sys", *lines, "print(sorted({'torch', 'scipy'} & set(sys.modules)))"])
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"
