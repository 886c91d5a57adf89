"""The workflow, through the real Snakemake: what it runs, what a change reruns, what it says.

One tiny experiment of four runs is run once; the tables below are dry runs on its results.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from helpers import (
    FEW_SHAPES,
    REPOSITORY,
    SMALLEST,
    Run,
    in_browser,
    made_once,
    only_one,
    run_python,
    snakemake,
)
from PIL import Image

from ciss import config as configuration
from ciss import experiments, paths
from ciss.checkpoint import load_model
from ciss.datasets.shapes import generate
from ciss.metrics import read_confusion, write_confusion
from ciss.pretuning import load_classifiers
from ciss.results import read_table

pytestmark = pytest.mark.workflow

#: All that a shell, a browser or a pattern may understand in a name, as folders of users have them.
RESULTS = "all 'results' ü, $HOME; \"x\" & [a-z]*#1 `y` %20"
#: and as an option begins; argparse takes it for one only where it has no space
OWN = "-own'ü'$HOME;\"&#1"
TINY = {
    "results": RESULTS,
    "runtime": {"device": "cpu", "workers": 0, "threads": 1, "gpus": 0},
    "datasets": {
        "shapes": FEW_SHAPES,
        # Images of the user's own, as far as the workflow can tell.
        "own": {
            "kind": "voc",
            "root": OWN,
            "classes": ["cat", "dog", "bird"],
            "subset": True,
        },
    },
    **SMALLEST,
    "matrices": {
        "tiny": {
            "dataset": "shapes",
            "scenarios": ["10-5"],
            "runs": ["ft", "mib", "mib_awt", "ewc"],
        }
    },
    "paper": ["tiny"],
}
RUNS = ("ft", "mib", "mib_awt", "ewc")
#: columns of every history; a method adds its other terms of the loss
HISTORY = ["epoch", "iteration", "loss", "loss_classification", "lr", "iou_new"]
HISTORY += ["images_per_second", "seconds", "memory_mb"]


@pytest.fixture(scope="session")
def finished(shared: Path, clone: Path) -> Path:
    """A clone in which ``tiny`` and ``own_offline_ft`` have run; not to be changed.

    ``run.txt`` is what Snakemake said, ``before.txt`` lists the files before it ran.
    """

    def make(folder: Path) -> None:
        shutil.copytree(clone, folder, symlinks=True)
        generate(folder / OWN, train=24, val=8, size=32, seed=1)
        (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
        (folder / "before.txt").write_text("")
        (folder / "run.txt").write_text("")
        (folder / "before.txt").write_text("\n".join(files(folder)))
        run = tiny(folder, "--cores", 2, "tiny", "own_offline_ft", dry=False)
        (folder / "run.txt").write_text(run.output)
        assert run.status == 0, run.output

    return made_once(shared / "a 'finished' run & more", make)


@pytest.fixture
def changed(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run in which a test may change files."""
    return Path(shutil.copytree(finished, tmp_path / "a copy", symlinks=True))


def tiny(folder: Path, *arguments: object, dry: bool = True) -> Run:
    options = ["-n"] if dry else []
    return snakemake(folder, *options, *arguments, "--configfile", "tiny.yaml")


