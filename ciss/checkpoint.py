"""Tensors in safetensors files, with what they are in the header.

The header's one entry, ``ciss``, is JSON: kind of content, format version, a SHA-256 of the tensors
and the caller's metadata. One entry, because safetensors writes several in random order, and equal
contents shall be equal files.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shlex
import textwrap
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ciss.errors import CissError
from ciss.files import replacing
from ciss.models.network import SegmentationNetwork

FORMAT_VERSION = 1
#: characters of a reason that are shown
_LONGEST = 200


def save_model(path: Path | str, network: SegmentationNetwork, metadata: Mapping[str, Any]) -> None:
    """Write the network's weights, whole or not at all; ``metadata`` must be JSON.

    Raises ``CissError`` when a weight is not finite: a diverged model is not passed on.
    """
    state = network.state_dict()
    _check_finite(path, state)
    content = {"network": network.shape, "metadata": dict(metadata)}
    save_tensors(path, state, content, kind="model")


def load_model(
    path: Path | str, *, plain: bool = False
) -> tuple[SegmentationNetwork, dict[str, Any]]:
    """Read a network, on the CPU and in evaluation mode, and the metadata it was saved with.

    ``plain`` reads weights of ``iabn`` into ``abn``: the same values, without the package.
    Raises ``CissError`` when the file is absent, damaged, of another kind or format version, or
    holds other weights than its header says.
    """
    state, content = load_tensors(path, kind="model")
    try:
        shape = content["network"]
        if plain and shape["config"].get("norm") == "iabn":
            shape = {**shape, "config": {**shape["config"], "norm": "abn"}}
        # Weights on the meta device cost neither time nor random numbers before they are replaced.
        with torch.device("meta"):
            network = SegmentationNetwork.of_shape(shape)
        network.load_state_dict(state, assign=True)
        metadata = dict(content["metadata"])
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, CissError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        # PyTorch lists every tensor that does not fit, one a line.
        reason = textwrap.shorten(reason, _LONGEST, placeholder=" …")
        raise CissError(
            f"{path} does not hold the network that its header names: {reason}; {_again(path)}"
        ) from None
    return network.eval(), metadata


def save_tensors(
    path: Path | str,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, Any],
    kind: str = "tensors",
) -> None:
    """Write named tensors of any dtype and device, whole or not at all; ``metadata`` is JSON.

    Raises ``CissError`` where the file cannot be written, a full disk for example.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    header = {
        "kind": kind,
        "version": FORMAT_VERSION,
        "sha256": _checksum(tensors),
        "content": dict(metadata),
    }
    try:
        with replacing(path) as temporary:
            save_file(tensors, temporary, {"ciss": json.dumps(header, sort_keys=True)})
    except (SafetensorError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CissError(
            f"cannot write {path} ({reason}); make room or choose another results folder"
        ) from None


def load_tensors(
    path: Path | str, kind: str = "tensors", names: Collection[str] = ()
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what ``save_tensors`` wrote, on the CPU: the tensors and the metadata.

    Raises ``CissError`` when the file is absent, damaged, a pickle, or of another kind or format
    version, lacks a tensor of ``names``, or has values that are not finite.
    """
    with _opened(path) as file:
        header = _header(path, file.metadata() or {}, kind)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if _checksum(tensors) != header["sha256"]:
        raise CissError(f"{path} is damaged: its checksum differs; {_again(path)}")
    absent = sorted({*names} - tensors.keys())
    if absent:
        raise CissError(f"{path} lacks {', '.join(absent)}; {_again(path)}")
    _check_finite(path, tensors)
    return tensors, header["content"]


def header_of(path: Path | str) -> tuple[str, dict[str, Any]]:
    """Read the SHA-256 of a file's tensors and its metadata from the header alone.

    Raises ``CissError`` as ``load_tensors`` does for what the header shows.
    """
    with _opened(path) as file:
        header = _header(path, file.metadata() or {}, None)
    return header["sha256"], header["content"]


@contextmanager
def _opened(path: Path | str) -> Iterator[Any]:
    if Path(path).is_dir():
        raise CissError(f"{path} is a folder; give the safetensors file in it")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except FileNotFoundError:
        raise CissError(
            f"{path} does not exist; check the path, or make it first: snakemake with an "
            "experiment's name makes all that the experiment needs"
        ) from None
    except SafetensorError as error:
        # Not before: a header's length may begin with the bytes of a pickle.
        _refuse_pickle(path)
        raise CissError(
            f"{path} is damaged or not a safetensors file ({error}); {_again(path)}"
        ) from None
    except OSError as error:
        # The file may be whole: nothing is said of deleting it.
        raise CissError(
            f"{path} cannot be read ({error.strerror or error}); look at its permissions and at "
            "the disk, then start again"
        ) from None


def _refuse_pickle(path: Path | str) -> None:
    """Say of a file as PyTorch writes it what it is: else it would be called damaged."""
    try:
        with Path(path).open("rb") as file:
            start = file.read(9)
    except OSError:  # told by who opens it next
        return
    # A header of 640 bytes, and others, has a length that looks like the start of a pickle.
    if start[8:] == b"{":
        return
    # A pickle of any protocol in use, or the zip archive that torch.save packs it in.
    if re.match(rb"PK\x03\x04|\x80[\x02-\x05]", start):
        raise CissError(
            f"{path} is a file of PyTorch (a pickle), which can run code when it is read and is "
            "not opened here; give a model.safetensors of this pipeline (for weights of others to "
            "start from there is model.weights, docs/data.md)"
        )


def _again(path: Path | str) -> str:
    if Path(path).suffix != ".safetensors":  # perhaps something else that is dear to somebody
        return "check which file was meant"
    return (
        "delete it and start the same command again, which makes it and what follows from it anew: "
        f"rm {shlex.quote(str(path))}"
    )


def _header(path: Path | str, entries: Mapping[str, str], kind: str | None) -> dict[str, Any]:
    """Read a header; ``kind`` of content is expected, any where it is ``None``."""
    try:
        header: dict[str, Any] = json.loads(entries["ciss"])
        found, version = header["kind"], int(header["version"])
        _ = header["sha256"], header["content"]
    except (KeyError, TypeError, ValueError):
        raise CissError(
            f"{path} was not written by this project: its header is missing; give a file that "
            "train.py or another of its scripts wrote"
        ) from None
    if version != FORMAT_VERSION:
        remedy = "update this code, which is older" if version > FORMAT_VERSION else _again(path)
        raise CissError(
            f"{path} has format version {version}, this code reads {FORMAT_VERSION}; {remedy}"
        )
    if kind not in (None, found):
        raise CissError(f"{path} holds '{found}', not '{kind}'; check which file was meant")
    return header


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _check_finite(path: Path | str, tensors: Mapping[str, Tensor]) -> None:
    for name, value in tensors.items():
        # A sum is not finite where a value is not, and takes a tenth of the time.
        suspect = value.is_floating_point() and not math.isfinite(value.sum())
        if suspect and not bool(torch.isfinite(value).all()):
            raise CissError(
                f"{path}: {name} has values that are not finite; the training diverged: lower the "
                "learning rate, or set recipe.precision to fp32"
            )
