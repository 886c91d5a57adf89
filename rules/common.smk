# What all other files here share: the checked configuration, and how wildcards are understood.
#
# Parameters of rules are of two kinds. `settings` hold exactly what changes the result: when one
# of them changes, Snakemake runs the job again. `runtime` holds the rest - where the data lie,
# device, workers, threads. Its functions take `threads`, and parameters derived from threads are
# not compared by Snakemake, so that such a change reruns nothing.

import atexit
import gc
import hashlib
import inspect
import json
import os
import re
import shutil
import sys
from functools import cache
from pathlib import Path

import snakemake.cli

# The library beside this file, wherever Snakemake was started.
sys.path.insert(0, str(workflow.basedir))

import ciss.cluster
import ciss.config
import ciss.datasets.base
import ciss.fingerprint
import ciss.initialisations
import ciss.names
import ciss.prepare
import ciss.published
import ciss.records
from ciss import examples, experiments, methods, paths, photos
from ciss.errors import CissError
from ciss.flags import option_flags, path_argument, to_flags, value_flags
from ciss.scenarios import parse_base_name

# A plan is a million objects that stay. Looking through them for garbage again and again, as Python
# does by default, takes a quarter of the time that planning does. Work begins with `onstart`. At its
# end Python would look through them thrice: a fifth of the time of a run with nothing to do.
gc.disable()
atexit.register(gc.freeze)


def let_the_scheduler_rest():
    """Take Snakemake's limit of 100 jobs a second away, unless another was asked for.

    With a limit every job that ends leaves a timer behind, which makes the scheduler choose jobs
    once a second from then on: hundreds of threads, and a CPU core in the end.
    """
    limit = getattr(workflow.scheduling_settings, "max_jobs_per_timespan", None)
    if limit and (limit.max_jobs, limit.timespan) == (100, 1):
        workflow.scheduler.job_rate_limiter = None


onstart:
    gc.freeze()
    gc.enable()
    let_the_scheduler_rest()


def only_looks():
    """Whether nothing will be run, so that nothing need be there yet; known after parsing."""
    return workflow.dryrun or "--summary" in sys.argv


@cache
def warn_once(message):
    print(message, file=sys.stderr)


def stop(message):
    """End with one line, as Snakemake's own errors would bury it in a traceback."""
    sys.exit(f"Error: {message}")


@cache
def command_line():
    """The command line as Snakemake's own parser reads it; None in a job that Snakemake started."""
    called = Path(sys.argv[0]).name
    if not workflow.is_main_process or called not in ("snakemake", "__main__.py"):
        return None
    known, _ = snakemake.cli.get_argument_parser().parse_known_args(sys.argv[1:])
    return known


@cache
def is_submitted():
    """Whether jobs go to a cluster: an executor is named on the command line or in its profile."""
    known = command_line()
    if known is None:
        return False
    if known.executor is None and known.profile not in (None, ["none"]):
        # What a profile says is added behind the last word; behind `--` it would be a target.
        words = sys.argv[1:]
        words = words[: words.index("--")] if "--" in words else words
        parser = snakemake.cli.get_argument_parser(profiles=known.profile)
        known, _ = parser.parse_known_args(words)
    return known.executor not in (None, "local", "dryrun", "touch")


def leave_cores_to_the_nodes():
    """Let submitted jobs have the cores that the profile gives them.

    `cores: all` of the default profile counts the machine on which Snakemake runs, and Snakemake gives no
    job more than that: on a login node of two cores every training would get two. A number of
    `--cores` on the command line still holds.
    """
    if is_submitted() and command_line().cores is None:
        workflow.global_resources["_cores"] = None


leave_cores_to_the_nodes()


def check_comments():
    """End with one line where Snakemake, which reads --config as YAML, drops part of a value."""
    known = command_line()
    for entry in (known and known.config) or []:
        name, _, value = entry.partition("=")
        if re.match(r"(?!\s*[\"'])[^{[]*\s#", value):
            stop(
                f"--config {entry}: Snakemake takes ' #' and what follows for a comment; set {name} "
                "in a file and give that, --configfile mine.yaml"
            )


