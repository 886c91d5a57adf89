"""Write the pages of a report: sortable tables, jobs with logs, configuration and versions."""

from __future__ import annotations

import argparse
import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import repository  # noqa: F401
import pandas as pd
import yaml

from ciss import comparison, jobs, metrics, pages, paths, results, scripting, tables
from ciss.files import write_text
from ciss.reports import ReportedRun, add_run_flags, runs_from
from ciss.runtime import source_revision
from ciss.style import DATASET_NAMES, pretty_name, split_run
from ciss.units import duration

PACKAGES = (
    *("torch", "torchvision", "numpy", "pandas", "captum", "safetensors", "pillow", "matplotlib"),
    *("snakemake", "inplace-abn"),
)


def main(arguments: argparse.Namespace) -> None:
    """Write the pages into the folder."""
    runs = runs_from(arguments)
    folder: Path = arguments.output
    write_text(folder / "tables.html", tables_page(folder, arguments.report))
    write_text(folder / "jobs.html", jobs_page(runs, arguments))
    write_text(folder / "configuration.html", configuration_page(runs, arguments))


def tables_page(folder: Path, report: str) -> str:
    """Scores of all runs and the final IoU of all classes, by data set and scenario."""
    summary = results.over_seeds(results.read_table(folder / "summary.csv"))
    tidy = results.read_table(folder / "results.csv")
    parts = [
        pages.paragraph(
            "A click on a column's head sorts by it. All scores in percent after the last step; "
            "docs/results.md says how each is computed. Several seeds: mean ± sample standard "
            "deviation."
        )
    ]
    for (dataset, scenario), group in summary.groupby(["dataset", "scenario"], sort=False):
        names = score_heads(group)
        shown = pd.DataFrame({"method": [*map(pretty_name, group["method"], group["init"])]})
        shown["experiment"] = [f"{dataset}_{scenario}_{run}" for run in group["run"]]
        errors = {}
        for score, head in names.items():
            shown[head] = group[score].to_numpy()
            errors[head] = f"{score}_sd"
            shown[errors[head]] = group[f"{score}_sd"].to_numpy()
        shown["seeds"] = group["seeds"].to_numpy()
        title = f"{DATASET_NAMES.get(str(dataset), dataset)} {scenario}"
        parts += [pages.heading(title), pages.table(shown, errors)]
        mine = tidy[(tidy["dataset"] == dataset) & (tidy["scenario"] == scenario)]
        parts += [pages.heading(f"{title}: IoU of each class"), pages.table(by_class(mine))]
    return pages.page(f"Tables of {report}", *parts, *beside_published(folder))


def score_heads(scenario: pd.DataFrame) -> dict[str, str]:
    """Head of each score that a scenario has: without later steps there are but means of all."""
    if int(scenario["n_steps"].iloc[0]) == 1:
        names = {score: score for score in ("all", "all_without_background")}
    else:
        heads = zip(("old", "new", "all"), tables.class_heads(scenario), strict=True)
        known = {**dict(heads), "average_over_steps": "average"}
        names = {score: known.get(score, score) for score in results.SCORES}
    return {score: head.replace("_", " ") for score, head in names.items()}


def beside_published(folder: Path) -> list[str]:
    """Every cell that something is published of, ours and its distance; nothing where none is."""
    distances = results.read_table(folder / "distance.csv")
    if distances.empty:
        return []
    shown = pd.DataFrame({"method": [*map(pretty_name, distances["method"], distances["init"])]})
    shown["experiment"] = distances[["dataset", "scenario", "run"]].agg("_".join, axis=1)
    shown["score"] = distances["score"].str.replace("_", " ")
    names = ["ours", "sd", "seeds", "published", "difference", "others_lowest", "others_highest"]
    shown[names] = distances[names]
    words = ["sources", "kind", "confidence", "note", "otherwise"]
    # Where tables are of an older revision, the last is not there.
    shown[words] = distances.reindex(columns=words).fillna("")
    shown = shown.rename(columns=lambda name: name.replace("_", " "))
    return [
        pages.heading("Distance to the papers"),
        pages.paragraph(
            f"{comparison.say_overall(distances)} Step 0 and what the sources are: distance.md."
        ),
        pages.table(shown, {"ours": "sd"}),
    ]


