"""What befalls Snakemake on this machine: started again, it ends with the same weights."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from helpers import Run, made_once, snakemake
from test_slurm import TINY

pytestmark = pytest.mark.workflow

STEP_0 = "results/shapes/15/ce/seed1/step0"
MODEL_0 = f"{STEP_0}/model.safetensors"
STEP_1 = "results/shapes/15-5/ft/seed1/step1"
MODEL_1 = f"{STEP_1}/model.safetensors"


def run(folder: Path, *arguments: object) -> Run:
    return snakemake(folder, *arguments, "--configfile", "tiny.yaml")


@pytest.fixture(scope="module")
def undisturbed(shared: Path, clone: Path) -> Path:
    """A clone with the models of two steps; not to be changed."""

    def make(folder: Path) -> None:
        shutil.copytree(clone, folder, symlinks=True)
        (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
        done = run(folder, "--cores", 2, MODEL_1)
        assert done.status == 0, done.output

    return made_once(shared / "two steps", make)


@pytest.fixture
def folder(undisturbed: Path, tmp_path: Path) -> Path:
    """A copy in which neither step is trained."""
    copy = Path(shutil.copytree(undisturbed, tmp_path / "copy", symlinks=True))
    for step in (STEP_0, STEP_1):
        shutil.rmtree(copy / step)
    return copy


def start(folder: Path) -> subprocess.Popen[bytes]:
    """Start Snakemake with a training of 8 seconds; return when it has trained for two epochs."""
    slow = {"do": "sleep", "file": "progress.pt", "seconds": 0.5}
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CISS_FAULTS": json.dumps([slow])}
    environment |= {"PYTHONPATH": str(folder / "tests" / "faults")}
    words = ["-m", "snakemake", "--cores", "1", MODEL_0, "--configfile", "tiny.yaml"]
    process = subprocess.Popen(
        # Whoever started the tests may ignore SIGINT, which is inherited.
        ["env", "--default-signal=INT", sys.executable, *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_for(lambda: said(folder).count("images/s") >= 2)
    return process


def said(folder: Path) -> str:
    path = folder / STEP_0 / "logs" / "train.log"
    return path.read_text() if path.exists() else ""


def wait_for(condition: Callable[[], bool], seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def finishes(folder: Path, undisturbed: Path) -> Run:
    """Start the same command again; the model must have the bytes of an undisturbed run."""
    done = run(folder, "--cores", 1, MODEL_0)
    assert done.status == 0, done.output
    assert (folder / MODEL_0).read_bytes() == (undisturbed / MODEL_0).read_bytes()
    return done


def test_ctrl_c(folder: Path, undisturbed: Path) -> None:
    process = start(folder)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to Snakemake and its jobs
    assert process.wait(timeout=200) != 0
    wait_for(lambda: "stopped by SIGINT after iteration" in said(folder))
    finishes(folder, undisturbed)
    assert "going on after iteration" in said(folder)


def test_sigterm_lets_the_running_job_end(folder: Path, undisturbed: Path) -> None:
    process = start(folder)
    process.terminate()
    process.wait(timeout=200)
    assert finishes(folder, undisturbed).jobs == {}
    assert "going on after" not in said(folder)


def test_everything_killed_at_once(folder: Path, undisturbed: Path) -> None:
    process = start(folder)
    os.killpg(process.pid, signal.SIGKILL)  # a machine that goes down, as far as files can tell
    process.wait()
    locked = run(folder, "--cores", 1, MODEL_0)
    assert locked.status != 0
    assert "--unlock" in locked.output
    assert run(folder, "--unlock").status == 0
    finishes(folder, undisturbed)
    assert "going on after iteration" in said(folder)


def test_snakemake_killed_while_its_job_runs_on_to_the_end(folder: Path, undisturbed: Path) -> None:
    process = start(folder)
    process.kill()
    process.wait()
    wait_for((folder / MODEL_0).exists)
    assert run(folder, "--unlock").status == 0
    # It orders the step again, as it did not see its end, and has it at once.
    assert finishes(folder, undisturbed).jobs == {"train_base": 1}
    last = said(folder).rpartition("going on after iteration")[2]
    assert last.lstrip().startswith("112 of 112")
    assert "images/s" not in last


def test_a_damaged_model_is_named_with_the_command_that_makes_it_anew(
    undisturbed: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(undisturbed, tmp_path / "copy", symlinks=True))
    shutil.rmtree(folder / STEP_1)
    content = bytearray((folder / MODEL_0).read_bytes())
    content[-100] ^= 1
    (folder / MODEL_0).write_bytes(content)
    failed = run(folder, "--cores", 1, MODEL_1)
    assert failed.status != 0
    assert f"error: {MODEL_0} is damaged: its checksum differs" in failed.output
    assert "Traceback" not in failed.output
    command = re.search(r"anew: (rm \S+)", failed.output)
    assert command
    subprocess.run(command[1], shell=True, cwd=folder, check=True)
    done = run(folder, "--cores", 1, MODEL_1)
    assert done.status == 0, done.output
    for path in (MODEL_0, MODEL_1):
        assert (folder / path).read_bytes() == (undisturbed / path).read_bytes()
