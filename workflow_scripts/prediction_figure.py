"""Draw images beside their ground truth and what a run predicts after its steps."""

from __future__ import annotations

import argparse
from pathlib import Path

import repository  # noqa: F401
import numpy as np
import pandas as pd
import torch

from ciss import examples, figures, paths, scripting, splits
from ciss.checkpoint import load_model
from ciss.flags import add_flags, add_option_flag, at_least, from_flags, options_from
from ciss.index import read_index
from ciss.labels import evaluation_lookup
from ciss.loading import EvaluationImages, evaluation_batches, to_network_input
from ciss.runtime import Runtime, log, start_torch
from ciss.style import style_from_config

#: pixels of the longer side from which an image is drawn with fewer
_LARGEST = 640


def main(arguments: argparse.Namespace) -> None:
    """Write the figure as PDF and PNG."""
    device = start_torch(from_flags(arguments, Runtime))
    dataset = scripting.dataset_from(arguments)
    base, *later = arguments.classes_per_step
    old, new = range(1, base), range(base, base + sum(later))
    rows = splits.select(splits.read_split(arguments.split), len(later), arguments.images)
    index = read_index(arguments.index)
    shares = pd.DataFrame(examples.class_shares(index, dataset), index["image"])
    chosen = examples.mixed(shares.loc[rows["image"]].to_numpy(), old, new, arguments.count)
    rows = rows.iloc[chosen]
    lookup = evaluation_lookup(dataset.lookup, range(1, new.stop))
    images = EvaluationImages(dataset.root, rows, lookup, arguments.crop, arguments.mode)
    samples = list(evaluation_batches(images, batch=1))
    predicted: list[list[np.ndarray]] = [[] for _ in samples]
    for path in arguments.models:
        network = load_model(path)[0].to(device).eval()
        for (pixels, _, _), maps in zip(samples, predicted, strict=True):
            with torch.inference_mode():
                classes = network(to_network_input(pixels.to(device))).predicted
            maps.append(classes[0].cpu().numpy())
    log.info("%s", "  ".join(rows["image"]))
    drawn = []
    for (pixels, truth, _), maps in zip(samples, predicted, strict=True):
        every = -(-max(truth.shape) // _LARGEST)
        part = np.s_[::every, ::every]
        image = pixels[0].permute(1, 2, 0).numpy()
        drawn.append((image[part], truth[0].numpy()[part], [labels[part] for labels in maps]))
    style = style_from_config(options_from(arguments))
    figure = figures.predictions(drawn, arguments.steps, dataset.classes, style)
    figures.save(figure, arguments.output / paths.PREDICTIONS_FIGURE.format(run=arguments.run))


if __name__ == "__main__":
    parser = scripting.parser(__doc__)
    scripting.add_dataset_flags(parser)
    parser.add_argument("--index", type=Path, required=True)
    parser.add_argument("--split", type=Path, required=True, help="split with the last step")
    parser.add_argument("--run", required=True, help="its name, for the file's")
    parser.add_argument("--steps", type=at_least(0), nargs="+", required=True, help="steps to show")
    parser.add_argument("--models", type=Path, nargs="+", required=True, help="of these steps")
    parser.add_argument(
        "--classes-per-step",
        type=int,
        nargs="+",
        required=True,
        help="outputs added at each step, step 0's with the background",
    )
    parser.add_argument("--images", default="test", help="list of the split: test or val")
    parser.add_argument("--count", type=at_least(1), default=4, help="images to show")
    scripting.add_crop_flag(parser)
    parser.add_argument("--mode", required=True, help="crop or full")
    parser.add_argument(
        "--output", type=scripting.output_folder, required=True, help="folder to write"
    )
    add_option_flag(parser, "figures' style")
    add_flags(parser, Runtime)
    scripting.run(main, parser)
