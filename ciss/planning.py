"""How long the work ahead takes, judged by the records of work that is done.

What there is to do comes from Snakemake (``snakemake --summary``); times and memory from the
``benchmarks/`` and histories beside finished results.
"""

from __future__ import annotations

import csv
import io
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from ciss import paths
from ciss.config import Config, evaluated_images, initialisation_variant, scenario, settings
from ciss.errors import CissError
from ciss.experiments import Experiment, matrix_experiments, matrix_seeds, parse_experiment
from ciss.units import duration

#: rules whose jobs have a GPU each
ON_GPU = ["train_base", "train_base_importances", "train_step", "train_step_importances"]
ON_GPU += ["train_endpoint", "train_endpoint_importances"]
ON_GPU += ["solve_base", "solve_step", "attribute", "pretune", "evaluate"]
#: other rules that take longer than seconds
HEAVY = [*ON_GPU, "index", "generate_shapes"]
_STEP = re.compile(
    r"(?P<dataset>[^/]+)/(?P<track>[^/]+)/(?P<run>[^/]+)/seed(?P<seed>\d+)/step(?P<step>\d+)/"
    r"(?:(?:attribution|pretuned)_(?P<scenario>[^/_]+)(?:_(?P<init>[^/_]+))?\.safetensors|[^/]+)"
)


@dataclass(frozen=True)
class Job:
    """A job of the workflow, to be done or done."""

    rule: str
    output: str  # relative to the results
    pending: bool
    work: float | None = None  # images that pass through the network; None where nobody knows yet
    seconds: float | None = None
    memory_mb: float | None = None
    basis: str = ""  # what an estimate rests on

    @property
    def place(self) -> dict[str, str]:
        """Wildcards of the step that the job is for; empty for jobs of no step."""
        found = _STEP.fullmatch(self.output)
        return {} if found is None else {k: v for k, v in found.groupdict().items() if v}


def read_summary(text: str, results: str) -> list[Job]:
    """Read what ``snakemake --summary`` prints: a line for each output file."""
    jobs: dict[tuple[str, str], Job] = {}
    begin = text.find("output_file\t")
    if begin < 0:
        raise CissError("this is no table of `snakemake --summary`: it has no column output_file")
    for row in csv.DictReader(io.StringIO(text[begin:]), delimiter="\t"):
        rule, output = row["rule"], row["output_file"].removeprefix(f"{results}/")
        pending = row["plan"] != "no update"
        job = jobs.setdefault((rule, _unit(rule, output)), Job(rule, output, pending))
        if pending and not job.pending:
            jobs[rule, _unit(rule, output)] = replace(job, pending=True)
    return list(jobs.values())


def _unit(rule: str, output: str) -> str:
    """Return what the outputs of one job have in common, and no other job of the rule has."""
    path = Path(output)
    if rule in ("attribute", "pretune", "class_figure", "prediction_figure"):
        return str(path.with_suffix(""))
    if rule == "attribution_figures":
        return str(path.parent / re.sub("^(attribution|channel_scores)_", "", path.stem))
    if rule == "generate_shapes":
        return str(Path(*path.parts[:2]))
    return str(path.parent)


def chosen_experiments(config: Config, targets: Iterable[str]) -> list[tuple[Experiment, int]]:
    """Return the experiments and seeds that targets stand for; files stand for none."""
    found: dict[tuple[str, int], tuple[Experiment, int]] = {}
    for target in targets or ["paper"]:
        if target == "paper":
            pairs = chosen_experiments(config, config.get("paper", []))
        elif target in config["matrices"]:
            seeds = matrix_seeds(config, target)
            pairs = [(e, seed) for e in matrix_experiments(config, target) for seed in seeds]
        elif "/" in target or "_" not in target:
            continue
        else:
            pairs = [(parse_experiment(config, target), seed) for seed in config["seeds"]]
        found |= {(e.name, seed): (e, seed) for e, seed in pairs}
    return list(found.values())


