"""What several test modules share."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import re
import resource
import shutil
import socketserver
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

#: where programs that the tests start keep what they cache; gone when the tests end
_CACHE = tempfile.TemporaryDirectory(prefix="ciss-tests-")


#: the smallest network and recipe that learn anything, for runs of the whole workflow
SMALLEST: dict[str, Any] = {
    "model": {
        "backbone": "resnet18",
        "output_stride": 16,
        "width": 4,
        "head_channels": 8,
        "weights": "scratch",
    },
    "recipe": {
        "crop": 32,
        "batch": 8,
        "base": {"epochs": 1, "lr": 0.05},
        "later": {"epochs": 2, "lr": 0.02},
    },
}
#: images for it
FEW_SHAPES: dict[str, Any] = {
    "kind": "shapes",
    "generate": {"train": 60, "val": 20, "size": 32, "seed": 0},
}


def golden_dir() -> Path | None:
    """Folder with the values of the published implementation, or None where there is none."""
    folder = Path(os.environ.get("CISS_GOLDEN", REPOSITORY.parent / "shared" / "golden"))
    return folder if (folder / "manifest.json").is_file() else None


def real_data_dir() -> Path | None:
    """Folder with ``PascalVOC12`` and ``CamVid``, or None where there is none."""
    folder = Path(os.environ.get("CISS_DATA", REPOSITORY.parent / "shared" / "data"))
    return folder if folder.is_dir() else None


def golden_cases(group: str) -> list[Any]:
    """Parameters for ``pytest.mark.parametrize``: the manifest entries of one group.

    One skipped parameter that says why where the folder is absent.
    """
    folder = golden_dir()
    if folder is None:
        reason = "no golden values: set CISS_GOLDEN to the folder that holds manifest.json"
        return [pytest.param(None, marks=[pytest.mark.golden, pytest.mark.skip(reason=reason)])]
    manifest = json.loads((folder / "manifest.json").read_text())
    cases = [case for case in manifest["cases"] if case["name"].startswith(f"{group}/")]
    return [pytest.param(case, id=case["name"], marks=pytest.mark.golden) for case in cases]


def load_case(case: dict[str, Any]) -> dict[str, np.ndarray]:
    """Arrays of one manifest entry."""
    folder = golden_dir()
    assert folder is not None
    with np.load(folder / case["file"], allow_pickle=False) as arrays:
        return dict(arrays)


def load_benchmark(name: str) -> Any:
    """Import a script of ``benchmarks/``."""
    path = REPOSITORY / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def relative_difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest absolute difference over the reference's largest magnitude."""
    ours, theirs = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    scale = max(float(np.abs(theirs).max(initial=0.0)), 1e-12)
    return float(np.abs(ours - theirs).max(initial=0.0)) / scale


def project_files() -> list[str]:
    """Paths of all files that a clone of the repository has, changes and new files included."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs a git checkout, to know which files belong to the project")
    paths = sorted(set(listed.stdout.split("\0")) - {""})
    # What was deleted but not committed is listed too; a link may point nowhere.
    return [path for path in paths if os.path.lexists(REPOSITORY / path)]


def copy_project(folder: Path) -> Path:
    """Copy the repository's files into a new ``folder``, as a fresh clone would look."""
    for path in project_files():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(REPOSITORY / path, target, follow_symlinks=False)
    return folder


def run_python(
    *arguments: object, cwd: Path, timeout: float = 900
) -> subprocess.CompletedProcess[str]:
    """Run this Python with ``arguments`` in ``cwd``; output and errors as text."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": _CACHE.name},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


class Run(NamedTuple):
    """What Snakemake did or would do."""

    status: int
    output: str

    @property
    def jobs(self) -> dict[str, int]:
        """Number of jobs by rule, from the table that Snakemake prints; empty without work."""
        table = re.search(r"^Job stats:\n.*?^total +\d+$", self.output, re.MULTILINE | re.DOTALL)
        if table is None:
            assert "Nothing to be done" in self.output, self.output
            return {}
        rows = re.findall(r"^(\S+) +(\d+)$", table[0], re.MULTILINE)
        return {rule: int(count) for rule, count in rows if rule != "total"}


def snakemake(folder: Path, *arguments: object) -> Run:
    # A busy machine may be ten times slower than a quiet one.
    done = run_python("-m", "snakemake", *arguments, cwd=folder, timeout=1500)
    return Run(done.returncode, done.stdout + done.stderr)


@contextmanager
def only_one(lock: Path) -> Iterator[None]:
    """Let the processes of pytest-xdist enter one after the other."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """Have one process of pytest-xdist ``make`` a folder, from the start if it failed before."""
    with only_one(folder.with_name(f"{folder.name}.lock")):
        made = folder.with_name(f"{folder.name}.made")
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            made.touch()
    return folder


class Seen(NamedTuple):
    """A page after its scripts have run, and what the browser asked the network for."""

    page: str
    requests: list[str]


def in_browser(path: Path, script: str = "") -> Seen:
    """Open an HTML file in a headless Chromium, run ``script`` in it and return what is there.

    Every request to the network ends in a proxy that refuses it and takes note. Skips the test
    where no Chromium is installed.
    """
    names = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip(f"needs a browser: none of {', '.join(names)} is installed")
    requests: list[str] = []

    class Refusing(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            requests.append(self.rfile.readline().decode(errors="replace").strip())
            self.wfile.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

    with (
        tempfile.TemporaryDirectory() as folder,
        socketserver.ThreadingTCPServer(("127.0.0.1", 0), Refusing) as proxy,
    ):
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        opened = Path(folder) / path.name
        html = path.read_text(encoding="utf-8")
        opened.write_text(f"{html}<script>{script}</script>" if script else html, encoding="utf-8")
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        options += ["--disable-background-networking", "--disable-component-update"]
        options += ["--no-first-run", f"--user-data-dir={folder}/profile"]
        options += [f"--proxy-server=127.0.0.1:{proxy.server_address[1]}"]
        options += ["--proxy-bypass-list=<-loopback>", "--virtual-time-budget=10000", "--dump-dom"]
        done = subprocess.run(
            [program, *options, opened.as_uri()], capture_output=True, text=True, timeout=300
        )
        proxy.shutdown()
    assert done.returncode == 0, done.stderr
    return Seen(done.stdout, requests)


@contextmanager
def full_disk(largest: int) -> Iterator[None]:
    """Within the block, files cannot grow beyond ``largest`` bytes: as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