def files(folder: Path) -> list[str]:
    """All files under ``folder``, but for what Python and Snakemake keep for themselves."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and not {"__pycache__", ".snakemake", ".cache"} & set(path.parts)
    )


#: Snakemake that says when it sets a timer for its scheduler
TELLS_TIMERS = (
    "import sys; from snakemake.scheduling.job_scheduler import JobScheduler; "
    "JobScheduler._schedule_reevalutation = lambda *_: print('timer set'); "
    "from snakemake.cli import main; sys.argv[0] = 'snakemake'; main(sys.argv[1:])"
)


def test_the_scheduler_looks_again_when_a_job_ends_and_not_by_timers(
    clone: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(clone, tmp_path / "clone", symlinks=True)
    (folder / "tiny.yaml").write_text(yaml.safe_dump({**TINY, "results": "results"}))
    given = ["--cores", "1", "--configfile", "tiny.yaml", "--", "results/shapes/10/split.csv"]
    run = run_python("-c", TELLS_TIMERS, *given, cwd=folder)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "3 of 3 steps (100%) done" in run.stdout + run.stderr
    assert "timer set" not in run.stdout + run.stderr
    assert "Report: " not in run.stdout + run.stderr, "of a file there is none"
    run = run_python(
        "-c", TELLS_TIMERS, "-R", "split", "--max-jobs-per-timespan", "7/1s", *given, cwd=folder
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "timer set" in run.stdout + run.stderr


#: Snakemake in a Python that says what it looks through for garbage
TELLS_COLLECTIONS = (
    "import gc, sys; gc.set_debug(gc.DEBUG_STATS); "
    "from snakemake.cli import main; sys.argv[0] = 'snakemake'; main(sys.argv[1:])"
)


def test_a_plan_is_not_looked_through_for_garbage(clone: Path) -> None:
    run = run_python("-c", TELLS_COLLECTIONS, "--dry-run", "--", "paper", cwd=clone)
    assert run.returncode == 0, run.stdout + run.stderr
    found = re.findall(
        r"objects in each generation: (\d+) (\d+) (\d+)\n.*permanent generation: (\d+)", run.stderr
    )
    collections = [(sum(map(int, numbers)), int(kept)) for *numbers, kept in found]
    at_the_end = [looked_at for looked_at, kept in collections if kept > 200_000]
    assert len(at_the_end) >= 2
    assert max(at_the_end) < 20_000
    assert max(looked_at for looked_at, _ in collections) < 150_000, "the plan is no part of these"


# --- The finished run ----------------------------------------------------------------------

#: what the fixture has run; `tiny` has three steps
EVERYTHING = {
    "generate_shapes": 1,
    "index": 2,
    "split": 3,
    "train_base": 2,
    "train_base_importances": 1,
    "attribute": 2,
    "transfer": 8,
    "train_step": 6,
    "train_step_importances": 2,
    "evaluate": 11,
    "table": 2,
    "figures": 1,
    "class_figure": 5,
    "prediction_figure": 5,
    "attribution_figures": 1,
    "pages": 2,
    "tiny": 1,
    "own_offline_ft": 1,
}


def test_the_run_does_each_thing_once(finished: Path) -> None:
    run = Run(0, (finished / "run.txt").read_text())
    assert run.jobs == EVERYTHING
    assert "Traceback" not in run.output
    said = [line for line in run.output.splitlines() if line.startswith("Report: ")]
    reports = ("tiny", "own_offline_ft")
    assert said == [
        f"Report: {RESULTS}/reports/{name}/table.md, tables.html, figures/" for name in reports
    ]


def test_a_second_run_does_nothing(finished: Path) -> None:
    def times() -> dict[str, int]:
        # The fingerprints' cache may learn more with time.
        kept = [path for path in files(finished) if not path.endswith("fingerprint.json")]
        return {path: (finished / path).stat().st_mtime_ns for path in kept}

    before = times()
    run = tiny(finished, "--cores", 1, "tiny", "own_offline_ft", dry=False)
    assert (run.status, run.jobs) == (0, {})
    assert times() == before


def test_every_job_leaves_a_log_and_a_benchmark(finished: Path) -> None:
    output = (finished / "run.txt").read_text()
    work = sum(EVERYTHING.values()) - 2  # the targets
    for kind in ("log", "benchmark"):
        listed = re.findall(rf"^ +{kind}: (.+?)(?: \(.*)?$", output, re.MULTILINE)
        assert len(set(listed)) == work, kind
        for path in listed:
            assert (finished / path).is_file(), path
            assert path.startswith(f"{RESULTS}/")
    log = finished / RESULTS / "shapes/10-5/mib/seed1/step1/logs/train.log"
    assert "epoch 2/2" in log.read_text()


def test_all_is_written_in_the_results_folder_and_nothing_is_left_over(finished: Path) -> None:
    before = (finished / "before.txt").read_text().splitlines()
    new = [path for path in files(finished) if path not in before]
    assert [path for path in new if not path.startswith(f"{RESULTS}/")] == []
    assert [path for path in new if re.search(r"partial|progress|/\.|\.tmp", path)] == []


def test_histories_have_a_row_an_epoch(finished: Path) -> None:
    found = list((finished / RESULTS).rglob("history.csv"))
    assert len(found) == 11
    for path in found:
        history = pd.read_csv(path)
        step = int(path.parent.name.removeprefix("step"))
        epochs = TINY["recipe"]["later" if step else "base"]["epochs"]
        assert history["epoch"].tolist() == list(range(1, epochs + 1)), path
        terms = [name for name in history.columns if name not in HISTORY]
        assert [name for name in history.columns if name in HISTORY] == HISTORY
        method = path.parts[-4]
        expected = {"ewc": ["loss_penalty"], "mib": ["loss_distillation"]}
        assert terms == (expected.get(method.partition("_")[0], []) if step else []), path


def test_models_name_their_classes_recipe_and_source(finished: Path) -> None:
    folder = finished / RESULTS / "shapes" / "10-5" / "mib_awt" / "seed1"
    for step, n_classes in ((1, 16), (2, 21)):
        network, metadata = load_model(folder / f"step{step}" / "model.safetensors")
        assert network.n_classes == len(metadata["classes"]) == n_classes
        assert metadata["classes"][:2] == ["background", "red-disc"]
        assert metadata["recipe"]["lr"] == 0.02
        assert metadata["recipe"]["epochs"] == 2
        assert (metadata["method"], metadata["seed"], metadata["step"]) == ("mib", 1, step)
        assert metadata["source"]
        confusion = read_confusion(folder / f"step{step}" / "confusion.csv")
        assert list(confusion.class_names) == metadata["classes"]
        assert confusion.metadata["model"] == metadata


def test_the_report_has_its_tables_and_figures(finished: Path) -> None:
    report = finished / RESULTS / "reports" / "tiny"
    table = (report / "table.md").read_text()
    assert all(name in table for name in ("FT", "MiB", "AWT", "EWC"))
    figures = {path.name for path in (report / "figures" / "shapes_10-5").glob("*.pdf")}
    expected = {f"{name}.pdf" for name in paths.SCENARIO_FIGURES}
    for figure in ("classes", "predictions"):
        expected |= {f"{figure}_{run}.pdf" for run in RUNS}
    expected |= {"channel_scores_mib_awt.pdf", "attribution_mib_awt.pdf"}
    assert figures == expected


# --- A report of what is there -------------------------------------------------------------


def half_finished(folder: Path) -> None:
    """Take away what the later seeds of a job that still runs would not have made yet."""
    run = folder / RESULTS / "shapes/10-5"
    for path in ("mib_awt/seed1", "ewc/seed1/step2", "ewc/seed1/step1", "mib/seed1/step2"):
        shutil.rmtree(run / path)


def test_a_partial_report_takes_what_is_there_and_trains_nothing(changed: Path) -> None:
    report = changed / RESULTS / "reports"
    before = {path: path.read_bytes() for path in (report / "tiny").rglob("*") if path.is_file()}
    half_finished(changed)
    run = tiny(changed, "tiny_partial", "paper_partial", "--cores", 1, dry=False)
    assert run.status == 0, run.output
    jobs = {"table": 1, "figures": 1, "class_figure": 2, "pages": 1}
    assert run.jobs == {**jobs, "tiny_partial": 1, "paper_partial": 1}
    table = (report / "tiny_partial" / "table.md").read_text()
    assert "Partial: 7 of 12 evaluations are there." in table
    assert "| EWC | – | – | – | – | – |" in table
    assert re.search(r"^\| FT \| \d+\.\d\d \| ", table, re.MULTILINE)
    assert "- `shapes_10-5_mib`: seed 1: step 2\n" in table
    assert "- `shapes_10-5_mib_awt`: seed 1: steps 1, 2\n" in table
    assert "shapes_10-5_ft`" not in table
    text = (report / "tiny_partial" / "table.txt").read_text()
    assert "missing: shapes_10-5_ewc: seed 1: steps 1, 2\n" in text
    figures = {path.stem for path in (report / "tiny_partial/figures/shapes_10-5").glob("*.pdf")}
    assert figures == {*paths.SCENARIO_FIGURES, "classes_ft", "classes_mib"}
    # The finished report keeps what it had.
    assert before == {path: path.read_bytes() for path in before}

    assert tiny(changed, "tiny_partial").jobs == {}
    (changed / RESULTS / "shapes/10-5/mib/seed1/step1/confusion.csv").unlink()
    assert tiny(changed, "tiny_partial").jobs["table"] == 1


def test_a_partial_report_of_nothing_and_of_one_experiment(changed: Path) -> None:
    shutil.rmtree(changed / RESULTS / "shapes")
    run = tiny(changed, "shapes_10-5_mib_partial", "--cores", 1, dry=False)
    assert run.status == 0, run.output
    assert run.jobs == {"table": 1, "pages": 1, "shapes_10-5_mib_partial": 1}
    table = (changed / RESULTS / "reports/shapes_10-5_mib_partial/table.md").read_text()
    assert "| MiB | – | – | – | – | – |" in table
    assert "- `shapes_10-5_mib`: seed 1: steps 0-2\n" in table
    # Another spelling of its name has the same report.
    assert tiny(changed, "shapes_10-5_mib_mib_partial").jobs == {}


def test_a_partial_report_beside_a_snakemake_that_works_leaves_its_lock(changed: Path) -> None:
    half_finished(changed)
    locks = changed / ".snakemake" / "locks"
    locks.mkdir(exist_ok=True)
    (locks / "0.output.lock").write_text(f"{RESULTS}/shapes/10-5/mib/seed1/step2/model.safetensors")
    refused = tiny(changed, "tiny_partial", "--cores", 1, dry=False)
    assert refused.status != 0
    assert "Error: another Snakemake works in this folder" in refused.output
    assert "snakemake --nolock tiny_partial" in refused.output
    done = tiny(changed, "--nolock", "tiny_partial", "--cores", 1, dry=False)
    assert done.status == 0, done.output
    assert (locks / "0.output.lock").is_file()


def test_published_numbers_stand_beside_a_run_that_was_trained_as_published(
    clone: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(clone, tmp_path / "clone", symlinks=True)
    config = configuration.read_config(folder / "config.yaml")
    experiment = experiments.parse_experiment(config, "voc_15-1_mib")
    names = configuration.dataset(config, "voc").classes
    for step, n in enumerate((16, 17, 18, 19, 20, 21)):
        # Each class has a third of its pixels called as the next one: IoU 50.
        matrix = 2 * torch.eye(n).long() + torch.eye(n).long().roll(1, 1)
        path = folder / "results" / paths.artifact(paths.CONFUSION, experiment, 1, step)
        write_confusion(path, matrix, names[:n], {"images": 1})
        path.with_name("history.csv").write_text("epoch,iou_new\n1,5.0\n")
    preset = ("--config", "preset=mib")
    run = snakemake(folder, "--cores", 1, "voc_15-1_mib_partial", *preset)
    assert run.status == 0, run.output
    report = folder / "results/reports/voc_15-1_mib_partial"
    table = (report / "table.md").read_text()
    assert "| MiB | 50.00 | 34.22 | +15.78 | 50.00 | 13.5 | +36.50 | 50.00 | 29.29 |" in table
    assert "| MiB, no background | 50.00 | 35.1 | +14.90 |" in table
    assert "Partial" not in table
    missed = "Step 0 of voc/15/ce has 50.00, not 80.4 ± 0.8"
    for path in (report / "table.tex", report / "logs/table.log"):
        assert missed.replace("±", r"$\pm$" if path.suffix == ".tex" else "±") in path.read_text()
    assert "| voc/15/ce seed 1 | 50.00 | 80.4 ± 0.8 |" in (report / "distance.md").read_text()
    assert "Distance to the papers" in (report / "tables.html").read_text()
    shown = run_python(folder / "workflow_scripts/show_report.py", report, cwd=folder)
    assert f"distance to the papers: {report / 'distance.md'}" in shown.stdout

    # A run of another recipe is not compared, and its report says why.
    change = (*preset, "recipe={batch: 12}")
    run = snakemake(folder, "--cores", 1, "voc_15-1_mib_partial", *change)
    assert run.jobs["table"] == 1
    assert "published" not in (report / "table.md").read_text()
    distance = (report / "distance.md").read_text()
    assert "- `voc_15-1_mib`: recipe.batch is 12 (published: 24)" in distance


# --- What a change reruns ------------------------------------------------------------------

#: from the confusion matrices on
REPORT = {"table": 1, "figures": 1, "class_figure": 4, "pages": 1, "tiny": 1}
#: figures that look at the models of all runs and of the one with AWT
ALL_MODELS = {"prediction_figure": 4, "attribution_figures": 1}
AWT_MODELS = {"prediction_figure": 1, "attribution_figures": 1}
#: all that depends on step 0
FROM_STEP_0 = {
    "attribute": 2,
    "transfer": 8,
    "train_step": 6,
    "train_step_importances": 2,
    "evaluate": 10,
    **REPORT,
    **ALL_MODELS,
}
TRAINED_ANEW = {"train_base": 1, "train_base_importances": 1, **FROM_STEP_0}
#: the first attribution stays: its model is step 0's
FROM_STEP_1 = {**FROM_STEP_0, "attribute": 1, "transfer": 4, "evaluate": 8}
FROM_TRANSFER_OF_AWT = {"attribute": 1, "transfer": 2, "train_step": 2, "evaluate": 2}
FROM_TRANSFER_OF_AWT |= {**REPORT, **AWT_MODELS}
FROM_MIB = {"attribute": 1, "transfer": 2, "train_step": 4, "evaluate": 4, **REPORT}
FROM_MIB |= {"prediction_figure": 2, "attribution_figures": 1}

SETTINGS: dict[str, tuple[str, dict[str, int]]] = {
    "nothing": ("seeds=[1]", {}),
    "results as they are": (f"results=./{RESULTS}/", {}),
    "awt fraction": ("initialisations={awt: {fraction: 0.5}}", FROM_TRANSFER_OF_AWT),
    "awt pooling": ("initialisations={awt: {pooling: avg_after_mean}}", FROM_TRANSFER_OF_AWT),
    "awt of another scenario": (
        "datasets={shapes: {scenarios: {15-5: {initialisations: {awt: {fraction: 0.5}}}}}}",
        {},
    ),
    "mib distillation": ("methods={mib: {distillation: 20}}", FROM_MIB),
    "mib distillation as it is": ("methods={mib: {distillation: 10}}", {}),
    "ewc importance": (
        "methods={ewc: {importance: 5}}",
        {"transfer": 1, "train_step_importances": 2, "evaluate": 2, **REPORT}
        | {"prediction_figure": 1},
    ),
    "base lr": ("recipe={base: {lr: 0.1}}", TRAINED_ANEW),
    "base epochs": ("recipe={base: {epochs: 2}}", TRAINED_ANEW),
    "later lr": ("recipe={later: {lr: 0.1}}", FROM_STEP_1),
    "later epochs": ("recipe={later: {epochs: 1}}", FROM_STEP_1),
    "later lr of the scenario": (
        "datasets={shapes: {scenarios: {10-5: {recipe: {later: {lr: 0.1}}}}}}",
        FROM_STEP_1,
    ),
    "lr of another data set": ("datasets={own: {recipe: {base: {lr: 0.1}}}}", {}),
    "seed": ("seeds=[2]", TRAINED_ANEW),
    "one more seed": (
        "seeds=[1, 2]",
        {rule: count for rule, count in TRAINED_ANEW.items() if rule not in ALL_MODELS},
    ),
    "crop": ("recipe={crop: 48}", TRAINED_ANEW),
    "width": ("model={width: 5}", TRAINED_ANEW),
    "evaluation mode": (
        "evaluation={mode: full}",
        {"evaluate": 10, **REPORT, "prediction_figure": 4},
    ),
    "evaluation batch": ("evaluation={batch: 2}", {}),
    "evaluated list, of which there is one": ("evaluation={images: val}", {}),
    "a subset is meant": ("datasets={shapes: {subset: true}}", {}),
    "attribution method": (
        "attribution={method: captum}",
        {"attribute": 2, "transfer": 2, "train_step": 2, "evaluate": 2, **REPORT, **AWT_MODELS},
    ),
    "captum's steps, which are not taken": ("attribution={steps: 5}", {}),
    "figures": (
        "figures={dpi: 100}",
        {"figures": 1, "class_figure": 4, "pages": 1, "tiny": 1} | ALL_MODELS,
    ),
    "workers": ("runtime={workers: 3}", {}),
    "cache": ("runtime={cache: /nowhere}", {}),
    "device": ("runtime={device: auto}", {}),
    "threads": ("runtime={threads: 2}", {}),
    "gpus": ("runtime={gpus: 1}", {}),
    "mirror": ("prepare={mirror: /nowhere}", {}),
    "several gpus": ("runtime={gpus: 2}", {}),
    "processes": ("runtime={processes: 2}", {}),
    "accumulate": ("recipe={accumulate: 2}", TRAINED_ANEW),
    "accumulate nothing": ("recipe={accumulate: 1}", {}),
    "one more run": (
        "matrices={tiny: {runs: [ft, mib, mib_awt, ewc, lwf]}}",
        {"transfer": 2, "train_step": 2, "evaluate": 2, **REPORT, "class_figure": 5}
        | {"prediction_figure": 1},
    ),
    "one run less": ("matrices={tiny: {runs: [ft, mib, mib_awt]}}", {**REPORT, "class_figure": 3}),
    "images generated anew": (
        "datasets={shapes: {generate: {seed: 1}}}",
        {"generate_shapes": 1, "index": 1, "split": 2, **TRAINED_ANEW},
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_reruns_what_it_changes(name: str, finished: Path) -> None:
    change, expected = SETTINGS[name]
    run = tiny(finished, "tiny", "--cores", 2, "--config", change)
    assert run.status == 0, run.output
    assert run.jobs == expected


def as_if_run(folder: Path, patterns: tuple[str, ...], *names: str) -> list[str]:
    """Give experiments empty files that count as made; returns those that say all."""
    config = configuration.read_config(folder / "config.yaml", folder / "tiny.yaml")
    targets = []
    for name in names:
        experiment = experiments.parse_experiment(config, name)
        for step in range(experiment.scenario.n_steps):
            for pattern in patterns:
                path = folder / RESULTS / paths.artifact(pattern, experiment, 1, step)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
            path = paths.artifact(paths.CONFUSION, experiment, 1, step)
            targets.append(f"{RESULTS}/{path}")
    for path in [*folder.glob(f"{RESULTS}/**/step*/*"), *(folder / target for target in targets)]:
        path.touch()
    return targets


def test_what_a_change_reruns_of_steps_that_are_solved(changed: Path) -> None:
    made = (paths.MODEL, paths.RIDGE)
    targets = as_if_run(changed, made, "shapes_10-5_cfs", "shapes_15-5_cfs")
    for base in ("10", "15"):
        model = changed / RESULTS / f"shapes/{base}/bce/seed1/step0/model.safetensors"
        model.parent.mkdir(parents=True)
        for path in (model, model.with_name("history.csv")):
            path.touch()
    split = [f"{RESULTS}/shapes/{track}/split.csv" for track in ("15", "15-5")]
    assert tiny(changed, "--cores", 1, *split, dry=False).status == 0
    done = tiny(changed, "--touch", "--forceall", "--cores", 1, *targets, dry=False)
    assert done.status == 0, done.output
    assert tiny(changed, *targets).jobs == {}
    later = {"solve_step": 3, "evaluate": 3}
    solved = {"solve_base": 2, "solve_step": 3, "evaluate": 5}
    scenario = "datasets={shapes: {scenarios: {10-5: {methods: {cfs: {uncertainty: 0.2}}}}}}"
    for change, expected in {
        "methods={cfs: {uncertainty: 0.2}}": later,
        scenario: {"solve_step": 2, "evaluate": 2},
        "methods={cfs: {features: 512}}": solved,
        "recipe={later: {lr: 0.1}, momentum: 0.5}": {"train_base": 2, **solved},
        "recipe={later: {lr: 0.1}}": {},
    }.items():
        assert tiny(changed, *targets, "--config", change).jobs == expected, change


def test_what_a_memory_reruns(changed: Path) -> None:
    """The choice and later steps; methods share the choice, and step 0 is that without a memory."""
    memory = "methods={mib-m: {method: mib, memory: 6}, ft-m: {method: ft, memory: 6}}"
    names = ("mib-m", "mib-m_awt", "ft-m")
    config = configuration.read_config(changed / "config.yaml", changed / "tiny.yaml")
    config["methods"] |= {f"{m}-m": {"method": m, "memory": 6} for m in ("mib", "ft")}
    targets = [
        f"{RESULTS}/{paths.artifact(paths.CONFUSION, experiment, 1, 2)}"
        for name in names
        for experiment in [experiments.parse_experiment(config, f"shapes_10-5_{name}")]
    ]
    new = {"exemplars": 1, "transfer": 6, "train_step": 6, "evaluate": 3, "attribute": 1}
    assert tiny(changed, *targets, "--config", memory).jobs == new
    other = memory.replace("mib, memory: 6", "mib, memory: 7")
    assert tiny(changed, *targets, "--config", other).jobs == {**new, "exemplars": 2}

    one = targets[:1]
    run = tiny(changed, "--cores", 1, *one, "--config", memory, dry=False)
    assert run.status == 0, run.output
    assert run.jobs == {"exemplars": 1, "transfer": 2, "train_step": 2, "evaluate": 1}
    folder = changed / RESULTS / "shapes/10-5"
    chosen = read_table(folder / "exemplars_6_seed1.csv")
    assert chosen.groupby("step").size().tolist() == [6, 6]
    log = (folder / "mib-m/seed1/step2/logs/train.log").read_text()
    assert "half of each batch from 6 images of earlier steps" in log
    assert tiny(changed, *one, "--config", memory).jobs == {}
    again = {"exemplars": 1, "transfer": 1, "train_step": 2, "evaluate": 1}
    assert tiny(changed, *one, "--config", other).jobs == again
    # Labels that the teacher completes are of the training alone.
    surer = memory.replace("mib, memory: 6", "mib, memory: 6, memory_confidence: 0.9")
    trained = {"transfer": 1, "train_step": 2, "evaluate": 1}
    assert tiny(changed, *one, "--config", surer).jobs == trained


# --- Initialisations that are learned, and fusion ------------------------------------------

LEARNED = f"{RESULTS}/shapes/10-5/ft_nest/seed1/step1/init.safetensors"
FUSED = f"{RESULTS}/shapes/10-5/mib-ewf/seed1/step2/model.safetensors"


@pytest.fixture(scope="session")
def fused(finished: Path, shared: Path) -> Path:
    """The finished run, to which a fused run and pre-tuned classifiers were added."""

    def make(folder: Path) -> None:
        shutil.copytree(finished, folder, symlinks=True)
        run = tiny(folder, "--cores", 1, LEARNED, FUSED, dry=False)
        (folder / "run.txt").write_text(run.output)
        assert run.status == 0, run.output

    return made_once(shared / "fused run", make)


def test_a_finished_run_is_fused_without_training_its_first_step_again(fused: Path) -> None:
    jobs = {"pretune": 1, "transfer": 2, "fuse": 2, "train_endpoint": 1}
    assert Run(0, (fused / "run.txt").read_text()).jobs == jobs
    run = fused / RESULTS / "shapes/10-5"
    before, after, fusion = (
        load_model(path)[0].state_dict()
        for path in (
            fused / RESULTS / "shapes/10/ce/seed1/step0/model.safetensors",
            run / "mib/seed1/step1/model.safetensors",
            run / "mib-ewf/seed1/step1/model.safetensors",
        )
    )
    share = (5 / (5 + 11)) ** 0.5
    for name, value in before.items():
        if value.is_floating_point():
            expected = (1 - share) * value + share * after[name]
            torch.testing.assert_close(fusion[name], expected, msg=name)
    assert torch.equal(fusion["cls.1.weight"], after["cls.1.weight"])
    # Step 2 began with the fused model.
    init = load_model(run / "mib-ewf/seed1/step2/init.safetensors")[0].state_dict()
    name = "body.mod1.conv1.weight"
    assert torch.equal(init[name], fusion[name])
    assert not torch.equal(init[name], after[name])


def test_pretuned_classifiers_lie_beside_the_model_and_are_what_a_step_begins_with(
    fused: Path,
) -> None:
    step_0 = fused / RESULTS / "shapes/10/ce/seed1/step0"
    made = load_classifiers(step_0 / "pretuned_10-5_nest.safetensors")
    init = load_model(fused / LEARNED)[0].state_dict()
    assert torch.equal(init["cls.1.weight"][:, :, 0, 0], made.weight)
    assert torch.equal(init["cls.0.weight"][0, :, 0, 0], made.background_weight)
    assert "epoch 5/5" in (step_0 / "logs/pretune_10-5_nest.log").read_text()
    assert not list(step_0.glob("*progress*"))


FUSED_ANEW = {"transfer": 1, "train_endpoint": 1, "fuse": 2}
FUSION_SETTINGS: dict[str, tuple[list[str], dict[str, int]]] = {
    "nothing": (["initialisations={nest: {epochs: 5}}"], {}),
    "both trainings of mib": (
        ["methods={mib: {distillation: 20}}"],
        {"train_step": 1, **FUSED_ANEW},
    ),
    # Pre-tuning has a schedule of its own.
    "later epochs": (["recipe={later: {epochs: 1}}"], {"train_step": 1, **FUSED_ANEW}),
    # The fused run has a first step of its own then.
    "epochs of nest, distillation of mib-ewf alone": (
        ["initialisations={nest: {epochs: 6}}", "methods={mib-ewf: {distillation: 20}}"],
        {"pretune": 1, "transfer": 3, "train_endpoint": 2, "fuse": 2},
    ),
}


@pytest.mark.parametrize("name", FUSION_SETTINGS)
def test_a_setting_reruns_what_it_changes_of_fused_and_learned_runs(name: str, fused: Path) -> None:
    change, expected = FUSION_SETTINGS[name]
    run = tiny(fused, LEARNED, FUSED, "--cores", 1, "--config", *change)
    assert run.status == 0, run.output
    assert run.jobs == expected


def test_the_plan_says_what_it_costs_and_runs_nothing(finished: Path) -> None:
    def plan(*arguments: object) -> str:
        run = snakemake(finished, "plan", *arguments, "--configfile", "tiny.yaml")
        assert run.status == 0, run.output
        return run.output

    # The fingerprints' cache may learn more with time.
    kept = [path for path in files(finished) if not path.endswith("fingerprint.json")]
    before = {path: (finished / path).stat().st_mtime_ns for path in kept}
    assert "Nothing is to be done." in plan("tiny")
    text = plan("tiny", "--config", SETTINGS["later lr"][0])
    assert "4 runs of 4 experiments need 12 trainings; 2 are shared, 2 are done, 8 to do." in text
    assert "shapes/10/ce/seed1/step0 serves 3 runs" in text
    for rule, ahead, there in (("train_step", 6, 0), ("evaluate", 8, 2), ("attribute", 1, 1)):
        assert re.search(rf"^{rule} +{ahead} +{there} .*same method", text, re.MULTILINE), rule
    assert re.search(r"GPU hours: \d+\.\d on the device", text)
    assert {path: (finished / path).stat().st_mtime_ns for path in before} == before


def test_the_paper_is_planned_without_images_and_records(clone: Path) -> None:
    run = snakemake(clone, "plan")
    assert run.status == 0, run.output
    total, alone = paper_shared(), paper().total()
    assert f"need {alone} trainings; {alone - total} are shared, 0 are done, {total} to do" in (
        run.output
    )
    assert "cannot be told yet" in run.output
    assert not (clone / "results").exists()


def test_another_spelling_of_a_number_trains_nothing(changed: Path) -> None:
    spelled = [f"recipe={{power: {power}, base: {{lr: {power}}}}}" for power in ("1", "1.0")]
    model = f"{RESULTS}/own/3/ce/seed1/step0/model.safetensors"
    assert tiny(changed, model, "--config", spelled[0]).jobs == {"train_base": 1}
    touched = tiny(changed, model, "--touch", "--config", spelled[0], dry=False)
    assert touched.status == 0, touched.output
    assert tiny(changed, model, "--config", spelled[1]).jobs == {}


def test_weights_that_moved_after_step_0_stop_nothing(changed: Path) -> None:
    weights = changed / "mine.pth"
    weights.touch()
    mine = ("--cores", 1, "--config", "datasets={own: {model: {weights: mine.pth}}}")
    touched = tiny(changed, "own_offline_ft", "--touch", *mine, dry=False)
    assert touched.status == 0, touched.output
    weights.unlink()
    later = tiny(changed, "own_offline_ft", *mine, dry=False)
    assert (later.status, later.jobs) == (0, {}), later.output
    # Where it is needed yet, it is asked for.
    (changed / RESULTS / "own/3/ce/seed1/step0/model.safetensors").unlink()
    (changed / RESULTS / "own/3/ce/seed1/step0/confusion.csv").unlink()
    needed = tiny(changed, "own_offline_ft", *mine, dry=False)
    assert "is 'mine.pth': there is no such file" in needed.output


def test_settings_of_a_second_file_lie_over_those_of_the_first(
    finished: Path, tmp_path: Path
) -> None:
    (tmp_path / "above.yaml").write_text("figures: {dpi: 100}\n")
    run = snakemake(finished, "-n", "tiny", "--configfile", "tiny.yaml", tmp_path / "above.yaml")
    assert run.jobs == SETTINGS["figures"][1]


OWN_ANEW = {"index": 1, "split": 1, "train_base": 1, "evaluate": 1, "table": 1}
OWN_ANEW |= {"class_figure": 1, "prediction_figure": 1, "pages": 1, "own_offline_ft": 1}


def exchange_mask(folder: Path) -> None:
    """Put another image's mask in place of one: other pixels, and mostly other classes."""
    masks = sorted((folder / "SegmentationClassAug").iterdir())
    shutil.copyfile(masks[1], masks[0])


