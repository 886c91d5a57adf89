"""Image and mask files as arrays, and resizing that gives Pillow's very pixels, faster.

JPEG files are decoded by simplejpeg where it is installed and by Pillow where it is not; both use
libjpeg-turbo in its accurate mode and give the same pixels, so the choice is no part of a result.
"""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image

from ciss.errors import CissError

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

Pixels = npt.NDArray[np.uint8]

_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
#: bits, colour type (grey, palette), compression, filter method, interlacing
_PLAIN = ((8, 0, 0, 0, 0), (8, 3, 0, 0, 0))
#: what simplejpeg turns into RGB as Pillow does; the rest (CMYK, YCCK) is left to Pillow
_COLOURSPACES = ("YCbCr", "Gray")
#: side of a crop above which weights of enlargement no longer fit torch's 15 bits
_LARGEST_EXACT = 2**13


def read_pair(root: Path, pair: tuple[str, str]) -> tuple[Pixels, Pixels]:
    """Return an image, uint8 [H, W, 3], and its mask's raw values, uint8 [H, W].

    Raises ``CissError`` with the file's name where one cannot be read or their sizes differ.
    """
    image, mask = read_image(root / pair[0]), read_mask(root / pair[1])
    if image.shape[:2] != mask.shape:
        sizes = [f"{array.shape[1]} × {array.shape[0]}" for array in (image, mask)]
        raise CissError(
            f"cannot use {root / pair[1]}: its size is {sizes[1]}, its image's {sizes[0]}; "
            + _CHANGED
        )
    return image, mask


def read_image(path: Path) -> Pixels:
    """Decode an image file to RGB, uint8 [H, W, 3]; ``CissError`` where it cannot be read."""
    content = _content(path)
    if simplejpeg is not None and content.startswith(_JPEG):
        try:
            if simplejpeg.decode_jpeg_header(content)[2] in _COLOURSPACES:
                pixels: Pixels = simplejpeg.decode_jpeg(content, "RGB")
                return pixels
        except ValueError:
            pass  # Pillow reads a few files more, and says what is wrong with the others
    image = _decode(path, content)
    # Copied, as Pillow's own array is read-only, which PyTorch warns of.
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def read_mask(path: Path) -> Pixels:
    """Decode a mask to its raw values, uint8 [H, W]; ``CissError`` where it cannot be read."""
    content = _content(path)
    values = _plain_png(content)
    # Not converted: a palette's indices are the labels.
    return np.asarray(_decode(path, content)) if values is None else values


def resize(pixels: Pixels, size: int, flip: bool = False) -> Pixels:
    """Resize uint8 [H, W, 3] to [size, size, 3] as Pillow's antialiased ``BILINEAR`` does, exactly.

    Both resize one axis after the other, rounding in between. PyTorch is several times faster,
    but holds weights in 15 bits: that is exact only where an axis is enlarged to a power of two,
    whose weights are multiples of 1 / (2 · size). Other axes are left to Pillow, which, as here,
    reduces one axis before it enlarges the other. ``flip`` mirrors the result.
    """
    height, width = pixels.shape[:2]
    if not _exact(width, size):
        if not _exact(height, size):
            return _pillow(pixels, size, size, flip)
        return _enlarge(_pillow(pixels, height, size, flip), size, size)
    # Exact weights are symmetric: the few pixels can be mirrored in place of the many.
    if flip:
        pixels = pixels.take(np.arange(width - 1, -1, -1), axis=1)
    if not _exact(height, size):
        pixels = _pillow(pixels, size, width)
    return _enlarge(pixels, size, size)


def resize_nearest(values: Pixels, size: int, flip: bool = False) -> Pixels:
    """Resize uint8 [H, W] to [size, size] as Pillow's ``NEAREST`` does; ``flip`` mirrors it."""
    rows, columns = (_nearest(length, size) for length in values.shape)
    if flip:
        columns = columns[::-1]
    resized: Pixels = values.take(columns, axis=1).take(rows, axis=0)
    return resized


def _nearest(length: int, size: int) -> npt.NDArray[np.intp]:
    """Return which of ``length`` pixels each of ``size`` takes.

    The places are summed up one by one, as Pillow does: rounding would differ elsewise.
    """
    places = np.full(size, length / size)
    places[0] *= 0.5
    return places.cumsum().astype(np.intp)


def _exact(length: int, size: int) -> bool:
    return length <= size <= _LARGEST_EXACT and size & (size - 1) == 0


def _enlarge(pixels: Pixels, height: int, width: int) -> Pixels:
    # Channels last in memory, as the pixels lie: only then is PyTorch's kernel the fast one. A
    # cut-out would be copied by PyTorch's threads, of which each worker would get its own, and of
    # an array that cannot be written, as a cache's, PyTorch warns.
    image = torch.from_numpy(np.require(pixels, requirements=("C", "W")))[None].permute(0, 3, 1, 2)
    resized = F.interpolate(image, (height, width), mode="bilinear", antialias=True)
    array: Pixels = resized[0].permute(1, 2, 0).numpy()
    return array


def _pillow(pixels: Pixels, height: int, width: int, flip: bool = False) -> Pixels:
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
    if flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.array(image)


def _plain_png(content: bytes) -> Pixels | None:
    """Decode an 8-bit grey or palette PNG whose rows are not filtered; return ``None`` for others.

    Masks mostly are: they need no more than to be inflated, half of what Pillow spends on them.
    The pixels' own checksum is looked at; what is damaged is left to Pillow, to say so.
    """
    try:
        if content[:8] != _PNG or struct.unpack_from(">BBBBB", content, 24) not in _PLAIN:
            return None
        width, height = struct.unpack_from(">II", content, 16)
        place, parts = 8, []
        while (chunk := struct.unpack_from(">I4s", content, place))[1] != b"IEND":
            if chunk[1] == b"IDAT":
                parts.append(content[place + 8 : place + 8 + chunk[0]])
            place += 12 + chunk[0]
        pixels = b"".join(parts)
        # Each row begins with the number of its filter; the first mostly tells what the others are.
        if zlib.decompressobj().decompress(pixels, 1) != b"\0":
            return None
        rows = np.frombuffer(zlib.decompress(pixels), np.uint8).reshape(height, width + 1)
    except (struct.error, zlib.error, ValueError):
        return None
    return None if rows[:, 0].any() else rows[:, 1:]


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error


def _decode(path: Path, content: bytes) -> Image.Image:
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            return image
    except Exception as error:  # Pillow's decoders raise many kinds on damaged files
        raise _unreadable(path, error) from error


_CHANGED = (
    "it has changed or was damaged since the dataset was indexed: restore it, or delete the index "
    "to have everything checked again"
)


def _unreadable(path: Path, error: Exception) -> CissError:
    reason = getattr(error, "strerror", None) or error
    if isinstance(error, Image.UnidentifiedImageError):
        reason = "not an image that can be read"
    return CissError(f"cannot read {path}: {reason}; {_CHANGED}")
