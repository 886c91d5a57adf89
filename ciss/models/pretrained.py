"""ImageNet weights for the encoder, from files in the formats that are published."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ciss.errors import CissError
from ciss.models.network import SegmentationNetwork
from ciss.models.normalisation import absolute_scale, norm_weights, signed_scale

_CLASSIFIER = re.compile(r"(fc|classifier)\.")
_TORCHVISION_BLOCK = re.compile(r"layer(\d)\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Loaded:
    """What ``load_imagenet`` found: whose names the file uses, and the tensors it left aside."""

    #: ``inplace-abn`` or ``torchvision``
    names: str
    #: names of encoder tensors that were set
    loaded: tuple[str, ...]
    #: names in the file that the encoder does not have, its ImageNet classifier included
    unexpected: tuple[str, ...]
    #: names of encoder tensors that the file lacks: counters, which nothing reads
    missing: tuple[str, ...]


def load_imagenet(network: SegmentationNetwork, path: Path | str) -> Loaded:
    """Set the encoder of ``network`` to the weights in ``path``, in place.

    Reads PyTorch files (without executing pickled code) and safetensors, of inplace-abn's names
    (``resnet101_iabn_sync.pth.tar``: ``module.mod1.conv1.weight``) or torchvision's
    (``layer1.0.conv1.weight``, also timm's). The former's scales count as |w| + ε, the latter's as
    they are; where the network's normalisation differs they are converted.

    Raises ``CissError`` when the file is absent or unreadable, does not cover the encoder, is of
    another depth, or holds negative scales and the network's normalisation is not ``bn``.
    """
    found, norm = _read(Path(path))
    torchvision = any(name.startswith("layer1.") for name in found)
    names = {name: _from_torchvision(name) if torchvision else name for name in found}
    norm = norm or ("bn" if torchvision else "abn")

    body = network.body.state_dict()
    given = {names[name]: value for name, value in found.items() if names[name] in body}
    missing = [name for name in body if name not in given]
    unexpected = [name for name in found if names[name] not in body]
    uncovered = [name for name in missing if not name.endswith("num_batches_tracked")]
    backbone = f"backbone {network.config.backbone} of width {network.config.width}"
    if uncovered:
        raise CissError(
            f"{path} does not cover the encoder ({backbone}): {len(uncovered)} of {len(body)} "
            f"tensors are missing, {uncovered[0]} first; give weights of this backbone"
        )
    deeper = [name for name in unexpected if re.match(r"mod\d\.", names[name])]
    if deeper:
        raise CissError(
            f"{path} has tensors that the encoder ({backbone}) lacks, {deeper[0]} first; "
            "these weights are of another backbone"
        )
    for name, value in given.items():
        if value.shape != body[name].shape:
            raise CissError(
                f"{path}: {name} is of shape {tuple(value.shape)}, the encoder ({backbone}) has "
                f"{tuple(body[name].shape)}; these weights are of another backbone"
            )
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CissError(f"{path}: {name} has values that are not finite; fetch the file again")
    if (norm == "bn") != (network.config.norm == "bn"):
        for name in norm_weights(network.body):
            scale = given[name].float()
            given[name] = signed_scale(scale) if norm != "bn" else absolute_scale(scale, name)
    network.body.load_state_dict(given, strict=False)
    return Loaded(
        "torchvision" if torchvision else "inplace-abn",
        tuple(given),
        tuple(unexpected),
        tuple(missing),
    )


def _from_torchvision(name: str) -> str:
    """Translate ``layer1.0.conv1.weight`` to ``mod2.block1.convs.conv1.weight``, and so on."""
    if _CLASSIFIER.match(name):
        return name
    match = _TORCHVISION_BLOCK.fullmatch(name)
    if match is None:
        return f"mod1.{name}"
    stage, block, rest = int(match[1]), int(match[2]), match[3]
    rest = rest.replace("downsample.0.", "proj_conv.").replace("downsample.1.", "proj_bn.")
    inner = rest if rest.startswith("proj_") else f"convs.{rest}"
    return f"mod{stage + 1}.block{block + 1}.{inner}"


def _read(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """Tensors by their plain names, and the normalisation if the file says it."""
    if not path.is_file():
        raise CissError(f"ImageNet weights {path} do not exist; fetch them or name another file")
    content: Any
    norm = None
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt", device="cpu") as file:
                content = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                norm = _own_norm(file.metadata() or {})
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CissError(
            f"ImageNet weights {path} cannot be read ({reason}); fetch the file again"
        ) from None
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise CissError(f"ImageNet weights {path} hold a {type(content).__name__}, not tensors")
    plain = {
        str(name).removeprefix("module.").removeprefix("body."): value
        for name, value in content.items()
        if isinstance(value, Tensor)
    }
    return plain, norm


def _own_norm(metadata: Mapping[str, str]) -> str | None:
    """Normalisation of a checkpoint of this project, ``None`` for any other file."""
    try:
        return str(json.loads(metadata["ciss"])["content"]["network"]["config"]["norm"])
    except (KeyError, TypeError, ValueError):
        return None
