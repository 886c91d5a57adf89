"""What the machine refuses: places, disks, devices, memory, packages, processes.

Elsewhere: disks that fill up while a training saves (``test_faults.py``, ``test_progress.py``) or
writes its cache (``test_image_cache.py``), processes of a job that are killed
(``test_distributed.py``), jobs that are (``test_interruptions.py``, ``test_slurm.py``).
"""

from __future__ import annotations

import os
import re
import runpy
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import REPOSITORY, full_disk, made_once, run_python
from sentences import Ended, assert_refused, assert_sentence, contents
from steps import make_steps, run_command

from ciss import index, runtime
from ciss.training import Training


@pytest.fixture(scope="module")
def made(shared: Path) -> Path:
    return made_once(shared / "steps of this machine", make_steps)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder of finished results, which nothing may change."""
    (tmp_path / "folder").mkdir()
    for name in ("model", "init", "attribution", "pretuned"):
        (tmp_path / f"{name}.safetensors").write_text("finished")
    for name in ("file", "confusion.csv", "history.csv"):
        (tmp_path / name).write_text("finished")
    return tmp_path


#: command, arguments that say where to write, and words of the sentence
PLACES = [
    ("train", "--output {out}/folder", ["--output", "is a folder", "path of a file"]),
    ("train", "--history {out}/file/history.csv", ["--history", "is a file and no folder"]),
    ("train", "--progress {out}/folder", ["--progress", "is a folder"]),
    ("train", "--log {out}/folder", ["--log", "is a folder"]),
    ("evaluate", "--log {out}/file/evaluate.log", ["--log", "is a file and no folder"]),
    ("solve", "--ridge-out {out}/folder", ["--ridge-out", "is a folder"]),
    ("predict", "--output {out}/file", ["--output", "is a file", "path of a folder"]),
    ("fuse", "--output {made}/1/model.safetensors", ["--new and --output", "one file"]),
    ("train", "--output {out}/history.csv", ["--output and --history", "one file"]),
    ("train", "--log {made}/split.csv", ["--split and --log", "one file"]),
]


@pytest.mark.parametrize(("command", "more", "words"), PLACES)
def test_a_place_that_cannot_be_written(
    command: str, more: str, words: list[str], made: Path, out: Path
) -> None:
    assert_refused(lambda: run_command(command, made, out, more), words, made, out)


@pytest.mark.parametrize("command", ["train", "evaluate", "awt", "predict", "index"])
def test_a_folder_that_may_not_be_written(
    command: str, made: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may write everywhere, so the system's answer is made up."""
    asked = os.access

    def access(path: Any, mode: int) -> bool:
        return asked(path, mode) and not (mode & os.W_OK and Path(path) == out)

    monkeypatch.setattr(os, "access", access)
    words = ["--output", f"may not write in {out}", "permissions"]
    assert_refused(lambda: run_command(command, made, out), words, made, out)


@pytest.mark.parametrize("command", ["train", "attribute", "evaluate", "transfer"])
def test_a_full_disk(command: str, made: Path, out: Path) -> None:
    def run() -> Ended:
        with full_disk(30):
            return run_command(command, made, out)

    assert_refused(run, [str(out), "File too large", "make room"], made, out)


def test_a_folder_that_is_not_there_is_made(made: Path, tmp_path: Path) -> None:
    assert run_command("evaluate", made, tmp_path / "new" / "folder").status == 0
    assert [*contents(tmp_path)] == ["new", "new/folder", "new/folder/confusion.csv"]


