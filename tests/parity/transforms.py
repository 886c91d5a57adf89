"""Crops, flips, resizing and normalisation."""

from __future__ import annotations

import re

import numpy as np
import torch

from ciss.loading import (
    MEAN,
    RATIO,
    SCALE,
    STD,
    Pixels,
    crop_and_flip,
    random_crop_box,
    resize_and_centre,
    to_network_input,
)

from .case import Array, Case, UnknownCaseError

INPUTS = {
    r"\d+/(image|label)": "inputs",
    r"\d+/seed": "state of Python's random numbers; ours come from another generator",
    r"\d+/(box|flip)": "what was drawn with that seed, inputs",
}

#: fewer draws than published, for speed
_DRAWS = 5000


def check(case: Case) -> None:
    """Check every image of the case, and the distribution of the drawn boxes."""
    hyper = case.hyper
    numbers = [match[1] for match in case.matching(r"(\d+)/image")]
    if not numbers:
        raise UnknownCaseError("transforms without images")
    constants = (("scale", SCALE), ("ratio", RATIO), ("mean", MEAN), ("std", STD))
    for name, ours in constants:
        if not np.allclose(hyper[name], ours):
            raise AssertionError(f"{name} is {ours}, published {hyper[name]}")
    for number in numbers:
        image, label = case.array(f"{number}/image"), case.array(f"{number}/label")
        if f"{number}/box" in case:
            top, left, height, width = case.array(f"{number}/box").tolist()
            flip = bool(case.array(f"{number}/flip"))
            box = (top, left, height, width)
            pixels, values = crop_and_flip(image, label, box, flip, hyper["crop_size"])
            case.close(f"{number}/train_image", _normalised(pixels))
            case.exact(f"{number}/train_label", values)
        pixels, values = resize_and_centre(image, label, hyper["crop_size"])
        case.close(f"{number}/val_image", _normalised(pixels.transpose(2, 0, 1)))
        case.exact(f"{number}/val_label", values)
    for name, published in hyper.items():
        if match := re.fullmatch(r"statistics_(\d+)x(\d+)_(\d+)_draws", name):
            _check_draws(int(match[2]), int(match[1]), int(match[3]), published)


def _normalised(pixels: Pixels) -> Array:
    array: Array = to_network_input(torch.from_numpy(pixels.copy())[None])[0].numpy()
    return array


def _check_draws(height: int, width: int, draws: int, published: dict[str, float]) -> None:
    """Raise where the drawn boxes are not distributed as the published ones."""
    rng = np.random.default_rng(0)
    boxes = np.array([random_crop_box(rng, height, width) for _ in range(_DRAWS)])
    areas = boxes[:, 2] * boxes[:, 3] / (height * width)
    whole = areas == 1
    for name, ours in (("whole_image_fraction", whole), ("mean_area_fraction", areas)):
        # four standard errors of the difference
        allowed = 4 * ours.std() * np.sqrt(1 / _DRAWS + 1 / draws)
        if abs(ours.mean() - published[name]) > allowed:
            raise AssertionError(f"{name} of drawn boxes is {ours.mean():.4f}")
