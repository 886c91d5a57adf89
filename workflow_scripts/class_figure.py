"""Draw the IoU of each class after each step of one run."""

from __future__ import annotations

import argparse
from pathlib import Path

import repository  # noqa: F401

from ciss import figures, paths, results, scripting
from ciss.flags import add_option_flag, options_from
from ciss.style import style_from_config


def main(arguments: argparse.Namespace) -> None:
    """Write the figure as PDF and PNG."""
    table = results.read_table(arguments.table)
    tidy = table[
        (table["dataset"] == arguments.dataset)
        & (table["scenario"] == arguments.scenario)
        & (table["run"] == arguments.run)
    ]
    figure = figures.class_heatmap(tidy, style_from_config(options_from(arguments)))
    figures.save(figure, arguments.output / paths.CLASSES_FIGURE.format(run=arguments.run))


if __name__ == "__main__":
    parser = scripting.parser(__doc__)
    parser.add_argument("--table", type=Path, required=True, help="results.csv of the report")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--scenario", required=True)
    parser.add_argument("--run", required=True)
    parser.add_argument(
        "--output", type=scripting.output_folder, required=True, help="folder to write"
    )
    add_option_flag(parser, "figures' style")
    scripting.run(main, parser)
