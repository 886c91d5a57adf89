# What the other rule files share: the checked configuration, and the settings each rule passes on.
#
# A rule has two kinds of parameters. `settings` hold exactly what changes its result: when one of
# them changes, Snakemake runs the rule again. `runtime` holds the rest: where the data lie, device,
# workers, threads. Its functions take `threads`, and parameters derived from threads are not
# compared by Snakemake, so that such a change reruns nothing.

import os
import shutil
import sys
from functools import cache
from pathlib import Path

# Scripts and rules use the library beside this file, wherever Snakemake was started.
sys.path.insert(0, str(workflow.basedir))
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(workflow.basedir), os.environ.get("PYTHONPATH")])
)

import ciss.config
import ciss.fingerprint
from ciss import experiments, methods, paths
from ciss.errors import CissError
from ciss.flags import option_flags, to_flags
from ciss.scenarios import parse_base_name


def stop(message):
    """End with one line, as Snakemake's own errors would bury it in a traceback."""
    sys.exit(f"Error: {message}")


try:
    CONFIG = ciss.config.checked(config)
except CissError as error:
    stop(error)

RESULTS = CONFIG["results"]
SCRIPTS = f"{workflow.basedir}/workflow_scripts"
# A conda environment brings its own Python; otherwise scripts run on the one that runs Snakemake.
PYTHON = "python" if workflow.deployment_settings.deployment_method else sys.executable
STEP_AFTER_0 = "[1-9][0-9]*"


wildcard_constraints:
    dataset="[a-z][a-z0-9]*",
    track="[a-z0-9-]+",
    scenario="[a-z0-9-]+",
    run="[a-z0-9-]+(_[a-z0-9-]+)?",
    seed="[0-9]+",
    step="[0-9]+",
    report="[a-zA-Z0-9_-]+",


# A GPU is used by one job at a time here; on a cluster the scheduler sees to that.
resource_scopes:
    gpu="local",


def at(pattern):
    """A pattern of ciss.paths under the results folder, its wildcards left open."""
    return f"{RESULTS}/{pattern}"


def artifact(pattern, experiment, seed, step):
    """A pattern of ciss.paths filled for a step of an experiment."""
    return at(paths.artifact(pattern, experiment, seed, step))


@cache
def gpus_per_job():
    """GPUs that a job which runs the network asks for."""
    runtime = CONFIG["runtime"]
    if runtime["gpus"] != "auto":
        return runtime["gpus"]
    return int(runtime["device"] != "cpu" and shutil.which("nvidia-smi") is not None)


@cache
def experiment_at(dataset, track, run):
    """The experiment that the wildcards of a step after 0 name."""
    return experiments.parse_run(CONFIG, dataset, track, run)


def experiment_of(wildcards):
    return experiment_at(wildcards.dataset, wildcards.track, wildcards.run)


@cache
def scenario_at(dataset, track, step_0):
    """The scenario of a track; for a base name, one that begins with these base classes."""
    if step_0:
        return parse_base_name(track, ciss.config.dataset(CONFIG, dataset).n_classes)
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


def recipe_flags(wildcards):
    """Settings of the training loop: those of step 0 or of the later steps."""
    recipe = dict(settings_of(wildcards)["recipe"])
    phases = {"base": recipe.pop("base"), "later": recipe.pop("later")}
    return to_flags({**recipe, **phases["base" if wildcards.step == "0" else "later"]})


def dataset_flags(dataset, order=""):
    """Settings that say what the labels mean."""
    entry = ciss.config.dataset_entry(CONFIG, dataset)
    return to_flags(
        {
            "dataset": dataset,
            "kind": entry["kind"],
            "order": order or None,
            "classes": entry.get("classes"),
        }
    )


def labels_of(wildcards):
    return dataset_flags(wildcards.dataset, scenario_of(wildcards).order)


def runtime_flags(wildcards, threads):
    """How a job that runs the network does so, and where its data lie."""
    runtime = CONFIG["runtime"]
    return root_flags(wildcards, threads) + to_flags(
        {"device": runtime["device"], "workers": runtime["workers"], "threads": threads}
    )


def root_flags(wildcards, threads):
    return to_flags({"root": ciss.config.dataset(CONFIG, wildcards.dataset).root})


def dataset_state(wildcards):
    """What the files of a data set are: their fingerprint, or why there is none.

    Without the data a dry run still plans; anything else stops here, before any work.
    """
    dataset = ciss.config.dataset(CONFIG, wildcards.dataset)
    cache_file = Path(at(paths.FINGERPRINT.format(dataset=dataset.name)))
    try:
        if is_generated(dataset.name):
            return ciss.fingerprint.of_generated(dataset, cache_file)
        return ciss.fingerprint.fingerprint(dataset, cache_file)
    except CissError as error:
        known = ciss.fingerprint.last_known(cache_file)
        if known is not None:
            return known
        if workflow.dryrun:
            warn_once(f"{error}\nThis is a dry run; a real one stops with this error.")
            return "missing"
        stop(error)


@cache
def warn_once(message):
    print(f"Warning: {message}", file=sys.stderr)


def is_generated(dataset):
    return "generate" in ciss.config.dataset_entry(CONFIG, dataset)
