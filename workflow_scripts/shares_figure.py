"""Draw scores over the share of the background's channels that new classifiers start from."""

from __future__ import annotations

import argparse
from pathlib import Path

import repository  # noqa: F401

from ciss import figures, paths, results, scripting
from ciss.flags import add_option_flag, options_from
from ciss.style import style_from_config


def main(arguments: argparse.Namespace) -> None:
    """Write the figure as PDF and PNG."""
    summary = results.read_table(arguments.summary)
    mine = (summary["dataset"] == arguments.dataset) & (summary["scenario"] == arguments.scenario)
    shares = {}
    for text in arguments.shares:
        run, which, share = text.split("=")
        shares[run] = (which, float(share))
    style = style_from_config(options_from(arguments))
    figure = figures.transfer_shares(summary[mine], shares, style)
    figures.save(figure, arguments.output / paths.SHARES_FIGURE)


if __name__ == "__main__":
    parser = scripting.parser(__doc__)
    parser.add_argument("--summary", type=Path, required=True, help="summary.csv of the report")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--scenario", required=True)
    parser.add_argument(
        "--shares",
        nargs="+",
        required=True,
        metavar="RUN=CHANNELS=PERCENT",
        help="mib_awt-10=awt=10; CHANNELS are awt, randchannels or, without any, random",
    )
    parser.add_argument(
        "--output", type=scripting.output_folder, required=True, help="folder to write"
    )
    add_option_flag(parser, "figures' style")
    scripting.run(main, parser)