class Records:
    """Times and memory of what is done under the results."""

    def __init__(self, results: Path, config: Config) -> None:
        self.results = results
        self.config = config
        self.images = cache(self._images)

    def measured(self, job: Job) -> Job:
        """Add time and memory of a finished job, where they were recorded."""
        folder = (self.results / job.output).parent
        file = folder / "benchmarks" / f"{job.rule}.tsv"
        if job.rule == "attribute":
            file = file.with_name(f"attribute_{job.place['scenario']}.tsv")
        elif job.rule == "pretune":
            file = file.with_name(f"pretune_{job.place['scenario']}_{job.place['init']}.tsv")
        elif job.rule.startswith("train_"):
            file = file.with_name("train.tsv")
        elif job.rule == "generate_shapes":
            folder = self.results / "data" / "benchmarks"
            file = folder / f"{Path(job.output).parts[1]}.tsv"
        row = last_row(file)
        seconds, memory = number_in(row, "s"), number_in(row, "max_rss")
        epochs = None
        if job.rule.startswith("train_"):
            history = _rows(folder / "history.csv")
            # A training that was interrupted has its last part only in the benchmark.
            spent = [value for row in history if (value := number_in(row, "seconds")) is not None]
            seconds = max(sum(spent), seconds or 0) if spent else seconds
            epochs = len(history) or None
        return replace(job, seconds=seconds, memory_mb=memory, work=self.work(job, epochs))

    def network(self, job: Job) -> tuple[dict[str, Any], int]:
        """Return what decides, with the images, how long a job takes: network and crop."""
        place = job.place
        chosen = settings(self.config, place["dataset"])
        model = {name: value for name, value in chosen["model"].items() if name != "weights"}
        return model, chosen["recipe"]["crop"]

    def work(self, job: Job, epochs: int | None = None) -> float | None:
        """Return how many images pass through the network in a job, if that is known yet."""
        place = job.place
        if not place:
            return None
        step = int(place["step"])
        if job.rule == "evaluate":
            subset = evaluated_images(self.config, place["dataset"])
            return self.images(place["dataset"], place["track"], step, subset)
        if job.rule == "attribute":
            return self.images(place["dataset"], place["scenario"], step + 1, "train")
        if job.rule.startswith("solve_"):
            return self.images(place["dataset"], place["track"], step, "train")
        if job.rule == "pretune":
            images = self.images(place["dataset"], place["scenario"], step + 1, "train")
            epochs = self._pretuning_epochs(place["dataset"], place["scenario"], place["init"])
            return None if images is None else images * epochs
        if job.rule.startswith("train_"):
            images = self.images(place["dataset"], place["track"], step, "train")
            epochs = epochs or self._epochs(place["dataset"], place["track"], step)
            return None if images is None else images * epochs
        return None

    def _images(self, dataset: str, track: str, step: int, subset: str) -> int | None:
        path = self.results / paths.SPLIT.format(dataset=dataset, track=track)
        rows = _rows(path)
        count = sum(row["step"] == str(step) and row["subset"] == subset for row in rows)
        return count or None

    def _epochs(self, dataset: str, track: str, step: int) -> int:
        parsed = scenario(self.config, dataset, track) if step else None
        chosen: Mapping[str, Any] = settings(self.config, dataset, parsed)["recipe"]
        return int(chosen["later" if step else "base"]["epochs"])

    def _pretuning_epochs(self, dataset: str, spelled: str, init: str) -> int:
        chosen = settings(self.config, dataset, scenario(self.config, dataset, spelled))
        return int(initialisation_variant(chosen["initialisations"], init).options["epochs"])


def estimate(jobs: Iterable[Job], records: Records) -> list[Job]:
    """Return all jobs with time and memory: measured of those done, estimated of those pending.

    An estimate rests on the most similar jobs that there are: the same rule on the same data set
    with the same method, with another method, then on another data set with the same network and
    crop. Their time for an image that passes through the network is multiplied by the number of
    such images, where both are known.
    """
    jobs = list(jobs)
    # A job that runs again was measured the last time.
    known = [records.measured(job) for job in jobs]
    known += [
        records.measured(job) for job in _others(records.results, {job.output for job in jobs})
    ]
    known = [job for job in known if job.seconds]
    return [
        _estimated(job, known, records) if job.pending else records.measured(job) for job in jobs
    ]