def by_class(tidy: pd.DataFrame) -> pd.DataFrame:
    """A row a class and a column a run: IoU after the last step, mean over the seeds."""
    last = tidy[tidy["step"] == tidy["n_steps"] - 1]
    keys = ["class_index", "class_name", "learned_at"]
    wide = last.groupby([*keys, "run"], sort=False)["iou"].mean().unstack("run")
    runs = [run for run in tidy["run"].unique() if run in wide.columns]
    wide = wide[runs].sort_index().rename(columns=lambda run: pretty_name(*split_run(run)))
    names = {"class_index": "number", "class_name": "class", "learned_at": "learned at step"}
    return wide.reset_index().rename(columns=names)


def jobs_page(runs: list[ReportedRun], arguments: argparse.Namespace) -> str:
    """What ran, when, for how long, and what it printed."""
    found = jobs.of_report(arguments.results, runs, arguments.seeds, arguments.report)
    table = jobs.read(arguments.results, found)
    kinds = table["job"].str.partition("_")[0].rename("job")
    by_job = table.groupby(kinds, sort=False)["seconds"].agg(["count", "sum", "mean", "max"])
    by_job.columns = pd.Index(["jobs", "seconds in all", "mean", "longest"])
    logs = {
        str(number): (arguments.results / job.log).read_text("utf-8", "replace")
        for number, job in enumerate(found)
    }
    buttons = [(str(number), str(job.log)) for number, job in enumerate(found)]
    shown = table.assign(log=pd.Series(buttons, dtype=object))
    total = duration(float(table["seconds"].sum()))
    return pages.page(
        f"Jobs of {arguments.report}",
        pages.paragraph(
            f"{len(found)} jobs, {total} of work in all. A click on a column's head sorts by it, "
            "one on a log shows what the job printed. Times and memory are of a job's last attempt."
        ),
        pages.heading("By kind"),
        pages.table(by_job.reset_index(), digits=1),
        pages.heading("Every job"),
        pages.table(shown, digits=1, buttons="log"),
        logs=logs,
    )


def configuration_page(runs: list[ReportedRun], arguments: argparse.Namespace) -> str:
    """Source revision, versions, what every model was trained with, and the configuration."""
    models = models_table(runs, arguments)
    revisions = models.groupby("source", sort=False).size().reset_index(name="models")
    packages = [("python", platform.python_version())]
    for name in PACKAGES:
        try:
            packages.append((name, version(name)))
        except PackageNotFoundError:
            packages.append((name, "not installed"))
    configuration = json.loads(arguments.configuration)
    return pages.page(
        f"Configuration of {arguments.report}",
        pages.heading("Source"),
        pages.paragraph(
            f"This page was made by ciss {source_revision()}; the models were trained by:"
        ),
        pages.table(revisions),
        pages.heading("Versions where this page was made"),
        pages.table(pd.DataFrame(packages, columns=["package", "version"])),
        pages.heading("Models"),
        pages.paragraph("As their headers say: what each was really trained with."),
        pages.table(models, digits=4),
        pages.heading("Configuration when this page was made"),
        pages.preformatted(yaml.safe_dump(configuration, sort_keys=False, allow_unicode=True)),
    )


def models_table(runs: list[ReportedRun], arguments: argparse.Namespace) -> pd.DataFrame:
    """A row a model: its recipe, method, options and source, from its confusion matrix' header."""
    rows = {}
    for run in runs:
        for seed in arguments.seeds:
            for step in range(len(run.classes_per_step)):
                path = run.artifact(arguments.results, paths.CONFUSION, seed, step)
                if path in rows or not path.is_file():
                    continue
                about = metrics.read_confusion(path).metadata.get("model", {})
                recipe = about.get("recipe", {})
                options = (about.get("options") or {}) | (about.get("network") or {})
                rows[path] = {
                    "model": str(path.parent.relative_to(arguments.results)),
                    "method": about.get("method", ""),
                    **{name: recipe.get(name) for name in ("epochs", "lr", "batch", "crop")},
                    "images": about.get("images"),
                    "precision": about.get("precision", ""),
                    "options": "  ".join(f"{name}={value}" for name, value in options.items()),
                    "source": about.get("source", ""),
                }
    return pd.DataFrame([*rows.values()], columns=None if rows else ["model", "source"])


if __name__ == "__main__":
    parser = scripting.parser(__doc__)
    add_run_flags(parser)
    parser.add_argument("--report", required=True, help="name of the report")
    parser.add_argument("--configuration", required=True, metavar="JSON", help="to show")
    parser.add_argument(
        "--output", type=scripting.output_folder, required=True, help="the report's folder"
    )
    scripting.run(main, parser)
