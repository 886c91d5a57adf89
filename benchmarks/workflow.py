"""What Snakemake costs: planning the paper, finding nothing to do, and the start of a job.

    python benchmarks/workflow.py

CPU seconds, user and system. Beside ours stands the *floor*: a Snakefile of as many jobs and files
whose rules have next to no parameters. There is no published way to compare with.

The results that a no-op finds are small files in the places of the paper's, which Snakemake takes
for its own (``--touch``), and three data sets with as many files as the real ones. Their content is
no image: nothing but the plan is run.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import networks
from benchmarks.given import Given
from benchmarks.table import REPOSITORY, Row, alone, alternate, below, plain
from ciss.checkpoint import save_model
from ciss.index import build_index
from ciss.models import NetworkConfig, widened
from ciss.scenarios import parse_scenario
from ciss.splits import split, write_split

GROUP = "Workflow (CPU time)"

#: files of a job each, and how they follow from each other: those of a step
FLOOR = """
rule all:
    input: expand("results/{n}/confusion.csv", n=range(%d))
rule split:
    output: "results/{n}/split.csv"
    params: settings=lambda wildcards: ["--step", wildcards.n]
    shell: "split {params.settings:q} --output {output:q}"
rule transfer:
    input: "results/{n}/split.csv"
    output: "results/{n}/init.safetensors"
    params: settings=lambda wildcards: ["--step", wildcards.n]
    shell: "transfer {params.settings:q} --output {output:q}"
rule train:
    input: init="results/{n}/init.safetensors", split="results/{n}/split.csv"
    output: model="results/{n}/model.safetensors", history="results/{n}/history.csv"
    params: settings=lambda wildcards: ["--step", wildcards.n]
    shell: "train {input:q} {params.settings:q} --output {output:q}"
rule evaluate:
    input: model="results/{n}/model.safetensors", split="results/{n}/split.csv"
    output: "results/{n}/confusion.csv"
    params: settings=lambda wildcards: ["--step", wildcards.n]
    shell: "evaluate {input:q} {params.settings:q} --output {output:q}"
"""

#: what a Snakemake that touches waits after every job, in vain: the files get their times anyway
TOUCH = (
    "import sys; from snakemake.executors import touch; touch.time.sleep = lambda _: None; "
    "from snakemake.cli import main; sys.argv[0] = 'snakemake'; main(sys.argv[1:])"
)

#: images of VOC, ADE20K and Cityscapes: train and val
SIZES = {"voc": (10_582, 1_449), "ade": (20_210, 2_000), "cityscapes": (2_975, 500)}


class Project:
    """A folder in which Snakemake works with a Snakefile."""

    def __init__(self, folder: Path, snakefile: Path, target: str, *options: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.target = folder, target
        self.options = ["--snakefile", str(snakefile), *options]

    def snakemake(self, *arguments: str, program: tuple[str, ...] = ("-m", "snakemake")) -> str:
        command = [sys.executable, *program, *self.options, *arguments, "--", self.target]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)
        return done.stdout + done.stderr

    def plan(self) -> int:
        """Run dry; return the number of jobs."""
        found = re.search(r"^total +(\d+)$", self.snakemake("--dry-run"), re.MULTILINE)
        return int(found[1]) if found else 0

    def finish(self) -> int:
        """Put a small file in the place of every output; return their number."""
        outputs = [line.split("\t")[0] for line in self.snakemake("--summary").splitlines()]
        outputs = [path for path in outputs if path.startswith("results/")]
        for output in outputs:
            path = self.folder / output
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("a result\n")
        self.snakemake("--touch", "--cores", "1", program=("-c", TOUCH))
        self.rerun()
        return len(outputs)

    def rerun(self) -> None:
        """Run where everything is there."""
        said = self.snakemake("--cores", "1")
        if "Nothing to be done" not in said:
            raise SystemExit(f"something was to be done:\n{said}")


def write_data(folder: Path, sizes: dict[str, tuple[int, int]]) -> list[str]:
    """Write data sets of small files in their real layouts; returns the options that name them."""
    for name, numbers in sizes.items():
        for subset, number in zip(("train", "val"), numbers, strict=True):
            names = [f"{subset}_{n:06d}" for n in range(number)]
            _WRITERS[name](folder / name, subset, names)
    roots = {name: {"root": str(folder / name)} for name in sizes}
    return ["--config", f"datasets={json.dumps(roots)}"]


def _write_voc(root: Path, subset: str, names: list[str]) -> None:
    pairs = [(f"JPEGImages/{n}.jpg", f"SegmentationClassAug/{n}.png") for n in names]
    _write_pairs(root, pairs)
    listed = "".join(f"/{image} /{mask}\n" for image, mask in pairs)
    (root / "splits").mkdir(exist_ok=True)
    file = {"train": "train_aug.txt", "val": "val.txt"}[subset]
    (root / "splits" / file).write_text(listed)


def _write_ade(root: Path, subset: str, names: list[str]) -> None:
    long = {"train": "training", "val": "validation"}[subset]
    _write_pairs(root, [(f"images/{long}/{n}.jpg", f"annotations/{long}/{n}.png") for n in names])


def _write_cityscapes(root: Path, subset: str, names: list[str]) -> None:
    pairs = []
    for name in names:
        stem = f"{subset}/city/city_{name.split('_')[1]}_000019"
        pairs.append((f"leftImg8bit/{stem}_leftImg8bit.png", f"gtFine/{stem}_gtFine_labelIds.png"))
    _write_pairs(root, pairs)


_WRITERS = {"voc": _write_voc, "ade": _write_ade, "cityscapes": _write_cityscapes}


def _write_pairs(root: Path, pairs: list[tuple[str, str]]) -> None:
    for folder in {os.path.dirname(path) for pair in pairs for path in pair}:  # noqa: PTH120
        (root / folder).mkdir(parents=True, exist_ok=True)
    for pair in pairs:
        for path in pair:
            (root / path).write_bytes(b"")


def planning(what: Given) -> Iterator[Row]:
    """Dry run and no-op of the paper (tiny: of one experiment), and their floor."""
    sizes = dict.fromkeys(SIZES, (3, 2)) if what.tiny else SIZES
    target = "voc_19-1_ft" if what.tiny else "paper"
    options = write_data(what.folder / "data", sizes)
    ours = Project(what.folder / "ours", REPOSITORY / "Snakefile", target, *options)
    jobs = ours.plan()
    floor_file = what.folder / "Floor"
    floor_file.write_text(FLOOR % ((jobs - 1) // 4))
    floor = Project(what.folder / "floor", floor_file, "all")
    rounds = min(what.rounds, 3)
    times = alternate({"ours": ours.plan, "floor": floor.plan}, rounds, warm_up=False)
    note = (
        f"Workflow: {target}, {jobs:,} jobs; the floor is a Snakefile of as many jobs and "
        "files with one parameter a rule."
    )
    yield below(alone(GROUP, f"dry run, {target}", "s", times["ours"], note=note), 5)
    yield alone(GROUP, "dry run, floor", "s", times["floor"])
    files, _ = ours.finish(), floor.finish()
    # Once more: what the first start has looked at need not be looked at again.
    ours.rerun()
    times = alternate({"ours": ours.rerun, "floor": floor.rerun}, rounds, warm_up=False)
    yield below(alone(GROUP, f"no-op, {files:,} results", "s", times["ours"], note=note), 3)
    yield alone(GROUP, "no-op, floor", "s", times["floor"])


#: ends a training when it has its first batch, and says how much CPU time has passed
FIRST_BATCH = """
import runpy, sys, time
from pathlib import Path
sys.argv = sys.argv[1:]
sys.path.insert(0, str(Path(sys.argv[0]).parent))
def stop(self, images, labels, *rest):
    import resource
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(len(images), usage.ru_utime + usage.ru_stime, flush=True)
    import os
    os._exit(0)