def _others(results: Path, listed: set[str]) -> Iterable[Job]:
    """Yield finished trainings, evaluations and looks at new images that are not in the plan."""
    rules = {"model.safetensors": "train", "confusion.csv": "evaluate"}
    looks = {"attribution": "attribute", "pretuned": "pretune"}
    for path in results.glob("*/*/*/seed*/step*/*"):
        output = path.relative_to(results).as_posix()
        rule = rules.get(path.name) or looks.get(path.name.partition("_")[0])
        if rule is None or output in listed:
            continue
        if rule == "train" and (path.parent / "ridge.safetensors").exists():
            rule = "solve_step" if path.parent.name != "step0" else "solve_base"
        elif rule == "train":
            keeps = (path.parent / "importances.safetensors").exists()
            rule = "train_step" if path.parent.name != "step0" else "train_base"
            rule += "_importances" if keeps else ""
        yield Job(rule, output, pending=False)


def _estimated(job: Job, known: list[Job], records: Records) -> Job:
    job = replace(job, work=records.work(job))
    same_rule = [other for other in known if other.rule == job.rule]
    levels: list[tuple[str, Callable[[Job], bool]]] = [
        ("same method", lambda other: _of(other) == _of(job)),
        ("same data set", lambda other: _of(other)[0] == _of(job)[0]),
        ("other data sets", lambda other: _comparable(job, other, records)),
    ]
    for name, similar in levels:
        found = [other for other in same_rule if similar(other)]
        if found:
            rates = [other.seconds / other.work for other in found if other.seconds and other.work]
            if job.work and rates:
                seconds = statistics.median(rates) * job.work
            else:
                seconds = statistics.median(other.seconds for other in found if other.seconds)
            memory = max((other.memory_mb or 0 for other in found), default=0) or None
            return replace(job, seconds=seconds, memory_mb=memory, basis=name)
    return job


def _comparable(job: Job, other: Job, records: Records) -> bool:
    """Whether an image costs the same in two jobs on different data sets."""
    if not (job.work and other.work):
        return False
    with suppress(CissError):  # results of a data set that the configuration knows no more
        return records.network(job) == records.network(other)
    return False


def _of(job: Job) -> tuple[str, str]:
    """Return data set and method of a job."""
    place = job.place
    parts = Path(job.output).parts
    dataset = place.get("dataset", parts[1] if parts[0] == "data" else parts[0])
    return dataset, place.get("run", "").split("_")[0]


def _rows(path: Path) -> list[dict[str, str]]:
    with suppress(OSError, ValueError), path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))
    return []


def last_row(path: Path) -> dict[str, str]:
    """Return the last row of a table, such as a benchmark of Snakemake's; empty without one."""
    return next(iter(reversed(_rows(path))), {})


def number_in(row: Mapping[str, str], column: str) -> float | None:
    """Return a number of a row; ``None`` where there is none."""
    try:
        return float(row[column])
    except (KeyError, TypeError, ValueError):
        return None


# --- What is said about it


def describe(jobs: list[Job], chosen: list[tuple[Experiment, int]], gpus: int = 1) -> str:
    """Return the plan as text: what would run, what is shared, how long and how much memory.

    ``gpus`` is how many a job has that runs the network.
    """
    parts = [_sharing(jobs, chosen), _table(jobs), _times(jobs, chosen, gpus)]
    return "\n\n".join(part for part in parts if part)


def _models(experiment: Experiment, seed: int) -> list[str]:
    steps = range(experiment.scenario.n_steps)
    return [paths.trained_model(experiment, seed, step) for step in steps]


