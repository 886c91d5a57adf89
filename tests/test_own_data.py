"""A data set of the user's own, from the configuration alone: the page's example, as written."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from helpers import REPOSITORY, copy_project, run_python
from PIL import Image
from test_workflow import Run

from ciss.index import read_index
from ciss.metrics import read_confusion

pytestmark = pytest.mark.workflow

PAGE = REPOSITORY / "docs" / "add-a-dataset.md"
RESULTS = Path("results/fields")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def make_fields(root: Path, n_images: int = 24) -> None:
    """Images of stripes, whose colours are their classes', in a folder of folders."""
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 255, (256, 3), dtype=np.uint8)
    for number in range(n_images):
        name = f"{'north/' * (number % 3 == 0)}{number:04d}"
        stripes = rng.permutation([0, 1, 2, 3, 4, 255])[:4]
        labels = np.repeat(stripes, 12)[:, None].repeat(40, axis=1).astype(np.uint8)
        for folder, suffix, pixels in (
            ("images", "jpg", colours[labels]),
            ("masks", "png", labels),
        ):
            path = root / folder / f"{name}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)


def run(command: str, folder: Path, *more: str) -> Run:
    program, *arguments = shlex.split(command)
    assert program == "snakemake"
    # A dozen jobs and more, on a machine that may be busy.
    done = run_python("-m", "snakemake", *arguments, *more, cwd=folder, timeout=900)
    return Run(done.returncode, done.stdout + done.stderr)


def work(done: Run) -> dict[str, int]:
    """The jobs that are not about tables and figures."""
    rules = ("index", "split", "train_base", "attribute", "transfer", "train_step", "evaluate")
    return {rule: count for rule, count in done.jobs.items() if rule in rules}


def test_the_example_on_the_page(tmp_path: Path) -> None:
    folder = copy_project(tmp_path / "clone")
    (settings,), (commands,) = blocks("yaml"), blocks("sh")
    (folder / "fields.yaml").write_text(settings)
    make_fields(folder / "data" / "fields")
    planned, real = commands.splitlines()
    jobs = {
        "index": 1,
        "split": 2,
        "train_base": 1,
        "attribute": 1,
        "transfer": 1,
        "train_step": 1,
        "evaluate": 2,
    }
    dry = run(planned, folder)
    assert (dry.status, work(dry)) == (0, jobs), dry.output
    done = run(real, folder)
    assert done.status == 0, done.output

    index = read_index(folder / RESULTS / "index.csv")
    assert index["subset"].value_counts().to_dict() == {"train": 18, "val": 6}
    assert "images/north/0000.jpg" in index["image"].tolist()
    confusion = read_confusion(folder / RESULTS / "2-2/mib_awt/seed1/step1/confusion.csv")
    assert list(confusion.class_names) == ["background", "wheat", "maize", "road", "water"]
    assert confusion.metadata["list"] == "test"
    # Every mask shows four of the six values, and void is not counted.
    assert 0 < int(confusion.matrix.sum()) <= 6 * 32 * 32

    labels_changed = {rule: jobs[rule] for rule in jobs if rule not in ("index", "split")}
    for change, expected in (
        ("subset: true", {}),
        ("evaluation: {images: val}", {}),
        ("background: ignore", labels_changed),
        ("files: {seed: 1}", jobs),
    ):
        again = run(planned, folder, "--config", f"datasets={{fields: {{{change}}}}}")
        assert (again.status, work(again)) == (0, expected), (change, again.output)
        assert bool(again.jobs) == bool(expected), change


def test_masks_of_colours_become_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    coloured = Path("data/fields/coloured/north/0001.png")
    coloured.parent.mkdir(parents=True)
    row = [[0, 0, 0], [230, 190, 60], [60, 140, 40], [255, 255, 255], [230, 190, 61]]
    Image.fromarray(np.array([row], dtype=np.uint8)).save(coloured)
    exec(blocks("python")[0], {})
    with Image.open("data/fields/masks/north/0001.png") as mask:
        assert (mask.mode, np.asarray(mask).tolist()) == ("L", [[0, 1, 2, 255, 254]])
