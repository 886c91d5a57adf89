"""The scripts on the device as the workflow starts them: same bits, resuming, several processes."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.distributed as dist

from benchmarks import networks
from benchmarks.on_gpu import Machine, judged, passed, skipped
from benchmarks.table import REPOSITORY, Row
from ciss.checkpoint import load_tensors
from ciss.datasets import open_dataset
from ciss.datasets.shapes import generate
from ciss.index import build_index
from ciss.scenarios import parse_scenario
from ciss.splits import split, write_split

SAME_BITS = "GPU: same bits"
PARITY = "GPU: parity"
SEVERAL = "GPU: several processes"
START = "GPU: start of a job"
#: of the largest attribution, between float32 on the CPU and on the device
TOLERANCE = 1e-3


class Jobs:
    """Generated images, their split, and commands on them."""

    def __init__(self, machine: Machine) -> None:
        self.machine, self.folder = machine, machine.folder / "jobs"
        size = {"train": 24, "val": 2, "size": 48} if machine.tiny else {"train": 400, "val": 8}
        generate(self.folder / "shapes", **{"size": 128, "seed": 0, **size})  # type: ignore[arg-type]
        dataset = open_dataset("shapes", "shapes", self.folder / "shapes")
        scenario = parse_scenario("10-5", dataset.n_classes)
        rows = split(build_index(dataset, is_subset=True), dataset, scenario, range(2))
        write_split(self.folder / "split.csv", rows)

    def command(self, script: str, flags: str) -> list[str]:
        """A script's command on the device; ``{}`` in ``flags`` is the folder."""
        dataset = f"--dataset shapes --kind shapes --root {self.folder}/shapes"
        start = [sys.executable, str(REPOSITORY / "workflow_scripts" / script)]
        return [*start, *f"{dataset} {flags}".replace("{}", str(self.folder)).split()]

    def train(
        self, name: str, flags: str, deterministic: bool = True, device: str = ""
    ) -> list[str]:
        """The command of a training whose files are called ``name``."""
        device = device or str(self.machine.device)
        network, recipe = "resnet18 --width 16 --head-channels 64", "--batch 16 --crop 96"
        epochs = 12 if self.machine.is_gpu else 3
        if self.machine.tiny:
            network, recipe = "resnet18 --width 8 --head-channels 16", "--batch 4 --crop 32"
        return self.command(
            "train.py",
            f"--split {{}}/split.csv --seed 1 --device {device} --workers 2 --threads 2 "
            f"--deterministic {str(deterministic).lower()} --backbone {network} {recipe} "
            f"--epochs {epochs} --lr 0.01 {flags} --output {{}}/{name}.safetensors "
            f"--history {{}}/{name}.csv --progress {{}}/{name}.pt",
        )


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def _together(commands: Sequence[Sequence[str]]) -> None:
    """Run several commands at the same time."""
    running = [
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY)
        for command in commands
    ]
    for process in running:
        _, said = process.communicate()
        if process.returncode:
            raise RuntimeError(said)


