"""Masks that are none, and what the report says happened to them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ciss.datasets import get_kind, open_dataset, voc
from ciss.masks import NOT_LABELS, OTHER_PALETTE, UNKNOWN_VALUES, MaskRules, ranges, read_mask

#: labels of three classes and void, as a mask of VOC may hold them
LABELS = np.array([[0, 0, 4, 4], [0, 15, 15, 255]], np.uint8)


def rules(kind: str) -> MaskRules:
    return MaskRules.of(open_dataset(kind, kind, Path("/nowhere")))


def palette_png(labels: np.ndarray = LABELS) -> Image.Image:
    picture = Image.fromarray(labels)
    picture.putpalette(voc.palette().tobytes())
    return picture


def said(picture: Image.Image, path: Path, kind: str = "voc", **options: object) -> str:
    """Heading and detail of the one thing that is wrong with a mask."""
    picture.save(path, **options)
    content = read_mask(path, rules(kind))
    assert (content.width, content.height) == picture.size
    ((heading, detail),) = content.problems
    return f"{heading} | {detail}"


def grey(values: list[int]) -> Image.Image:
    return Image.fromarray(np.array([values], np.uint8))


@pytest.mark.parametrize("picture", [palette_png(), Image.fromarray(LABELS)])
def test_a_mask_of_labels(picture: Image.Image, tmp_path: Path) -> None:
    picture.save(tmp_path / "m.png")
    content = read_mask(tmp_path / "m.png", rules("voc"))
    assert content.problems == ()
    assert content.counts[[0, 4, 15, 255]].tolist() == [3, 2, 2, 1]
    assert content.counts.sum() == 8


def test_a_palette_png_of_few_bits(tmp_path: Path) -> None:
    """Encoders store few labels in fewer bits; the indices stay what they are."""
    labels = np.array([[0, 1, 2, 3]], np.uint8)
    picture = palette_png(labels)
    picture.save(tmp_path / "m.png", bits=2)
    content = read_mask(tmp_path / "m.png", rules("voc"))
    assert content.problems == ()
    assert content.counts[:4].tolist() == [1, 1, 1, 1]


def test_labels_painted_in_the_palette(tmp_path: Path) -> None:
    words = said(palette_png().convert("RGB"), tmp_path / "m.png")
    assert words.startswith(f"{NOT_LABELS} | mode RGB: labels painted in the data set's palette;")
    words = said(palette_png().convert("RGBA"), tmp_path / "m.png")
    assert "mode RGBA: labels painted in the data set's palette, with an alpha channel" in words


def test_colours_that_are_no_palette(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    words = said(Image.fromarray(pixels), tmp_path / "m.png")
    assert "mode RGB: colours; save one label a pixel" in words
    words = said(Image.fromarray(LABELS).convert("RGB"), tmp_path / "m.png")
    assert "grey levels saved as colours" in words
    words = said(Image.fromarray(LABELS).convert("LA"), tmp_path / "m.png")
    assert "mode LA: grey levels saved as colours" in words
    assert "alpha channel" in words


def test_grey_levels_of_the_palette(tmp_path: Path) -> None:
    picture = palette_png().convert("RGB").convert("L")
    # The boat's grey level is a person's label: only the rest gives it away.
    assert 15 in np.asarray(picture)
    words = said(picture, tmp_path / "m.png")
    assert words.startswith(f"{UNKNOWN_VALUES} (known are 0-20, 255): grey levels of the palette")
    # Any other value, and it is not that.
    assert "grey levels" not in said(grey([0, 38, 39]), tmp_path / "m.png")


def test_a_palette_in_another_order(tmp_path: Path) -> None:
    # What Pillow makes of the coloured picture: the colours, in the order in which they come.
    picture = palette_png().convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE)
    picture.save(tmp_path / "m.png")
    ((heading, detail),) = read_mask(tmp_path / "m.png", rules("voc")).problems
    assert heading == OTHER_PALETTE
    index = int(detail.split()[1])
    meant = int(detail.split()[-1])
    assert (np.asarray(picture) == index).tolist() == (meant == LABELS).tolist()


def test_other_palettes_say_nothing(tmp_path: Path) -> None:
    labels = np.array([[0, 1, 2, 255]], np.uint8)
    for colours in (
        np.arange(256).repeat(3),
        np.zeros(768),
        np.random.default_rng(0).permutation(768),
    ):
        picture = Image.fromarray(labels)
        picture.putpalette(colours.astype(np.uint8).tobytes())
        picture.save(tmp_path / "m.png")
        assert read_mask(tmp_path / "m.png", rules("voc")).problems == ()


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (Image.fromarray(LABELS.astype(np.uint16)), "16-bit picture whose values fit 8 bits"),
        (Image.fromarray(np.full((2, 2), 26001, np.uint16)), "values up to 26001"),
        (Image.fromarray(LABELS > 0), "mode 1: a 1-bit picture"),
    ],
)
def test_bits(picture: Image.Image, words: str, tmp_path: Path) -> None:
    assert words in said(picture, tmp_path / "m.png")


def test_stretched_grey_levels(tmp_path: Path) -> None:
    """A 4-bit grey PNG reads as multiples of 17, which may even look like labels."""
    header = b"\x89PNG\r\n\x1a\n"
    import struct
    import zlib

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)

    size = struct.pack(">IIBBBBB", 2, 1, 4, 0, 0, 0, 0)
    pixels = zlib.compress(b"\x00\x01")
    (tmp_path / "m.png").write_bytes(
        header + chunk(b"IHDR", size) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )
    with Image.open(tmp_path / "m.png") as picture:
        assert np.asarray(picture).tolist() == [[0, 17]]
    ((heading, detail),) = read_mask(tmp_path / "m.png", rules("voc")).problems
    assert (heading, detail.split(",")[0]) == (NOT_LABELS, "a 4-bit grey picture")


def test_jpeg(tmp_path: Path) -> None:
    assert "compression changes labels" in said(Image.fromarray(LABELS), tmp_path / "m.jpg")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([0, 18, 255], "trainIds"),
        ([7, 255, 26], f"{UNKNOWN_VALUES} (known are 0-33) |"),
        ([34, 7], "34 (1 pixels)"),
    ],
)
def test_cityscapes_values(values: list[int], words: str, tmp_path: Path) -> None:
    assert words in said(grey(values), tmp_path / "m.png", "cityscapes")


def test_cityscapes_labels_are_all_known(tmp_path: Path) -> None:
    grey(list(range(34))).save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png", rules("cityscapes")).problems == ()


def test_cityscapes_files_of_other_kinds(tmp_path: Path) -> None:
    coloured = Image.new("RGBA", (2, 2), (128, 64, 128, 255))
    assert "_gtFine_color.png" in said(coloured, tmp_path / "m.png", "cityscapes")
    instances = Image.fromarray(np.full((2, 2), 26001, np.uint16))
    assert "instanceIds" in said(instances, tmp_path / "m.png", "cityscapes")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([255, 0, 149], "labels shifted by one, with 255 for unlabelled"),
        ([0, 151], "another release than SceneParsing"),
    ],
)
def test_ade_values(values: list[int], words: str, tmp_path: Path) -> None:
    assert words in said(grey(values), tmp_path / "m.png", "ade")
    coloured = Image.new("RGB", (2, 2), (20, 13, 0))
    assert "the full ADE20K release" in said(coloured, tmp_path / "m.png", "ade")


def test_many_unknown_values_are_cut(tmp_path: Path) -> None:
    words = said(grey(list(range(100, 110))), tmp_path / "m.png")
    assert words.endswith("104 (1 pixels) and 5 more")


def test_ranges() -> None:
    assert ranges(np.array([0, 1, 2, 7, 9, 10])) == "0-2, 7, 9-10"


def test_colours_are_those_of_the_devkit() -> None:
    palette = get_kind("voc").PALETTE
    assert palette is not None
    assert palette[[1, 4, 15, 255]].tolist() == [
        [128, 0, 0],
        [0, 0, 128],
        [192, 128, 128],
        [224, 224, 192],
    ]
