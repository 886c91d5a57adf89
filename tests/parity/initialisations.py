"""Initialisations of a step's new classifier."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ciss import transfer
from ciss.initialisations import options_of
from ciss.initialisations.base import Classifiers

from .case import Case, UnknownCaseError

INPUTS = {
    r"before/cls\.\d+\.(weight|bias)": "classifiers before, inputs",
    "mask_(joint|per_class|float)": "channel masks, inputs",
}

#: published variant: the initialisations that make it, in order, with options, and its mask
_VARIANTS: dict[str, tuple[list[tuple[str, dict[str, Any]]], str | None]] = {
    "none": ([("random", {})], None),
    "orig_init": ([("mib", {})], None),
    "awt_joint": ([("awt", {})], "mask_joint"),
    "awt_per_class": ([("awt", {})], "mask_per_class"),
    "awt_copy_bias": ([("awt", {"copy_bias": True})], "mask_joint"),
    "copy": ([("awt", {"replace": True})], "mask_joint"),
    "copy_per_class": ([("awt", {"replace": True})], "mask_per_class"),
    "random_float_mask": ([("awt", {})], "mask_float"),
    # The published options allow both at once: the background counts twice where the mask is.
    "orig_plus_mask": ([("mib", {}), ("awt", {})], "mask_joint"),
}


def check(case: Case) -> None:
    """Apply every variant that the case has to the classifiers before."""
    variants = sorted({match[1] for match in case.matching("([^/]+)/(new|bg)_.+")})
    unknown = [variant for variant in variants if variant not in _VARIANTS]
    if unknown or not variants:
        raise UnknownCaseError(f"initialisation {', '.join(unknown) or 'of nothing'}")
    newest = len(case.hyper["classes_per_step"]) - 1
    before = Classifiers(
        weight=case.tensor(f"before/cls.{newest}.weight")[:, :, 0, 0],
        bias=case.tensor(f"before/cls.{newest}.bias"),
        background_weight=case.tensor("before/cls.0.weight")[0, :, 0, 0],
        background_bias=case.tensor("before/cls.0.bias")[0],
    )
    for variant in variants:
        steps, mask = _VARIANTS[variant]
        masks = None
        if mask is not None:
            masks = case.tensor(mask).reshape(-1, before.weight.shape[1]).bool()
        after = replace(before)
        for name, options in steps:
            after = transfer.get(name).initialise(
                after, options_of(name, options), masks, torch.Generator().manual_seed(0)
            )
        if not torch.equal(after.background_weight, before.background_weight):
            raise AssertionError(f"{variant} changed the background's weight")
        case.close(f"{variant}/new_weight", after.weight[:, :, None, None])
        case.close(f"{variant}/new_bias", after.bias)
        case.close(f"{variant}/bg_bias", after.background_bias)
