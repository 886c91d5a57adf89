"""Gather the confusion matrices of experiments in tables: CSV, Markdown, LaTeX and text."""

from __future__ import annotations

import argparse
from pathlib import Path

import repository  # noqa: F401

from ciss import comparison, reports, results, scripting, table_formats, tables
from ciss.files import write_text
from ciss.runtime import log


def main(arguments: argparse.Namespace) -> None:
    """Write all tables into the folder."""
    runs, seeds = reports.runs_from(arguments), arguments.seeds
    wanted = list(reports.evaluations(arguments.results, runs, seeds))
    # Without --partial, reading stops at the first that is not there.
    found = [one for one in wanted if one.path.is_file() or not arguments.partial]
    missing = [one for one in wanted if one not in found]
    tidy = reports.tidy_table(found)
    summary = reports.summary_of_all(tidy, runs, seeds)
    otherwise = dict(arguments.otherwise)
    distances = comparison.distances(summary, dict(arguments.published), otherwise)
    step_0_of = {(run.dataset, run.scenario, run.run): run.step_0_of_dataset for run in runs}
    base_steps = comparison.base_steps(tidy, step_0_of, dict(arguments.base_step))
    missed = comparison.say_missed(base_steps)
    for sentence in missed:
        log.warning("%s", sentence)

    notes = [f"Constants: preset {arguments.preset}.", *missed]
    if missing:
        notes.append(f"Partial: {len(found)} of {len(wanted)} evaluations are there.")
    shown = tables.build(summary, note=" ".join(notes))
    shown += tables.beside_published(distances, summary)
    # More than a terminal should be filled with.
    every = shown + tables.without_background(summary)
    gaps = reports.say_missing(missing)

    folder: Path = arguments.output
    results.write_table(folder / "results.csv", tidy)
    results.write_table(folder / "summary.csv", summary)
    write_text(folder / "table.csv", tables.csv(summary))
    markdown = [*map(table_formats.markdown, [*every, *tables.per_step(tidy)])]
    if gaps:
        markdown.append(table_formats.markdown_list("Missing evaluations", gaps))
    write_text(folder / "table.md", "\n".join(markdown))
    write_text(folder / "table.tex", "\n".join(map(table_formats.latex, every)))
    text = [*map(table_formats.text, shown)]
    if gaps:
        text.append("".join(f"missing: {name}: {said}\n" for name, said in gaps.items()))
    write_text(folder / "table.txt", "\n".join(text))
    results.write_table(folder / "distance.csv", distances)
    departures = dict(arguments.departure)
    write_text(folder / "distance.md", tables.distance_report(distances, base_steps, departures))
    log.info("%s", "\n".join(text))


def pair(text: str) -> tuple[str, str]:
    """Read ``NAME=WHAT``."""
    name, _, what = text.partition("=")
    return name, what


if __name__ == "__main__":
    parser = scripting.parser(__doc__)
    reports.add_run_flags(parser)
    parser.add_argument("--preset", required=True, help="constants, for the caption")
    group = parser.add_argument_group(
        "published numbers", "what ciss/published.yaml has of the runs"
    )
    for flag, what, words in (
        ("--published", "EXPERIMENT=KEY", "to compare: voc_15-1_mib=voc/15-1/mib"),
        ("--base-step", "STEP_0=KEY", "to compare: voc/15/ce=voc/15"),
        (
            "--otherwise",
            "EXPERIMENT=HOW",
            "as the authors trained it, if no settings are like that",
        ),
        ("--departure", "EXPERIMENT=WHY", "not to compare, as it was not trained as published"),
    ):
        group.add_argument(flag, type=pair, nargs="+", default=[], metavar=what, help=words)
    parser.add_argument(
        "--output", type=scripting.output_folder, required=True, help="folder to write"
    )
    scripting.run(main, parser)
