"""Synthetic images in VOC's layout: textured shapes on a textured ground, drawn from a seed.

They let the whole pipeline run on a CPU within minutes. The first ten classes differ in colour
and shape; each of the last ten takes its colour from one of the first and its shape from another,
and is told apart by its texture. All classes occur in all images, so that what a step does not
label is there nevertheless: forgetting and background shift are real.
"""

from __future__ import annotations

import glob
import json
import shutil
import tempfile
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from ciss.datasets import voc
from ciss.datasets.base import VOID
from ciss.errors import CissError
from ciss.processes import in_processes

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

#: name -> hue in degrees
_COLOURS = {
    "red": 0,
    "orange": 28,
    "yellow": 56,
    "lime": 88,
    "green": 130,
    "teal": 172,
    "azure": 204,
    "blue": 236,
    "violet": 278,
    "pink": 320,
}

#: name -> whether a point belongs to the shape; u, v in the shape's frame, within the unit disc
_SHAPES: dict[str, Callable[[Floats, Floats], Bools]] = {
    "disc": lambda u, v: u**2 + v**2 <= 0.8,
    "cross": lambda u, v: np.minimum(abs(u), abs(v)) <= 0.34 - 10 * (np.hypot(u, v) > 1),
    "square": lambda u, v: np.maximum(abs(u), abs(v)) <= 0.72,
    "ring": lambda u, v: abs(u**2 + v**2 - 0.6) <= 0.4,
    "triangle": lambda u, v: (v >= -0.5) & (v <= 1 - 1.732 * abs(u)),
    "star": lambda u, v: np.hypot(u, v) <= 0.66 + 0.34 * np.cos(5 * np.arctan2(v, u)),
    "bar": lambda u, v: (abs(u) <= 0.92) & (abs(v) <= 0.38),
    "crescent": lambda u, v: (u**2 + v**2 <= 1) & ((u - 0.55) ** 2 + v**2 >= 0.45),
    "diamond": lambda u, v: abs(u) / 0.65 + abs(v) <= 1,
    "hourglass": lambda u, v: (abs(u) <= 0.15 + 0.75 * abs(v)) & (abs(v) <= 0.8),
}

_TEXTURES = ("striped", "checked")
_SHAPE_SHIFT = 3


def _designs() -> dict[str, tuple[str, str, str]]:
    """Class name -> (colour, texture, shape), in the order of the labels 1 to 20."""
    colours, shapes = list(_COLOURS), list(_SHAPES)
    first = {
        f"{colour}-{shape}": (colour, "plain", shape)
        for colour, shape in zip(colours, shapes, strict=True)
    }
    last = {}
    for number, colour in enumerate(colours):
        texture = _TEXTURES[number % len(_TEXTURES)]
        shape = shapes[(number + _SHAPE_SHIFT) % len(shapes)]
        last[f"{texture}-{colour}-{shape}"] = (colour, texture, shape)
    return first | last


DESIGNS = _designs()
CLASSES: tuple[str, ...] = ("background", *DESIGNS)
VALUES = voc.VALUES
ORDERS: dict[str, tuple[int, ...]] = {}
list_images = voc.list_images

_SETTINGS_FILE = "shapes.json"


