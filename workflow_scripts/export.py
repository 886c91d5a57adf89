"""Write a finished model as ONNX and check that the file computes what the model does.

`snakemake export --config checkpoint=MODEL` calls it; by hand:
  python workflow_scripts/export.py --checkpoint model.safetensors --output model.onnx
"""

from __future__ import annotations

import argparse
from pathlib import Path

import repository  # noqa: F401

from ciss import prediction, scripting
from ciss.checkpoint import load_model
from ciss.export import check_packages, export
from ciss.flags import at_least
from ciss.runtime import Runtime, log, start_torch


def main(arguments: argparse.Namespace) -> None:
    """Write the file."""
    check_packages()
    start_torch(Runtime(device="cpu", threads=arguments.threads))
    network, metadata = load_model(arguments.checkpoint, plain=True)
    names = prediction.class_names(metadata, network.n_classes, arguments.checkpoint)
    log.info("%s", export(network, names, metadata, arguments.output))
    log.info("%s: %d classes, %s", arguments.output, len(names), network.config.backbone)


if __name__ == "__main__":
    parser = scripting.parser(__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="model.safetensors")
    parser.add_argument(
        "--output", type=scripting.output_file, required=True, help="ONNX file to write"
    )
    parser.add_argument("--threads", type=at_least(1), default=2, help="CPU threads (default: 2)")
    scripting.run(main, parser)