def _sharing(jobs: list[Job], chosen: list[tuple[Experiment, int]]) -> str:
    if not chosen:
        return ""
    users = Counter(model for e, seed in chosen for model in _models(e, seed))
    training = ("train_", "solve_")
    pending = {job.output for job in jobs if job.pending and job.rule.startswith(training)}
    to_train = sum(str(Path(model)) in pending for model in users)
    lines = [
        f"{_count(len(chosen), 'run')} of {_count(len({e.name for e, _ in chosen}), 'experiment')} "
        f"{'needs' if len(chosen) == 1 else 'need'} "
        f"{_count(users.total(), 'training')}; {users.total() - len(users)} are shared, "
        f"{len(users) - to_train} are done, {to_train} to do."
    ]
    shared = [(model, count) for model, count in users.items() if count > 1]
    lines += [f"  {Path(model).parent} serves {count} runs" for model, count in sorted(shared)]
    return "\n".join(lines)


def _table(jobs: list[Job]) -> str:
    rules: dict[str, list[Job]] = defaultdict(list)
    for job in jobs:
        rules[job.rule].append(job)
    rows = [["rule", "to run", "done", "each", "in all", "memory", "judged by"]]
    for rule in [name for name in HEAVY if name in rules]:
        ahead = [job for job in rules[rule] if job.pending]
        if not ahead:
            continue
        known = [job.seconds for job in ahead if job.seconds is not None]
        memory = max((job.memory_mb or 0 for job in ahead), default=0)
        bases = sorted({job.basis for job in ahead if job.basis})
        complete = len(known) == len(ahead)
        rows.append(
            [
                rule,
                str(len(ahead)),
                str(len(rules[rule]) - len(ahead)),
                duration(statistics.mean(known)) if known else "?",
                ("" if complete else "> ") + duration(sum(known)) if known else "?",
                f"{memory / 1000:.1f} GB" if memory else "?",
                "; ".join(bases) or "no record yet",
            ]
        )
    light = Counter(job.rule for job in jobs if job.pending and job.rule not in HEAVY)
    seconds = ", ".join(f"{count} {rule}" for rule, count in sorted(light.items()))
    if len(rows) == 1:
        return f"Only jobs of seconds: {seconds}." if light else "Nothing is to be done."
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if column in (0, 6) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join(lines + ([f"And jobs of seconds: {seconds}."] if light else []))


def _times(jobs: list[Job], chosen: list[tuple[Experiment, int]], gpus: int) -> str:
    ahead = [job for job in jobs if job.pending]
    on_gpu = [job for job in ahead if job.rule in ON_GPU]
    if not on_gpu:
        return ""
    unknown = [job for job in on_gpu if job.seconds is None]
    if len(unknown) == len(on_gpu):
        return (
            "How long that takes cannot be told yet: no such job has been recorded. Run one "
            "experiment, or one with few epochs, and ask again."
        )
    total = sum(job.seconds or 0 for job in on_gpu)
    each = "" if gpus == 1 else f", {gpus} GPUs a job"
    hours = gpus * total / 3600
    lines = [f"GPU hours: {hours:.1f} on the device that the records come from{each}."]
    if chosen:
        chains = {(e.name, seed): _chain(jobs, e, seed) for e, seed in chosen}
        (name, seed), longest = max(chains.items(), key=lambda item: item[1])
        lines.append(
            f"One job at a time: {duration(total)}. However many GPUs: {duration(longest)} at "
            f"least, for the steps of {name} (seed {seed}), which follow each other."
        )
    if unknown:
        names = ", ".join(sorted({job.rule for job in unknown}))
        lines.append(
            f"Not counted, as there is no record yet: {_count(len(unknown), 'job')} of {names}."
        )
    return "\n".join(lines)


def _chain(jobs: list[Job], experiment: Experiment, seed: int) -> float:
    """Return the seconds of what must be done one after the other for one run."""
    seconds = {job.output: job.seconds or 0 for job in jobs if job.pending}
    patterns = (paths.MODEL, paths.INIT, paths.ATTRIBUTION, paths.PRETUNED)
    last = experiment.scenario.n_steps - 1
    outputs = {
        paths.artifact(pattern, experiment, seed, step)
        for step in range(experiment.scenario.n_steps)
        for pattern in patterns
    }
    outputs |= {*_models(experiment, seed), paths.artifact(paths.CONFUSION, experiment, seed, last)}
    return sum(seconds.get(output, 0) for output in outputs)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
