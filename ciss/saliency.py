"""Which background pixels may belong to a class yet to come: those of salient objects.

The salient objects come from a folder of maps that somebody's detector made, or from the spectral
residual (Hou & Zhang, Saliency Detection: A Spectral Residual Approach, CVPR 2007): an image's log
amplitude spectrum is smooth but for what is particular to the image. What is left of it when its
local average is taken away, transformed back with the image's phase, is large where something
stands out. ``TrainingImages`` labels what is found ``UNKNOWN`` before it crops and flips.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from ciss.datasets.base import BUILTIN, NONE
from ciss.errors import CissError
from ciss.images import Pixels, read_mask

#: constants of the authors' own program: the image is looked at in 64 × 64 pixels, the spectrum's
#: average is over 3 × 3 frequencies, and a Gaussian of this deviation smooths the map
SIZE = 64
AVERAGED = 3
SIGMA = 2.5
#: against amplitudes of 0, that is images of one colour
_TINY = 1e-6

Mask = npt.NDArray[np.bool_]
#: (top, left, height, width) in pixels
Box = tuple[int, int, int, int]


class Saliency(Protocol):
    """Whatever says where an image has salient objects."""

    def __call__(self, image: Pixels, name: str, box: Box) -> Mask:
        """Return bool [height, width] for the ``box`` of an image, uint8 [H, W, 3].

        ``name`` is the image's path relative to the data set's root.
        """


def saliency(source: str, threshold: float) -> Saliency:
    """Return what the option ``saliency`` asks for: ``builtin``, ``none`` or a folder of maps."""
    if source == BUILTIN:
        return SpectralResidual(threshold)
    return everywhere if source == NONE else Maps(Path(source).expanduser())


def everywhere(image: Pixels, name: str, box: Box) -> Mask:
    """Take all of the background for unknown, as SSUL does on ADE20K."""
    return np.ones(box[2:], dtype=np.bool_)


class SpectralResidual:
    """Salient is what exceeds ``threshold`` times the mean of the spectral residual's map.

    A training reads an image dozens of times: its map is kept, in 512 bytes.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._kept: dict[str, Pixels] = {}

    def __call__(self, image: Pixels, name: str, box: Box) -> Mask:
        """See ``Saliency``."""
        packed = self._kept.get(name)
        if packed is None:
            found = spectral_residual(image)
            packed = np.packbits(found > self.threshold * found.mean())
            self._kept[name] = packed
        small = np.unpackbits(packed).view(np.bool_).reshape(SIZE, SIZE)
        top, left, height, width = box
        rows = np.arange(top, top + height) * SIZE // image.shape[0]
        columns = np.arange(left, left + width) * SIZE // image.shape[1]
        mask: Mask = small.take(columns, axis=1).take(rows, axis=0)
        return mask


def spectral_residual(image: Pixels) -> npt.NDArray[np.float64]:
    """Return the saliency map of an image, uint8 [H, W, 3]: float64 [64, 64], from 0 on."""
    # The workflow, which only asks what the options mean, starts without it.
    from scipy.ndimage import gaussian_filter, uniform_filter

    reduction = max(min(image.shape[:2]) // (2 * SIZE), 1)
    small = Image.fromarray(image).reduce(reduction).convert("L")
    grey = np.asarray(small.resize((SIZE, SIZE), Image.Resampling.BILINEAR), dtype=np.float64)
    spectrum = np.fft.fft2(grey)
    amplitude = np.abs(spectrum) + _TINY
    logarithm = np.log(amplitude)
    residual = logarithm - uniform_filter(logarithm, AVERAGED, mode="wrap")
    power = np.abs(np.fft.ifft2(spectrum / amplitude * np.exp(residual))) ** 2
    smooth: npt.NDArray[np.float64] = gaussian_filter(power, SIGMA)
    return smooth


class Maps:
    """Maps in a folder, ``NAME.png`` of the image's size for ``…/NAME.jpg``; salient is not 0."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, image: Pixels, name: str, box: Box) -> Mask:
        """See ``Saliency``; ``CissError`` for a map that is missing or of another size."""
        path = self.path(name)
        values = read_mask(path)
        if values.shape != image.shape[:2]:
            raise CissError(
                f"cannot use the saliency map {path}: it is {values.shape[1]} × {values.shape[0]} "
                f"pixels, its image {image.shape[1]} × {image.shape[0]}"
            )
        top, left, height, width = box
        mask: Mask = values[top : top + height, left : left + width] != 0
        return mask

    def path(self, name: str) -> Path:
        """The file of an image's map."""
        return self.folder / f"{Path(name).stem}.png"

    def check(self, names: Iterable[str]) -> None:
        """Raise ``CissError`` with all that is missing, before anything is trained."""
        absent = [path for path in map(self.path, names) if not path.is_file()]
        if absent:
            shown = ", ".join(map(str, absent[:3]))
            raise CissError(
                f"{len(absent)} saliency maps are missing, such as {shown}: every training image "
                "NAME.jpg needs NAME.png in the folder; or set the method's option saliency to "
                f"{BUILTIN} or {NONE}"
            )