def touch_all(folder: Path) -> None:
    for path in folder.rglob("*.*"):
        path.touch()


def shorten_list(folder: Path) -> None:
    path = folder / "splits" / "train_aug.txt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def exchange_image(folder: Path) -> None:
    images = sorted((folder / "JPEGImages").iterdir())
    shutil.copyfile(images[1], images[0])


DATA: dict[str, tuple[Callable[[Path], None], bool]] = {
    "mask exchanged": (exchange_mask, True),
    "image exchanged": (exchange_image, True),
    "list shortened": (shorten_list, True),
    "touched": (touch_all, False),
}


@pytest.mark.parametrize("name", DATA)
def test_own_files_that_change_are_noticed(name: str, changed: Path) -> None:
    change, matters = DATA[name]
    change(changed / OWN)
    assert tiny(changed, "own_offline_ft").jobs == (OWN_ANEW if matters else {})


@pytest.mark.parametrize("name", ["mask exchanged", "touched"])
def test_generated_files_that_change_are_noticed(name: str, changed: Path) -> None:
    change, matters = DATA[name]
    change(changed / RESULTS / "data" / "shapes")
    expected = {"index": 1, "split": 2, **TRAINED_ANEW} if matters else {}
    assert tiny(changed, "tiny").jobs == expected


