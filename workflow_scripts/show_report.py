"""Print a report's table and the paths of its figures."""

from __future__ import annotations

import argparse
from pathlib import Path

import repository  # noqa: F401

from ciss import paths, results, scripting
from ciss.errors import CissError


def main(arguments: argparse.Namespace) -> None:
    """Print to standard output."""
    table = arguments.report / "table.txt"
    if not table.is_file():
        raise CissError(f"there is no report in {arguments.report}: {table} is missing")
    print(table.read_text(encoding="utf-8"))
    distance = arguments.report / "distance.csv"
    if distance.is_file() and len(distance.read_text(encoding="utf-8").splitlines()) > 1:
        print(f"Each cell's distance to the papers: {distance.with_suffix('.md')}")
    print("Figures (each also as PNG):")
    for path in figures_of(arguments.report):
        print(f"  {path}")
    print("Pages for a browser (tables that sort, jobs and logs, configuration):")
    for path in sorted(arguments.report.glob("*.html")):
        print(f"  {path}")


def figures_of(report: Path) -> list[Path]:
    """List what is drawn of the report's runs; figures of runs that it has no more stay behind."""
    runs = results.read_table(report / "summary.csv")[["dataset", "scenario", "run"]]
    names: dict[str, set[str]] = {}
    for dataset, scenario, run in runs.drop_duplicates().itertuples(index=False):
        mine = names.setdefault(
            f"{dataset}_{scenario}", {*paths.SCENARIO_FIGURES, paths.SHARES_FIGURE}
        )
        mine |= {figure.format(run=run) for figure in paths.RUN_FIGURES}
    found = sorted(report.glob("figures/*/*.pdf"))
    return [path for path in found if path.stem in names.get(path.parent.name, ())]


if __name__ == "__main__":
    parser = scripting.parser(__doc__)
    parser.add_argument("report", type=Path, help="folder of a report")
    scripting.run(main, parser)
