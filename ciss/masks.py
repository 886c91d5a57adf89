"""One mask: its labels, and where it is no mask of its dataset, what may have happened to it.

The usual accidents are told by name: a colour picture of the labels, grey levels of such a picture
in place of labels, a palette in another order, a lossy or scaled format, another release.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from ciss.datasets import Dataset, Kind, get_kind

Counts = npt.NDArray[np.int64]
Colours = npt.NDArray[np.uint8]

#: what is wrong, as headings of a report
NOT_LABELS = "masks that do not hold one 8-bit label a pixel"
UNKNOWN_VALUES = "masks with unknown values"
OTHER_PALETTE = "masks whose palette is in another order than the labels"

#: Pillow stretches grey levels of fewer than 8 bits to 0..255
_STRETCHED = {"L;2": "2-bit", "L;4": "4-bit"}
_MANY = 5


@dataclass(frozen=True)
class MaskRules:
    """What masks of a dataset may hold."""

    kind: str
    occurring: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, dataset: Dataset) -> MaskRules:
        """Return the rules for the masks of ``dataset``."""
        return cls(dataset.kind, dataset.occurring)

    @property
    def described(self) -> Kind:
        """The kind of dataset."""
        return get_kind(self.kind)


@dataclass(frozen=True)
class MaskContent:
    """Size in pixels, pixels of each value (int64[256]), and (heading, detail) of what is wrong."""

    width: int
    height: int
    counts: Counts
    problems: tuple[tuple[str, str], ...]


def read_mask(path: Path, rules: MaskRules) -> MaskContent:
    """Count a mask's values and check them; raises what Pillow does for a file it cannot read."""
    with Image.open(path) as mask:
        width, height = mask.size
        stretched = next((bits for bits in map(_raw_mode, mask.tile) if bits in _STRETCHED), "")
        mask.load()
        wrong = _wrong_format(mask, rules.described, _STRETCHED.get(stretched, ""))
        if wrong:
            nothing = np.zeros(256, dtype=np.int64)
            return MaskContent(width, height, nothing, ((NOT_LABELS, wrong),))
        counts = np.bincount(np.frombuffer(mask.tobytes(), dtype=np.uint8), minlength=256)
        problems = [*_unknown_values(mask, counts, rules), *_other_palette(mask, counts, rules)]
    return MaskContent(width, height, counts, tuple(problems))


def ranges(values: npt.NDArray[np.int64]) -> str:
    """Spell values in ascending order: ``0-20, 255``."""
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def _raw_mode(tile: object) -> str:
    """How a decoder reads the pixels of one of Pillow's tiles."""
    arguments = getattr(tile, "args", "")
    return arguments if isinstance(arguments, str) else str(next(iter(arguments or ()), ""))


def _wrong_format(mask: Image.Image, described: Kind, stretched: str) -> str:
    """Say why a picture cannot hold labels, and what it seems to be; empty where it can."""
    if mask.format == "JPEG":
        return "a JPEG file, whose compression changes labels; save masks as PNG"
    if stretched:
        return f"a {stretched} grey picture, whose values are stretched; save it as 8-bit grey"
    if mask.mode in ("L", "P"):
        return ""
    hint = described.explain(mask.mode, np.empty(0, dtype=np.int64)) or _guess(mask, described)
    return f"mode {mask.mode}: {hint}"


def _guess(mask: Image.Image, described: Kind) -> str:
    if mask.mode == "1":
        return "a 1-bit picture; save it as 8-bit grey with the labels as values"
    if mask.mode.startswith("I"):
        highest = int(np.asarray(mask).max(initial=0))
        if highest < 256:
            return "a 16-bit picture whose values fit 8 bits; save it as 8-bit grey"
        return f"a 16-bit picture with values up to {highest}, perhaps of instances and not classes"
    if mask.mode not in ("RGB", "RGBA", "LA", "PA"):
        return "save it as 8-bit grey or palette PNG"
    alpha = ", with an alpha channel as image editors add it" if "A" in mask.mode else ""
    pixels = np.asarray(mask.convert("RGB")).reshape(-1, 3)
    if (pixels == pixels[:, :1]).all():
        return f"grey levels saved as colours{alpha}; save it as 8-bit grey"
    palette = described.PALETTE
    if palette is not None and np.isin(_packed(np.unique(pixels, axis=0)), _packed(palette)).all():
        return (
            f"labels painted in the data set's palette{alpha}; take the palette PNG it was made "
            "from, or replace each colour by its index"
        )
    return (
        f"colours{alpha}; save one label a pixel as 8-bit grey or palette PNG "
        "(docs/add-a-dataset.md has a script)"
    )


def _unknown_values(
    mask: Image.Image, counts: Counts, rules: MaskRules
) -> Iterator[tuple[str, str]]:
    values = np.flatnonzero(counts)
    unknown = values[~rules.occurring[values]]
    if not len(unknown):
        return
    hint = rules.described.explain(mask.mode, values)
    palette = rules.described.PALETTE
    if not hint and mask.mode == "L" and palette is not None:
        levels = _luminance(palette[rules.occurring])
        if len(values) > 1 and np.isin(values, levels).all():
            hint = "grey levels of the palette's colours: it was decoded to grey, not to labels"
    if not hint and rules.described.CLASSES is None:
        hint = "name them in the data set's setting `classes` or `values`, or in `void`"
    found = ", ".join(f"{value} ({counts[value]} pixels)" for value in unknown[:_MANY])
    more = f" and {len(unknown) - _MANY} more" if len(unknown) > _MANY else ""
    known = ranges(np.flatnonzero(rules.occurring))
    heading = f"{UNKNOWN_VALUES} (known are {known})"
    yield f"{heading}: {hint}" if hint else heading, found + more


def _other_palette(
    mask: Image.Image, counts: Counts, rules: MaskRules
) -> Iterator[tuple[str, str]]:
    """Notice indices whose colours are the labels' own, but of other labels."""
    expected = rules.described.PALETTE
    if expected is None or mask.mode != "P":
        return
    own = np.array(mask.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
    values = np.flatnonzero(counts[: len(own)])
    shown, colours = _packed(own[values]), _packed(expected)
    labels = np.flatnonzero(rules.occurring)
    moved = values[shown != colours[values]]
    if (
        len(moved)
        and len(set(shown.tolist())) == len(shown)
        and np.isin(shown, colours[labels]).all()
    ):
        index = int(moved[0])
        meant = labels[np.flatnonzero(colours[labels] == _packed(own[index : index + 1]))[0]]
        yield OTHER_PALETTE, f"index {index} has the colour of label {meant}"


def _packed(colours: Colours) -> Counts:
    """Turn uint8 [n, 3] into one number a colour."""
    return colours.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])


def _luminance(colours: Colours) -> Counts:
    """Turn uint8 [n, 3] into the grey levels that Pillow makes of them (ITU-R 601-2)."""
    return (colours.astype(np.int64) @ np.array([19595, 38470, 7471]) + 0x8000) >> 16
