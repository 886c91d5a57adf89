"""A finished model as an ONNX file: one graph for every number and size of images.

Its input is what an image library reads, uint8 RGB; normalisation is part of the graph. The head's
image pooling takes windows of the feature map as large as it allows, so that the kernel's size
depends on the image's, which ONNX's pooling operators cannot express: here it is a product with
two matrices that the graph makes of the map's size.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ciss.errors import CissError
from ciss.evaluation import segment
from ciss.files import replacing
from ciss.loading import MEAN, STD, to_network_input
from ciss.models import SegmentationNetwork, upsample
from ciss.models.network import merge_unknown

#: version of ONNX's operators; read by ONNX Runtime from 1.14 on
OPSET = 18
#: largest difference of logits that is rounding: relative to the largest logit
TOLERANCE = 1e-4
#: pixels of which the class may differ: those whose two largest logits are equal but for rounding
_TIES = 1e-3
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class ExportedNetwork(nn.Module):
    """Images, uint8 [B, 3, H, W], to labels, int64 [B, H, W], and logits, float32 [B, N, H, W]."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: SegmentationNetwork) -> None:
        super().__init__()
        self.network = network
        for name, values in (("mean", MEAN), ("std", STD)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Normalise and segment images."""
        normalised = (images.to(torch.float32) / 255 - self.mean) / self.std
        body, _ = self.network.body(normalised)
        head = self.network.head
        features = head.joined(body, window_means(body, head.pooling))
        logits = upsample(self.network.classify(features), images.shape[-2:])
        unknown = self.network.classify_unknown(features)
        if unknown is None:
            return logits.argmax(dim=1), logits
        with_unknown = torch.cat([logits, upsample(unknown, images.shape[-2:])], dim=1)
        return merge_unknown(with_unknown).argmax(dim=1), logits


def window_means(maps: Tensor, window: int) -> Tensor:
    """Average maps [B, C, h, w] over windows as the head does in evaluation, in one graph.

    At the edges the window that lies within the map is taken, over a map smaller than ``window``
    the whole of it.
    """
    rows, columns = (_window_matrix(length, window, maps) for length in maps.shape[2:])
    return rows @ maps @ columns.T


def _window_matrix(length: int, window: int, like: Tensor) -> Tensor:
    """Return [length, length]: in each row, equal shares of the positions of one window."""
    position = torch.arange(length, device=like.device)
    # As tensors, since the exported graph learns the length from the image only.
    count = position[-1] + 1
    size = count.clamp(max=window)
    first = torch.minimum((position - (size - 1) // 2).clamp(min=0), count - size)[:, None]
    inside = (position >= first) & (position < first + size)
    return inside.to(like.dtype) / size


def export(
    network: SegmentationNetwork, classes: Sequence[str], about: Mapping[str, Any], path: Path
) -> str:
    """Write the network as ONNX, after comparing it with the network itself; returns what differed.

    ``classes``: names of the outputs; ``about``: JSON, kept in the file beside them. Raises
    ``CissError`` where the packages of the extra ``export`` are missing, and where the exported
    graph computes something else: then no file is written.
    """
    check_packages()
    network = network.eval()
    batch, height, width = (torch.export.Dim(name) for name in ("batch", "height", "width"))
    example = example_images(network, 2, larger=False)
    with _quiet():
        program = torch.onnx.export(
            ExportedNetwork(network).eval(),
            (example,),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["labels", "logits"],
            dynamic_shapes=({0: batch, 2: height, 3: width},),
        )
    assert program is not None
    entries = {"classes": json.dumps(list(classes)), "ciss": json.dumps(dict(about))}
    program.model.metadata_props.update(entries)
    program.model.doc_string = (
        "images: RGB, 0 to 255. labels: places in classes, background 0. logits: at full size."
    )
    with replacing(path) as temporary:
        program.save(temporary)
        return compare(network, temporary)


def compare(network: SegmentationNetwork, path: Path) -> str:
    """Compare an exported file with the network at two sizes and numbers of images.

    One has a feature map smaller than the head's window, one a larger. Returns a sentence with
    the largest difference; raises ``CissError`` where it is more than rounding.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    said = []
    for count, larger in ((2, False), (1, True)):
        images = example_images(network, count, larger=larger)
        labels, logits = session.run(None, {"images": images.numpy()})
        with torch.inference_mode():
            expected = network(to_network_input(images)).logits.numpy()
            theirs = segment(network, images).numpy()
        scale = max(float(np.abs(expected).max()), 1.0)
        difference = float(np.abs(logits - expected).max()) / scale
        changed = float((labels != theirs).mean())
        size = f"{count} × {images.shape[3]} × {images.shape[2]}"
        if not difference <= TOLERANCE or changed > _TIES:
            raise CissError(
                f"the ONNX graph does not compute what the model does: at {size} pixels logits "
                f"differ by {difference:.1e} of the largest, {100 * changed:.2f} % of the labels; "
                "no file is written. Please report it with the versions of torch and onnxscript"
            )
        said.append(f"{difference:.1e} ({size} pixels, {int((labels != theirs).sum())} labels)")
    return f"largest difference of logits, relative to the largest: {', '.join(said)}"


def example_images(network: SegmentationNetwork, count: int, *, larger: bool) -> Tensor:
    """Random images, uint8 [count, 3, H, W], not square; ``larger`` than the head's window or not.

    Neither side is a multiple of the output stride.
    """
    stride, window = network.config.output_stride, network.config.pooling
    positions = (window + 2, window + 5) if larger else (max(window // 4, 2), max(window // 3, 3))
    generator = torch.Generator().manual_seed(0)
    size = [stride * n - 3 for n in positions]
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=generator)


def check_packages() -> None:
    """Raise ``CissError`` where a package that exporting needs is missing."""
    missing = []
    for name in _PACKAGES:
        try:
            __import__(name)
        except ImportError:
            missing.append(name)
    if missing:
        raise CissError(
            f"exporting needs {', '.join(missing)}, which is not installed here; install the extra "
            "`export`: pip install -c constraints.txt '.[export]'"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's notes on its own internals to itself."""
    before = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)
