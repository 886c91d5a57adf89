"""The workflow's commands without Snakemake: the plan of a dry run, and what runs it."""

from __future__ import annotations

import json
import sys
import tarfile
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from helpers import REPOSITORY

sys.path.insert(0, str(REPOSITORY))

from benchmarks import without_snakemake
from benchmarks.table import NOT_MEASURED
from benchmarks.without_snakemake import Job, make_plan, pack, place, read_dry_run, run_plan

DRY_RUN = """Building DAG of jobs...

[Wed Nov 25 04:58:40 2026]
rule index:
    output: results/pets/index.csv
    log: results/pets/logs/index.log
    jobid: 5
    resources: tmpdir=/tmp
Shell command: python index.py --output results/pets/index.csv

[Wed Nov 25 04:58:40 2026]
localrule split:
    input: results/pets/index.csv, data/list.txt
    output: results/pets/3/split.csv, results/pets/3/manifest.csv
    jobid: 4
Shell command: python split.py 'a b'  --steps 0

[Wed Nov 25 04:58:40 2026]
rule pets:
    input: results/pets/3/split.csv
    jobid: 0
    reason: Rules with neither input nor output files are always executed.
Shell command: None

Job stats:
"""


def test_a_dry_run_says_what_each_job_reads_writes_and_runs() -> None:
    index, split = read_dry_run(DRY_RUN)
    assert index.rule == "index"
    assert (index.input, index.output) == ((), ("results/pets/index.csv",))
    assert index.log == ("results/pets/logs/index.log",)
    assert split.input == ("results/pets/index.csv", "data/list.txt")
    assert split.output == ("results/pets/3/split.csv", "results/pets/3/manifest.csv")
    assert split.command == "python split.py 'a b'  --steps 0"


@pytest.mark.workflow
def test_the_plan_of_an_experiment_has_all_its_jobs_and_no_path_of_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "elsewhere"
    monkeypatch.chdir(tmp_path)
    jobs = make_plan(REPOSITORY / "configs" / "demo.yaml", {}, ["shapes_10-5_mib_awt"])
    made = {path for job in jobs for path in job.output}
    # Only what an earlier job makes is read.
    seen: set[str] = set()
    for job in jobs:
        assert set(job.input) <= made
        seen |= set(job.output)
    assert "results/demo/shapes/10-5/mib_awt/seed1/step2/confusion.csv" in seen
    for job in jobs:
        assert job.command.startswith("{python} {repository}/workflow_scripts/")
        for path in (sys.executable, str(REPOSITORY), str(root)):
            assert path not in job.command


def jobs_of(**commands: str) -> list[Job]:
    """Jobs that each write ``in/NAME``; other words ``in/…`` of a command are inputs."""
    jobs = []
    for name, command in commands.items():
        words = [word for word in command.split() if word.startswith("in/")]
        inputs = tuple(word for word in words if word != f"in/{name}")
        jobs.append(Job("rule", inputs, (f"in/{name}",), (), command))
    return jobs


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(jobs: list[Job], minutes: float = 0, **places: str) -> int:
    given = {f"{{{name}}}": value for name, value in places.items()}
    return run_plan(jobs, given, 2, minutes, Path("timings.csv"))


def test_jobs_run_after_what_they_read_and_only_once(folder: Path) -> None:
    jobs = jobs_of(
        c="cat in/a in/b > in/c && echo c >> order",
        a="echo {word} > in/a && echo a >> order",
        b="cat in/a > in/b && echo b >> order",
    )
    assert run(jobs, word="hello") == 0
    assert (folder / "in/c").read_text() == "hello\nhello\n"
    assert (folder / "order").read_text().split() == ["a", "b", "c"]
    assert run(jobs) == 0
    assert len((folder / "order").read_text().split()) == 3
    assert [line.split(",")[1] for line in (folder / "timings.csv").read_text().split()] == [
        "in/a",
        "in/b",
        "in/c",
    ]
    assert sorted(path.name for path in (folder / "in").iterdir()) == ["a", "b", "c"]