def generate(root: Path, *, train: int, val: int, size: int, seed: int, workers: int = 1) -> None:
    """Write ``train`` + ``val`` images of ``size`` × ``size`` pixels and their masks to ``root``.

    The bytes depend on ``seed``, ``size`` and an image's number only, not on ``workers``. The
    folder appears under its name when it is complete. A folder that an earlier call wrote is
    replaced; any other folder with files in it raises ``CissError``.
    """
    if train < 1 or val < 1 or size < 16:
        raise CissError(
            f"shapes need at least one train and one val image of 16 pixels or more; got "
            f"train={train}, val={val}, size={size}"
        )
    _check_replaceable(root)
    root.parent.mkdir(parents=True, exist_ok=True)
    # What generations that were killed left; Snakemake's lock lets no two run at a time.
    for left in root.parent.glob(f".{glob.escape(root.name)}.*.partial"):
        shutil.rmtree(left, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{root.name}.", suffix=".partial", dir=root.parent))
    try:
        for folder in ("JPEGImages", "SegmentationClassAug", "splits"):
            (temporary / folder).mkdir()
        names = [f"train_{number:06d}" for number in range(train)]
        names += [f"val_{number:06d}" for number in range(val)]
        write = partial(_write_image, temporary, size=size, seed=seed)
        with closing(in_processes(write, names, workers, chunk=32)) as written:
            for _ in written:
                pass
        _write_lists(temporary, names)
        settings = {"train": train, "val": val, "size": size, "seed": seed}
        (temporary / _SETTINGS_FILE).write_text(json.dumps(settings) + "\n", encoding="utf-8")
        temporary.chmod(0o755)
        if root.exists():
            shutil.rmtree(root)
        temporary.rename(root)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def draw(rng: np.random.Generator, size: int) -> tuple[npt.NDArray[np.uint8], ...]:
    """Draw one image (uint8 [size, size, 3]) and its mask (uint8 [size, size])."""
    image = _ground(rng, size)
    mask = np.zeros((size, size), dtype=np.uint8)
    designs = list(DESIGNS.values())
    count = int(rng.choice([1, 2, 3, 4], p=[0.25, 0.35, 0.25, 0.15]))
    for label in rng.choice(len(designs), count, replace=False):
        _draw_object(rng, image, mask, int(label) + 1, *designs[label])
    noise = rng.standard_normal((size, size, 1), dtype=np.float32) * 0.02
    return np.clip((image + noise) * 255, 0, 255).astype(np.uint8), mask


def _check_replaceable(root: Path) -> None:
    if (root / _SETTINGS_FILE).is_file():
        return
    # Folders without files are what a workflow engine creates ahead of its outputs.
    if root.exists() and (not root.is_dir() or any(path.is_file() for path in root.rglob("*"))):
        raise CissError(
            f"{root} exists and was not made by the shapes generator; remove it or choose "
            "another root for the generated images"
        )


def _write_image(root: Path, name: str, *, size: int, seed: int) -> None:
    subset, number = name.split("_")
    rng = np.random.default_rng([seed, 0 if subset == "train" else 1, int(number)])
    image, mask = draw(rng, size)
    # Without chroma subsampling, which would blur the colours of small objects.
    path = root / "JPEGImages" / f"{name}.jpg"
    Image.fromarray(image).save(path, quality=92, subsampling=0)
    palette = Image.fromarray(mask)
    palette.putpalette(voc.palette().tobytes())
    palette.save(root / "SegmentationClassAug" / f"{name}.png")


def _write_lists(root: Path, names: list[str]) -> None:
    for subset, file in (("train", "train_aug.txt"), ("val", "val.txt")):
        lines = [
            f"/JPEGImages/{name}.jpg /SegmentationClassAug/{name}.png\n"
            for name in names
            if name.startswith(f"{subset}_")
        ]
        (root / "splits" / file).write_text("".join(lines), encoding="utf-8")


def _ground(rng: np.random.Generator, size: int) -> Floats:
    """Return dull, cloudy ground, float32 [size, size, 3] in 0..1."""
    cells = int(rng.integers(3, 9))
    clouds = rng.random((cells, cells), dtype=np.float32)
    cloud = np.asarray(
        Image.fromarray(clouds).resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32
    )
    grain = rng.random((size, size), dtype=np.float32)
    value = rng.uniform(0.25, 0.6) + 0.3 * (cloud - 0.5) + 0.12 * (grain - 0.5)
    tint = _rgb(rng.uniform(0, 360), rng.uniform(0.0, 0.2), 1.0)
    return (value[..., None] * tint).astype(np.float32)


def _draw_object(
    rng: np.random.Generator,
    image: Floats,
    mask: npt.NDArray[np.uint8],
    label: int,
    colour: str,
    texture: str,
    shape: str,
) -> None:
    """Draw one object of class ``label`` over what is there, with a void contour of one pixel."""
    size = mask.shape[0]
    radius = size * rng.uniform(0.25, 0.6) / 2
    centre_y, centre_x = rng.uniform(0.15, 0.85, 2) * size
    angle = rng.uniform(0, 2 * np.pi)
    # One pixel more than the unit disc on each side, for the contour.
    top, left = (max(int(centre - radius) - 2, 0) for centre in (centre_y, centre_x))
    bottom, right = (min(int(centre + radius) + 3, size) for centre in (centre_y, centre_x))
    window = (slice(top, bottom), slice(left, right))
    y = (np.arange(top, bottom, dtype=np.float32) + 0.5 - centre_y)[:, None] / radius
    x = (np.arange(left, right, dtype=np.float32) + 0.5 - centre_x)[None, :] / radius
    u = np.cos(angle) * x + np.sin(angle) * y
    v = np.cos(angle) * y - np.sin(angle) * x
    inside = _SHAPES[shape](u, v)

    hue = _COLOURS[colour] + rng.uniform(-7, 7)
    main = _rgb(hue, rng.uniform(0.75, 1.0), rng.uniform(0.65, 1.0))
    pale = _rgb(hue, rng.uniform(0.0, 0.25), rng.uniform(0.8, 1.0))
    # A texture's period is in pixels of the image, not of the object: it stays visible when small.
    pattern = _pattern(texture, u * radius, v * radius, size * rng.uniform(0.085, 0.115))
    shade = 1 + 0.25 * rng.uniform(-1, 1) * u + 0.25 * rng.uniform(-1, 1) * v
    paint = np.where(pattern[..., None], pale, main) * shade[..., None]
    image[window] = np.where(inside[..., None], paint, image[window])
    mask[window] = np.where(_grown(inside) & ~inside, VOID, mask[window])
    mask[window] = np.where(inside, label, mask[window])


def _pattern(texture: str, u: Floats, v: Floats, period: float) -> Bools:
    """Where the second colour goes; ``u``, ``v`` and ``period`` in pixels."""
    if texture == "plain":
        return np.zeros(np.broadcast_shapes(u.shape, v.shape), dtype=np.bool_)
    if texture == "striped":
        return (u / period) % 1 < 0.5
    return ((u / period) % 1 < 0.5) ^ ((v / period) % 1 < 0.5)


def _grown(inside: Bools) -> Bools:
    """Grow a region by one pixel to its four sides."""
    grown = inside.copy()
    grown[1:] |= inside[:-1]
    grown[:-1] |= inside[1:]
    grown[:, 1:] |= inside[:, :-1]
    grown[:, :-1] |= inside[:, 1:]
    return grown


def _rgb(hue: float, saturation: float, value: float) -> Floats:
    """Convert a hue in degrees, saturation and value in 0..1 to float32 [3]."""
    distance = (np.array([5.0, 3.0, 1.0]) + hue / 60) % 6
    dip = np.clip(np.minimum(distance, 4 - distance), 0, 1)
    return (value - value * saturation * dip).astype(np.float32)
