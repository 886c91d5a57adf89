"""Print a report's table and the paths of its figures."""

from __future__ import annotations

import argparse
from pathlib import Path

import repository  # noqa: F401

from ciss import scripting
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
    for path in sorted(arguments.report.glob("figures/*/*.pdf")):
        print(f"  {path}")
    print("Pages for a browser (tables that sort, jobs and logs, configuration):")
    for path in sorted(arguments.report.glob("*.html")):
        print(f"  {path}")


if __name__ == "__main__":
    parser = scripting.parser(__doc__)
    parser.add_argument("report", type=Path, help="folder of a report")
    scripting.run(main, parser)
