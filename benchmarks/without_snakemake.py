"""The workflow's commands on a machine that has no Snakemake: planned here, run there.

    python benchmarks/without_snakemake.py plan --configfile configs/gpu.yaml \\
        --data pets=/data/PascalVOC12 camvid=/data/CamVid --output plan.json gpu_pets gpu_camvid
    python benchmarks/without_snakemake.py run plan.json --jobs 6 --minutes 9
    python benchmarks/without_snakemake.py docs plan.json       tables into docs/benchmarks.md

``plan`` asks a dry run for every job and its command. ``run`` starts what has its inputs and lacks
outputs, several at a time, in the folder that results are to be written in. When time is up,
trainings save their progress; the same command goes on. It looks at nothing but whether files
exist: it is no replacement for Snakemake where settings change. ``docs`` writes what has come back
into the page of benchmarks.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.table import NOT_MEASURED, REPOSITORY, into_document, revision, spelled
from ciss.files import write_text

#: what a command's places are called in a plan
PYTHON, SOURCE = "{python}", "{repository}"
#: seconds that a training has to save its progress
GRACE = 60
#: results that are small
SMALL = (".csv", ".json", ".md", ".tex", ".txt", ".html", ".png", ".log")
BEGIN = "<!-- tables of benchmarks/without_snakemake.py: begin -->"
END = "<!-- tables of benchmarks/without_snakemake.py: end -->"
#: says what PyTorch finds; in a process of its own, as a GPU's memory is for the jobs
MACHINE = """
import json, torch
gpu = torch.cuda.is_available()
name = torch.cuda.get_device_name() if gpu else "a CPU"
print(json.dumps({"device": name, "torch": torch.__version__, "cuda": torch.version.cuda}))
"""


@dataclass(frozen=True)
class Job:
    """A command, the files that it reads and those that it writes."""

    rule: str
    input: tuple[str, ...]
    output: tuple[str, ...]
    log: tuple[str, ...]
    command: str

    @property
    def is_done(self) -> bool:
        """Whether all that it writes is there; scripts write files whole or not at all."""
        return all(Path(path).is_file() for path in self.output)


def read_dry_run(text: str) -> list[Job]:
    """Read what ``snakemake -n -p`` prints: a paragraph a job, with its shell command."""
    jobs = []
    for rule, body in re.findall(
        r"^(?:local)?rule (\w+):\n((?:    .*\n)+Shell command: .*)$", text, re.MULTILINE
    ):
        fields = dict(re.findall(r"^    (\w+): (.*)$", body, re.MULTILINE))
        files = {name: _listed(fields.get(name, "")) for name in ("input", "output", "log")}
        command = body.rpartition("Shell command: ")[2].strip()
        # A target has no command and no output.
        if files["output"]:
            jobs.append(Job(rule, files["input"], files["output"], files["log"], command))
    return jobs


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split(", ") if part)


def make_plan(configfile: Path, data: Mapping[str, str], targets: Sequence[str]) -> list[Job]:
    """Ask Snakemake for every job of ``targets``, done or not; paths of here are left open."""
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--printshellcmds", "--forceall"]
    command += ["--snakefile", str(REPOSITORY / "Snakefile"), "--configfile", str(configfile)]
    if data:
        roots = {name: {"root": root} for name, root in data.items()}
        command += ["--config", f"datasets={json.dumps(roots)}"]
    done = subprocess.run([*command, "--", *targets], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    places = {sys.executable: PYTHON, str(REPOSITORY): SOURCE}
    places |= {root: place(name) for name, root in data.items()}
    jobs = []
    for job in read_dry_run(done.stdout + done.stderr):
        command_of_plan = job.command
        # The longest first: one may lie in another.
        for path in sorted(places, key=len, reverse=True):
            command_of_plan = command_of_plan.replace(path, places[path])
        jobs.append(replace(job, command=command_of_plan))
    if not jobs:
        raise SystemExit(f"no job was found in what Snakemake printed:\n{done.stdout}")
    return jobs


def place(name: str) -> str:
    """How a plan calls the folder of a data set."""
    return f"{{data {name}}}"


class Running:
    """A job at work, in a process group of its own."""

    def __init__(self, job: Job, command: str) -> None:
        self.job, self.started = job, time.monotonic()
        for path in (*job.output, *job.log):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        self.said = Path(job.output[0] + ".said")
        with self.said.open("w") as file:
            self.process = subprocess.Popen(
                ["bash", "-c", command],
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def signal(self, number: int) -> None:
        """Send a signal to all of it."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def ended(self) -> str | None:
        """``None`` while it runs, then what it said; nothing where all went well."""
        status = self.process.poll()
        if status is None:
            return None
        said = self.said.read_text(errors="replace")
        self.said.unlink()
        if status == 0 and self.job.is_done:
            return ""
        return said.strip() or f"it ended with status {status}"


