"""Say what Snakemake would run, what is shared, and how long it takes.

`snakemake plan EXPERIMENT...` calls it; by hand, with what Snakemake says is to be done:
  snakemake --summary -- EXPERIMENT... > summary.tsv
  python workflow_scripts/plan.py --summary summary.tsv EXPERIMENT...
"""

from __future__ import annotations

import argparse
from pathlib import Path

import repository

from ciss import planning, scripting
from ciss.config import read_config


def main(arguments: argparse.Namespace) -> None:
    """Print the plan."""
    config = read_config(*arguments.config)
    results = str(config["results"])
    jobs = planning.read_summary(arguments.summary.read_text(encoding="utf-8"), results)
    chosen = planning.chosen_experiments(config, arguments.targets)
    gpus = config["runtime"].get("gpus")
    estimated = planning.estimate(jobs, planning.Records(Path(results), config))
    print(planning.describe(estimated, chosen, gpus if isinstance(gpus, int) and gpus else 1))


if __name__ == "__main__":
    parser = scripting.parser(__doc__)
    default = Path(repository.__file__).parent.parent / "config.yaml"
    parser.add_argument("targets", nargs="*", help="experiments and matrices (default: paper)")
    parser.add_argument(
        "--summary", type=Path, required=True, help="what `snakemake --summary` printed"
    )
    parser.add_argument(
        "--config",
        type=Path,
        nargs="+",
        default=[default],
        help="files of the configuration, later ones over earlier ones",
    )
    scripting.run(main, parser)
