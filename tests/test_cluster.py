"""Jobs that a workflow's folder has in SLURM's queue; with the real one in ``test_slurm.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

from ciss.cluster import unfinished_jobs


def queue(folder: Path, text: str, status: int = 0) -> None:
    """Put a ``squeue`` that prints ``text`` into ``folder``."""
    (folder / "listed").write_text(text)
    (folder / "squeue").write_text(f'#!/bin/sh\ncat "{folder}/listed"\nexit {status}\n')
    (folder / "squeue").chmod(0o755)


def test_jobs_are_known_by_folder_and_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    project = tmp_path / "a project"
    project.mkdir()
    (tmp_path / "link").symlink_to(project)
    lines = [f"7|rule_train_base_wildcards_voc|{project}", f"8|my own job|{project}"]
    lines += [f"12|rule_evaluate_wildcards_voc|{project}", f"9|rule_index|{tmp_path}", "odd"]
    queue(tmp_path, "\n".join(lines) + "\n")
    assert unfinished_jobs(project) == unfinished_jobs(tmp_path / "link") == ["7", "12"]
    queue(tmp_path, "\n".join(lines), status=1)
    assert unfinished_jobs(project) == []


def test_without_slurm_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert unfinished_jobs(tmp_path) == []
