"""Whatever befalls a training, it ends with the weights of an undisturbed one.

The script runs as a job does; faults strike it at random moments and at chosen ones. What befalls
Snakemake and SLURM is in ``test_interruptions.py`` and ``test_slurm.py``.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pandas as pd
import pytest
from fork_server import ForkServer, fork_server
from helpers import REPOSITORY

from ciss import splits
from ciss.datasets import list_images, open_dataset
from ciss.datasets.shapes import generate

EPOCHS = 12
KILLS = 20
#: seconds that the start of a script and an epoch take on a quiet machine
START, EPOCH = 0.5, 0.1


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with fork_server() as running:
        yield running


class Job:
    """``workflow_scripts/train.py`` at step 0, its outputs in a folder of its own."""

    def __init__(self, server: ForkServer, data: Path, folder: Path) -> None:
        self.server, self.data, self.folder = server, data, folder
        self.model, self.log = folder / "model.safetensors", folder / "train.log"
        self.progress = folder / "progress.pt"

    def start(self, *more: object, fault: dict[str, object] | None = None) -> int:
        command = (
            f"{REPOSITORY}/workflow_scripts/train.py --step 0 --method ce --seed 1"
            f" --split {self.data}/split.csv --new-classes 10 --epochs {EPOCHS}"
            f" --dataset shapes --kind shapes --root {self.data}/shapes"
            " --backbone resnet18 --width 4 --head-channels 8 --batch 4 --crop 32 --lr 0.05"
            f" --device cpu --threads 1 --output {self.model} --history {self.folder}/history.csv"
            f" --progress {self.progress} --log {self.log}"
        )
        return self.server.start([*command.split(), *more], fault)

    def run(self, *more: object, fault: dict[str, object] | None = None) -> int:
        return self.server.wait(self.start(*more, fault=fault))

    def kill_after(self, epochs: int) -> None:
        """Kill the script once it has logged so many epochs."""
        pid = self.start()
        wait_for(lambda: self.said().count("images/s") >= epochs)
        os.kill(pid, signal.SIGKILL)
        assert self.server.wait(pid) == -signal.SIGKILL

    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    generate(folder / "shapes", train=20, val=2, size=40, seed=0)
    images = list_images(open_dataset("shapes", "shapes", folder / "shapes"))["train"]
    rows = [{"step": 0, "subset": "train", "image": image, "mask": mask} for image, mask in images]
    pd.DataFrame(rows).to_csv(folder / "split.csv", index=False)
    assert len(splits.read_split(folder / "split.csv")) == len(images)
    return folder


@pytest.fixture(scope="module")
def expected(server: ForkServer, data: Path) -> bytes:
    """The model of an undisturbed run."""
    job = Job(server, data, data / "undisturbed")
    assert job.run() == 0, job.said()
    return job.model.read_bytes()


@pytest.fixture
def job(server: ForkServer, data: Path, tmp_path: Path) -> Job:
    return Job(server, data, tmp_path)


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_at_any_moment_and_started_again(
    server: ForkServer, data: Path, expected: bytes, tmp_path: Path, workers: int
) -> None:
    draw = random.Random(workers)
    kills, resumed, finished = 0, 0, 0
    while kills < KILLS or not finished:
        job = Job(server, data, tmp_path / str(finished))
        status = None
        while status != 0:
            pid = job.start("--workers", workers)
            if kills < KILLS:
                # Before the first epoch, or within or between later ones: however fast this
                # machine is at the moment.
                epochs = job.said().count("images/s") + draw.choice([0, 0, 1, 2])
                wait_for(lambda: job.said().count("images/s") >= epochs or server.has_ended())  # noqa: B023
                time.sleep(draw.uniform(0, START if epochs == 0 else EPOCH))
                # The out-of-memory killer takes one process, a batch system the whole job.
                strike = draw.choice([os.kill, os.killpg])
                with suppress(ProcessLookupError):
                    strike(pid, signal.SIGKILL)
            status = server.wait(pid)
            assert status in (0, -signal.SIGKILL), job.said()
            kills += status != 0
        resumed += job.said().count("going on after iteration")
        assert job.model.read_bytes() == expected
        left = sorted(path.name for path in job.folder.iterdir())
        assert left == ["history.csv", "model.safetensors", "progress.pt", "train.log"]
        assert len(pd.read_csv(job.folder / "history.csv")) == EPOCHS
        finished += 1
    assert kills >= KILLS
    assert resumed > 0


@pytest.mark.parametrize("file", ["progress.pt", "model.safetensors", "history.csv"])
def test_killed_in_the_middle_of_writing(job: Job, expected: bytes, file: str) -> None:
    write = 3 if file == "progress.pt" else 1
    assert job.run(fault={"do": "kill", "file": file, "write": write}) == -signal.SIGKILL
    (half,) = job.folder.glob(f".{file}.*.partial")
    assert half.stat().st_size > 0
    assert not job.model.exists()
    assert job.run() == 0, job.said()
    done = 2 if file == "progress.pt" else EPOCHS
    assert f"going on after iteration {5 * done} of {5 * EPOCHS}" in job.said()
    assert job.model.read_bytes() == expected
    assert not list(job.folder.glob(".*.partial"))


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[bool]:
    """Put a disk of that size in place of ``folder``; whether this user may."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    mounted = shutil.which("mount") is not None
    mounted = mounted and subprocess.run(mount, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up_and_gets_room_again(
    server: ForkServer, data: Path, job: Job, expected: bytes, tmp_path: Path
) -> None:
    job.kill_after(2)
    # A kill between the two renames of a saving leaves the one before alone.
    size = max(path.stat().st_size for path in job.folder.glob("*progress.pt")) // 1024
    with small_disk(tmp_path / "disk", 5 * size // 2) as mounted:
        if not mounted:
            pytest.skip("mounting a small disk needs root")
        on_disk = Job(server, data, tmp_path / "disk")
        # Room for one more file than the last: the one before it is given up.
        on_disk.kill_after(4)
        ballast = tmp_path / "disk" / "another user's"
        with suppress(OSError):
            ballast.write_bytes(bytes(10 * 1024 * size))
        assert on_disk.run() == 1
        assert "error: cannot save the progress in" in on_disk.said()
        assert "No space left on device" in on_disk.said()
        assert "make room and start again" in on_disk.said()
        assert "Traceback" not in on_disk.said()
        assert not list((tmp_path / "disk").glob(".*.partial"))
        ballast.unlink()
        assert on_disk.run() == 0, on_disk.said()
        assert on_disk.said().count("going on after iteration") == 2
        assert on_disk.model.read_bytes() == expected


@pytest.mark.parametrize("file", ["progress.pt", "model.safetensors"])
def test_no_room_for_a_file(job: Job, expected: bytes, file: str) -> None:
    write = 3 if file == "progress.pt" else 1
    # Twice: giving up the oldest progress does not help on this disk.
    assert job.run(fault={"do": "full", "file": file, "write": write}) == 1
    assert "No space left on device" in job.said()
    assert "Traceback" not in job.said()
    assert not job.model.exists()
    assert job.run() == 0, job.said()
    assert "going on after iteration" in job.said()
    assert job.model.read_bytes() == expected


def test_the_time_limit_comes_near_again_and_again(job: Job, expected: bytes) -> None:
    # Half of a limit this short is kept for saving; the job is cut into several.
    tries = 1
    while (status := job.run("--minutes", 0.015)) != 0:
        assert status == 1
        assert not job.model.exists()
        tries += 1
        assert tries <= 5 * EPOCHS  # each gets an iteration further at least
    assert job.said().count("stopped by the time limit after iteration") == tries - 1 > 0
    assert job.said().count("going on after iteration") == tries - 1
    assert job.model.read_bytes() == expected


@pytest.mark.parametrize("damage", ["flipped", "truncated"])
def test_a_damaged_progress_file_is_named_and_the_one_before_it_used(
    job: Job, expected: bytes, damage: str
) -> None:
    job.kill_after(3)
    content = bytearray(job.progress.read_bytes())
    content[len(content) // 2] ^= 8
    job.progress.write_bytes(content if damage == "flipped" else content[: len(content) // 2])
    assert job.run() == 0, job.said()
    assert f"progress {job.progress} is damaged" in job.said()
    assert "going on after iteration" in job.said()
    assert job.model.read_bytes() == expected


def test_without_any_whole_progress_file_the_step_is_done_again(job: Job, expected: bytes) -> None:
    job.kill_after(3)
    for path in job.folder.glob("*progress.pt"):
        path.write_bytes(path.read_bytes()[:1000])
    assert job.run() == 0, job.said()
    assert job.said().count("is damaged") == 2
    assert "starting anew" in job.said()
    assert "going on after" not in job.said()
    assert job.model.read_bytes() == expected


def test_a_job_that_is_ordered_again_after_its_end_trains_nothing(
    job: Job, expected: bytes
) -> None:
    assert job.run() == 0, job.said()
    job.model.unlink()
    (job.folder / "history.csv").unlink()
    assert job.run() == 0, job.said()
    assert job.said().count("images/s") == EPOCHS
    assert job.model.read_bytes() == expected
    assert len(pd.read_csv(job.folder / "history.csv")) == EPOCHS
