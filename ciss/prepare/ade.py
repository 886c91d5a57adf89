"""ADE20K as the SceneParsing benchmark ships it: 150 classes, one 8-bit label a pixel."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ciss.archives import member_names, unpack
from ciss.download import Remote
from ciss.errors import CissError

if TYPE_CHECKING:
    from ciss.prepare import Archive

TITLE = "ADE20K, SceneParsing release (ADEChallengeData2016)"
ABOUT = """
Needs ADEChallengeData2016.zip (0.9 GB) of the MIT Scene Parsing Benchmark; unpacked about the same.
Images are for non-commercial research and education, under ADE20K's terms of use.
"""
BY_HAND = """
Read the terms at https://ade20k.csail.mit.edu/, then fetch
  http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip
(linked from http://sceneparsing.csail.mit.edu/). Not ADE20K_2016_07_26.zip or
ADE20K_2021_17_01.zip, the full ADE20K, whose masks encode thousands of classes as colours.
"""

ADE = Remote(
    "ADEChallengeData2016.zip",
    # MD5 of several public loaders, SHA-1 of GluonCV.
    digests={
        "md5": "7328b3957e407ddae1d3cbf487f149ef",
        "sha1": "219e1696abb36c8ba3a3afe7fb2f4b4606a897c7",
    },
)
REMOTES = (ADE,)


def build(archives: Mapping[str, Archive], folder: Path, workers: int) -> None:
    """Write ``images`` and ``annotations`` below ``folder``."""
    del workers
    path = archives[ADE.name].path
    if not unpack(path, folder, _place):
        other = other_release(member_names(path)) or "it has no images/training"
        raise CissError(f"{path} is not the SceneParsing release: {other}")


def other_release(names: list[str]) -> str:
    """Say if names are those of the full ADE20K or of another task's files."""
    full = re.compile(r"(^|/)ADE20K_20\d\d_\d\d_\d\d|_seg\.png$|_parts_1\.png$|^images/ADE(/|$)")
    # In the full release of 2016 the images of a scene lie in folders of letters.
    if any(full.search(name) for name in names) or "images/training/a" in names:
        return (
            "this is the full ADE20K release, whose masks encode thousands of classes as colours; "
            "needed is the SceneParsing release, ADEChallengeData2016.zip"
        )
    if any("annotations_instance" in name for name in names) and "annotations" not in names:
        return "this is the instance segmentation task of ADE20K, needed is that of scene parsing"
    return ""


def _place(name: str) -> str | None:
    match = re.fullmatch(
        r"(?:[^/]+/)?(images/(?:training|validation)/[^/]+\.jpg"
        r"|annotations/(?:training|validation)/[^/]+\.png|objectInfo150\.txt)",
        name,
    )
    return match[1] if match else None
