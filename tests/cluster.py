"""A SLURM to test on, and what it says about jobs.

``CISS_SLURM`` is a command that understands ``start``, ``stop`` and ``status`` (default:
``../shared/slurm-local``, where it is there), or ``running`` for the cluster that this machine
belongs to. A cluster that ran before stays; one that was started for the tests is stopped.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from helpers import REPOSITORY

#: what ``slurm-local`` shall offer: jobs that mostly wait may run side by side on few cores
SIZE = {"SLURM_LOCAL_CPUS": "8", "SLURM_LOCAL_GPUS": "8"}


class NoClusterError(Exception):
    """Why there is no SLURM to test on."""


class Job(NamedTuple):
    """A job as SLURM's accounting has it; one that was requeued has several."""

    number: str
    comment: str
    state: str
    resources: str
    limit: str
    partition: str
    account: str


@contextmanager
def slurm() -> Iterator[None]:
    """Within the block, SLURM's commands work. Raises ``NoClusterError`` where they cannot."""
    command = os.environ.get("CISS_SLURM", str(REPOSITORY.parent / "shared" / "slurm-local"))
    if command == "running":
        if not works():
            raise NoClusterError("CISS_SLURM is 'running', but sinfo shows no cluster")
        yield
        return
    if shutil.which(command) is None:
        raise NoClusterError("no SLURM: set CISS_SLURM to a command that starts one, or 'running'")
    # One user of this machine at a time starts and stops it.
    with (Path(tempfile.gettempdir()) / "ciss-slurm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        there = subprocess.run([command, "status"], capture_output=True).returncode == 0
        before = signal.signal(signal.SIGTERM, _leave)
        try:
            if not there:
                started = subprocess.run(
                    [command, "start"], env=os.environ | SIZE, capture_output=True, text=True
                )
                if started.returncode != 0:
                    words = (started.stderr or started.stdout).strip().splitlines() or ["?"]
                    raise NoClusterError(f"{command} start failed: {words[-1]}")
            yield
        finally:
            signal.signal(signal.SIGTERM, before)
            if not there:
                subprocess.run([command, "stop"], capture_output=True)


def _leave(number: int, frame: object) -> None:
    """End by way of ``finally``, which stops what was started."""
    raise SystemExit(128 + number)


def works() -> bool:
    return shutil.which("sinfo") is not None and bool(_lines("sinfo", "--noheader"))


def partition_with_gpus() -> str:
    """The first partition whose nodes offer GPUs."""
    for line in _lines("sinfo", "--noheader", "--format=%R %G"):
        name, offered = line.split(maxsplit=1)
        if "gpu" in offered:
            return name
    raise NoClusterError("no partition of this SLURM offers GPUs")


def account() -> str:
    """An account that this user may charge."""
    user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    listed = _lines("sacctmgr", "-nP", "show", "assoc", f"user={user}", "format=account")
    # SLURM has an association of its own for root.
    chosen = [name for name in listed if name not in ("", "root")]
    if not chosen:
        raise NoClusterError("this SLURM has no account for this user")
    return chosen[0]


def queue(prefix: str) -> dict[str, str]:
    """Waiting and running jobs with such names: what Snakemake says they are for, by number."""
    listed = _lines("squeue", "--noheader", "--me", "--format=%j|%A|%k")
    entries = [line.split("|") for line in listed if line.startswith(prefix)]
    return {number: comment for _, number, comment in entries}


def jobs(prefix: str) -> list[Job]:
    """All jobs with such names; one that was requeued is listed as often as it ran."""
    columns = "jobname,jobid,comment,state,alloctres,timelimit,partition,account"
    command = ["sacct", "--duplicates", "--allocations", "--noheader", "--parsable2"]
    listed = _lines(*command, "--starttime=now-1day", f"--format={columns}")
    return [Job(*line.split("|")[1:]) for line in listed if line.startswith(prefix)]


def _lines(*command: str) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.splitlines() if done.returncode == 0 else []
