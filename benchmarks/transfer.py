"""Transfer: from the model of the step before to the network that a step starts from.

    python benchmarks/transfer.py --backbone resnet50

Published code builds the network anew, with weights drawn for all layers, and loads the last step's
checkpoint, in which its optimiser is too. Here the weights are read into place and the result is
written to a file, whose time counts. The same classifiers come out.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import networks
from benchmarks.given import Given
from benchmarks.reference import transfer as reference
from benchmarks.table import Row, alternate, compared, plain
from ciss.attribution import Attribution, channel_mask, scores
from ciss.checkpoint import load_model, save_model
from ciss.initialisations.awt import OPTIONS
from ciss.models import NetworkConfig, SegmentationNetwork, widened
from ciss.transfer import initialise

GROUP = "Transfer"
DRAW = 1001


def ours(folder: Path, n_new: int, attribution: Attribution) -> SegmentationNetwork:
    """Do what the rule ``transfer`` does."""
    network, _ = load_model(folder / "model.safetensors")
    wider = widened(network, n_new, DRAW)
    initialise(wider, "awt", OPTIONS, attribution, DRAW)
    save_model(folder / "init.safetensors", wider, {})
    return wider


def measure(config: NetworkConfig, classes: tuple[int, int], folder: Path, rounds: int) -> Row:
    """Time the start of a step; ``classes``: old and new outputs."""
    n_old, n_new = classes
    network = networks.drawn(config, [n_old])
    reference.save(folder / "published.pth", network)
    save_model(folder / "model.safetensors", network, {})
    attribution = _drawn(config.head_channels, n_old, n_new)
    fresh = widened(network, n_new, DRAW).classifiers[-1]
    assert fresh.bias is not None
    drawn = fresh.weight.detach(), fresh.bias.detach()
    mask = channel_mask(scores(attribution), OPTIONS["fraction"])[0]

    def published() -> SegmentationNetwork:
        path = folder / "published.pth"
        return reference.widened(path, config, [n_old, n_new], drawn, mask)

    theirs, mine = published().state_dict(), ours(folder, n_new, attribution).state_dict()
    if not all(torch.allclose(mine[name], theirs[name], atol=1e-6) for name in mine):
        raise SystemExit("transfer: the networks differ")
    times = alternate(
        {"published": published, "ours": lambda: ours(folder, n_new, attribution)},
        rounds,
        warm_up=False,
    )
    return compared(
        GROUP,
        f"{config.backbone}, {n_old} + {n_new} classes",
        "s",
        times["published"],
        times["ours"],
        note="Transfer: AWT, from the files of the step before; ours also checks their checksum "
        "and that no tensor has a NaN, and writes the result, with another checksum, to a file.",
    )


def _drawn(channels: int, n_old: int, n_new: int) -> Attribution:
    generator = torch.Generator().manual_seed(0)
    sums = torch.randn(n_new, channels, 4, 4, generator=generator)
    maxima = sums.amax(dim=(2, 3))
    new = tuple(range(n_old, n_old + n_new))
    return Attribution(new, sums, torch.ones(n_new, dtype=torch.int64), 1, maxima, maxima[0])


def rows(what: Given) -> Iterator[Row]:
    """ResNet-101 with ADE 100-50's classes."""
    torch.set_num_threads(1)
    config = networks.TINY if what.tiny else NetworkConfig("resnet101")
    with tempfile.TemporaryDirectory(dir=what.folder) as folder:
        yield measure(config, (101, 50), Path(folder), min(what.rounds, 3))


def main(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    old, new = arguments.classes
    with tempfile.TemporaryDirectory() as folder:
        row = measure(NetworkConfig(arguments.backbone), (old, new), Path(folder), arguments.rounds)
    print(plain([row]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="resnet101")
    parser.add_argument(
        "--classes", nargs=2, type=int, default=(101, 50), help="old and new outputs"
    )
    parser.add_argument("--rounds", type=int, default=3)
    main(parser.parse_args())
