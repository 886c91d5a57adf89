"""Draw the figures of one scenario: mIoU by step, forgetting, learning curves."""

from __future__ import annotations

import argparse
from pathlib import Path

import repository  # noqa: F401
from matplotlib.figure import Figure

from ciss import figures, results, scripting
from ciss.errors import CissError
from ciss.flags import add_option_flag, options_from
from ciss.reports import add_run_flags, learning_curves, runs_from
from ciss.style import style_from_config


def main(arguments: argparse.Namespace) -> None:
    """Write every figure as PDF and PNG."""
    style = style_from_config(options_from(arguments))
    table = results.read_table(arguments.table)
    tidy = table[
        (table["dataset"] == arguments.dataset) & (table["scenario"] == arguments.scenario)
    ]
    runs = runs_from(arguments)
    made: dict[str, Figure] = {
        "miou_by_step": figures.miou_by_step(tidy, style),
        "base_miou_by_step": figures.base_miou_by_step(tidy, style),
    }
    try:
        made["forgetting_by_class"] = figures.forgetting_by_class(tidy, style)
    except CissError as error:
        if not arguments.partial:
            raise
        made["forgetting_by_class"] = figures.nothing_yet(str(error), style)
    curves = learning_curves(
        arguments.results, runs, arguments.seeds, step=1, partial=arguments.partial
    )
    made["learning_curve"] = (
        figures.learning_curve(curves, style, y="iou_new", y_label="IoU of the new classes (%)")
        if curves
        else figures.nothing_yet("no run that trains its steps", style)
    )
    for name, figure in made.items():
        figures.save(figure, arguments.output / name)


if __name__ == "__main__":
    parser = scripting.parser(__doc__)
    add_run_flags(parser)
    parser.add_argument("--table", type=Path, required=True, help="results.csv of the report")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--scenario", required=True)
    parser.add_argument(
        "--output", type=scripting.output_folder, required=True, help="folder to write"
    )
    add_option_flag(parser, "figures' style")
    scripting.run(main, parser)