def run_plan(
    jobs: Sequence[Job], places: Mapping[str, str], at_once: int, minutes: float, timings: Path
) -> int:
    """Run what is not done; returns 0 when all is, 3 when time is up, 1 when something failed."""
    end = time.monotonic() + 60 * minutes if minutes else float("inf")
    failed: dict[Job, str] = {}
    running: list[Running] = []
    waiting = [job for job in jobs if not job.is_done]
    print(f"{len(jobs)} jobs, {len(jobs) - len(waiting)} are done", flush=True)
    try:
        while (waiting or running) and time.monotonic() < end:
            for one in list(running):
                said = one.ended()
                if said is None:
                    continue
                running.remove(one)
                seconds = time.monotonic() - one.started
                print(f"{'failed' if said else 'done'}  {seconds:6.1f} s  {one.job.output[0]}",
                      flush=True)  # fmt: skip
                if said:
                    failed[one.job] = said
                    print(said, flush=True)
                else:
                    _note(timings, one.job, seconds)
            ready = [job for job in waiting if all(map(_is, job.input))]
            for job in ready[: at_once - len(running)]:
                waiting.remove(job)
                running.append(Running(job, _filled(job.command, places)))
            if not running and not ready:
                break
            time.sleep(0.02)
    finally:
        _stop(running)
    left = [*waiting, *(one.job for one in running)]
    if failed:
        print(f"{len(failed)} jobs failed, {len(left)} others are left")
    if running or any(all(map(_is, job.input)) for job in waiting):
        print(f"time is up, {len(left)} jobs are left; run it again to go on")
        return 3
    made = {path for job in jobs for path in job.output}
    lacking = sorted({p for job in waiting for p in job.input if p not in made and not _is(p)})
    if lacking:
        print(f"there is no {', no '.join(lacking)}")
    return 1 if failed or waiting else 0


def _is(path: str) -> bool:
    return Path(path).exists()


def _filled(command: str, places: Mapping[str, str]) -> str:
    for name, path in places.items():
        command = command.replace(name, path)
    return command


def _stop(running: Sequence[Running]) -> None:
    """Ask all to save and leave, and wait until they have."""
    for one in running:
        one.signal(signal.SIGTERM)
    end = time.monotonic() + GRACE
    for one in running:
        with suppress(subprocess.TimeoutExpired):
            one.process.wait(max(end - time.monotonic(), 0.1))
        one.signal(signal.SIGKILL)
        one.process.wait()
        one.said.unlink(missing_ok=True)


def _note(timings: Path, job: Job, seconds: float) -> None:
    """Add a line to the table of times; several jobs shared the GPU."""
    timings.parent.mkdir(parents=True, exist_ok=True)
    with timings.open("a", encoding="utf-8") as file:
        file.write(f"{job.rule},{job.output[0]},{seconds:.1f}\n")


def pack(jobs: Sequence[Job], archive: Path, others: Iterable[Path] = ()) -> int:
    """Put the small results into one file: tables, histories, figures, logs. Returns how many."""
    paths = {Path(path) for job in jobs for path in (*job.output, *job.log)} | {*others}
    found = sorted(path for path in paths if path.suffix in SMALL and path.is_file())
    with tarfile.open(archive, "w:gz") as file:
        for path in found:
            file.add(path)
    return len(found)


def _beside(plan: Path) -> tuple[Path, Path]:
    """Where the seconds of a plan's jobs stand, and what is known of the machine."""
    return plan.with_suffix(".timings.csv"), plan.with_suffix(".machine.json")