def test_what_fails_is_shown_and_tried_again_and_the_rest_goes_on(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = jobs_of(
        a="test -f mended && echo > in/a || { echo it is broken; exit 1; }",
        b="cat in/a > in/b",
        c="echo > in/c",
        d="echo it wrote nothing",
    )
    assert run(jobs) == 1
    printed = capsys.readouterr().out
    assert "it is broken" in printed
    assert "it wrote nothing" in printed
    assert "2 jobs failed, 1 others are left" in printed
    assert (folder / "in/c").is_file()
    (folder / "mended").touch()
    assert run([job for job in jobs if job.output != ("in/d",)]) == 0
    assert (folder / "in/b").is_file()


def test_when_time_is_up_jobs_save_and_the_next_run_goes_on(folder: Path) -> None:
    """The job saves when it is asked to end, as trainings do, and ends at once the next time."""
    command = (
        "test -f saved && echo > in/a && exit; trap 'touch saved; exit 1' TERM; "
        "for i in $(seq 100); do sleep 0.05; done"
    )
    jobs = jobs_of(a=command, b="cat in/a > in/b")
    assert run(jobs, minutes=0.01) == 3
    assert [path.name for path in folder.iterdir() if path.is_file()] == ["saved"]
    assert [*(folder / "in").iterdir()] == []
    assert run(jobs) == 0


def test_what_failed_does_not_hide_that_time_was_up(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = jobs_of(a="exit 1", b="for i in $(seq 100); do sleep 0.05; done; echo > in/b")
    assert run(jobs, minutes=0.01) == 3
    assert "1 jobs failed, 1 others are left\ntime is up" in capsys.readouterr().out


def test_a_file_that_nothing_makes_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(jobs_of(a="cat in/images > in/a", b="cat in/a > in/b")) == 1
    assert "there is no in/images\n" in capsys.readouterr().out


def test_small_results_go_into_one_file(folder: Path) -> None:
    for name in ("table.csv", "model.safetensors", "a.log"):
        (folder / name).write_text(name)
    jobs = [Job("r", (), ("table.csv", "model.safetensors", "absent.md"), ("a.log",), "")]
    assert pack(jobs, Path("small.tar.gz")) == 2
    with tarfile.open("small.tar.gz") as file:
        assert file.getnames() == ["a.log", "table.csv"]


def test_a_plan_is_run_with_the_places_of_this_machine(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = "{python} -c 'import sys; print(sys.argv[1:])' " + place("pets") + " {repository}"
    job = {"rule": "r", "input": [], "output": ["table.txt"], "log": []}
    job["command"] = f"{command} > table.txt"
    Path("plan.json").write_text(json.dumps({"data": {"pets": "/there"}, "jobs": [job]}))
    arguments = without_snakemake.parser().parse_args(["run", "plan.json", "--data", "pets=/here"])
    assert without_snakemake.main(arguments) == 0
    assert f"['/here', '{REPOSITORY}']" in capsys.readouterr().out


def test_the_page_has_the_tables_that_came_back(folder: Path) -> None:
    outputs = {
        "trained": "echo > trained",
        "reports/gpu_pets/table.md": "echo '### Pets' > reports/gpu_pets/table.md",
        "reports/gpu_camvid/table.md": "exit 1",
    }
    jobs = [Job("r", (), (output,), (), command) for output, command in outputs.items()]
    plan = Path("plan.json")
    plan.write_text(json.dumps({"data": {}, "jobs": [asdict(job) for job in jobs]}))
    assert without_snakemake.markdown(jobs, plan).count(NOT_MEASURED) == 2
    assert without_snakemake.main(without_snakemake.parser().parse_args(["run", "plan.json"])) == 1
    # Models stay where they were made.
    Path("trained").unlink()
    text = without_snakemake.markdown(jobs, plan)
    assert "2 of 3 jobs are done" in text
    assert f"torch {torch.__version__}" in text
    assert "| r | 2 | " in text
    assert "**gpu_pets**\n\n#### Pets\n" in text
    assert f"**gpu_camvid**: {NOT_MEASURED}." in text
    page = (REPOSITORY / "docs" / "benchmarks.md").read_text()
    assert page.count(without_snakemake.BEGIN) == page.count(without_snakemake.END) == 1
