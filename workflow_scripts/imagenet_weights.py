"""Download an encoder's ImageNet weights: the published ones, or torchvision's."""

from __future__ import annotations

import argparse
import hashlib
import re
from http.client import HTTPException
from pathlib import Path

import repository  # noqa: F401
import torch

from ciss import scripting
from ciss.errors import CissError
from ciss.files import replacing
from ciss.runtime import log

PUBLISHED = (
    "https://github.com/arthurdouillard/CVPR2021_PLOP/releases/download/v1.0/"
    "resnet101_iabn_sync.pth.tar"
)


def url_of(source: str, backbone: str) -> str:
    """Return where the weights are; ``CissError`` where there are none of that kind."""
    if source == "published":
        if backbone != "resnet101":
            raise CissError(
                f"there are no published weights of {backbone}; set model.weights to torchvision "
                "(with model.norm: bn), to scratch or to a file"
            )
        return PUBLISHED
    from torchvision.models import get_model_weights

    return str(get_model_weights(backbone).DEFAULT.url)


def checksum_in(url: str) -> str | None:
    """Return the beginning of the file's SHA-256 where its name holds it, as torchvision's do."""
    found = re.search(r"-([0-9a-f]{8,})\.", url.rpartition("/")[2])
    return found[1] if found else None


def main(arguments: argparse.Namespace) -> None:
    """Write the file as it is; training reads either format."""
    url = url_of(arguments.source, arguments.backbone)
    log.info("downloading %s", url)
    with replacing(arguments.output) as temporary:
        try:
            torch.hub.download_url_to_file(url, str(temporary), checksum_in(url), progress=False)
        except (OSError, HTTPException, RuntimeError) as error:
            raise CissError(
                f"cannot download {url} ({error}); put the file at {arguments.output} yourself, "
                "set model.weights to its path, or train from scratch (model.weights: scratch)"
            ) from None
    log.info("sha256 %s", hashlib.sha256(arguments.output.read_bytes()).hexdigest())


if __name__ == "__main__":
    parser = scripting.parser(__doc__)
    parser.add_argument("--source", required=True, choices=["published", "torchvision"])
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--output", type=Path, required=True)
    scripting.run(main, parser)
