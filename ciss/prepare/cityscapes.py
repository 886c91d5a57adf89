"""Cityscapes with fine annotations: the images and label ids of train and val."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ciss.archives import unpack
from ciss.download import Remote
from ciss.errors import CissError

if TYPE_CHECKING:
    from ciss.prepare import Archive

TITLE = "Cityscapes with fine annotations"
ABOUT = """
Needs leftImg8bit_trainvaltest.zip (11 GB) and gtFine_trainvaltest.zip (0.25 GB), which ask for a
registration and for its licence (non-commercial); unpacked, train and val take 8 GB.
"""
BY_HAND = """
Register at https://www.cityscapes-dataset.com/ and fetch the packages 3 and 1 of its download page,
in a browser or with `pip install cityscapesscripts` and
  csDownload leftImg8bit_trainvaltest.zip gtFine_trainvaltest.zip
Not leftImg8bit_trainextra.zip and gtCoarse.zip, which belong to the coarse annotations.
"""

# MD5 as the download page shows them.
LEFT = Remote("leftImg8bit_trainvaltest.zip", digests={"md5": "0a6e97e94b616a514066c9e2adb0c97f"})
FINE = Remote("gtFine_trainvaltest.zip", digests={"md5": "4237c19de34c8a376e9ba46b495d6f66"})
REMOTES = (LEFT, FINE)

_WANTED = {
    LEFT.name: r"leftImg8bit/(?:train|val)/[^/]+/[^/]+_leftImg8bit\.png",
    FINE.name: r"gtFine/(?:train|val)/[^/]+/[^/]+_gtFine_labelIds\.png",
}


def build(archives: Mapping[str, Archive], folder: Path, workers: int) -> None:
    """Write ``leftImg8bit`` and ``gtFine`` below ``folder``, of them what this project reads."""
    del workers
    for name, pattern in _WANTED.items():
        path = archives[name].path

        def place(member: str, pattern: str = pattern) -> str | None:
            return member if re.fullmatch(pattern, member) else None

        if not unpack(path, folder, place):
            raise CissError(f"{path} has no file {pattern}; it is not {name} of Cityscapes")


def other_release(names: list[str]) -> str:
    """Say if names are those of the coarse annotations or of the extra images alone."""
    if any("gtFine" in name for name in names):
        return ""
    if any("gtCoarse" in name or "trainextra" in name for name in names):
        return "these are the coarse annotations or extra images, needed are gtFine's"
    return ""
