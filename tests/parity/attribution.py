"""AWT's attribution maps, channel scores and channel masks."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ciss.attribution import (
    POOLINGS,
    Attribution,
    accumulate,
    channel_count,
    channel_mask,
    closed_form,
    scores,
    shrink_labels,
    upsampling_adjoint,
)

from .case import TOLERANCE, Case, UnknownCaseError

INPUTS = {
    "labels": "input",
    "act_(x|zero|delta)": "the attributed layer's input, an input here too",
    "w_bg": "the background classifier's weight, an input",
}


def check(case: Case) -> None:
    """Attribute the stored activations and choose channels for every variant."""
    if "w_bg" not in case or "labels" not in case:
        raise UnknownCaseError("attribution without labels and w_bg")
    labels = case.tensor("labels").long()
    if "act_delta" in case:
        x, zero = case.tensor("act_delta"), torch.zeros(1, device=case.device)
    else:
        x, zero = case.tensor("act_x"), case.tensor("act_zero")
    maps = closed_form(x, zero, case.tensor("w_bg"), labels.shape[1:])
    size = (maps.shape[2], maps.shape[3])
    adjoint = upsampling_adjoint(size, (labels.shape[1], labels.shape[2]))
    case.close("upsample_adjoint", adjoint[None, None])

    new = case.hyper["new_classes"]
    shown = torch.isin(shrink_labels(labels, size), torch.tensor(new, device=case.device))
    used = shown.any(dim=(1, 2)).nonzero().flatten()
    case.exact("joint/used", used)
    case.exact("joint/mask", shown[used])
    # Where images may have been skipped, only the others' attributions are stored.
    raw = maps[used] if "joint/used" in case else maps
    case.close("attribution_raw", raw)

    attribution = accumulate(None, maps, labels, new)
    # As ``attribute`` does when all batches are done.
    tensors = ("sums", "count", "max_sums", "joint_max_sum")
    attribution = replace(attribution, **{n: getattr(attribution, n).cpu() for n in tensors})
    case.exact("joint/missed", len(labels) - attribution.joint_count)
    for pooling in POOLINGS:
        if f"joint/score_{pooling}" in case:
            ours = scores(attribution, pooling, "joint")
            case.close(f"joint/score_{pooling}", ours[0])
            _check_masks(case, "joint/top{}_" + pooling, ours, squeeze=True)
    case.exact("class_clean/has_images", attribution.count > 0)
    _check_classes(case, "class_clean", attribution)
    # Literally, the published loop over classes goes on with what it has collected before.
    cumulative = replace(
        attribution,
        sums=attribution.sums.cumsum(0),
        max_sums=attribution.max_sums.cumsum(0),
        count=attribution.count.cumsum(0),
    )
    _check_classes(case, "class_cumulative", cumulative)


def _check_classes(case: Case, prefix: str, attribution: Attribution) -> None:
    """Compare per-class scores; NaN and an empty mask for a class that no image shows."""
    if f"{prefix}/score" not in case:
        return
    shown = attribution.count > 0
    existing = replace(
        attribution,
        new_classes=tuple(torch.tensor(attribution.new_classes)[shown].tolist()),
        sums=attribution.sums[shown],
        count=attribution.count[shown],
        max_sums=attribution.max_sums[shown],
    )
    ours = torch.full(attribution.sums.shape[:2], torch.nan)
    if shown.any():
        ours[shown] = scores(existing, "max_after_mean", "per_class")
    case.close(f"{prefix}/score", ours)
    _check_masks(case, prefix + "/top{}", ours)


def _check_masks(case: Case, name: str, ours: Tensor, squeeze: bool = False) -> None:
    """Compare masks of the best channels, without those that tie with the last one chosen."""
    channels = ours.shape[1]
    for percent, count in case.hyper.get("top_k", {}).items():
        if name.format(percent) not in case:
            continue
        if channel_count(int(percent) / 100, channels) != count:
            raise AssertionError(f"{percent} % of {channels} channels are not {count}")
        shown = ~ours.isnan().any(dim=1)
        mask = torch.zeros_like(ours, dtype=torch.bool)
        mask[shown] = channel_mask(ours[shown], int(percent) / 100)
        last = ours.sort(dim=1, descending=True).values[:, count - 1 : count]
        scale = ours.abs().amax(dim=1, keepdim=True)
        clear = ((ours - last).abs() > TOLERANCE * scale) | ~shown[:, None]
        rows = (mask[0], clear[0]) if squeeze else (mask, clear)
        case.exact(name.format(percent), rows[0], where=rows[1])
