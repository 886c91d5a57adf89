"""A folder of images and a folder of masks of the user's own, described in the configuration.

The setting ``files`` of the dataset says where they lie and which are for training and which for
validation, its ``classes``, ``values`` and ``void`` what the masks' values mean. Unless those say
otherwise 0 is background, 1, 2 … are the classes in the order of ``classes``, and 255 is void.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ciss.datasets.base import VOID, Listing, read_list, value_table
from ciss.errors import CissError
from ciss.names import unknown

CLASSES: tuple[str, ...] | None = None
VALUES = value_table({**{value: value for value in range(VOID)}, VOID: VOID})

SUBSETS = ("train", "val", "test")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
#: in order of preference; JPEG comes last, for the index to say what is wrong with it
MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".jpg", ".jpeg")

_KEYS = ("images", "masks", "image_suffix", "mask_suffix", "lists", "val_fraction", "seed")


def check_files(name: str, files: Mapping[str, Any]) -> tuple[str, ...]:
    """Check the setting ``files`` of dataset ``name`` and return its subsets.

    Raises ``CissError`` where a key is unknown or missing, or where it does not say, in exactly
    one way, which images are for training and which for validation.
    """
    where = f"datasets.{name}.files"
    for key in files:
        if key not in _KEYS:
            raise CissError(f"{where}: {unknown('key', key, _KEYS)}")
    for key in ("images", "masks"):
        if key not in files:
            raise CissError(f"{where}.{key} is missing: give the folder of the {key}, below root")
    by_folder = isinstance(files["images"], Mapping)
    if by_folder != isinstance(files["masks"], Mapping):
        raise CissError(
            f"{where}: give both images and masks as one folder, or both a folder for each subset "
            "({train: …, val: …})"
        )
    given = [key for key in ("lists", "val_fraction") if files.get(key) is not None]
    ways = ["a folder for each subset"] * by_folder + given
    if len(ways) != 1:
        raise CissError(
            f"{where} says {'in no way' if not ways else ' and '.join(ways)} which images are for "
            "training and which for validation; give one of: images and masks as {train: …, val: "
            "…}, lists: {train: …, val: …}, or val_fraction"
        )
    if files.get("seed") is not None and "val_fraction" not in given:
        raise CissError(f"{where}.seed goes with val_fraction only; leave it out")
    named = files["images"] if by_folder else files.get("lists")
    subsets = SUBSETS[:2] if named is None else tuple(s for s in SUBSETS if s in named)
    if by_folder and set(files["masks"]) != set(subsets):
        raise CissError(
            f"{where}: images has {', '.join(subsets)}, masks has {', '.join(files['masks'])}"
        )
    return subsets


def list_images(
    root: Path,
    images: str | Mapping[str, str],
    masks: str | Mapping[str, str],
    image_suffix: str = "",
    mask_suffix: str = "",
    lists: Mapping[str, str] | None = None,
    val_fraction: float | None = None,
    seed: int = 0,
) -> Listing:
    """Pair images with the masks of the same name, as ``check_files`` allows the settings.

    ``IMAGES/NAME{image_suffix}.jpg`` goes with ``MASKS/NAME{mask_suffix}.png``, where NAME may have
    folders in it and the files any of ``IMAGE_SUFFIXES`` and ``MASK_SUFFIXES``. An image without a
    mask is listed, and so is a list's name without an image: they are the index's to report.
    Raises ``CissError`` where a folder is missing or has no images, or two images of one name.
    """
    if isinstance(images, Mapping):
        assert isinstance(masks, Mapping)
        return {
            subset: list(
                _pairs(root, images[subset], masks[subset], image_suffix, mask_suffix).values()
            )
            for subset in SUBSETS
            if subset in images
        }
    assert isinstance(masks, str)
    pairs = _pairs(root, images, masks, image_suffix, mask_suffix)
    if lists is None:
        assert val_fraction is not None
        return _divided(list(pairs.values()), val_fraction, seed)

    def named(line: str) -> tuple[str, str]:
        # With or without the folder, the suffix and what the names end in.
        name = _inner(_bare(line.lstrip("/"), IMAGE_SUFFIXES), images)
        key = next((key for key in (name.removesuffix(image_suffix), name) if key in pairs), None)
        if key is not None:
            return pairs[key]
        return f"{images}/{_inner(line, images)}", f"{masks}/{name}{mask_suffix}.png"

    return {
        subset: [named(line) for line in read_list(root / lists[subset])]
        for subset in SUBSETS
        if subset in lists
    }


def _pairs(
    root: Path, images: str, masks: str, image_suffix: str, mask_suffix: str
) -> dict[str, tuple[str, str]]:
    """Find a folder's images and their masks: NAME -> (image path, mask path), sorted."""
    for folder in (images, masks):
        if not (root / folder).is_dir():
            raise CissError(
                f"there is no folder {root / folder}: the setting files says where images and "
                "masks lie, below root"
            )
    mask_files = _files(root, masks, mask_suffix, MASK_SUFFIXES)
    # Both may lie in one folder.
    taken = {paths[0] for paths in mask_files.values()}
    pairs = {}
    for name, paths in sorted(_files(root, images, image_suffix, IMAGE_SUFFIXES).items()):
        found = [path for path in paths if path not in taken]
        if len(found) > 1:
            raise CissError(
                f"{' and '.join(found)} in {root} are images of one name, which a mask could not "
                "tell apart; rename or remove all but one"
            )
        if found:
            mask = mask_files.get(name, [f"{masks}/{name}{mask_suffix}.png"])[0]
            pairs[name] = (found[0], mask)
    if not pairs:
        endings = ", ".join(image_suffix + suffix for suffix in IMAGE_SUFFIXES)
        raise CissError(
            f"no images in {root / images}: expected names that end in one of {endings}, and masks "
            "apart from them"
        )
    return pairs


