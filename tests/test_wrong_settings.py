"""Wrong settings and names, as a user of Snakemake meets them: one sentence, and nothing happens.

That each setting is checked is shown in ``test_config.py``, within one process; here are one or two
of every way in which a setting or a name can be wrong, on Snakemake's command line.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers import only_one
from sentences import Ended, assert_sentence, contents, dry_runs

pytestmark = pytest.mark.workflow

FILES = {
    "twice.yaml": b"recipe: {crop: 64}\nseeds: [2]\nrecipe: {batch: 8}\n",
    "torn.yaml": b"recipe: {crop: 64\nseeds: [2]\n",
    "list.yaml": b"- recipe\n- seeds\n",
    "nothing.yaml": b"recipe:\nseeds: [2]\n",
    "binary.yaml": b"\xff\xfe\x00recipe",
}
STEP = "results/voc/15-1/mib/seed1/step1/model.safetensors"
MATRIX = "dataset: voc, scenarios: [15-1], runs: [ft]"

#: what a user writes after `snakemake`, and words of the answer
WRONG: dict[str, tuple[list[str], list[str]]] = {
    # --config
    "key misspelt": (["--config", "recpie={crop: 64}"], ["'recpie'", "did you mean 'recipe'"]),
    "bracket left open": (["--config", "recipe={crop: 64"], ["recipe", "{crop: 64", "mapping"]),
    "out of range": (["--config", "recipe={crop: -1}"], ["recipe.crop is -1", "at least 16"]),
    "no number": (["--config", "recipe={base: {lr: .nan}}"], ["recipe.base.lr is nan", "finite"]),
    "nothing given": (["--config", "seeds="], ["seeds is None", "list"]),
    "an unknown kind": (
        ["--config", "datasets={mine: {kind: vco, root: x}}"],
        ["datasets.mine.kind", "'vco'", "did you mean 'voc'"],
    ),
    "an experiment listed": (["--config", "experiments=[voc_15-1_mbi]"], ["did you mean 'mib'"]),
    "a seed too large": (["--config", "seeds=[4294967296]"], ["seeds.0", "at most 4294967295"]),
    "results are a file": (["--config", "results=README.md"], ["results is 'README.md'"]),
    "name of a rule": (
        ["--config", f"matrices={{train_step: {{{MATRIX}}}}}"],
        ["matrices.train_step: a rule has this name", "choose another"],
    ),
    # --configfile
    "file with a key twice": (
        ["--configfile", "twice.yaml"],
        ["twice.yaml, line 3", "'recipe' is there a second time"],
    ),
    "file with an empty key": (["--configfile", "nothing.yaml"], ["recipe is None", "mapping"]),
    # names of targets
    "method": (["voc_15-1_mbi"], ["'mbi'", "did you mean 'mib'"]),
    "initialisation": (["voc_15-1_mib_atw"], ["'atw'", "did you mean 'awt'"]),
    "data set": (["vco_15-1_mib"], ["'vco'", "did you mean 'voc'"]),
    "upper case": (["VOC_15-1_mib"], ["'VOC'", "did you mean 'voc'"]),
    "scenario that does not divide": (
        ["voc_15-3_mib"],
        ["'15-3'", "5 are left, which steps of 3 do not divide"],
    ),
    "setup": (["voc_15-1-disjiont_mib"], ["'disjiont'", "did you mean 'disjoint'"]),
    "no method": (["voc_15-1"], ["'voc_15-1'", "dataset_scenario_method"]),
    "matrix": (["papre"], ["'papre'", "did you mean 'paper'"]),
    "rule": (["prepare_vco"], ["'prepare_vco'", "did you mean 'prepare_voc'"]),
    # files as targets
    "step that does not exist": (
        [STEP.replace("step1", "step9")],
        ["step 9 does not exist", "steps 0 to 5"],
    ),
    "seed": ([STEP.replace("seed1", "seedx")], ["seedx", f"such as {STEP}"]),
    "run in a path": ([STEP.replace("mib", "mbi")], ["'mbi'", "did you mean 'mib'"]),
    "step 0": (["results/voc/25/ce/seed1/step0/model.safetensors"], ["'25'", "20 classes"]),
    "file": (["results/voc/15-1/split.cvs"], ["split.cvs", "did you mean split.csv"]),
}
#: what looks wrong and is not
RIGHT = {
    "file in another spelling": ["-n", f"./{Path(STEP).parents[3]}/../15-1//split.csv"],
    "sharp sign in quotes": ["--dry-run", "--config", "images='roll #1'"],
}
#: what Snakemake refuses before it reads the Snakefile, in words of its own
SNAKEMAKES_OWN: dict[str, tuple[list[str], list[str]]] = {
    "absent file": (["--configfile", "absent.yaml"], ["absent.yaml", "No such file"]),
    "file that is no YAML": (["--configfile", "torn.yaml"], ["not valid JSON or YAML"]),
    "file without keys": (["--configfile", "list.yaml"], ["with keys at top level"]),
    "binary file": (["--configfile", "binary.yaml"], ["can't decode byte"]),
    "key with a dot": (["--config", "recipe.crop=64"], ["Invalid config definition"]),
}


@pytest.fixture(scope="module")
def ended(shared: Path, clone: Path) -> dict[str, Ended]:
    """How the commands of both tables ended, in a folder with results that must stay."""
    with only_one(shared / "wrong settings.lock"):
        answers = shared / "wrong settings.json"
        if not answers.exists():
            folder = Path(shutil.copytree(clone, shared / "wrong settings", symlinks=True))
            for name, content in FILES.items():
                (folder / name).write_bytes(content)
            (folder / STEP).parent.mkdir(parents=True)
            (folder / STEP).write_text("trained for a day")
            before = contents(folder)
            commands = {name: words for name, (words, _) in (WRONG | SNAKEMAKES_OWN).items()}
            commands |= RIGHT
            lines = [command_line(words) for words in commands.values()]
            results = dict(zip(commands, dry_runs(folder, lines), strict=True))
            # Snakemake was to run: what it notes of the results when it begins is no harm.
            after = contents(folder)
            after = {path: of for path, of in after.items() if Path(path).name != "records.json"}
            results["folder"] = Ended(0, "" if after == before else str(after.keys() ^ before))
            answers.write_text(json.dumps(results))
    return {name: Ended(*result) for name, result in json.loads(answers.read_text()).items()}


def command_line(words: list[str]) -> list[str]:
    """Not dry: what is refused must be refused before anything runs."""
    target = ["--", "voc_15-1_mib"] if words[0].startswith("--") else []
    return ["--cores", "1", *words, *target]


@pytest.mark.parametrize("name", WRONG)
def test_it_is_refused_in_one_sentence(name: str, ended: dict[str, Ended]) -> None:
    assert_sentence(*ended[name], WRONG[name][1])
    assert "Job stats" not in ended[name].said


@pytest.mark.parametrize("name", SNAKEMAKES_OWN)
def test_snakemake_says_it_in_its_own_words(name: str, ended: dict[str, Ended]) -> None:
    assert ended[name].status not in (0, 70)
    for word in SNAKEMAKES_OWN[name][1]:
        assert word in ended[name].said


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_is_planned(name: str, ended: dict[str, Ended]) -> None:
    assert ended[name].status == 0, ended[name].said
    assert "Job stats" in ended[name].said


def test_nothing_is_changed_lost_or_left(ended: dict[str, Ended]) -> None:
    assert ended["folder"].said == ""
