"""The methods beyond the AWT paper: the workflow's own commands, and what a change of SSUL reruns.

A dry run says the commands; they run one after the other in this process, on images of the smallest
size. The table below is dry runs on what they made.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers import FEW_SHAPES, REPOSITORY, SMALLEST, Run, made_once
from PIL import Image
from sentences import dry_runs, run_script

from benchmarks.without_snakemake import Job, read_dry_run
from ciss.checkpoint import load_model
from ciss.datasets.shapes import generate
from ciss.metrics import read_confusion
from ciss.results import read_table

pytestmark = pytest.mark.workflow

#: folders with a space, as a user may have them
MAPS, RESULTS = "saliency maps", "all results"
RUNS = ("ssul", "ssul_awt", "ssul-m", "ft-m", "dft", "cfs", "mib-ewf", "mib_nest")
TINY: dict[str, Any] = {
    "results": RESULTS,
    "runtime": {"device": "cpu", "workers": 0, "threads": 1, "gpus": 0},
    "datasets": {"shapes": FEW_SHAPES},
    **SMALLEST,
    "methods": {
        "ssul": {"saliency": MAPS, "lr_factor": 1},
        "ssul-m": {"method": "ssul", "memory": 6},
        "ft-m": {"method": "ft", "memory": 6},
        "cfs": {"features": 16},
    },
    "initialisations": {"nest": {"epochs": 1}},
    "matrices": {"beyond": {"dataset": "shapes", "scenarios": ["15-5"], "runs": list(RUNS)}},
    "paper": ["beyond"],
}
#: what has to be done for them; `mib-ewf` fuses what `mib` trains
JOBS = {
    "generate_shapes": 1,
    "index": 1,
    "split": 2,
    "exemplars": 1,
    "train_base": 4,
    "solve_base": 1,
    "attribute": 1,
    "pretune": 1,
    "transfer": 7,
    "train_step": 7,
    "fuse": 1,
    "solve_step": 1,
    "evaluate": 8,
}


def artifact(run: str, name: str, track: str = "15-5", step: int = 1) -> str:
    return f"{RESULTS}/shapes/{track}/{run}/seed1/step{step}/{name}"


def snakemake(folder: Path, *lines: list[str]) -> list[Run]:
    """Run command lines of Snakemake, without changing anything but its own records."""
    source = ["--snakefile", str(REPOSITORY / "Snakefile"), "--cores", "1"]
    source += ["--configfile", "tiny.yaml"]
    return [Run(*ended) for ended in dry_runs(folder, [[*line, *source] for line in lines])]


def in_order(jobs: list[Job]) -> Iterator[Job]:
    """Yield jobs after those that make what they read."""
    left, made = list(jobs), set()
    all_made = {path for job in jobs for path in job.output}
    while left:
        ready = next(job for job in left if not {*job.input} & all_made - made)
        left.remove(ready)
        made |= {*ready.output}
        yield ready


@pytest.fixture(scope="session")
def made(shared: Path) -> Path:
    """A folder in which all of ``RUNS`` have run to their confusion matrices; not to be changed."""

    def make(folder: Path) -> None:
        (folder / MAPS).mkdir(parents=True)
        (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
        generate(folder / "same images", **FEW_SHAPES["generate"])
        salient = np.zeros((32, 32), np.uint8)
        salient[:, 16:] = 255
        for image in (folder / "same images/JPEGImages").glob("train*"):
            Image.fromarray(salient).save(folder / MAPS / f"{image.stem}.png")
        targets = [artifact(run, "confusion.csv") for run in RUNS]
        (plan,) = snakemake(folder, ["-n", "-p", *targets])
        assert plan.status == 0, plan.output
        assert plan.jobs == JOBS
        with chdir(folder):
            for job in in_order(read_dry_run(plan.output)):
                _, script, *arguments = shlex.split(job.command)
                ended = run_script(Path(script).name, *arguments)
                assert ended.status == 0, ended.said
        # Snakemake is to know what they were made of.
        (touched,) = snakemake(folder, ["--touch", "--forceall", *targets])
        assert touched.status == 0, touched.output

    return made_once(shared / "beyond", make)


def test_every_run_ends_with_a_confusion_matrix_of_all_classes(made: Path) -> None:
    for run in RUNS:
        confusion = read_confusion(made / artifact(run, "confusion.csv"))
        assert len(confusion.class_names) == 21, run
        assert confusion.matrix.sum() > 0
    log = (made / artifact("ssul-m", "logs/train.log")).read_text()
    assert "half of each batch from 6 images of earlier steps" in log
    chosen = read_table(made / RESULTS / "shapes/15-5/exemplars_6_seed1.csv")
    assert len(chosen) == 6


def test_what_is_frozen_stays_from_step_to_step_and_what_is_not_moves(made: Path) -> None:
    def weights(*place: Any, **where: Any) -> dict[str, torch.Tensor]:
        return load_model(made / artifact(*place, "model.safetensors", **where))[0].state_dict()

    for base, run in (("ssul", "ssul"), ("ssul", "ssul_awt"), ("ce-preallocated", "dft")):
        before, after = weights(base, track="15", step=0), weights(run)
        stayed = {name for name in before if name in after and after[name].equal(before[name])}
        moved = {name for name in before if name in after and not name.startswith("future")}
        expected = {"cls.0.weight", "cls.0.bias", "unknown.weight", "unknown.bias"}
        assert moved - stayed == (expected if base == "ssul" else set()), run
    before, after, fused = weights("ce", track="15", step=0), weights("mib"), weights("mib-ewf")
    share = (5 / 21) ** 0.5
    name = "body.mod1.conv1.weight"
    torch.testing.assert_close(fused[name], (1 - share) * before[name] + share * after[name])


def test_awt_starts_from_channels_of_the_unknown_and_labels_are_split_by_the_maps(
    made: Path,
) -> None:
    network, metadata = load_model(made / artifact("ssul_awt", "init.safetensors"))
    plain = load_model(made / artifact("ssul", "init.safetensors"))[0]
    assert metadata["initialisation"] == "awt"
    unknown = network.unknown.weight[0, :, 0, 0]
    newest, copies = (made.classifiers[-1].weight[:, :, 0, 0] for made in (network, plain))
    assert copies.equal(unknown.expand_as(copies))
    assert not newest.equal(copies)
    described = load_model(made / artifact("ssul", "model.safetensors"))[1]
    assert described["options"]["saliency"] == "folder"


# --- What a change of SSUL reruns -----------------------------------------------------------

SSUL = [artifact(run, "confusion.csv") for run in ("ssul", "ssul_awt", "ssul-m")]
LATER = {"train_step": 3, "evaluate": 3}
FROM_STEP_0 = {"train_base": 1, "attribute": 1, "transfer": 3, **LATER}
ONE = {"train_step": 1, "evaluate": 1}
SETTINGS: dict[str, tuple[str, dict[str, int]]] = {
    "another method": ("methods={mib: {distillation: 1}, lwf-mc: {distillation: 1}}", {}),
    "saliency: the built-in maps": ("methods={ssul: {saliency: builtin}}", FROM_STEP_0),
    "maps that only moved": ("methods={ssul: {saliency: elsewhere}}", {}),
    "a threshold that is of the built-in maps": ("methods={ssul: {saliency_threshold: 2}}", {}),
    "heads": ("methods={ssul: {heads: conv}}", FROM_STEP_0),
    "confidence and rates": ("methods={ssul: {confidence: 0.8, lr_factor: 2}}", LATER),
    "of one variant alone": ("methods={ssul-m: {confidence: 0.8}}", ONE),
    "memory": ("methods={ssul-m: {memory: 7}}", {"exemplars": 1, **ONE}),
    "step 0 of one variant alone": (
        "methods={ssul-m: {saliency: none}}",
        {"train_base": 1, "transfer": 1, **ONE},
    ),
    "channels": ("initialisations={awt: {fraction: 0.5}}", {"transfer": 1, **ONE}),
    "attribution": ("attribution={method: captum}", {"attribute": 1, "transfer": 1, **ONE}),
}


def test_what_a_change_reruns_of_ssul(made: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made, tmp_path / "copy", symlinks=True))
    shutil.copytree(folder / MAPS, folder / "elsewhere")
    shared = ["shapes_10-5_ssul", "shapes_10-10_ssul_awt"]
    *runs, sharing = snakemake(
        folder,
        *(["-n", *SSUL, "--config", change] for change, _ in SETTINGS.values()),
        ["-n", *shared],
    )
    for (name, (_, expected)), run in zip(SETTINGS.items(), runs, strict=True):
        assert run.status == 0, run.output
        assert run.jobs == expected, name
    # An option that is left out where it changes nothing would rerun the models of before that.
    records = (made / artifact("ssul", "records.json")).read_text()
    assert "saliency_threshold=1.5" in records
    # Scenarios that begin with the same classes share its step 0.
    assert (sharing.jobs["train_base"], sharing.jobs["train_step"]) == (1, 2 + 1)
    some = next((folder / MAPS).iterdir())
    os.utime(some)
    (touched,) = snakemake(folder, ["-n", *SSUL])
    assert touched.jobs == {}
    Image.fromarray(np.full((32, 32), 255, np.uint8)).save(some)
    (drawn,) = snakemake(folder, ["-n", *SSUL])
    assert drawn.jobs == FROM_STEP_0
