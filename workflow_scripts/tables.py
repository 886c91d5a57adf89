"""Gather the confusion matrices of experiments in tables: CSV, Markdown, LaTeX and text."""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import repository  # noqa: F401

from ciss import results, scripting, tables
from ciss.files import write_text
from ciss.reports import ReportedRun, add_run_flags, runs_from, tidy_table
from ciss.runtime import log


def main(arguments: argparse.Namespace) -> None:
    """Write all tables into the folder."""
    runs: list[ReportedRun] = runs_from(arguments)
    tidy = tidy_table(arguments.results, runs, arguments.seeds)
    summary: pd.DataFrame = results.summary(tidy)
    folder: Path = arguments.output
    results.write_table(folder / "results.csv", tidy)
    results.write_table(folder / "summary.csv", summary)
    write_text(folder / "table.csv", tables.csv(summary))
    note = f"Constants: preset {arguments.preset}."
    by_step = tables.per_step(tidy)
    write_text(folder / "table.md", f"{tables.markdown(summary, note=note)}\n{by_step}")
    write_text(folder / "table.tex", tables.latex(summary, note=note))
    write_text(folder / "table.txt", tables.text(summary, note=note))
    log.info("%s", tables.text(summary, note=note))


if __name__ == "__main__":
    parser = scripting.parser(__doc__)
    add_run_flags(parser)
    parser.add_argument("--preset", required=True, help="constants, for the caption")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    scripting.run(main, parser)