def redraw_borders(folder: Path) -> None:
    """Make the void borders of all masks background: each shows the classes that it did."""
    for path in (folder / "SegmentationClassAug").iterdir():
        with Image.open(path) as mask:
            pixels, palette = np.array(mask), mask.getpalette()
        redrawn = Image.fromarray(np.where(pixels == 255, 0, pixels).astype(np.uint8))
        redrawn.putpalette(palette)
        redrawn.save(path)


#: rules that look at images or masks after the index, and something that each makes
LOOKING = (
    {
        "train_step": "shapes/10-5/ft/seed1/step1/model.safetensors",
        "train_step_importances": "shapes/10-5/ewc/seed1/step1/model.safetensors",
        "attribute": "shapes/10/ce/seed1/step0/attribution_10-5.safetensors",
        "evaluate": "shapes/10/ce/seed1/step0/confusion.csv",
    },
    {
        "prediction_figure": "reports/tiny/figures/shapes_10-5/predictions_ft.pdf",
        "attribution_figures": "reports/tiny/figures/shapes_10-5/attribution_mib_awt.pdf",
    },
)


def test_changed_masks_are_noticed_by_targets_that_are_made_after_the_index(changed: Path) -> None:
    redraw_borders(changed / RESULTS / "data" / "shapes")
    splits = [f"{RESULTS}/shapes/{track}/split.csv" for track in ("10", "10-5")]
    before = [(changed / path).read_bytes() for path in splits]
    first = tiny(changed, "--cores", 1, *splits, dry=False)
    assert (first.status, first.jobs) == (0, {"index": 1, "split": 2}), first.output
    assert [(changed / path).read_bytes() for path in splits] == before
    assert tiny(changed, "tiny").jobs == TRAINED_ANEW
    # Each for itself, and not because it follows from another: that one may have run by then.
    for looking in LOOKING:
        targets = [f"{RESULTS}/{path}" for path in looking.values()]
        run = tiny(changed, *targets, "--allowed-rules", *looking)
        assert run.jobs == dict.fromkeys(looking, 1)


