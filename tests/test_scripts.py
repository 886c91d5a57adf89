"""The scripts by hand: their help, and errors as one line."""

from __future__ import annotations

import json
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import REPOSITORY, full_disk, run_python
from PIL import Image

from ciss import distributed, reports, results, scripting
from ciss.errors import CissError
from ciss.flags import value_flags
from ciss.index import read_index
from ciss.reports import ReportedRun
from ciss.splits import read_split, select

SCRIPTS = sorted(
    path for path in (REPOSITORY / "workflow_scripts").glob("*.py") if path.name != "repository.py"
)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_every_script_explains_itself(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    monkeypatch.setattr(sys, "path", [str(path.parent), *sys.path])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name="__main__")
    assert ended.value.code == 0
    printed = capsys.readouterr()
    docstring = path.read_text().partition('"""')[2].partition('"""')[0]
    assert printed.out.startswith(f"usage: {path.name}")
    for words in (docstring, "--log", "--traceback"):
        assert words in printed.out
    assert printed.err == ""


def test_index_and_split_of_own_folders_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flags as the rules pass them: mappings, class names with a space, several void values."""
    for subset, values in (("train", [6, 7, 8, 0]), ("val", [6, 7, 99, 0])):
        for number, value in enumerate(values):
            for folder, suffix in (("i", "jpg"), ("m", "png")):
                path = tmp_path / subset / folder / f"{number}.{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = np.full((8, 8), value, np.uint8)
                pixels[0] = 0
                Image.fromarray(pixels).save(path)
    sides = {side: {s: f"{s}/{side[0]}" for s in ("train", "val")} for side in ("images", "masks")}
    values = value_flags({"traffic light": 6, "road": [7, 8], "sky": 99})
    dataset = ["--dataset", "own", "--kind", "folders", "--root", tmp_path]
    dataset += ["--classes", "traffic light", "road", "--values", *values, "--void", 0, 255]
    monkeypatch.setattr(sys, "path", [str(SCRIPTS[0].parent), *sys.path])
    for name, arguments in (
        ("index.py", ["--files", json.dumps(sides), "--output", tmp_path / "index.csv"]),
        (
            "split.py",
            [
                *("--index", tmp_path / "index.csv", "--output", tmp_path / "split.csv"),
                *("--scenario", "1-1", "--setup", "partitioned", "--steps", 0, 1),
            ],
        ),
    ):
        path = REPOSITORY / "workflow_scripts" / name
        monkeypatch.setattr(sys, "argv", [str(path), *map(str, [*dataset, *arguments])])
        runpy.run_path(str(path), run_name="__main__")
    index = read_index(tmp_path / "index.csv")
    assert index["labels"][[0, 2, 6]].tolist() == ["0:8 6:56", "0:8 8:56", "0:8 99:56"]
    rows = read_split(tmp_path / "split.csv")
    images = {
        (step, subset): select(rows, step, subset)["image"].tolist()
        for step in (0, 1)
        for subset in ("train", "test")
    }
    assert images == {
        (0, "train"): ["train/i/0.jpg"],
        (0, "test"): ["val/i/0.jpg"],
        (1, "train"): ["train/i/1.jpg", "train/i/2.jpg"],
        (1, "test"): ["val/i/0.jpg", "val/i/1.jpg"],
    }


def test_the_figures_of_a_report_are_those_of_its_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [
        ReportedRun("shapes", scenario, "mib", init, (11, 5, 5), "10/ce")
        for scenario, init in (("10-5", "awt"), ("10-2", ""))
    ]
    summary = reports.summary_of_all(reports.tidy_table([]), runs, [1])
    results.write_table(tmp_path / "summary.csv", summary)
    (tmp_path / "table.txt").write_text("the table\n")
    shown = ["10-2/classes_mib", "10-2/miou_by_step", "10-5/attribution_mib_awt"]
    shown += ["10-5/channel_scores_mib_awt", "10-5/predictions_mib_awt", "10-5/transfer_shares"]
    # Of runs and a scenario that the matrix had once.
    left = ["10-2/classes_mib_awt", "10-5/predictions_mib", "15-5/miou_by_step"]
    for name in shown + left:
        path = tmp_path / f"figures/shapes_{name}.pdf"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    path = REPOSITORY / "workflow_scripts" / "show_report.py"
    monkeypatch.setattr(sys, "path", [str(path.parent), *sys.path])
    monkeypatch.setattr(sys, "argv", [str(path), str(tmp_path)])
    runpy.run_path(str(path), run_name="__main__")
    printed = re.findall(r"figures/shapes_(\S+)\.pdf", capsys.readouterr().out)
    assert printed == shown


def test_a_script_runs_from_anywhere(tmp_path: Path) -> None:
    path = REPOSITORY / "workflow_scripts" / "train.py"
    done = run_python(path, "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "--progress" in done.stdout


def wrong_root(folder: Path) -> list[object]:
    script = REPOSITORY / "workflow_scripts" / "index.py"
    words = ["--dataset", "voc", "--kind", "voc", "--root", "no such folder", "--output", "index"]
    return [script, *words, "--log", folder / "index.log"]


def test_an_expected_error_is_one_line(tmp_path: Path) -> None:
    done = run_python(*wrong_root(tmp_path), cwd=tmp_path)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert len(lines) == 1
    assert "error: there is no folder no such folder for dataset 'voc'" in lines[0]
    assert (tmp_path / "index.log").read_text() == done.stderr
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["index.log"]


def test_a_traceback_is_shown_when_asked_for(tmp_path: Path) -> None:
    done = run_python(*wrong_root(tmp_path), "--traceback", cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "CissError: there is no folder" in done.stderr


def test_a_missing_argument_is_named(tmp_path: Path) -> None:
    done = run_python(REPOSITORY / "workflow_scripts" / "split.py", cwd=tmp_path)
    assert done.returncode == 2
    assert "--index" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def run_main(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[int | str | None, str]]:
    """Run a ``main`` as a script would; its exit status and its log."""

    def run(main: Callable[[Any], None], *words: str) -> tuple[int | str | None, str]:
        log = tmp_path / "log"
        monkeypatch.setattr(sys, "argv", ["script", "--log", str(log), *words])
        status: int | str | None = 0
        try:
            scripting.run(main, scripting.parser("Do something."))
        except SystemExit as ended:
            status = ended.code
        return status, log.read_text()

    return run


def failing(error: Exception) -> Callable[[Any], None]:
    def main(arguments: Any) -> None:
        raise error

    return main


def test_statuses_of_a_script(run_main: Callable[..., tuple[int, str]]) -> None:
    assert run_main(lambda arguments: None) == (0, "")
    status, text = run_main(failing(CissError("no such class")))
    assert status == 1
    assert text.endswith("error: no such class\n")
    assert text.count("\n") == 1
    status, text = run_main(failing(ValueError("a bug")))
    assert status == 70
    assert "please report" in text
    assert "ValueError: a bug" in text
    with pytest.raises(CissError):
        run_main(failing(CissError("no such class")), "--traceback")


def test_a_script_that_shares_no_work_is_not_run_several_times(
    run_main: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT"):
        monkeypatch.setenv(name, "2" if "SIZE" in name else "0")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setattr(distributed, "leave", lambda status, report: (report(), sys.exit(status)))
    status, text = run_main(failing(ValueError("it ran")))
    assert status == 1
    assert "script does its work in one process" in text


def test_what_the_system_refuses_is_one_line(
    run_main: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    def write(arguments: Any) -> None:
        from ciss.files import write_text

        write_text(tmp_path / "table.csv", "x" * 100_000)

    with full_disk(50_000):
        status, text = run_main(write)
    assert status == 1
    assert "error: " in text
    assert "File too large" in text
    assert "Traceback" not in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log"]
    status, text = run_main(lambda arguments: (tmp_path / "absent").read_text())
    assert status == 1
    assert "absent" in text
    assert "Traceback" not in text
