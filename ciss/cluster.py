"""What SLURM knows of the jobs that a Snakemake of this folder submitted."""

from __future__ import annotations

import subprocess
from pathlib import Path


def unfinished_jobs(folder: Path) -> list[str]:
    """Return the numbers of this user's jobs that wait or run for a workflow in ``folder``.

    They are known by their working directory, and by the rule that Snakemake's executor gives
    them as a comment. Empty where there is no SLURM, or where it does not answer.
    """
    command = ["squeue", "--me", "--noheader", "--format=%A|%k|%Z"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    entries = [line.split("|", 2) for line in listed.stdout.splitlines() if line.count("|") >= 2]
    here = folder.resolve()
    return [
        number
        for number, comment, place in entries
        if Path(place) == here and comment.startswith(("rule_", "group_"))
    ]