def test_a_data_set_that_moved_reruns_nothing(changed: Path, tmp_path: Path) -> None:
    (changed / OWN).rename(tmp_path / "elsewhere")
    root = f"datasets={{own: {{root: {tmp_path / 'elsewhere'}}}}}"
    assert tiny(changed, "own_offline_ft", "--config", root).jobs == {}


def test_a_project_that_moved_reruns_nothing(changed: Path) -> None:
    assert tiny(changed, "tiny", "own_offline_ft").jobs == {}


def test_a_data_set_that_was_taken_away_does_not_undo_results(changed: Path) -> None:
    shutil.rmtree(changed / OWN)
    run = tiny(changed, "own_offline_ft", "--cores", 1, dry=False)
    assert (run.status, run.jobs) == (0, {})


def test_a_finished_run_does_without_what_lies_between(changed: Path) -> None:
    run = changed / RESULTS / "shapes/10-5/mib_awt/seed1"
    for path in ("step1/init.safetensors", "step1/attribution_10-5.safetensors"):
        (run / path).unlink()
    for step in ("step1", "step2"):
        (run / step / "model.safetensors").unlink()
        (run / step / "confusion.csv").unlink()
    assert tiny(changed, "tiny").jobs == {}


@pytest.mark.parametrize(
    ("deleted", "expected"),
    [
        (["confusion.csv"], {"evaluate": 1}),
        (["confusion.csv", "model.safetensors"], {"train_step": 1, "evaluate": 1}),
    ],
    ids=["confusion", "model too"],
)
def test_what_is_deleted_is_made_again_when_asked_for(
    deleted: list[str], expected: dict[str, int], changed: Path
) -> None:
    step = f"{RESULTS}/shapes/10-5/mib_awt/seed1/step2"
    for name in deleted:
        (changed / step / name).unlink()
    assert tiny(changed, f"{step}/confusion.csv").jobs == expected


