"""Wrong files and arguments of the steps' scripts: one sentence each, and nothing lost or left.

That damage is found wherever it is in a file is in ``test_checkpoint.py``, damaged progress in
``test_progress.py`` and ``test_faults.py``, damaged images in ``test_index.py``.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import made_once
from sentences import assert_refused
from steps import COMMANDS, altered, make_steps, run_command

NAN = float("nan")


@pytest.fixture(scope="module")
def made(shared: Path) -> Path:
    """Every artifact of two steps; beside them in ``bad``, what became of some."""
    return made_once(shared / "steps", make_all)


def make_all(made: Path) -> None:
    make_steps(made)
    bad = made / "bad"
    bad.mkdir()
    model = made / "0" / "model.safetensors"
    whole = model.read_bytes()
    (bad / "truncated.safetensors").write_bytes(whole[: len(whole) // 2])
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    (bad / "flipped.safetensors").write_bytes(flipped)
    (bad / "empty.safetensors").touch()
    (bad / "folder").mkdir()
    (bad / "split.csv").write_text("step,subset,image,mask\nfirst,train,a.jpg,a.png\n")
    (bad / "text.csv").write_text("a,b\n1,2\n")

    for name, change in {
        "older": lambda header, tensors: header.update(version=0),
        "newer": lambda header, tensors: header.update(version=2),
        "nan": lambda header, tensors: tensors["cls.0.weight"].fill_(NAN),
        "moved": lambda header, tensors: tensors["cls.0.weight"].add_(1),
        "encoder": lambda header, tensors: tensors["body.mod1.conv1.weight"].add_(1),
        "names": lambda header, tensors: header["content"]["metadata"]["classes"].reverse(),
        "voc": lambda header, tensors: header["content"]["metadata"].update(kind="voc"),
        "width": lambda header, tensors: header["content"]["network"]["config"].update(width=8),
        "headless": lambda header, tensors: header["content"].pop("network"),
    }.items():
        altered(model, bad / f"{name}.safetensors", change)
    recorded = made / "0" / "importances.safetensors"
    for name, change in {
        "seed": lambda header, tensors: header["content"].update(seed=2),
        "recipe": lambda header, tensors: header["content"]["recipe"].update(lr=9),
        "nan": lambda header, tensors: tensors[min(tensors)].fill_(NAN),
        "few": lambda header, tensors: tensors.pop("ewc/fisher/cls.0.weight"),
        "wide": lambda header, tensors: tensors.update(
            {"ewc/fisher/cls.0.bias": tensors["ewc/fisher/cls.0.bias"][:3].clone()}
        ),
    }.items():
        altered(recorded, bad / f"importances_{name}.safetensors", change)
    for name in ("attribution", "pretuned"):
        for kind, change in {
            "few": lambda header, tensors: tensors.pop(min(tensors)),
            "nan": lambda header, tensors: tensors[max(tensors)].fill_(NAN),
        }.items():
            altered(made / "0" / f"{name}.safetensors", bad / f"{name}_{kind}.safetensors", change)
    sums = made / "cfs0" / "ridge.safetensors"
    altered(sums, bad / "ridge_few.safetensors", lambda header, tensors: tensors.pop("gram"))
    altered(
        sums,
        bad / "ridge_seed.safetensors",
        lambda header, tensors: header["content"].update(seed=2),
    )


#: command, what is wrong of its arguments, and words of the sentence
DAMAGED = [
    ("evaluate", "--step 0 --model {made}/bad/truncated.safetensors", ["is damaged", "rm "]),
    ("train", "--teacher {made}/bad/flipped.safetensors", ["its checksum differs", "rm "]),
    ("transfer", "--model {made}/bad/empty.safetensors", ["is damaged", "rm "]),
    ("attribute", "--model {made}/bad/older.safetensors", ["version 0", "reads 1", "rm "]),
    ("predict", "--checkpoint {made}/bad/newer.safetensors", ["version 2", "update this code"]),
    ("evaluate", "--step 0 --model {made}/bad/nan.safetensors", ["cls.0.weight", "not finite"]),
    ("export", "--checkpoint {made}/bad/width.safetensors", ["header names", "size mismatch"]),
    ("evaluate", "--step 0 --model {made}/bad/headless.safetensors", ["lacks 'network'", "rm "]),
    ("train", "--importances {made}/bad/importances_nan.safetensors", ["not finite"]),
    ("train", "--importances {made}/bad/importances_few.safetensors", ["ewc/fisher/cls.0.weight"]),
    ("train", "--importances {made}/bad/importances_wide.safetensors", ["ewc/fisher/cls.0.bias"]),
    ("awt", "--attribution {made}/bad/attribution_few.safetensors", ["lacks count", "rm "]),
    ("awt", "--attribution {made}/bad/attribution_nan.safetensors", ["not finite"]),
    ("nest", "--pretuned {made}/bad/pretuned_few.safetensors", ["lacks background_bias"]),
    ("solve", "--ridge {made}/bad/ridge_few.safetensors", ["lacks gram"]),
    ("train", "--split {made}/bad/split.csv", ["step of a.jpg is 'first'", "delete it"]),
]
OF_ANOTHER_KIND = [
    ("evaluate", "--model {made}/none.safetensors", ["does not exist", "make it first"]),
    ("evaluate", "--model {made}/bad/folder", ["is a folder", "give the safetensors file"]),
    ("evaluate", "--model {made}/split.csv", ["not a safetensors file", "which file was meant"]),
    ("evaluate", "--model {made}/0/importances.safetensors", ["'tensors', not 'model'"]),
    ("awt", "--attribution {made}/0/model.safetensors", ["'model', not 'attribution'"]),
    ("train", "--exemplars {made}/none.csv", ["cannot read the list of exemplars", "No such file"]),
    ("train", "--exemplars {made}/bad/text.csv", ["is no list of exemplars", "delete it"]),
    ("train", "--split {made}/bad/folder", ["cannot read the split", "Is a directory"]),
    ("predict", "--checkpoint {made}/1/init.safetensors", ["before its training"]),
    ("predict", "--checkpoint {made}/bad/voc.safetensors", ["'voc'", "prediction.values"]),
]
OF_ANOTHER_RUN = [
    ("evaluate", "--model {made}/0/model.safetensors", ["of step 0", "step 1 is needed"]),
    ("evaluate", "--step 0", ["of step 1", "step 0 is needed"]),
    ("evaluate", "--step 0 --model {made}/bad/names.safetensors", ["knows other classes"]),
    ("evaluate", "--classes orange-cross red-disc", ["class 1 is 'red-disc'", "'orange-cross'"]),
    ("evaluate", "--classes red-disc", ["its class 2 is 'orange-cross'", "none"]),
    ("attribute", "--model {made}/1/model.safetensors", ["of step 1", "step 0 is needed"]),
    ("attribute", "--new-classes 11", ["11 are to be added", "has 21"]),
    ("attribute", "--step 2 --model {made}/1/init.safetensors", ["before its training"]),
    ("pretune", "--model {made}/1/model.safetensors", ["of step 1", "step 0 is needed"]),
    ("pretune", "--new-classes 11", ["11 are to be added", "has 21"]),
    ("transfer", "--step 2", ["of step 0", "step 1 is needed"]),
    ("awt", "--model {made}/bad/moved.safetensors", ["attribution", "another model"]),
    ("nest", "--model {made}/bad/moved.safetensors", ["pretuned", "another model"]),
    ("awt", "--new-classes 4", ["attribution is of classes", "attribute this step"]),
    ("train", "--init {made}/0/model.safetensors", ["11 + 5 are needed", "transfer.py"]),
    ("train", "--init {made}/1/model.safetensors", ["does not start from", "encoder"]),
    ("train", "--teacher {made}/bad/encoder.safetensors", ["does not start from", "encoder"]),
    ("train", "--teacher {made}/1/model.safetensors", ["of step 1", "step 0 is needed"]),
    ("train", "--new-classes 4", ["11 + 4 are needed"]),
    ("train", "--importances {made}/1/importances.safetensors", ["step is 1 there and 0 here"]),
    ("train", "--importances {made}/bad/importances_seed.safetensors", ["seed is 2 there"]),
    ("train", "--importances {made}/bad/importances_recipe.safetensors", ["differ in recipe"]),
    ("train", "--method ssul", ["the method needs unknown"]),
    ("train", "--method dft", ["no classifiers of classes to come"]),
    ("train", "--method cfs", ["solve.py"]),
    ("fuse", "--old {made}/bad/moved.safetensors", ["another model", "make it again"]),
    ("fuse", "--new {made}/1/init.safetensors", ["before its training"]),
    ("solve", "--ridge {made}/cfs1/ridge.safetensors", ["step is 1 there and 0 here"]),
    ("solve", "--ridge {made}/bad/ridge_seed.safetensors", ["seed is 2 there and 1 here"]),
    ("solve", "--model {made}/cfs1/model.safetensors", ["of step 1", "step 0 is needed"]),
    ("solve", "--option features=8", ["16 random features", "features is 8"]),
    ("solve_base", "--new-classes 5", ["has 10 classes", "--new-classes 5"]),
    ("solve", "--method mib", ["train.py"]),
]
ARGUMENTS = [
    ("train", "--step 7", ["no train images for step 7", "0 (train)"]),
    ("evaluate", "--images val", ["no val images for step 1", "evaluation.images"]),
    ("train_base", "--new-classes 21", ["--new-classes 21", "20 classes"]),
    ("train", "--new-classes 0", ["--new-classes", "at least 1"]),
    ("train", "--seed -1", ["--seed", "at least 0"]),
    ("train", "--epochs 0", ["--epochs", "at least 1"]),
    ("train", "--batch 1", ["--batch", "at least 2"]),
    ("evaluate", "--crop 0", ["--crop", "at least 16"]),
    ("train", "--lr nan", ["--lr", "'nan'"]),
    ("train", "--accumulate 5", ["recipe.accumulate is 5", "divisor"]),
    ("train", "--option importance=high", ["importance", "'high'", "give a number"]),
    ("train", "--option importance=-1", ["importance", "finite number from 0"]),
    ("train", "--option importance", ["--option importance", "NAME=VALUE"]),
    ("train", "--option importence=1", ["'importence'", "did you mean 'importance'"]),
    ("awt", "--option fraction=x", ["fraction", "'x'", "give a number"]),
    ("awt", "--option replace=1", ["replace", "give true or false"]),
    ("predict", "--overlay x", ["--overlay", "not from 0 to 1"]),
    ("index", "--files x", ["--files", "not JSON"]),
    ("train", "--no-such 1", ["--no-such", "--help"]),
]
ROWS = DAMAGED + OF_ANOTHER_KIND + OF_ANOTHER_RUN + ARGUMENTS


@pytest.mark.parametrize(("command", "more", "words"), ROWS, ids=[f"{c} {m}" for c, m, _ in ROWS])
def test_it_is_refused(
    command: str, more: str, words: list[str], made: Path, tmp_path: Path
) -> None:
    assert_refused(lambda: run_command(command, made, tmp_path, more), words, made, tmp_path)


def test_a_file_that_cannot_be_read_is_not_given_up(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("ciss.checkpoint.safe_open", refuse)
    words = ["cannot be read (Permission denied)", "permissions"]
    sentence = assert_refused(
        lambda: run_command("evaluate", made, tmp_path), words, made, tmp_path
    )
    assert "rm " not in sentence


def test_a_network_before_its_training_may_be_evaluated_and_it_is_said(
    made: Path, tmp_path: Path
) -> None:
    ended = run_command("evaluate", made, tmp_path, "--model {made}/1/init.safetensors")
    assert ended.status == 0, ended.said
    assert "is a network before its training" in ended.said


def test_files_of_before_the_checks_are_taken(made: Path, tmp_path: Path) -> None:
    """Their headers do not say what they were made with; other facts are compared still."""
    for command, argument, path in (
        ("awt", "attribution", "0/attribution"),
        ("nest", "pretuned", "0/pretuned"),
        ("fuse", "new", "1/model"),
    ):

        def forget(header: dict, tensors: object) -> None:
            content = header["content"]
            del content.get("metadata", content)["made_with"]

        old = tmp_path / f"{argument}.safetensors"
        altered(made / f"{path}.safetensors", old, forget)
        ended = run_command(command, made, tmp_path / argument, f"--{argument} {old}")
        assert ended.status == 0, ended.said


def test_the_table_has_every_script_of_the_steps() -> None:
    assert {command for command, _, _ in ROWS} == COMMANDS.keys()