check_comments()
try:
    if workflow.is_main_process:
        for path in workflow.configfiles:
            ciss.config.check_repeats(path)
    CONFIG = ciss.config.checked(config)
except CissError as error:
    stop(error)

RESULTS = CONFIG["results"]
if workflow.is_main_process:
    folder = Path(RESULTS).absolute()
    existing = next(path for path in [folder, *folder.parents] if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        stop(
            f"results is '{RESULTS}', but {existing} is no folder that can be written; set results "
            "to one"
        )
if "--unlock" in sys.argv:
    jobs = ciss.cluster.unfinished_jobs(Path.cwd())
    if jobs:
        stop(
            f"jobs {', '.join(jobs)} that Snakemake submitted from this folder still wait or run. "
            "A second Snakemake would submit the same work again. Let them end, or cancel them "
            f"(training goes on from its progress): scancel {' '.join(jobs)}"
        )
SNAKEMAKE_FOLDER = Path(".snakemake").absolute()


def keep_records():
    """Note beside the results what they were made of, for whoever uses them elsewhere."""
    ciss.records.keep(Path(RESULTS), SNAKEMAKE_FOLDER)


# Beside a Snakemake that is at work, files come and go: what it has not noted yet is no damage.
if workflow.is_main_process and not any((SNAKEMAKE_FOLDER / "locks").glob("*")):
    for path in ciss.records.adopt(Path(RESULTS), SNAKEMAKE_FOLDER, warn_once):
        warn_once(
            f"Warning: {path} is not the file that {path.parent / ciss.records.FILE} describes. "
            "If it was damaged on the way here, copy it again; or delete it, and it is made anew "
            "when it is needed."
        )


onsuccess:
    keep_records()
    say_where_reports_are()


onerror:
    keep_records()


STEP_AFTER_0 = "[1-9][0-9]*"


wildcard_constraints:
    dataset="[a-z][a-z0-9]*",
    track="[a-z0-9-]+",
    scenario="[a-z0-9-]+",
    init="[a-z0-9-]+",
    run="[a-z0-9-]+(_[a-z0-9-]+)?",
    seed="[0-9]+",
    step="[0-9]+",
    images="[1-9][0-9]*",
    report="[a-zA-Z0-9_-]+",


# A GPU is used by one job at a time here; on a cluster the scheduler sees to that.
resource_scopes:
    gpu="local",


def program(script):
    """A parameter: how a script is started, wherever Python and this repository lie."""
    # A conda environment brings its own Python; else it is the one that runs Snakemake.
    python = (
        "python" if workflow.deployment_settings.deployment_method else sys.executable
    )
    # `output` keeps it from being compared just as `threads` does, but costs no look at resources.
    return lambda wildcards, output: [
        python,
        f"{workflow.basedir}/workflow_scripts/{script}",
    ]


def at(pattern):
    """A pattern of ciss.paths under the results folder, its wildcards left open."""
    return f"{RESULTS}/{pattern}"


def artifact(pattern, experiment, seed, step):
    """A pattern of ciss.paths filled for a step of an experiment."""
    return at(paths.artifact(pattern, experiment, seed, step))


@cache
def gpus_per_job():
    """GPUs that a job which runs the network asks for, unless a profile says otherwise."""
    runtime = CONFIG["runtime"]
    if runtime["gpus"] != "auto":
        return runtime["gpus"]
    return int(runtime["device"] != "cpu" and shutil.which("nvidia-smi") is not None)


def most_gpus():
    """GPUs of the job that asks for most, here or in a profile's `set-resources`."""
    chosen = workflow.resource_settings.overwrite_resources.values()
    asked = [wanted["gpu"] for wanted in chosen if "gpu" in wanted]
    # One that is computed for each job is not known here.
    known = [gpu.value for gpu in asked if not gpu.is_evaluable()]
    return max([gpus_per_job(), *[n for n in known if isinstance(n, int)]])


# All jobs of this machine may use as many together as one of them asks for: Snakemake would
# silently give it fewer, on a cluster too.
if "gpu" in workflow.global_resources:
    workflow.global_resources["gpu"] = max(
        workflow.global_resources["gpu"].value, most_gpus()
    )


@cache
def dataset_at(name):
    return ciss.config.dataset(CONFIG, name)


@cache
def experiment_at(dataset, track, run):
    """The experiment that the wildcards of a step after 0 name."""
    try:
        return experiments.parse_run(CONFIG, dataset, track, run)
    except CissError as error:
        stop(error)


def experiment_of(wildcards):
    return experiment_at(wildcards.dataset, wildcards.track, wildcards.run)


@cache
def scenario_at(dataset, track, step_0):
    """The scenario of a track; for a base name, one that begins with these base classes."""
    if step_0:
        return parse_base_name(track, dataset_at(dataset).n_classes)
    return ciss.config.scenario(CONFIG, dataset, track)


def is_base(track):
    """Whether a track is a base name (15, 15a-disjoint), which has no increment."""
    return track.split("-")[0] == track or not track.split("-")[1][:1].isdigit()


def scenario_of(wildcards):
    return scenario_at(wildcards.dataset, wildcards.track, is_base(wildcards.track))


@cache
def settings_at(dataset, track):
    """The settings that hold for a track: of the data set, and of the scenario after step 0."""
    chosen = None if is_base(track) else ciss.config.scenario(CONFIG, dataset, track)
    return ciss.config.settings(CONFIG, dataset, chosen)


def settings_of(wildcards):
    return settings_at(wildcards.dataset, wildcards.track)


@cache
def evaluated_images(dataset):
    return ciss.config.evaluated_images(CONFIG, dataset)


def is_generated(dataset):
    return "generate" in ciss.config.dataset_entry(CONFIG, dataset)


VARIANTS = ciss.config.method_variants(CONFIG)


def those(has):
    """The methods and variants that ``has`` something."""
    try:
        return sorted(
            name
            for name, variant in VARIANTS.items()
            if has(variant, methods.describe(variant.kind))
        )
    except CissError as error:
        stop(error)


def any_of(names):
    """A pattern for names; where there are none, for what no name is."""
    return f"({'|'.join(names) or '-'})"


def runs_of(names):
    """A pattern for runs of methods and variants, with any initialisation."""
    return f"{any_of(names)}(_[a-z0-9-]+)?"


#: runs whose method keeps importances, those that are fused, and those that are solved
KEEPERS = runs_of(those(lambda v, method: method.keeps_importances and not v.fuses))
FUSERS = runs_of(those(lambda v, method: v.fuses))
FUSERS_THAT_KEEP = runs_of(
    those(lambda v, method: v.fuses and method.keeps_importances)
)
FUSERS_THAT_DO_NOT = runs_of(
    those(lambda v, method: v.fuses and not method.keeps_importances)
)
SOLVED = any_of(those(lambda v, method: method.closed_form))
#: methods whose own losses train step 0, and variants of them
OWN_BASES = those(lambda v, method: method.base_objective == v.kind)
#: runs of step 0, by these or by an objective that methods share
BASE_RUNS = f"ce|ce-preallocated|bce|{any_of(OWN_BASES)}"


def remember_signatures():
    """Note on functions which arguments they take: Snakemake looks several times for every job."""
    try:
        from snakemake.common import overwrite_function_params
        from snakemake.resources import Resource
    except ImportError:  # of another version, which takes a moment longer then
        return
    for one in workflow.rules:
        # A function that finds files is wrapped as the file that it stands for.
        inputs = [getattr(file, "_file", file) for file in one.input]
        inputs = [getattr(file, "callable", file) for file in inputs]
        for function in filter(inspect.isfunction, [*inputs, *one.params]):
            taken = dict(inspect.signature(function).parameters)
            # Every function takes them; one that takes no more need not be looked at.
            taken.pop("wildcards", None)
            overwrite_function_params(function, taken)
    # Through this one Snakemake asks for threads and resources.
    taken = inspect.signature(Resource.evaluate).parameters
    overwrite_function_params(Resource.evaluate, taken)