def test_a_job_that_fails_says_why_and_the_others_go_on(changed: Path) -> None:
    model = changed / RESULTS / "shapes" / "10-5" / "mib" / "seed1" / "step2" / "model.safetensors"
    content = bytearray(model.read_bytes())
    content[-1] ^= 1
    model.write_bytes(content)
    for run in ("mib", "ft"):
        (changed / RESULTS / f"shapes/10-5/{run}/seed1/step2/confusion.csv").unlink()
    done = tiny(changed, "tiny", "--cores", 2, dry=False)
    assert done.status == 1
    assert "error: " in done.output
    assert "is damaged: its checksum differs" in done.output
    assert "Traceback" not in done.output
    assert (changed / RESULTS / "shapes/10-5/ft/seed1/step2/confusion.csv").is_file()


# --- Results that were made elsewhere ------------------------------------------------------


def copied(source: Path, target: Path) -> None:
    """Copy files as ``cp -r`` does: with new times, in an order that means nothing."""
    for path in sorted(files(source), key=lambda path: path[::-1]):
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / path, target / path)


@pytest.fixture
def elsewhere(finished: Path, clone: Path, tmp_path: Path) -> Path:
    """Another checkout, to which the results were copied; not Snakemake's own notes of them."""
    folder = Path(shutil.copytree(clone, tmp_path / "another checkout", symlinks=True))
    shutil.copyfile(finished / "tiny.yaml", folder / "tiny.yaml")
    copied(finished / RESULTS, folder / RESULTS)
    return folder


def test_copied_results_are_used_and_what_is_stale_is_found(elsewhere: Path) -> None:
    first = tiny(elsewhere, "tiny")
    assert first.jobs == {}
    assert re.search(r"Comparing \d+ files \(\d+ MB\) with their records", first.output)
    assert "Warning" not in first.output
    again = tiny(elsewhere, "tiny")
    assert again.jobs == {}
    assert "Comparing" not in again.output
    for name in ("later lr", "awt fraction", "figures", "evaluation mode"):
        change, expected = SETTINGS[name]
        assert tiny(elsewhere, "tiny", "--config", change).jobs == expected, name


def test_copied_results_under_another_name(elsewhere: Path, tmp_path: Path) -> None:
    (elsewhere / RESULTS).rename(tmp_path / "store")
    store = f"results={tmp_path / 'store'}"
    assert tiny(elsewhere, "tiny", "--config", store).jobs == {}
    change, expected = SETTINGS["later lr"]
    assert tiny(elsewhere, "tiny", "--config", store, change).jobs == expected


def test_a_project_copied_as_a_whole_with_new_times(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "copy", symlinks=True, copy_function=shutil.copyfile)
    assert tiny(tmp_path / "copy", "tiny").jobs == {}


def test_a_file_that_was_damaged_on_the_way_is_named(elsewhere: Path) -> None:
    path = f"{RESULTS}/shapes/10-5/mib/seed1/step2/confusion.csv"
    (elsewhere / path).write_text((elsewhere / path).read_text() + "\n")
    run = tiny(elsewhere, "tiny")
    assert f"Warning: {path} is not the file that" in run.output
    assert run.jobs == REPORT
    (elsewhere / path).unlink()
    run = tiny(elsewhere, "tiny")
    assert "Warning" not in run.output
    assert run.jobs == {}, "what was made from the file that is gone is whole"
    assert tiny(elsewhere, path).jobs == {"evaluate": 1}


def test_two_checkouts_share_a_results_folder(
    changed: Path, elsewhere: Path, tmp_path: Path
) -> None:
    (changed / RESULTS).rename(tmp_path / "store")
    store = f"results={tmp_path / 'store'}"
    assert tiny(changed, "tiny", "--config", store).jobs == {}
    # The other draws the figures anew; this one sees that they are not its own any more.
    change, expected = SETTINGS["figures"]
    drawn = tiny(elsewhere, "tiny", "--cores", 1, "--config", store, change, dry=False)
    assert (drawn.status, drawn.jobs) == (0, expected), drawn.output
    assert tiny(elsewhere, "tiny", "--config", store, change).jobs == {}
    assert tiny(changed, "tiny", "--config", store, change).jobs == {}
    assert tiny(changed, "tiny", "--config", store).jobs == expected


# --- What experiments share ----------------------------------------------------------------


