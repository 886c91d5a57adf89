"""What SLURM knows of the jobs that a Snakemake of this folder submitted."""

from __future__ import annotations

import json
import subprocess
from contextlib import suppress
from pathlib import Path


def unfinished_jobs(snakemake_folder: Path) -> list[str]:
    """Return the numbers of the jobs that wait or run, in order.

    Snakemake notes the number of every job under ``.snakemake/incomplete`` until it has seen the
    job's end. Empty where there is no SLURM, or where it does not answer.
    """
    submitted = set()
    for path in (snakemake_folder / "incomplete").rglob("*"):
        # Whatever else may lie there, it is no reason to stop.
        with suppress(OSError, ValueError, KeyError, TypeError):
            submitted.add(str(json.loads(path.read_text(encoding="utf-8"))["external_jobid"]))
    if not submitted:
        return []
    command = ["squeue", "--me", "--noheader", "--format=%A"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return sorted(submitted & set(listed.stdout.split()), key=lambda number: (len(number), number))
