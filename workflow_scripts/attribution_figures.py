"""Draw which channels attribution chooses for new classes, and where in images they speak."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import repository  # noqa: F401
import pandas as pd
import torch
from torch import Tensor

from ciss import examples, figures, paths, scripting, splits
from ciss.attribution import (
    GROUPINGS,
    POOLINGS,
    attribution_maps,
    channel_mask,
    load_attribution,
    scores,
)
from ciss.checkpoint import load_model
from ciss.datasets.base import BACKGROUND, VOID
from ciss.flags import add_flags, add_option_flag, at_least, from_flags, options_from
from ciss.index import read_index
from ciss.labels import training_lookup
from ciss.loading import EvaluationImages, evaluation_batches, to_network_input
from ciss.runtime import Runtime, start_torch
from ciss.style import style_from_config


def main(arguments: argparse.Namespace) -> None:
    """Write both figures as PDF and PNG."""
    device = start_torch(from_flags(arguments, Runtime))
    dataset = scripting.dataset_from(arguments)
    steps = dict.fromkeys(step for step, _ in arguments.shown)
    models = dict(zip(steps, arguments.models, strict=True))
    attributions = {
        step: load_attribution(path)
        for step, path in zip(steps, arguments.attributions, strict=True)
    }
    index, split = read_index(arguments.index), splits.read_split(arguments.split)
    shares = pd.DataFrame(examples.class_shares(index, dataset), index["image"])
    per_class = arguments.grouping == "per_class"
    panels, drawn = {}, []
    for step, label in arguments.shown:
        name = dataset.classes[label]
        row = attributions[step].new_classes.index(label) if per_class else 0
        score = scores(attributions[step], arguments.pooling, arguments.grouping)[[row]]
        mask = channel_mask(score, arguments.fraction)
        title = name if per_class else f"step {step}"
        panels[title] = (score[0].numpy(), mask[0].numpy())

        rows = splits.select(split, step, "train")
        typical = examples.typical(shares.loc[rows["image"]].to_numpy(), label)
        lookup = training_lookup(dataset.lookup, [label])
        images = EvaluationImages(dataset.root, rows.iloc[[typical]], lookup, arguments.crop)
        network = load_model(models[step])[0].to(device).eval()
        maps_of = attribution_maps(network, arguments.method, arguments.n_steps)
        drawn.append(attributed_image(name, images, maps_of, mask[0], device))
    style = style_from_config(options_from(arguments))
    for file, figure in (
        (paths.CHANNELS_FIGURE, figures.channel_scores(panels, style)),
        (paths.ATTRIBUTION_FIGURE, figures.attribution_overlays(drawn, style)),
    ):
        figures.save(figure, arguments.output / file.format(run=arguments.run))


def attributed_image(
    name: str,
    images: EvaluationImages,
    maps_of: Callable[[Tensor], Tensor],
    mask: Tensor,
    device: torch.device,
) -> figures.AttributedImage:
    """Attribute the one image of ``images``, whose labels show one class; ``mask``: bool [C]."""
    ((pixels, labels, _),) = evaluation_batches(images, batch=1)
    maps = maps_of(to_network_input(pixels.to(device)))[0].cpu()
    return figures.AttributedImage(
        name,
        pixels[0].permute(1, 2, 0).numpy(),
        ((labels[0] != BACKGROUND) & (labels[0] != VOID)).numpy(),
        maps[mask].mean(dim=0).numpy(),
        # All channels may be chosen; then there is nothing to show of the others.
        maps[~mask].mean(dim=0).nan_to_num().numpy(),
    )


def shown_pair(text: str) -> tuple[int, int]:
    """Read ``STEP:CLASS``."""
    step, label = text.split(":")
    return int(step), int(label)


if __name__ == "__main__":
    parser = scripting.parser(__doc__)
    scripting.add_dataset_flags(parser)
    parser.add_argument("--index", type=Path, required=True)
    parser.add_argument("--split", type=Path, required=True, help="split of the later steps")
    parser.add_argument("--run", required=True, help="its name, for the files'")
    parser.add_argument(
        "--shown",
        type=shown_pair,
        nargs="+",
        required=True,
        metavar="STEP:CLASS",
        help="steps and one of their classes, in the learning order",
    )
    parser.add_argument(
        "--models", type=Path, nargs="+", required=True, help="of the step before each step shown"
    )
    parser.add_argument(
        "--attributions", type=Path, nargs="+", required=True, help="of these models"
    )
    parser.add_argument("--fraction", type=float, default=0.25, help="of the channels, or number")
    parser.add_argument("--pooling", default="max_after_mean", choices=POOLINGS)
    parser.add_argument("--grouping", default="joint", choices=GROUPINGS)
    scripting.add_crop_flag(parser)
    parser.add_argument("--method", default="closed_form", help="closed_form or captum")
    parser.add_argument(
        "--n-steps", type=at_least(1), default=50, help="steps of captum's integral"
    )
    parser.add_argument(
        "--output", type=scripting.output_folder, required=True, help="folder to write"
    )
    add_option_flag(parser, "figures' style")
    add_flags(parser, Runtime)
    scripting.run(main, parser)
