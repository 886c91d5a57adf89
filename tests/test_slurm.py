"""The pipeline on a real SLURM (``cluster.py`` says which): an experiment, and what befalls jobs.

Everything is run once, side by side, as SLURM and Snakemake mostly wait for each other.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import cluster
import pytest
import yaml
from faults.sitecustomize import spoil
from helpers import FEW_SHAPES, SMALLEST, made_once

pytestmark = pytest.mark.slurm

EPOCHS = 16
#: seconds; a busy machine may be ten times slower than a quiet one
TIMEOUT = 900
TINY = {
    "runtime": {"device": "cpu", "workers": 0, "threads": 1, "gpus": 1},
    "datasets": {"shapes": FEW_SHAPES},
    **SMALLEST,
    "recipe": SMALLEST["recipe"] | {"base": {"epochs": EPOCHS, "lr": 0.05}},
}
EXPERIMENT = "shapes_15-5_mib_awt"
#: what strikes the training with this seed, one attempt after the other
FAULTS = {
    1: "no room for progress, then cancelled",
    2: "killed, then no room for the model",
    3: "killed while writing, then one progress file damaged",
    4: "requeued, then both progress files cut short",
    5: "time limit",
}
#: what is wrong with the finished model of this seed when another job reads it
DAMAGE = {1: "flip", 2: "truncate"}


class Site:
    """A copy of the project whose profile was edited for the SLURM at hand."""

    def __init__(self, folder: Path, source: Path) -> None:
        shutil.copytree(source, folder, symlinks=True)
        self.folder = folder
        self.prefix = f"ciss{secrets.token_hex(4)}"
        self.environment = os.environ | {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder)}

    def profile(self) -> dict[str, Any]:
        path = self.folder / "profiles" / "slurm" / "config.yaml"
        content: dict[str, Any] = yaml.safe_load(path.read_text())
        return content

    def edit_profile(self, **more: object) -> None:
        """Write what a user would, and for each rule a time and a memory of its own."""
        profile = self.profile()
        partition = cluster.partition_with_gpus()
        profile["default-resources"] |= {"slurm_account": cluster.account(), "mem_mb": 700}
        for number, entry in enumerate(profile["set-resources"].values()):
            entry |= {"slurm_partition": partition, "runtime": 20 + number, "mem_mb": 900 + number}
        profile["set-threads"] = dict.fromkeys(profile["set-threads"], 1)
        profile |= {"slurm-init-seconds-before-status-checks": 1, **more}
        path = self.folder / "profiles" / "slurm" / "config.yaml"
        path.write_text(yaml.safe_dump(profile, sort_keys=False))

    def command(self, *arguments: object) -> list[str]:
        words = [sys.executable, "-m", "snakemake", *map(str, arguments)]
        return [*words, "--configfile", "tiny.yaml"]

    def start(self, *targets: object) -> subprocess.Popen[bytes]:
        """Start Snakemake on SLURM; what it says goes to ``said.txt``."""
        profile = ("--profile", "slurm", "--slurm-jobname-prefix", self.prefix)
        # Whoever started the tests may ignore SIGINT, which is inherited.
        command = ["env", "--default-signal=INT", *self.command(*profile, *targets)]
        with (self.folder / "said.txt").open("ab") as said:
            return subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.environment,
                stdout=said,
                stderr=said,
            )

    def run_here(self, *arguments: object) -> tuple[int, str]:
        """Run Snakemake without SLURM."""
        done = subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout + done.stderr

    def step_0(self, seed: int) -> Path:
        return self.folder / f"results/shapes/15/ce/seed{seed}/step0"

    def model(self, seed: int) -> str:
        return str((self.step_0(seed) / "model.safetensors").relative_to(self.folder))

    def log(self, seed: int) -> str:
        path = self.step_0(seed) / "logs" / "train.log"
        return path.read_text() if path.exists() else ""

    def number(self, seed: int) -> str | None:
        """SLURM's number of the job that trains with this seed, while it waits or runs."""
        listed = cluster.queue(self.prefix).items()
        found = [number for number, comment in listed if comment.endswith(f"_ce_{seed}_0")]
        return found[0] if found else None

    def slurm_jobs(self) -> list[dict[str, str]]:
        return [job._asdict() for job in cluster.jobs(self.prefix)]


def wait_for(condition: Callable[[], Any], seconds: float = TIMEOUT) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.05)


def trained(site: Site, seed: int, epochs: int) -> bool:
    return site.log(seed).count("images/s") >= epochs


