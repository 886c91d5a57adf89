"""Every artifact of two steps, made by the scripts themselves, and the commands that read them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors import safe_open
from safetensors.torch import save_file
from sentences import Ended, run_script
from torch import Tensor

from ciss import checkpoint
from ciss.datasets import list_images, open_dataset
from ciss.datasets.shapes import generate
from ciss.splits import write_split

_DATA = "--dataset shapes --kind shapes --root {made}/shapes --split {made}/split.csv"
_CPU = "--device cpu --threads 1"
_RECIPE = "--epochs 2 --lr 0.05 --batch 4 --crop 32"
_LATER = f"{_DATA} {_CPU} --step 1 --new-classes 5"

#: a right command of each script, whose outputs lie in ``out``; of an argument that is given once
#: more, the last one counts
COMMANDS = {
    "train": (
        f"train.py {_LATER} {_RECIPE} --seed 1 --method ewc --init {{made}}/1/init.safetensors"
        " --teacher {made}/0/model.safetensors --importances {made}/0/importances.safetensors"
        " --output {out}/model.safetensors --history {out}/history.csv"
        " --importances-out {out}/importances.safetensors"
    ),
    "train_base": (
        f"train.py {_DATA} {_CPU} --step 0 --new-classes 10 {_RECIPE} --seed 1"
        " --backbone resnet18 --width 4 --head-channels 8 --method ce-importance"
        " --output {out}/model.safetensors --history {out}/history.csv"
        " --importances-out {out}/importances.safetensors"
    ),
    "attribute": (
        f"attribute.py {_LATER} --model {{made}}/0/model.safetensors --crop 32"
        " --output {out}/attribution.safetensors"
    ),
    "pretune": (
        f"pretune.py {_LATER} {_RECIPE} --seed 1 --initialisation nest"
        " --model {made}/0/model.safetensors --output {out}/pretuned.safetensors"
    ),
    "transfer": (
        "transfer.py --step 1 --new-classes 5 --seed 1 --model {made}/0/model.safetensors"
        " --initialisation mib --output {out}/init.safetensors"
    ),
    "awt": (
        "transfer.py --step 1 --new-classes 5 --seed 1 --model {made}/0/model.safetensors"
        " --initialisation awt --attribution {made}/0/attribution.safetensors"
        " --output {out}/init.safetensors"
    ),
    "nest": (
        "transfer.py --step 1 --new-classes 5 --seed 1 --model {made}/0/model.safetensors"
        " --initialisation nest --pretuned {made}/0/pretuned.safetensors"
        " --output {out}/init.safetensors"
    ),
    "fuse": (
        "fuse.py --old {made}/0/model.safetensors --new {made}/1/model.safetensors --fusion ewf"
        " --output {out}/fused.safetensors"
    ),
    "evaluate": (
        f"evaluate.py {_DATA} {_CPU} --step 1 --model {{made}}/1/model.safetensors --crop 32"
        " --mode crop --output {out}/confusion.csv"
    ),
    "solve_base": (
        f"solve.py {_DATA} {_CPU} --step 0 --new-classes 10 --method cfs --option features=16"
        " --seed 1 --crop 32 --model {made}/0/model.safetensors"
        " --output {out}/model.safetensors --ridge-out {out}/ridge.safetensors"
    ),
    "solve": (
        f"solve.py {_LATER} --method cfs --option features=16 --seed 1 --crop 32"
        " --model {made}/cfs0/model.safetensors --ridge {made}/cfs0/ridge.safetensors"
        " --output {out}/model.safetensors --ridge-out {out}/ridge.safetensors"
    ),
    "predict": (
        "predict.py --checkpoint {made}/0/model.safetensors --images {made}/shapes/JPEGImages"
        f" --output {{out}} {_CPU}"
    ),
    "export": "export.py --checkpoint {made}/0/model.safetensors --output {out}/model.onnx",
    "index": (
        "index.py --dataset shapes --kind shapes --root {made}/shapes --output {out}/index.csv"
    ),
}


def run_command(name: str, made: Path, out: Path, more: str = "") -> Ended:
    """Run one of ``COMMANDS`` with more arguments, in which {made} and {out} stand for folders."""
    script, *words = f"{COMMANDS[name]} {more}".split()
    return run_script(script, *(word.format(made=made, out=out) for word in words))


def make_steps(made: Path) -> None:
    """Generate images, and run every command of the steps on them, each of which must end well."""
    generate(made / "shapes", train=12, val=4, size=40, seed=0)
    listed = list_images(open_dataset("shapes", "shapes", made / "shapes"))
    rows = [
        {"step": step, "subset": subset, "image": image, "mask": mask}
        for step in (0, 1)
        for subset, source in (("train", "train"), ("test", "val"))
        for image, mask in listed[source]
    ]
    write_split(made / "split.csv", pd.DataFrame(rows))
    for name, folder in (
        ("train_base", "0"),
        ("attribute", "0"),
        ("pretune", "0"),
        ("nest", "nest"),
        ("awt", "awt"),
        ("transfer", "1"),
        ("train", "1"),
        ("fuse", "ewf"),
        ("solve_base", "cfs0"),
        ("solve", "cfs1"),
    ):
        ended = run_command(name, made, made / folder)
        assert ended.status == 0, ended.said


def altered(
    source: Path, target: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], object]
) -> None:
    """Write ``source`` anew, its header and tensors changed in place, with a right checksum."""
    with safe_open(source, framework="pt") as file:
        header = json.loads(file.metadata()["ciss"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(header, tensors)
    header["sha256"] = checkpoint._checksum(tensors)
    target.parent.mkdir(exist_ok=True)
    save_file(tensors, target, {"ciss": json.dumps(header)})