def list_masks(
    root: Path,
    masks: str | Mapping[str, str],
    mask_suffix: str = "",
    lists: Mapping[str, str] | None = None,
    **_: object,
) -> list[str]:
    """Return all masks in their folders; none where lists say which images are meant.

    Where both lie in one folder, an image without a mask may be taken for one.
    """
    if lists is not None:
        return []
    folders = masks.values() if isinstance(masks, Mapping) else [masks]
    found = [_files(root, folder, mask_suffix, MASK_SUFFIXES) for folder in folders]
    return [paths[0] for files in found for paths in files.values()]


def _files(root: Path, folder: str, ending: str, suffixes: tuple[str, ...]) -> dict[str, list[str]]:
    """Find the files below ``folder``: name without folder, ``ending`` and suffix -> paths.

    Of several files of one name those with the first of the suffixes come first.
    """
    found: dict[str, list[str]] = {}
    paths = [path for path in (root / folder).rglob("*") if path.suffix.lower() in suffixes]
    for path in sorted(paths, key=lambda path: (suffixes.index(path.suffix.lower()), path)):
        if path.stem.endswith(ending) and not path.name.startswith("."):
            relative = path.relative_to(root).as_posix()
            name = _bare(_inner(relative, folder), suffixes).removesuffix(ending)
            found.setdefault(name, []).append(relative)
    return found


def _inner(path: str, folder: str) -> str:
    """``images/a/b`` in ``images`` -> ``a/b``; anything else stays."""
    whole = Path(path)
    return whole.relative_to(folder).as_posix() if whole.is_relative_to(folder) else path


def _bare(path: str, suffixes: tuple[str, ...]) -> str:
    """``a/b.jpg`` -> ``a/b``, but ``a/b.1`` stays."""
    suffix = Path(path).suffix
    return path.removesuffix(suffix) if suffix.lower() in suffixes else path


def _divided(pairs: list[tuple[str, str]], fraction: float, seed: int) -> Listing:
    """Choose validation images by a hash of seed and path: few move when images are added."""

    def rank(pair: tuple[str, str]) -> str:
        # Of names that are not UTF-8 too, which are refused in one place for all kinds.
        return hashlib.sha256(f"{seed}:{pair[0]}".encode(errors="surrogateescape")).hexdigest()

    n_val = min(max(round(fraction * len(pairs)), 1), len(pairs) - 1)
    chosen = set(sorted(pairs, key=rank)[:n_val])
    return {
        "train": [pair for pair in pairs if pair not in chosen],
        "val": [pair for pair in pairs if pair in chosen],
    }