def trainings(jobs: dict[str, int]) -> int:
    return sum(count for rule, count in jobs.items() if rule.startswith("train_"))


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["voc_15-1_ft", "voc_15-1_mib", "voc_15-1_mib_awt"], {"train_base": 1, "train_step": 15}),
        (["voc_15-5_mib", "voc_15-1_mib"], {"train_base": 1, "train_step": 6}),
        (["voc_15-1_mib", "voc_15-1-disjoint_mib"], {"train_base": 2, "train_step": 10}),
        (
            ["voc_15-1_ewc", "voc_15-1_rw", "voc_15-1_pi", "voc_15-5_pi_awt"],
            {"train_base_importances": 1, "train_step_importances": 16},
        ),
        (
            ["voc_15-5_ft", "voc_15-5_ewc", "voc_15-5_lwf-mc"],
            {"train_base": 2, "train_base_importances": 1}
            | {"train_step": 2, "train_step_importances": 1},
        ),
        (["voc_offline_ft", "voc_offline_mib"], {"train_base": 1}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_step_0_is_shared(targets: list[str], expected: dict[str, int], clone: Path) -> None:
    run = snakemake(clone, "-n", *targets)
    assert run.status == 0, run.output
    found = {rule: count for rule, count in run.jobs.items() if rule.startswith("train_")}
    assert found == expected


def paper() -> Counter[str]:
    """Trainings of each experiment of ``snakemake paper``, alone."""
    config = configuration.read_config(REPOSITORY / "config.yaml")
    needed: Counter[str] = Counter()
    for matrix in config["paper"]:
        seeds = len(experiments.matrix_seeds(config, matrix))
        for experiment in experiments.matrix_experiments(config, matrix):
            needed[experiment.name] = experiment.scenario.n_steps * seeds
    return needed


def paper_shared() -> int:
    """Trainings of ``snakemake paper``: as many as there are different models."""
    config = configuration.read_config(REPOSITORY / "config.yaml")
    return len(
        {
            paths.artifact(paths.MODEL, experiment, seed, step)
            for matrix in config["paper"]
            for seed in experiments.matrix_seeds(config, matrix)
            for experiment in experiments.matrix_experiments(config, matrix)
            for step in range(experiment.scenario.n_steps)
        }
    )


def test_the_paper_trains_each_model_once(clone: Path) -> None:
    run = snakemake(clone, "-n", "paper")
    assert run.status == 0, run.output
    assert trainings(run.jobs) == paper_shared() < paper().total()
    profile = yaml.safe_load((clone / "profiles" / "slurm" / "config.yaml").read_text())
    submitted = sum(run.jobs.get(rule, 0) for rule in profile["set-resources"])
    text = " ".join((REPOSITORY / "docs" / "cluster.md").read_text().split())
    total = sum(run.jobs.values())
    assert f"Of the {total} jobs of `snakemake paper` {submitted} are submitted" in text


@pytest.mark.parametrize("name", ["voc_15-1_mib_awt", "ade_100-50_ft"])
def test_an_experiment_alone_trains_all_its_steps(name: str, clone: Path) -> None:
    assert trainings(snakemake(clone, "-n", name).jobs) == paper()[name]


def test_the_readme_counts_the_trainings_right() -> None:
    text = (REPOSITORY / "README.md").read_text()
    found = re.findall(r"\*\*(\d+) trainings instead of (\d+)\*\*", text)
    assert found == [(str(paper_shared()), str(paper().total()))]


# --- Names and messages --------------------------------------------------------------------


def test_list_shows_the_configured_experiments(clone: Path) -> None:
    run = snakemake(clone, "--list")
    assert run.status == 0, run.output
    for name in [*paper(), "paper", "paper_voc", "paper_ade"]:
        assert re.search(rf"^{name}\b", run.output, re.MULTILINE), name
    config = configuration.read_config(REPOSITORY / "config.yaml")
    count = len(list(experiments.matrix_experiments(config, "paper_voc")))
    assert f"paper_voc ({count} experiments, seeds 1)" in run.output


def test_a_path_that_a_submitted_command_would_not_keep_is_refused(clone: Path) -> None:
    run = snakemake(
        clone, "--profile", "slurm", "-n", "shapes_10-5_ft", "--config", "results=a $HOME"
    )
    assert run.status != 0
    assert "Error: results is 'a $HOME', but what Snakemake submits to a cluster" in run.output
    # Here two jobs at a time may run under any path.
    run = snakemake(clone, "-j", 2, "-n", "shapes_10-5_ft", "--config", "results=a $HOME")
    assert run.status == 0, run.output


@pytest.mark.parametrize("profile", [[], ["--profile", "slurm"]], ids=["local", "slurm"])
def test_a_dry_run_without_the_images_plans_and_warns(profile: list[str], clone: Path) -> None:
    run = snakemake(clone, *profile, "-n", "voc_15-1_mib_awt")
    assert run.status == 0, run.output
    assert run.jobs["train_step"] == 5
    warning = next(line for line in run.output.splitlines() if line.startswith("Warning: "))
    for words in ("data/PascalVOC12", "datasets.voc.root", "docs/data.md"):
        assert words in warning
    assert run.output.count(warning) == 1
    assert "Traceback" not in run.output


@pytest.mark.parametrize("profile", [[], ["--profile", "slurm"]], ids=["local", "slurm"])
def test_a_run_without_the_images_stops_before_any_work(
    profile: list[str], clone: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(clone, tmp_path / "clone", symlinks=True)
    run = snakemake(folder, *profile, *([] if profile else ["--cores", 1]), "voc_15-1_mib_awt")
    assert run.status != 0
    error = next(line for line in run.output.splitlines() if line.startswith("Error: "))
    for words in ("data/PascalVOC12", "datasets.voc.root", "docs/data.md"):
        assert words in error
    assert "Traceback" not in run.output
    assert "rule " not in run.output
    assert not (folder / "results").exists()


def test_a_job_starts_a_process_for_each_gpu_that_it_has(clone: Path) -> None:
    gpus = ("--config", "runtime={gpus: 2}")
    run = snakemake(clone, "--profile", "none", "-n", "-p", "voc_15-5_mib", *gpus)
    assert run.output.count("--processes 2 ") == 4  # two trainings, two evaluations
    # The profile of a cluster wins, also over the number that local jobs may use together.
    profile = ("--profile", "slurm", "-n", "-p", "voc_15-5_mib")
    given = ("--set-resources", "train_step:gpu=4", "--set-threads", "train_step=1000")
    run = snakemake(clone, *profile, *given)
    assert (run.output.count("--processes 4 "), run.output.count("--processes 1 ")) == (1, 3)
    # Nor do the cores of the machine on which Snakemake runs limit those of a job.
    assert "threads: 1000" in run.output
    run = snakemake(clone, *profile, *given, *gpus)
    (error,) = (line for line in run.output.splitlines() if line.startswith("Error: "))
    assert "runtime.gpus is 2" in error
    assert "gpu=4" in error


def test_two_jobs_do_not_start_on_one_gpu(clone: Path) -> None:
    wanted = ("-n", "voc_15-5_mib", "--resources", "gpu=2", "--config")
    run = snakemake(clone, *wanted, "runtime={gpus: 1}")
    (error,) = (line for line in run.output.splitlines() if line.startswith("Error: "))
    for words in ("gpu=2", "runtime.gpus to 2", "CUDA_VISIBLE_DEVICES"):
        assert words in error
    assert snakemake(clone, *wanted, "runtime={gpus: 2}").status == 0
    # The scheduler of a cluster gives each job GPUs of its own.
    queued = ("--profile", "slurm", *wanted, "runtime={gpus: 1}")
    assert snakemake(clone, *queued).status == 0


def test_a_default_may_be_spelled_out(clone: Path) -> None:
    run = snakemake(clone, "-n", "voc_15-1_mib_mib", "voc_15-1_mib")
    assert run.status == 0, run.output
    assert run.jobs["voc_15-1_mib_mib"] == run.jobs["voc_15-1_mib"] == 1
    assert run.jobs["train_step"] == 5
    assert "results/reports/voc_15-1_mib_mib" not in run.output


def test_a_file_is_a_target_too(clone: Path) -> None:
    run = snakemake(clone, "-n", "results/voc/15/ce/seed7/step0/confusion.csv")
    assert run.status == 0, run.output
    jobs = {"imagenet_weights": 1, "index": 1, "split": 1, "train_base": 1, "evaluate": 1}
    assert run.jobs == jobs


@pytest.mark.parametrize("rule", ["prediction_figure", "attribution_figures"])
def test_a_job_of_an_experiment_that_the_command_line_named_runs_on_a_cluster(
    rule: str, clone: Path
) -> None:
    """Such a job is asked for by its rule and wildcards, and sees no other target."""
    wildcards = "report=shapes_15-5_mib_awt,dataset=shapes,scenario=15-5,run=mib_awt"
    job = ("--mode", "remote", "--target-jobs", f"{rule}:{wildcards}")
    run = snakemake(clone, "-n", "--configfile", "configs/demo.yaml", *job)
    assert run.status == 0, run.output
    assert run.jobs[rule] == 1


def test_the_root_on_the_command_line(changed: Path) -> None:
    (changed / OWN).rename(changed / "moved")
    root = ("--config", "datasets={own: {root: moved}}")
    run = tiny(changed, "-p", "own_2-1_ft", *root)
    assert run.status == 0, run.output
    assert "Warning" not in run.output
    assert "--root moved" in run.output
    without = tiny(changed, "own_2-1_ft")
    assert f"Warning: there is no folder {OWN} for dataset 'own'" in without.output


def test_the_commit_that_is_checked_out_plans(tmp_path: Path) -> None:
    """Nothing that git ignores or that is not committed is needed."""
    command = ["git", "clone", "--quiet", "--depth=1", f"file://{REPOSITORY}", str(tmp_path / "c")]
    if subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("needs a git checkout")
    run = snakemake(tmp_path / "c", "--profile", "slurm", "-n", "voc_15-1_mib_awt")
    assert run.status == 0, run.output
    assert run.jobs["train_step"] == 5


def test_without_a_target_the_paper_is_planned(clone: Path) -> None:
    run = snakemake(clone, "-n", "--config", "paper=[paper_cityscapes]")
    assert run.status == 0, run.output
    assert run.jobs["paper"] == 1
    assert run.jobs["table"] == 1


def test_shares_of_channels_are_drawn_where_runs_differ_in_them(clone: Path) -> None:
    runs = "[mib_random, mib_awt, mib_awt-50, ft_awt, ft_awt-perclass]"
    matrix = f"matrices={{m: {{dataset: voc, scenarios: [15-1, 15-5], runs: {runs}}}}}"
    run = snakemake(clone, "-n", "-p", "m", "--config", matrix)
    assert run.status == 0, run.output
    assert run.jobs["shares_figure"] == 2
    assert "--shares mib_random=random=0 mib_awt=awt=25 mib_awt-50=awt=50 " in run.output


def test_it_may_be_started_in_another_folder(clone: Path, tmp_path: Path) -> None:
    run = snakemake(tmp_path, "-n", "-s", str(clone / "Snakefile"), "voc_15-1_mib")
    assert run.status == 0, run.output
    assert run.jobs["train_step"] == 5


# --- The report as one HTML file -----------------------------------------------------------


@pytest.fixture(scope="session")
def report(finished: Path, shared: Path) -> Path:
    """Snakemake's report of ``tiny``; not to be changed."""
    path = shared / "report" / "report.html"
    with only_one(shared / "report.lock"):
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            run = tiny(finished, "--report", path, "tiny", dry=False)
            assert run.status == 0, run.output
    return path


def embedded(report: Path) -> dict[str, Any]:
    """What the report embeds: path under the results' folder → Snakemake's record."""
    (text,) = re.findall(r"^ *var results = (\{.*\});$", report.read_text(), re.MULTILINE)
    home = f"{RESULTS}/reports/tiny/"
    return {path.removeprefix(home): record for path, record in json.loads(text).items()}


def content(record: dict[str, Any]) -> bytes:
    kind, _, data = record["data_uri"].partition(",")
    assert kind.endswith(";base64")
    return base64.b64decode(data)


def test_the_report_embeds_every_figure_and_page_with_a_caption(report: Path) -> None:
    found = embedded(report)
    shown = {Path(path).name for path in found}
    figures = {f"{name}.png" for name in paths.SCENARIO_FIGURES}
    figures |= {f"{kind}_{run}.png" for kind in ("classes", "predictions") for run in RUNS}
    figures |= {"channel_scores_mib_awt.png", "attribution_mib_awt.png"}
    assert figures | {"tables.html", "jobs.html", "configuration.html"} <= shown
    for path, record in found.items():
        if path.endswith((".png", ".html")):
            assert record["caption"], path
            assert record["labels"], path
    assert content(found["figures/shapes_10-5/miou_by_step.png"]).startswith(b"\x89PNG")


def test_a_page_of_the_report_names_what_it_was_made_from(report: Path) -> None:
    found = embedded(report)
    page = content(found["configuration.html"]).decode()
    for words in ("backbone: resnet18", "torch", "snakemake", "shapes/10-5/mib_awt/seed1/step2"):
        assert words in page
    # Only what the report is about.
    assert "camvid" not in page
    # Browsers open no embedded page of more than two megabytes.
    assert max(len(r["data_uri"]) for p, r in found.items() if p.endswith(".html")) < 2e6


@pytest.mark.browser
def test_the_report_opens_without_a_network(report: Path) -> None:
    seen = in_browser(report)
    assert not seen.requests
    for words in ("Workflow", "Statistics", "Figures", "Tables", "Jobs and configuration"):
        assert f">{words}<" in seen.page
    # The rules' graph is drawn.
    assert re.search(r'id="rulegraph"[^>]*>.*<canvas', seen.page, re.DOTALL)
    tables = in_browser(report, 'app.showCategory("Tables")')
    assert "all scores, sortable" in tables.page


@pytest.mark.browser
def test_tables_of_the_report_sort(finished: Path, report: Path, tmp_path: Path) -> None:
    path = tmp_path / "tables.html"
    path.write_bytes(content(embedded(report)["tables.html"]))

    def order(click: str) -> list[str]:
        page = in_browser(path, click).page
        body = re.search(r"<tbody>(.*?)</tbody>", page, re.DOTALL)
        assert body is not None
        return re.findall(r"<tr><td>[^<]*</td><td>shapes_10-5_(\w+)<", body[1])

    click = "document.querySelectorAll('thead button')[{}].click();"
    table = read_table(finished / RESULTS / "reports" / "tiny" / "summary.csv")
    assert order("") == list(RUNS)
    assert order(click.format(0)) == ["ewc", "ft", "mib", "mib_awt"]
    assert order(click.format(0) * 2) == ["mib_awt", "mib", "ft", "ewc"]
    # Stable among equals, as Python's sort is.
    best = table.sort_values("all", ascending=False, kind="stable")["run"].tolist()
    assert order(click.format(4)) == best


@pytest.mark.browser
def test_the_log_of_a_job_is_a_click_away(report: Path, tmp_path: Path) -> None:
    path = tmp_path / "jobs.html"
    path.write_bytes(content(embedded(report)["jobs.html"]))
    log = "shapes/10-5/mib_awt/seed1/step2/logs/train.log"
    seen = in_browser(path, f"document.querySelector('button[title=\"{log}\"]').click();")
    assert "epoch 2/2" not in path.read_text()
    assert "epoch 2/2" in seen.page
    assert seen.page.count("</pre>") == 1
    assert not seen.requests