import ciss.training
ciss.training.Training.update = stop
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def first_batch(what: Given, config: NetworkConfig, crop: int, batch: int) -> Iterator[Row]:
    """Time a job of step 1 from its start until its first batch is on the device."""
    dataset, folder = what.dataset, what.folder
    n_base = dataset.n_classes - dataset.n_classes // 4
    scenario = parse_scenario(f"{n_base}-1", dataset.n_classes)
    rows = split(build_index(dataset, is_subset=True), dataset, scenario, [0, 1])
    write_split(folder / "split.csv", rows)
    teacher = networks.drawn(config, [1 + n_base])
    save_model(folder / "teacher.safetensors", teacher, {})
    save_model(folder / "init.safetensors", widened(teacher, 1, 0), {})
    command = [sys.executable, "-c", FIRST_BATCH, str(REPOSITORY / "workflow_scripts/train.py")]
    command += ["--dataset", dataset.name, "--kind", dataset.kind, "--root", str(dataset.root)]
    for name in ("split.csv", "teacher.safetensors", "init.safetensors"):
        command += [f"--{name.split('.')[0]}", str(folder / name)]
    command += [
        "--step",
        "1",
        "--method",
        "mib",
        "--seed",
        "1",
        "--new-classes",
        "1",
        "--device",
        "cpu",
        "--epochs",
        "30",
    ]
    command += f"--lr 0.001 --batch {batch} --crop {crop} --workers 2 --threads 1".split()
    for name in ("output", "history", "progress"):
        command += [f"--{name}", str(folder / "trained" / name)]

    def seconds() -> float:
        done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
        if done.returncode:
            raise SystemExit(done.stderr)
        return float(done.stdout.split()[-1])

    found = [seconds() for _ in range(min(what.rounds, 3))]
    note = f"Job: a step of MiB from the start of Python until a batch of {batch} is there."
    what_it_is = f"a job until its first batch, {config.backbone}"
    yield below(alone(GROUP, what_it_is, "s", found, note=note), 5)


def rows(what: Given) -> Iterator[Row]:
    """All of it."""
    yield from planning(what)
    if what.tiny:
        yield from first_batch(what, networks.TINY, 32, 4)
    else:
        yield from first_batch(what, NetworkConfig("resnet101"), 512, 24)


def main(arguments: argparse.Namespace) -> None:
    from benchmarks.given import given

    with given(arguments.root, arguments.kind, arguments.rounds) as what:
        if not arguments.job:
            print(plain(list(planning(what))))
        print(plain(list(first_batch(what, NetworkConfig(arguments.backbone), 512, 24))))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", default="voc")
    parser.add_argument("--root", type=Path, help="folder of the images (default: generated ones)")
    parser.add_argument("--job", action="store_true", help="time the start of a job alone")
    parser.add_argument("--backbone", default="resnet101", help="of the job")
    parser.add_argument("--rounds", type=int, default=3)
    main(parser.parse_args())
