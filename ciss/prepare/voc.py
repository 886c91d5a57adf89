"""PASCAL VOC 2012 with the masks of the Semantic Boundaries Dataset (SBD): ``train_aug``.

The augmented training list is a union: every image with a mask in VOC's segmentation lists or in
SBD's, less VOC's validation images; 10,582 in all. Where both have a mask VOC's is taken, with its
void borders; SBD's masks have none. So it is in the files that the published protocols use: of
their 12,031 masks exactly the 2,913 of VOC's own images show void.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from ciss.archives import read_members, unpack
from ciss.datasets.voc import palette
from ciss.download import Remote, log
from ciss.errors import CissError
from ciss.files import write_text
from ciss.processes import in_processes

if TYPE_CHECKING:
    from ciss.prepare import Archive

TITLE = "PASCAL VOC 2012 with the augmented masks of SBD"
ABOUT = """
Downloads 3.4 GB: VOCtrainval_11-May-2012.tar (2.0 GB) and SBD's benchmark.tgz (1.4 GB); the data
set takes 1.5 GB. The images are Flickr's, under Flickr's terms of use; cite VOC and SBD.
"""
BY_HAND = ""

VOC = Remote(
    "VOCtrainval_11-May-2012.tar",
    (
        "https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
        "https://pjreddie.com/media/files/VOCtrainval_11-May-2012.tar",
    ),
    # MD5 of torchvision.datasets.VOCSegmentation, SHA-256 of KerasCV.
    {
        "md5": "6cd6e144f989b92b3379bac3b3de84fd",
        "sha256": "e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
    },
)
SBD = Remote(
    "benchmark.tgz",
    (
        "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/"
        "benchmark.tgz",
        "http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/"
        "benchmark.tgz",
    ),
    # MD5 of torchvision.datasets.SBDataset, SHA-1 of GluonCV.
    {
        "md5": "82b4d87ceb2ed10f6038a1cba92111cb",
        "sha1": "7129e0a480c2d6afb02b517bb18ac54283bfaa35",
    },
)
REMOTES = (VOC, SBD)

_DEVKIT = "VOCdevkit/VOC2012"
_SBD = "benchmark_RELEASE/dataset"
_IMAGES, _MASKS = "JPEGImages", "SegmentationClassAug"


def build(archives: Mapping[str, Archive], folder: Path, workers: int) -> None:
    """Write ``JPEGImages``, ``SegmentationClassAug`` and ``splits`` below ``folder``."""
    voc, sbd = archives[VOC.name].path, archives[SBD.name].path
    matrices = folder.with_name("sbd")
    log.info("reading %s", sbd.name)
    unpack(sbd, matrices, _sbd_place)
    own = _voc_lists(voc)
    boundaries = {
        name for subset in ("train", "val") for name in _lines(matrices / f"{subset}.txt", sbd)
    }
    masked = own["train"] | own["val"]
    train = (masked | boundaries) - own["val"]
    wanted = train | own["val"]
    log.info("reading %s", voc.name)
    unpack(voc, folder, partial(_voc_place, wanted, masked))
    _convert_all(matrices, folder / _MASKS, sorted(wanted - masked), workers)
    for names, what, ending in ((wanted, _IMAGES, ".jpg"), (masked, _MASKS, ".png")):
        lost = sorted(name for name in names if not (folder / what / f"{name}{ending}").is_file())
        if lost:
            raise CissError(
                f"{voc} lacks {len(lost)} files of {what}, {lost[0]}{ending} first; it is not the "
                "archive of VOC 2012, fetch it again"
            )
    for subset, names in (("train_aug", train), ("val", own["val"])):
        lines = [f"/{_IMAGES}/{name}.jpg /{_MASKS}/{name}.png\n" for name in sorted(names)]
        write_text(folder / "splits" / f"{subset}.txt", "".join(lines))
    shutil.rmtree(matrices)


def other_release(names: list[str]) -> str:
    """Say if a folder is another VOC than that of 2012."""
    years = {match[1] for name in names if (match := re.fullmatch(r"VOCdevkit/VOC(\d+)", name))}
    if years and "2012" not in years:
        return f"this is VOC {', '.join(sorted(years))}, needed is VOC 2012"
    return ""


def read_mask(path: Path) -> npt.NDArray[np.uint8]:
    """Read the class of each pixel, uint8 [H, W] of 0–20, from one of SBD's ``cls/*.mat`` files.

    Raises ``CissError`` where the file is damaged or of another kind.
    """
    # Here and not at the top: nothing else in the project needs it.
    from scipy.io import loadmat

    try:
        labels = loadmat(path, variable_names=["GTcls"])["GTcls"]["Segmentation"][0, 0]
    except Exception as error:  # damage shows as many kinds of exception
        raise CissError(
            f"{path} is no segmentation of SBD ({type(error).__name__}: {error}); fetch {SBD.name} "
            "again"
        ) from None
    if labels.ndim != 2 or labels.dtype != np.uint8 or labels.max(initial=0) > 20:
        raise CissError(
            f"{path} holds {labels.dtype} of shape {labels.shape} up to {labels.max(initial=0)}, "
            "not one class of 0 to 20 a pixel"
        )
    return labels


def _voc_lists(archive: Path) -> dict[str, set[str]]:
    paths = {
        subset: f"{_DEVKIT}/ImageSets/Segmentation/{subset}.txt" for subset in ("train", "val")
    }
    found = read_members(archive, set(paths.values()))
    for path in paths.values():
        if path not in found:
            raise CissError(
                f"{archive} lacks {path}; it is not the archive of VOC 2012, fetch it again"
            )
    return {subset: set(found[path].decode().split()) for subset, path in paths.items()}


def _voc_place(wanted: set[str], masked: set[str], name: str) -> str | None:
    match = re.fullmatch(rf"{_DEVKIT}/(JPEGImages|SegmentationClass)/([^/]+)\.(jpg|png)", name)
    if match is None:
        return None
    if match[1] == _IMAGES:
        return f"{_IMAGES}/{match[2]}.jpg" if match[2] in wanted else None
    return f"{_MASKS}/{match[2]}.png" if match[2] in masked else None


def _sbd_place(name: str) -> str | None:
    match = re.fullmatch(rf"(?:\./)?{_SBD}/((?:cls/[^/]+\.mat)|train\.txt|val\.txt)", name)
    return match[1] if match else None


def _lines(path: Path, archive: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split()
    except OSError:
        raise CissError(
            f"{archive} lacks {_SBD}/{path.name}; it is not the archive of SBD, fetch it again"
        ) from None


def _convert_all(matrices: Path, masks: Path, names: list[str], workers: int) -> None:
    missing = [name for name in names if not (masks / f"{name}.png").is_file()]
    log.info("converting %d masks of SBD", len(missing))
    masks.mkdir(parents=True, exist_ok=True)
    convert = partial(_convert, matrices, masks)
    with closing(in_processes(convert, missing, workers, chunk=32)) as converted:
        for _ in converted:
            pass


def _convert(matrices: Path, masks: Path, name: str) -> None:
    source = matrices / "cls" / f"{name}.mat"
    if not source.is_file():
        raise CissError(
            f"SBD's lists name {name}, but {SBD.name} has no mask of it; fetch it again"
        )
    image = Image.fromarray(read_mask(source))
    image.putpalette(palette().tobytes())
    temporary = masks / f".{name}.partial"
    try:
        image.save(temporary, format="png")
    except OSError as error:
        raise CissError(
            f"cannot write {temporary}: {error.strerror}; free some space and run this again: it "
            "goes on where it stopped"
        ) from None
    temporary.replace(masks / f"{name}.png")
