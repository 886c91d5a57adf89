"""Segment a folder of images with a finished model: palette masks, overlays and a legend.

`snakemake predict --config checkpoint=MODEL images=FOLDER` calls it; by hand:
  python workflow_scripts/predict.py --checkpoint model.safetensors --images photos --output labels
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import repository  # noqa: F401

from ciss import photos, prediction, scripting
from ciss.checkpoint import load_model
from ciss.errors import CissError
from ciss.flags import add_flags, at_least, from_flags
from ciss.runtime import Runtime, log, start_torch

#: images that could not be segmented and are named in the last line
_NAMED = 3
#: other files in the folder that are named
_OTHERS = 5


def main(arguments: argparse.Namespace) -> None:
    """Write masks, overlays and tables; ends with an error where an image could not be used."""
    runtime = from_flags(arguments, Runtime)
    device = start_torch(runtime)
    network, metadata = load_model(arguments.checkpoint, plain=True)
    legend = prediction.legend_of(network, metadata, arguments.checkpoint, arguments.values)
    with arguments.checkpoint.open("rb") as file:
        model = hashlib.file_digest(file, "sha256").hexdigest()
    output = prediction.Output(arguments.output, legend, arguments.overlay, model)
    names, others = photos.find_images(arguments.images, arguments.output)
    if others:
        more = ", …" if len(others) > _OTHERS else ""
        log.info("no images, left out: %s%s", ", ".join(others[:_OTHERS]), more)

    failures: list[str] = []

    def failed(name: str, reason: str) -> None:
        failures.append(f"{name} {reason}")
        log.warning("%s", failures[-1])

    found = photos.look_at(arguments.images, names, failed)
    done = [made for photo in found if (made := output.finished(photo)) is not None]
    if done:
        log.info("%d images are segmented already, by this model", len(done))
    finished = {made.photo for made in done}
    left = [photo for photo in found if photo not in finished]
    log.info("%d images to segment into %d classes on %s", len(left), len(legend.names), device)
    every = max(len(left) // 10, 1)
    for number, made in enumerate(
        prediction.predict_all(
            network,
            left,
            output,
            device,
            batch=arguments.batch,
            workers=runtime.workers,
            failed=failed,
        ),
        start=1,
    ):
        done.append(made)
        if number % every == 0 or number == len(left):
            log.info("%d of %d", number, len(left))
    output.write_tables(done)
    log.info("masks, overlays and tables are in %s", arguments.output)
    if failures:
        more = "; …" if len(failures) > _NAMED else ""
        raise CissError(
            f"{len(failures)} of {len(names)} images could not be segmented: "
            f"{'; '.join(failures[:_NAMED])}{more}. The masks of the others are in "
            f"{arguments.output}; mend these images or take them away, and start again, which "
            "leaves out what is done"
        )


def share(text: str) -> float:
    """Read a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 1")
    return value


if __name__ == "__main__":
    parser = scripting.parser(__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="model.safetensors")
    parser.add_argument("--images", type=Path, required=True, help="folder of images, or one image")
    parser.add_argument(
        "--output", type=scripting.output_folder, required=True, help="folder to write"
    )
    parser.add_argument(
        "--values",
        default=prediction.VALUES[0],
        choices=prediction.VALUES,
        help="what masks hold: the data set's mask values, or places in the learning order "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--overlay", type=share, default=0.5, help="opacity of overlays, 0: none (default: 0.5)"
    )
    parser.add_argument(
        "--batch",
        type=at_least(1),
        default=8,
        help="images of 512 × 512 pixels in a batch (default: 8)",
    )
    add_flags(parser, Runtime)
    scripting.run(main, parser)