def test_the_temporary_folder_is_not_needed(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "absent"))
    for command in ("train", "awt", "evaluate", "predict"):
        ended = run_command(command, made, tmp_path / command)
        assert ended.status == 0, ended.said


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("--device cuda", ["runtime.device is 'cuda'", "sees 0 GPUs", "auto or cpu"]),
        ("--device cuda:3", ["runtime.device is 'cuda:3'", "sees 0 GPUs"]),
        ("--device auto --processes 2", ["2 GPUs are asked for", "runtime.gpus"]),
        ("--device tpu", ["runtime.device is 'tpu'", "choose auto, cpu"]),
        ("--precision fp16", ["recipe.precision fp16 needs a GPU"]),
    ],
)
def test_a_device_that_is_not_there(
    more: str, words: list[str], made: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert_refused(lambda: run_command("train", made, out, more), words, made, out)


CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has …")
CUBLAS = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
ALLOCATOR = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
RECIPE = ["recipe.accumulate to 2", "recipe.batch (4)", "recipe.crop (32)", "runtime.gpus"]
BATCH = ["evaluation.batch (16)", "recipe.crop (32)"]


@pytest.mark.parametrize(
    ("command", "more", "where", "error", "words"),
    [
        ("train", "", "training.Training._backward", CUDA, ["GPU's", "2.50 GiB more", *RECIPE]),
        ("train", "", "training.Training.__init__", CUBLAS, ["GPU's", *RECIPE]),
        ("train", "", "training.Training._backward", ALLOCATOR, ["the machine's", *RECIPE]),
        ("train", "--accumulate 2", "training.Training._backward", CUDA, ["recipe.batch (4)"]),
        ("pretune", "", "training.Training._backward", CUDA, RECIPE),
        ("evaluate", "", "evaluation.segment", CUDA, BATCH),
        ("evaluate", "--mode full", "evaluation.segment", CUDA, ["evaluation.mode to crop"]),
        ("evaluate", "", "loading.EvaluationImages.__getitem__", MemoryError(), BATCH),
        ("attribute", "", "models.network.SegmentationNetwork.features", CUDA, BATCH),
        ("solve", "", "ridge.Ridge.add", ALLOCATOR, BATCH),
        ("transfer", "", "transfer.get", MemoryError(), ["the machine's", "end other programs"]),
        ("index", "", "index.build_index", MemoryError(), ["fewer workers (1 now"]),
    ],
)
def test_a_full_memory_says_which_setting_to_lower(
    command: str,
    more: str,
    where: str,
    error: Exception,
    words: list[str],
    made: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(f"ciss.{where}", fail)
    said = ["memory is full", *words]
    assert_refused(lambda: run_command(command, made, out, more), said, made, out)


def test_what_was_saved_before_memory_was_full_is_gone_on_from(
    made: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program may have had the GPU's memory: the same command goes on."""
    update = Training.update

    def full(self: Training, *arguments: Any) -> Any:
        if self.iteration == 4:  # in the second epoch
            raise CUDA
        return update(self, *arguments)

    def run() -> Ended:
        return run_command("train", made, out, "--progress {out}/progress.pt")

    with monkeypatch.context() as patch:
        patch.setattr(Training, "update", full)
        assert_refused(run, RECIPE, made, out, may_leave=["progress.pt"])
    ended = run()
    assert ended.status == 0, ended.said
    assert "going on after iteration 3 of 6" in ended.said
    alone = made / "1" / "model.safetensors"
    assert (out / "model.safetensors").read_bytes() == alone.read_bytes()


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that read masks are killed, as by a system without memory."""
    this = os.getpid()
    read = index.read_mask

    def read_mask(*arguments: Any) -> Any:
        if os.getpid() != this:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(*arguments)

    monkeypatch.setattr(index, "read_mask", read_mask)


def test_a_process_that_reads_masks_is_killed(
    made: Path, out: Path, dying: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "_CHUNK", 2)
    words = ["was killed", "memory", "fewer workers"]

    def run() -> Ended:
        return run_command("index", made, out, "--workers 2")

    assert_refused(run, words, made, out, may_leave=["index.progress"])


def test_ctrl_c(made: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ciss.evaluation.segment", interrupt)
    words = ["stopped by Ctrl-C", "start it again"]
    assert_refused(lambda: run_command("evaluate", made, out), words, made, out)


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    """Before anything else is imported."""
    (tmp_path / "pandas.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'pandas'\", name='pandas')\n"
    )
    script = REPOSITORY / "workflow_scripts" / "train.py"
    start = f"import runpy, sys; sys.path[:0] = [{str(tmp_path)!r}, {str(script.parent)!r}]; "
    start += f"runpy.run_path({str(script)!r}, run_name='__main__')"
    done = run_python("-c", start, "--help", cwd=tmp_path)
    words = ["package 'pandas' is missing", "constraints.txt", "make setup"]
    assert_sentence(done.returncode, done.stdout + done.stderr, words)


def test_a_package_that_is_needed_late_is_named(
    made: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    words = ["captum", "constraints.txt"]
    assert_refused(lambda: run_command("attribute", made, out, "--method captum"), words, made, out)


def test_an_older_pytorch_is_refused(
    made: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "OLDEST_TORCH", "99.1")
    words = [f"PyTorch {torch.__version__}", "99.1 or newer", "constraints.txt"]
    assert_refused(lambda: run_command("evaluate", made, out), words, made, out)


def test_an_older_python_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 1, "final", 0))
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(SystemExit, match=re.escape("error: this is Python 3.9, 3.11 or newer")):
        runpy.run_path(str(REPOSITORY / "workflow_scripts" / "repository.py"))


def test_a_traceback_is_shown_where_it_is_asked_for(
    made: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise CUDA

    monkeypatch.setattr("ciss.evaluation.segment", fail)
    with pytest.raises(torch.OutOfMemoryError):
        run_command("evaluate", made, out, "--traceback")
