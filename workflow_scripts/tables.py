"""Gather the confusion matrices of experiments in tables: CSV, Markdown, LaTeX and text."""

from __future__ import annotations

import argparse
from pathlib import Path

import repository  # noqa: F401

from ciss import reports, results, scripting, tables
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
    note = f"Constants: preset {arguments.preset}."
    if missing:
        note += f" Partial: {len(found)} of {len(wanted)} evaluations are there."
    gaps = reports.say_missing(missing)

    folder: Path = arguments.output
    results.write_table(folder / "results.csv", tidy)
    results.write_table(folder / "summary.csv", summary)
    write_text(folder / "table.csv", tables.csv(summary))
    markdown = [tables.markdown(summary, note=note), tables.per_step(tidy)]
    if gaps:
        markdown.append(tables.markdown_list("Missing evaluations", gaps))
    write_text(folder / "table.md", "\n".join(markdown))
    write_text(folder / "table.tex", tables.latex(summary, note=note))
    lines = (f"missing: {name}: {said}\n" for name, said in gaps.items())
    text = "\n".join([tables.text(summary, note=note), "".join(lines)]).rstrip("\n") + "\n"
    write_text(folder / "table.txt", text)
    log.info("%s", text)


if __name__ == "__main__":
    parser = scripting.parser(__doc__)
    reports.add_run_flags(parser)
    parser.add_argument("--preset", required=True, help="constants, for the caption")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    scripting.run(main, parser)