def kill_trainer(site: Site, seed: int) -> None:
    """Kill the script itself, as a node short of memory does."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (folder / "cmdline").read_bytes().decode().split("\0")
            here = Path(os.readlink(folder / "cwd")) == site.folder  # noqa: PTH115
            if here and words[1].endswith("train.py") and f"seed{seed}/" in " ".join(words):
                os.kill(int(folder.name), signal.SIGKILL)


def run_experiment(site: Site) -> dict[str, Any]:
    site.edit_profile()
    process = site.start(EXPERIMENT)
    status = process.wait(timeout=TIMEOUT)
    return {"status": status, "jobs": site.slurm_jobs(), "profile": site.profile()}


def strike(site: Site) -> dict[str, Any]:
    """Train step 0 with several seeds; each job is struck by another fault."""
    site.edit_profile(retries=9)
    slow = {"do": "sleep", "file": "progress.pt"}
    # Slow enough to be struck in time: it takes seconds until a job is requeued.
    pauses = {1: 0.6, 2: 0.6, 3: 0.3, 4: 1.0}
    faults = [{**slow, "inside": f"seed{seed}", "seconds": s} for seed, s in pauses.items()]
    # Longer than the limit of one job, without work for the processor.
    faults += [{**slow, "inside": "seed5", "seconds": 2.5}]
    # The history is written once the last progress is saved, the model after it.
    both = ("progress.pt", "previous_progress.pt")
    once = [
        {"do": "full", "file": "progress.pt", "inside": "seed1", "write": 2},
        {"do": "full", "file": "model.safetensors", "inside": "seed2"},
        {"do": "kill", "file": "progress.pt", "inside": "seed3", "write": 4},
        {"do": "kill", "file": "history.csv", "inside": "seed3", "flip": both[:1]},
        {"do": "kill", "file": "history.csv", "inside": "seed4", "truncate": both},
    ]
    signs = [str(site.folder / f"struck {number}") for number in range(len(once))]
    faults += [{**fault, "once": sign} for fault, sign in zip(once, signs, strict=True)]
    site.environment |= {"CISS_FAULTS": json.dumps(faults)}
    site.environment |= {"PYTHONPATH": str(site.folder / "tests" / "faults")}
    limit = "1 if wildcards.seed == '5' else 20"
    process = site.start(
        *[site.model(seed) for seed in FAULTS], "--set-resources", f"train_base:runtime={limit}"
    )
    to_do = {
        1: lambda number: subprocess.run(["scancel", number], check=True),
        2: lambda number: kill_trainer(site, 2),
        4: lambda number: subprocess.run(["scontrol", "requeue", number], check=True),
    }
    # The first attempt with seed 1 ends in its second epoch; each attempt begins a log of its own.
    epochs = {1: 4, 2: 2, 4: 2}
    while process.poll() is None:
        for seed in [*to_do]:
            if trained(site, seed, epochs[seed]) and (number := site.number(seed)):
                to_do.pop(seed)(number)
        time.sleep(0.1)
    left = [*to_do, *(sign for sign in signs if not Path(sign).exists())]
    return {"status": process.returncode, "jobs": site.slurm_jobs(), "left": left}


def damage_models(site: Site) -> dict[str, Any]:
    """Damage finished models, let jobs read them, and do what these say."""
    site.edit_profile(retries=0)
    for seed, damage in DAMAGE.items():
        path = site.folder / site.model(seed)
        stat = path.stat()
        spoil(path, damage)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    confusions = [Path(site.model(seed)).with_name("confusion.csv") for seed in DAMAGE]
    found: dict[str, Any] = {"failed": site.start(*confusions).wait(timeout=TIMEOUT)}
    found["commands"] = re.findall(r"rm results/\S+", (site.folder / "said.txt").read_text())
    for command in set(found["commands"]):
        subprocess.run(command, shell=True, cwd=site.folder, check=True)
    found["status"] = site.start(*confusions).wait(timeout=TIMEOUT)
    found["evaluated"] = [(site.folder / path).exists() for path in confusions]
    found["jobs"] = site.slurm_jobs()
    return found


def interrupt_snakemake(site: Site) -> dict[str, Any]:
    """Kill Snakemake while its job runs, interrupt the next one, end the third, let one finish."""
    site.edit_profile(retries=0)
    found: dict[str, Any] = {}

    def start(seconds: float) -> subprocess.Popen[bytes]:
        """Start Snakemake; once its job has trained for two epochs, return."""
        slow = {"do": "sleep", "file": "progress.pt", "seconds": seconds}
        site.environment |= {"CISS_FAULTS": json.dumps([slow])}
        site.environment |= {"PYTHONPATH": str(site.folder / "tests" / "faults")}
        (site.step_0(1) / "logs" / "train.log").unlink(missing_ok=True)
        process = site.start(site.model(1))
        wait_for(lambda: trained(site, 1, 2))
        return process

    # Slow enough to be struck before it ends, on a busy machine too.
    process = start(seconds=5)
    process.kill()
    process.wait()
    found["still running"] = site.number(1)
    found["unlock while it runs"] = site.run_here("--unlock")
    subprocess.run(["scancel", str(found["still running"])], check=True)
    wait_for(lambda: site.number(1) is None)
    found["unlock"] = site.run_here("--unlock")

    process = start(seconds=5)
    process.send_signal(signal.SIGINT)
    found["interrupted"] = process.wait(timeout=TIMEOUT)
    wait_for(lambda: site.number(1) is None)

    process = start(seconds=0.2)
    process.terminate()
    found["terminated"] = process.wait(timeout=TIMEOUT)

    process = site.start(site.model(1))
    found["status"] = process.wait(timeout=TIMEOUT)
    found["jobs"] = site.slurm_jobs()
    return found


def run_all(folder: Path, clone: Path) -> None:
    (folder / "outcome").mkdir(parents=True)
    prepared = Site(folder / "undisturbed", clone)
    (prepared.folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    works = {"experiment": run_experiment, "struck": strike, "interrupted": interrupt_snakemake}
    with ThreadPoolExecutor() as pool:
        experiment = Site(folder / "experiment", prepared.folder)
        running = {"experiment": pool.submit(run_experiment, experiment)}
        status, said = prepared.run_here("--cores", 2, "results/shapes/15/split.csv")
        assert status == 0, said
        for name in ("struck", "interrupted"):
            running[name] = pool.submit(works[name], Site(folder / name, prepared.folder))
        models = [prepared.model(seed) for seed in FAULTS]
        status, said = prepared.run_here("--cores", 1, *models)
        assert status == 0, said
        running["damaged"] = pool.submit(damage_models, Site(folder / "damaged", prepared.folder))
        for name, future in running.items():
            try:
                content = future.result()
            except Exception as error:
                content = {"error": f"{type(error).__name__}: {error}"}
            (folder / "outcome" / f"{name}.json").write_text(json.dumps(content))


@pytest.fixture(scope="session")
def folder(shared: Path, clone: Path) -> Path:
    """The folder in which everything was run; not to be changed."""

    def make(folder: Path) -> None:
        folder.mkdir()
        try:
            with cluster.slurm():
                run_all(folder, clone)
        except cluster.NoClusterError as reason:
            (folder / "skipped").write_text(str(reason))

    made = made_once(shared / "on slurm", make)
    if (made / "skipped").exists():
        pytest.skip((made / "skipped").read_text())
    return made


def outcome(folder: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "outcome" / f"{name}.json").read_text())
    assert "error" not in content, content["error"]
    return content


def rule_of(job: dict[str, str]) -> str:
    found = re.match(r"rule_(\w+?)_wildcards", job["comment"])
    assert found, job
    return found[1]


def test_an_experiment_runs_through_slurm(folder: Path) -> None:
    found = outcome(folder, "experiment")
    assert found["status"] == 0, (folder / "experiment" / "said.txt").read_text()
    rules = sorted(rule_of(job) for job in found["jobs"])
    expected = ["attribute", "attribution_figures", "evaluate", "evaluate", "generate_shapes"]
    assert rules == [*expected, "index", "prediction_figure", "train_base", "train_step"]
    assert {job["state"] for job in found["jobs"]} == {"COMPLETED"}
    report = folder / "experiment" / "results" / "reports" / EXPERIMENT
    assert "AWT" in (report / "table.md").read_text()
    assert list(report.rglob("*.pdf"))


def test_each_job_got_what_the_profile_says_for_its_rule(folder: Path) -> None:
    found = outcome(folder, "experiment")
    account = found["profile"]["default-resources"]["slurm_account"]
    for job in found["jobs"]:
        entry = found["profile"]["set-resources"][rule_of(job)]
        given = dict(part.split("=") for part in job["resources"].split(","))
        assert job["limit"] == f"00:{entry['runtime']}:00", job
        assert given["mem"] == f"{entry['mem_mb']}M", job
        assert given["cpu"] == "1", job
        assert given.get("gres/gpu") == ("1" if "gpu" in entry else None), job
        assert (job["partition"], job["account"]) == (entry["slurm_partition"], account)


#: how SLURM saw the job of each seed end, attempt by attempt
STATES = {
    1: ["FAILED", "CANCELLED", "COMPLETED"],
    2: ["FAILED", "FAILED", "COMPLETED"],
    3: ["FAILED", "FAILED", "COMPLETED"],
    4: ["REQUEUED", "FAILED", "COMPLETED"],
}
#: what a user reads of it: Snakemake prints a failed attempt's log, and removes it before the next
SAID = {
    1: "cannot save the progress in {step}/progress.pt (No space left on device); the last saved "
    "progress is kept: make room and start again",
    2: "cannot write {step}/model.safetensors (No space left on device); make room or choose "
    "another results folder",
}
#: what the last attempt says of where it begins; an epoch has 7 iterations
BEGINS = {
    1: ["going on after iteration"],
    2: ["going on after iteration 112 of 112"],
    3: [
        "progress {step}/progress.pt is damaged (its checksum differs): removed",
        "going on after iteration 105 of 112",
    ],
    4: [
        "progress {step}/progress.pt is damaged",
        "progress {step}/previous_progress.pt is damaged",
        "no progress to go on from: starting anew",
    ],
    5: ["going on after iteration"],
}


@pytest.mark.parametrize("seed", FAULTS, ids=FAULTS.get)
def test_a_struck_job_ends_with_the_weights_of_an_undisturbed_one(seed: int, folder: Path) -> None:
    found = outcome(folder, "struck")
    assert found["left"] == []
    said = (folder / "struck" / "said.txt").read_text()
    assert found["status"] == 0, said
    jobs = [job for job in found["jobs"] if job["comment"].endswith(f"_ce_{seed}_0")]
    states = [job["state"].split()[0] for job in jobs]
    step = f"results/shapes/15/ce/seed{seed}/step0"
    log = (folder / "struck" / step / "logs" / "train.log").read_text()
    for words in BEGINS[seed]:
        assert words.format(step=step) in log
    if seed in STATES:
        assert states == STATES[seed]
        # A job that is requeued keeps its number.
        numbers = len(states) - states.count("REQUEUED")
        assert len({job["number"] for job in jobs}) == numbers
        assert SAID.get(seed, "").format(step=step) in said
    else:
        assert len(states) > 1
        assert states[-1] == "COMPLETED"
        # On a busy machine a job may start too late to leave by itself.
        assert "stopped by the time limit after iteration" in said or "TIMEOUT" in states
    model = f"{step}/model.safetensors"
    assert (folder / "struck" / model).read_bytes() == (folder / "undisturbed" / model).read_bytes()


def test_a_damaged_model_is_named_by_the_job_that_reads_it(folder: Path) -> None:
    found = outcome(folder, "damaged")
    said = (folder / "damaged" / "said.txt").read_text()
    assert found["failed"] != 0
    steps = [f"results/shapes/15/ce/seed{seed}/step0" for seed in DAMAGE]
    flipped, truncated = (f"{step}/model.safetensors" for step in steps)
    assert f"error: {flipped} is damaged: its checksum differs; delete it and start" in said
    assert f"error: {truncated} is damaged or not a safetensors file" in said
    assert {f"rm {flipped}", f"rm {truncated}"} == set(found["commands"])
    assert found["status"] == 0, said
    assert found["evaluated"] == [True, True]
    failed, done = ["FAILED", "FAILED"], ["COMPLETED"] * 4
    assert sorted(job["state"] for job in found["jobs"]) == sorted([*failed, *done])
    for model in (flipped, truncated):
        ours, theirs = (folder / name / model for name in ("damaged", "undisturbed"))
        assert ours.read_bytes() == theirs.read_bytes()


def test_snakemake_killed_interrupted_and_terminated_and_started_again(folder: Path) -> None:
    found = outcome(folder, "interrupted")
    number = found["still running"]
    status, said = found["unlock while it runs"]
    assert status != 0
    assert f"jobs {number} that Snakemake submitted from this folder still wait or run" in said
    assert f"scancel {number}" in said
    assert found["unlock"][0] == 0
    assert found["interrupted"] != 0
    assert found["status"] == 0, (folder / "interrupted" / "said.txt").read_text()
    states = [job["state"].split()[0] for job in found["jobs"]]
    # SIGTERM lets the running job end; the last Snakemake finds its model.
    assert states == ["CANCELLED", "CANCELLED", "COMPLETED"]
    step_0 = "results/shapes/15/ce/seed1/step0"
    log = (folder / "interrupted" / step_0 / "logs" / "train.log").read_text()
    assert "going on after iteration" in log
    model = f"{step_0}/model.safetensors"
    ours, theirs = (folder / name / model for name in ("interrupted", "undisturbed"))
    assert ours.read_bytes() == theirs.read_bytes()