def _interrupted(command: Sequence[str], progress: Path) -> bool:
    """Ask a training to stop as soon as it has saved, and run it again; whether it did stop."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY)
    while process.poll() is None and not progress.is_file():
        time.sleep(0.002)
    process.send_signal(signal.SIGUSR1)
    _, said = process.communicate()
    stopped = process.returncode == 1 and "run it again to go on" in said
    if process.returncode and not stopped:
        raise RuntimeError(said)
    _run(command)
    return stopped


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def same_bits(machine: Machine) -> Iterator[Row]:
    """Trainings with deterministic kernels: repeated, interrupted; attribution as on the CPU."""
    jobs, folder = Jobs(machine), machine.folder / "jobs"
    note = "Same bits: runtime.deterministic, a small network on generated shapes."
    yield from _compared(jobs, "step 0", "--step 0 --method ce --new-classes 10", note)
    device, model = str(machine.device), "--step 1 --new-classes 5 --model {}/step_0.safetensors"
    maps = []
    for place in ("cpu", device):
        flags = f"{model} --split {{}}/split.csv --crop 64 --batch 4 --device {place}"
        _run(jobs.command("attribute.py", f"{flags} --output {{}}/attribution.safetensors"))
        maps.append(load_tensors(folder / "attribution.safetensors", "attribution")[0]["sums"])
    difference = float((maps[0] - maps[1]).abs().max() / maps[0].abs().max())
    what = "attribution: difference from the CPU's"
    yield judged(SAME_BITS, what, difference, TOLERANCE, "ppm", scale=1e6, note=note)
    flags = f"{model} --attribution {{}}/attribution.safetensors --initialisation awt --seed 1"
    transfer = f"transfer.py {flags} --output {{}}/init.safetensors".replace("{}", str(folder))
    _run([sys.executable, *f"{REPOSITORY}/workflow_scripts/{transfer}".split()])
    files = "--init {}/init.safetensors --teacher {}/step_0.safetensors"
    for method in ["plop"] if machine.tiny else ["ft", "mib", "plop"]:
        flags = f"--step 1 --method {method} --new-classes 5 {files}"
        yield from _compared(jobs, method, flags, note)


def _compared(jobs: Jobs, name: str, flags: str, note: str) -> Iterator[Row]:
    """A training twice, and once interrupted."""
    stem = name.replace(" ", "_")
    paths = [jobs.folder / f"{stem}{suffix}.safetensors" for suffix in ("", "_again", "_resumed")]
    _together([jobs.train(path.stem, flags) for path in paths[:2]])
    stopped = _interrupted(jobs.train(paths[2].stem, flags), paths[2].with_suffix(".pt"))
    first, again, resumed = map(_digest, paths)
    yield passed(SAME_BITS, f"{name}, two runs", first == again, note=note)
    yield passed(SAME_BITS, f"{name}, interrupted", stopped and first == resumed, note=note)


def parity(machine: Machine) -> Iterator[Row]:
    """The stored values of the published implementation, computed on the device."""
    if machine.cases is None:
        yield skipped(PARITY, "cases of the published implementation", "no --cases are given")
        return
    if find_spec("pytest") is None:
        yield skipped(PARITY, "cases of the published implementation", "pytest is not installed")
        return
    command = [sys.executable, "-m", "tests.parity", "--cases", str(machine.cases.resolve())]
    command += ["--device", str(machine.device), *(["--only", "1_losses"] * machine.tiny)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    lines = done.stdout.splitlines()
    failed = [line for line in lines if line.startswith("FAILED")]
    if not lines or " passed, " not in lines[-1]:
        raise RuntimeError(done.stdout + done.stderr)
    note = f"Parity: {lines[-1]}" + "".join(f"; {line}" for line in failed)
    yield judged(PARITY, "cases that fail", float(len(failed)), 0.0, note=note)


def several(machine: Machine) -> Iterator[Row]:
    """Exchange over NCCL (gloo on a CPU) by one process; by two, where there are two GPUs."""
    backend = "nccl" if machine.is_gpu else "gloo"
    store = dist.HashStore()
    dist.init_process_group(backend, store=store, rank=0, world_size=1)
    try:
        network = networks.drawn(networks.TINY, [5]).to(machine.device).train()
        images = networks.images(4, 64).to(machine.device)
        expected = _gradient(network, network, images)
        replica = torch.nn.parallel.DistributedDataParallel(network)
        found = _gradient(replica, network, images)
        summed = torch.arange(4.0, device=machine.device)
        dist.all_reduce(summed)
        good = summed.tolist() == [0.0, 1.0, 2.0, 3.0]
    finally:
        dist.destroy_process_group()
    difference = float((found - expected).abs().max() / expected.abs().max())
    what = f"{backend}, one process: gradients differ by"
    yield judged(SEVERAL, what, difference, 1e-4, "ppm", scale=1e6)
    yield passed(SEVERAL, f"{backend}, one process: sum", good)
    if machine.is_gpu and torch.cuda.device_count() < 2:
        yield skipped(SEVERAL, "nccl, two processes", "there is one GPU")
        return
    jobs = Jobs(machine)
    flags = "--step 0 --method ce --new-classes 10"
    device = machine.device.type  # a number would be one GPU's
    _run(jobs.train("one", flags, device=device))
    _run(jobs.train("two", f"{flags} --processes 2", device=device))
    one, two = (load_tensors(jobs.folder / f"{n}.safetensors", "model")[0] for n in ("one", "two"))
    weights = [torch.cat([v.reshape(-1) for v in each.values()]).double() for each in (one, two)]
    difference = float((weights[0] - weights[1]).norm() / weights[0].norm())
    yield judged(SEVERAL, f"{backend}, two processes: weights differ by", difference, 0.02, "%",
                 scale=100)  # fmt: skip


def _gradient(
    model: torch.nn.Module, network: torch.nn.Module, images: torch.Tensor
) -> torch.Tensor:
    network.zero_grad(set_to_none=True)
    model(images).small_logits.square().sum().backward()
    return torch.cat([p.grad.reshape(-1) for p in network.parameters() if p.grad is not None])


#: prints what has passed since the process began, until each stage
STAGES = """
import json, os, time
stages = {}
def stage(name):
    stages[name] = time.time() - float(os.environ["BEGAN"])
import torch
stage("torch is imported")
import ciss.training
stage("this project is imported")
device = torch.device(os.environ["DEVICE"])
torch.zeros(8, device=device).sum().item()
stage("the device answers")
x = torch.randn(2, 8, 32, 32, device=device)
torch.nn.functional.conv2d(x, torch.randn(8, 8, 3, 3, device=device)).sum().item()
stage("a convolution is done")
print(json.dumps(stages))
"""


def starting(machine: Machine) -> Iterator[Row]:
    """Seconds from the start of Python until a stage, and of a job of few iterations."""
    places = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "DEVICE": str(machine.device)}
    environment["PYTHONPATH"] = os.pathsep.join(places)
    stages: dict[str, float] = {}
    for _ in range(1 if machine.tiny else 3):
        done = subprocess.run(
            [sys.executable, "-c", STAGES],
            env={**environment, "BEGAN": str(time.time())},
            capture_output=True,
            text=True,
            check=True,
        )
        # The first start reads libraries from the disk.
        stages = json.loads(done.stdout.splitlines()[-1])
    note = "Start: seconds on the clock since the process began, files in the system's cache."
    for name, seconds in stages.items():
        yield Row(START, f"until {name}", "s", ours=seconds, rounds=1, note=note)
    if machine.tiny:
        return
    jobs = Jobs(machine)
    flags = "--step 0 --method ce --new-classes 10"
    command = jobs.train("start", flags, deterministic=False)
    command[command.index("--epochs") + 1] = "1"
    began = time.perf_counter()
    _run(command)
    what = "a training of one epoch of 25 small batches, in all"
    yield Row(START, what, "s", ours=time.perf_counter() - began, rounds=1, note=note)
