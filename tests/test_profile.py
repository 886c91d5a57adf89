"""The SLURM profile names every rule that is submitted, and no other."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from helpers import REPOSITORY


@pytest.fixture(scope="module")
def profile() -> dict[str, Any]:
    content = yaml.safe_load((REPOSITORY / "profiles" / "slurm" / "config.yaml").read_text())
    assert isinstance(content, dict)
    return content


def rules() -> dict[str, str]:
    """Text of each rule in the files, by name; a rule made from another has the other's too."""
    found: dict[str, str] = {}
    # Those of targets that need a setting stand below an `if`.
    begin = r"^ *(?:use rule (?P<base>\w+) as |rule )(?P<name>\w+)(?: with)?:$"
    for path in sorted((REPOSITORY / "rules").glob("*.smk")):
        text = path.read_text()
        starts = list(re.finditer(begin, text, re.MULTILINE))
        ends = [*(start.start() for start in starts[1:]), len(text)][: len(starts)]
        for start, end in zip(starts, ends, strict=True):
            base = found[start["base"]] if start["base"] else ""
            found[start["name"]] = base + text[start.end() : end]
    return found


def local_rules() -> set[str]:
    text = (REPOSITORY / "Snakefile").read_text()
    listed = re.search(r"^localrules:\n((?: +\w+,\n)+)", text, re.MULTILINE)
    assert listed
    return set(re.findall(r"\w+", listed[1]))


def test_every_rule_that_is_submitted_has_its_entry(profile: dict[str, Any]) -> None:
    # Targets, which only name files, run nowhere.
    submitted = {name for name, text in rules().items() if "shell:" in text} - local_rules()
    assert {"index", "train_base", "train_step_importances", "evaluate"} <= submitted
    assert local_rules() <= rules().keys()
    assert profile["set-resources"].keys() == submitted
    assert profile["set-threads"].keys() == submitted


def test_each_entry_says_where_how_long_and_how_much(profile: dict[str, Any]) -> None:
    assert {"slurm_account", "slurm_partition", "runtime", "mem_mb"} <= profile[
        "default-resources"
    ].keys()
    text = rules()
    for rule, entry in profile["set-resources"].items():
        needs_gpu = re.search(r"^ +gpu=", text[rule], re.MULTILINE) is not None
        expected = {"slurm_partition", "runtime", "mem_mb"} | ({"gpu"} if needs_gpu else set())
        assert entry.keys() == expected, rule
        assert entry["mem_mb"] >= 600, "Snakemake itself needs some in each job"


def test_each_key_is_explained() -> None:
    lines = (REPOSITORY / "profiles" / "slurm" / "config.yaml").read_text().splitlines()
    for name in ("executor", "jobs", "local-cores", "retries", "latency-wait", "slurm_account"):
        (line,) = (line for line in lines if line.strip().startswith(f"{name}:"))
        assert "# " in line, name
