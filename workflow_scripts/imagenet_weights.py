"""Fetch an encoder's ImageNet weights, the published ones or torchvision's, and check them."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import repository  # noqa: F401

from ciss import scripting
from ciss.download import fetch, pinned
from ciss.errors import CissError
from ciss.models import NetworkConfig, SegmentationNetwork
from ciss.models.pretrained import load_imagenet, remote_weights
from ciss.runtime import log


def check(source: str, backbone: str, name: str, path: Path) -> None:
    """Load the file into an encoder of its kind and report what it has; raises ``CissError``."""
    norm = "bn" if source == "torchvision" else "abn"
    network = SegmentationNetwork(NetworkConfig(backbone, norm=norm), [1])
    try:
        found = load_imagenet(network, path)
    except CissError as error:
        # The file has no name of its own yet.
        raise CissError(str(error).replace(str(path), name)) from None
    log.info("%s", str(found).replace(str(path), name))


def main(arguments: argparse.Namespace) -> None:
    """Write the file as it is; training reads either format."""
    sources = scripting.sources_from(arguments)
    remote = remote_weights(arguments.source, arguments.backbone)
    try:
        fetch(
            pinned(remote, sources.checksums),
            arguments.output,
            mirror=sources.mirror,
            own=sources.archives / remote.name,
            check=partial(check, arguments.source, arguments.backbone, remote.name),
        )
    except CissError as error:
        raise CissError(
            f"{error}. Without these weights set model.weights to the path of others, or train "
            "from scratch (model.weights: scratch)"
        ) from None


if __name__ == "__main__":
    parser = scripting.parser(__doc__)
    parser.add_argument("--source", required=True, choices=["published", "torchvision"])
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--output", type=scripting.output_file, required=True)
    scripting.add_source_flags(parser)
    scripting.run(main, parser)
