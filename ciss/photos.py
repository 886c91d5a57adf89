"""Images of a user's own: which there are in a folder, and how they look to a viewer.

Imports no torch: the workflow lists them too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ciss.datasets.folders import IMAGE_SUFFIXES
from ciss.errors import CissError

Pixels = npt.NDArray[np.uint8]

#: EXIF orientations under which width and height are exchanged
_LYING = (5, 6, 7, 8)


class UnreadableError(Exception):
    """One image cannot be segmented; the message says why, the others go on."""


class Photo(NamedTuple):
    """An image to segment, and what its files are called."""

    path: Path
    #: relative to the folder of images, as it is listed
    name: str
    #: relative to the folders of masks and overlays, without a suffix
    stem: str
    #: as it is viewed, in pixels
    width: int
    height: int


def find_images(images: Path, output: Path) -> tuple[list[str], list[str]]:
    """List the images in a folder and the folders in it, or one image: relative, sorted.

    Also returns which other files there are. Hidden files and ``output`` are left out; links to
    folders are not followed. Raises ``CissError`` where there is no image.
    """
    if images.is_file():
        return [images.name], []
    if not images.is_dir():
        raise CissError(f"there is no folder {images}; set images to a folder of images, or to one")
    found: list[str] = []
    others: list[str] = []
    for folder, inner, names in os.walk(images):
        kept = [name for name in inner if not name.startswith(".")]
        inner[:] = [name for name in kept if (Path(folder) / name).resolve() != output.resolve()]
        for name in names:
            if not name.startswith("."):
                relative = (Path(folder) / name).relative_to(images).as_posix()
                is_image = PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES
                (found if is_image else others).append(relative)
    if not found:
        raise CissError(f"{images} holds no image; known are files {', '.join(IMAGE_SUFFIXES)}")
    return sorted(found), sorted(others)


def stems(names: Sequence[str]) -> list[str]:
    """Return what the masks of images are called, without ``.png``: distinct, whatever the names.

    ``b/a.jpg`` makes ``b/a``; where ``b/a.png`` is there too, both keep their suffix.
    """
    whole: set[str] = set()
    while True:
        made = [n if n in whole else str(PurePosixPath(n).with_suffix("")) for n in names]
        # Some file systems take A and a for one.
        users: dict[str, list[str]] = {}
        for name, stem in zip(names, made, strict=True):
            users.setdefault(stem.casefold(), []).append(name)
        clashing = {name for same in users.values() if len(same) > 1 for name in same}
        if clashing <= whole:
            return made
        whole |= clashing


def read_photo(path: Path) -> Pixels:
    """Decode an image as it is viewed, to RGB, uint8 [H, W, 3].

    Of 16-bit images the upper 8 bits count; what is transparent is white. Raises
    ``UnreadableError``.
    """
    with _opened(path) as image:
        try:
            turned = ImageOps.exif_transpose(image)
        except Exception as error:  # Pillow's decoders raise many kinds on damaged files
            raise UnreadableError(f"cannot be read ({error})") from error
        if turned.mode.startswith("I;16"):
            turned = Image.fromarray((np.asarray(turned) >> 8).astype(np.uint8))
        elif turned.mode in ("I", "F"):
            raise UnreadableError(
                "has pixels of 32 bits, whose range is not known; save it with 8 or 16"
            )
        if turned.has_transparency_data:
            shown = turned.convert("RGBA")
            turned = Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown)
        return np.array(turned.convert("RGB"))


def _opened(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except UnidentifiedImageError:
        raise UnreadableError("is not an image that can be read") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UnreadableError(f"cannot be read ({error})") from None


def viewed_size(path: Path) -> tuple[int, int]:
    """Return width and height of an image as it is viewed, from its header."""
    with _opened(path) as image:
        try:
            lying = image.getexif().get(ExifTags.Base.Orientation) in _LYING
        except Exception:  # a damaged header: turned or not, decoding will say
            lying = False
        return (image.height, image.width) if lying else (image.width, image.height)


def look_at(images: Path, names: Sequence[str], failed: Callable[[str, str], None]) -> list[Photo]:
    """Look at the header of each image; ``failed`` is told name and reason of those left out."""
    found = []
    for name, stem in zip(names, stems(names), strict=True):
        path = images if images.is_file() else images / name
        try:
            name.encode()
            found.append(Photo(path, name, stem, *viewed_size(path)))
        except UnicodeEncodeError:
            failed(ascii(name), "has a name that is not UTF-8; rename it")
        except UnreadableError as error:
            failed(name, str(error))
    return found