def about(command: str) -> dict[str, Any]:
    """Say where, when and of which source results are made."""
    done = subprocess.run(
        [sys.executable, "-c", MACHINE], capture_output=True, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    date = time.strftime("%Y-%m-%d")
    return {"date": date, **found, "revision": revision(), "command": command}


def markdown(jobs: Sequence[Job], plan: Path) -> str:
    """Tables of the reports that are done, with the seconds of jobs; else that there is nothing."""
    timings, facts = _beside(plan)
    tables = [Path(path) for job in jobs for path in job.output if Path(path).name == "table.md"]
    done = [path for path in tables if path.is_file()]
    text = []
    if done and facts.is_file():
        where = json.loads(facts.read_text(encoding="utf-8"))
        text += [
            f"{where['date']}, {where['device']}, torch {where['torch']}, CUDA {where['cuda']}, "
            f"revision {where['revision']}, `{where['command']}`; "
            f"{where['done']} of {len(jobs)} jobs are done.",
            "",
            *_seconds(timings),
        ]
    for path in tables:
        text.append(f"**{path.parent.name}**{'' if path in done else f': {NOT_MEASURED}.'}")
        text.append("")
        if path in done:
            # One level below the page's own headings.
            text += [path.read_text(encoding="utf-8").strip().replace("### ", "#### "), ""]
    return "\n".join(text).strip() + "\n"


def _seconds(timings: Path) -> list[str]:
    """A table of jobs and their seconds by rule."""
    if not timings.is_file():
        return []
    rules: dict[str, list[float]] = {}
    with timings.open(encoding="utf-8", newline="") as file:
        for rule, _, seconds in csv.reader(file):
            rules.setdefault(rule, []).append(float(seconds))
    rows = [f"| {rule} | {len(found)} | {sum(found):,.0f} s |" for rule, found in rules.items()]
    head = ["| rule | jobs | in all |", "| --- | ---: | ---: |"]
    said = (
        "Seconds on the clock, several jobs at a time; of a job that was interrupted, those after "
        "it went on."
    )
    return [*head, *rows, "", said, ""]


def read_plan(path: Path) -> tuple[dict[str, str], list[Job]]:
    """The data sets' folders where a plan was made, and its jobs."""
    content = json.loads(path.read_text(encoding="utf-8"))
    jobs = []
    for job in content["jobs"]:
        lists = {name: tuple(job[name]) for name in ("input", "output", "log")}
        jobs.append(Job(**{**job, **lists}))
    return content["data"], jobs


def run(arguments: argparse.Namespace, data: Mapping[str, str]) -> int:
    """Run a plan's jobs, and note what is needed to tell of them; returns the exit status."""
    planned, jobs = read_plan(arguments.plan)
    roots = {place(name): root for name, root in {**planned, **data}.items()}
    places = {PYTHON: sys.executable, SOURCE: str(REPOSITORY), **roots}
    timings, facts = _beside(arguments.plan)
    where = {} if all(job.is_done for job in jobs) else about(spelled(sys.argv))
    status = run_plan(jobs, places, arguments.jobs, arguments.minutes, timings)
    if where:
        where["done"] = sum(job.is_done for job in jobs)
        write_text(facts, json.dumps(where, indent=1) + "\n")
    if arguments.pack is not None:
        print(f"{pack(jobs, arguments.pack, [timings, facts])} files in {arguments.pack}")
    for job in jobs:
        for path in map(Path, job.output):
            if path.name == "table.txt" and path.is_file():
                print(f"\n{path.parent.name}\n{path.read_text(encoding='utf-8')}")
    return status


def main(arguments: argparse.Namespace) -> int:
    if arguments.what == "docs":
        _, jobs = read_plan(arguments.plan)
        page = REPOSITORY / "docs" / "benchmarks.md"
        into_document(page, markdown(jobs, arguments.plan), (BEGIN, END))
        return 0
    data = dict(pair.split("=", 1) for pair in arguments.data)
    if arguments.what == "run":
        return run(arguments, data)
    jobs = make_plan(arguments.configfile, data, arguments.targets)
    content = {"data": data, "jobs": [asdict(job) for job in jobs]}
    write_text(arguments.output, json.dumps(content, indent=1) + "\n")
    print(f"{len(jobs)} jobs in {arguments.output}")
    return 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    whats = made.add_subparsers(dest="what", required=True)
    plan = whats.add_parser("plan", help="write the commands down (needs Snakemake)")
    plan.add_argument("targets", nargs="+", help="experiments and matrices")
    plan.add_argument("--configfile", type=Path, default=REPOSITORY / "configs" / "gpu.yaml")
    plan.add_argument("--output", type=Path, required=True, help="file of the plan")
    run = whats.add_parser("run", help="run what is not done")
    run.add_argument("plan", type=Path)
    run.add_argument("--jobs", type=int, default=6, help="at the same time, on one GPU")
    run.add_argument("--minutes", type=float, default=0, help="stop and save after these")
    run.add_argument("--pack", type=Path, help="tar.gz for the small results")
    docs = whats.add_parser("docs", help="put the tables in docs/benchmarks.md")
    docs.add_argument("plan", type=Path)
    for each in (plan, run):
        each.add_argument(
            "--data", nargs="+", default=[], metavar="NAME=FOLDER", help="where data sets lie"
        )
    return made


if __name__ == "__main__":
    sys.exit(main(parser().parse_args()))
