"""ImageNet weights for the encoder: where they are published, and reading those formats."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ciss.download import RECORD, Remote, digests_of, recorded
from ciss.errors import CissError
from ciss.models.network import SegmentationNetwork
from ciss.models.normalisation import EPS, absolute_scale, norm_weights, signed_scale

_CLASSIFIER = re.compile(r"(fc|classifier)\.")
_COUNTER = "num_batches_tracked"
_TORCHVISION_BLOCK = re.compile(r"layer(\d)\.(\d+)\.(.+)")
_OBJECT = re.compile(r"GLOBAL (\S+)")

_TORCHVISION_URL = "https://download.pytorch.org/models"
_REMOTES = {
    # inplace-abn's weights as PLOP's authors pass them on; AWT's instructions name this file.
    # Nobody states a checksum of it.
    ("published", "resnet101"): Remote(
        "resnet101_iabn_sync.pth.tar",
        (
            "https://github.com/arthurdouillard/CVPR2021_PLOP/releases/download/v1.0/"
            "resnet101_iabn_sync.pth.tar",
        ),
    ),
    # torchvision's default weights; their names end in the first digits of their SHA-256.
    **{
        ("torchvision", backbone): Remote(
            f"{backbone}-{digest}.pth",
            (f"{_TORCHVISION_URL}/{backbone}-{digest}.pth",),
            {"sha256": digest},
        )
        for backbone, digest in {
            "resnet18": "f37072fd",
            "resnet34": "b627a593",
            "resnet50": "11ad3fa6",
            "resnet101": "cd907fc2",
        }.items()
    },
}


def remote_weights(source: str, backbone: str) -> Remote:
    """Return where the weights ``published`` or ``torchvision`` of a backbone are.

    Raises ``CissError`` where there are none.
    """
    if (source, backbone) not in _REMOTES:
        raise CissError(
            f"there are no {source} weights of {backbone}; set model.weights to torchvision (with "
            "model.norm: bn), to scratch or to a file"
        )
    return _REMOTES[source, backbone]


@dataclass(frozen=True)
class Loaded:
    """What ``load_imagenet`` found: whose names the file uses, and the tensors it left aside.

    As text it is a report of a few lines.
    """

    path: Path
    sha256: str
    #: ``inplace-abn`` or ``torchvision``
    names: str
    #: names of encoder tensors that were set
    loaded: tuple[str, ...]
    #: names in the file that the encoder does not have, its ImageNet classifier included
    unexpected: tuple[str, ...]
    #: names of encoder tensors that the file lacks: counters, which nothing reads
    missing: tuple[str, ...]
    #: what became of the batch norms' scales, "" where they were taken as they are
    scales: str = ""

    def __str__(self) -> str:
        lines = [
            f"ImageNet weights {self.path}: {len(self.loaded)} tensors of the encoder are set, by "
            f"{self.names}'s names",
            f"  sha256: {self.sha256}",
        ]
        classifier = [name for name in self.unexpected if _CLASSIFIER.match(name)]
        strange = [name for name in self.unexpected if name not in classifier]
        if self.scales:
            lines.append(f"  scales: {self.scales}")
        if classifier:
            lines.append(f"  left aside, the classifier of ImageNet: {', '.join(classifier)}")
        if strange:
            lines.append(f"  UNEXPECTED in the file, and left aside: {_some(strange)}")
        if self.missing:
            lines.append(
                f"  missing in the file: {len(self.missing)} counters {_COUNTER}, which nothing "
                "reads"
            )
        return "\n".join(lines)


def _some(names: Sequence[str], most: int = 10) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def load_imagenet(network: SegmentationNetwork, path: Path | str) -> Loaded:
    """Set the encoder of ``network`` to the weights in ``path``, in place.

    Reads PyTorch files (without executing pickled code) and safetensors, of inplace-abn's names
    (``resnet101_iabn_sync.pth.tar``: ``module.mod1.conv1.weight``) or torchvision's
    (``layer1.0.conv1.weight``, also timm's). The former's scales count as |w| + ε, the latter's as
    they are; where the network's normalisation differs they are converted.

    Raises ``CissError`` when the file is absent, unreadable or another than was fetched to its
    place, does not cover the encoder, is of another depth, or holds negative scales and the
    network's normalisation is not ``bn``.
    """
    found, norm = _read(Path(path))
    digest = _as_fetched(Path(path))
    torchvision = any(name.startswith("layer1.") for name in found)
    names = {name: _from_torchvision(name) if torchvision else name for name in found}
    norm = norm or ("bn" if torchvision else "abn")

    body = network.body.state_dict()
    given = {names[name]: value for name, value in found.items() if names[name] in body}
    missing = [name for name in body if name not in given]
    unexpected = [name for name in found if names[name] not in body]
    uncovered = [name for name in missing if not name.endswith(_COUNTER)]
    backbone = f"backbone {network.config.backbone} of width {network.config.width}"
    if uncovered:
        raise CissError(
            f"{path} does not cover the encoder ({backbone}): of its {len(body)} tensors "
            f"{len(uncovered)} are missing in the file: {_some(uncovered, 3)}; the file has "
            f"{len(unexpected)} others: {_some(unexpected, 3) or 'none'}. Give weights of this "
            "backbone"
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
    scales = ""
    if (norm == "bn") != (network.config.norm == "bn"):
        for name in norm_weights(network.body):
            scale = given[name].float()
            given[name] = signed_scale(scale) if norm != "bn" else absolute_scale(scale, name)
        scales = f"converted from norm {norm} to {network.config.norm}, |weight| + {EPS:g} " + (
            "taken as the weight" if norm != "bn" else "being the weight"
        )
    network.body.load_state_dict(given, strict=False)
    return Loaded(
        Path(path),
        digest,
        "torchvision" if torchvision else "inplace-abn",
        tuple(given),
        tuple(unexpected),
        tuple(missing),
        scales,
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
            with torch.serialization.safe_globals(_numbers()):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except (
        SafetensorError,
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        KeyError,
    ) as error:
        stranger = _OBJECT.search(str(error))
        if stranger:
            raise CissError(
                f"ImageNet weights {path} hold a Python object, {stranger[1]}, beside tensors; "
                "it is not loaded, as it could run code: fetch the file from its publisher again, "
                "or save its tensors alone, as safetensors"
            ) from None
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


def _as_fetched(path: Path) -> str:
    """Return a file's SHA-256 after comparing it with the one noted when it was fetched, if any."""
    digest = digests_of(path)["sha256"]
    if recorded(path) not in (None, digest):
        raise CissError(
            f"{path} is not the file that was fetched: its sha256 is {digest}, "
            f"{path.with_name(RECORD)} notes {recorded(path)}; delete the file to have it fetched "
            "again, or take its line out of the note if you exchanged it"
        )
    return digest


def _numbers() -> list[Any]:
    """What NumPy's numbers are pickled as, which training scripts like to save with the weights.

    They are as harmless as tensors; NumPy 2 renamed their module.
    """
    scalar = np.float64(0).__reduce__()[0]
    types: list[type[np.generic]] = [np.float64, np.float32, np.int64, np.int32, np.bool_]
    modules = ("numpy.core.multiarray", "numpy._core.multiarray")
    return [
        *((scalar, f"{module}.scalar") for module in modules),
        np.dtype,
        *(type(np.dtype(kind)) for kind in types),
    ]


def _own_norm(metadata: Mapping[str, str]) -> str | None:
    """Normalisation of a checkpoint of this project, ``None`` for any other file."""
    try:
        return str(json.loads(metadata["ciss"])["content"]["network"]["config"]["norm"])
    except (KeyError, TypeError, ValueError):
        return None
