from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ciss import images
from ciss.errors import CissError
from ciss.images import read_image, read_mask, read_pair, resize, resize_nearest

BILINEAR, NEAREST = Image.Resampling.BILINEAR, Image.Resampling.NEAREST
MIRROR = Image.Transpose.FLIP_LEFT_RIGHT


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", [32, 64, 100, 256])
def test_resizing_gives_pillows_pixels(size: int, flip: bool) -> None:
    rng = np.random.default_rng(size)
    for _ in range(12):
        height, width = rng.integers(size // 3, 2 * size, 2)
        # A cut-out of a larger image, as the loader passes it.
        cut = noise(height + 3, width + 5, 3)[2 : 2 + height, 4 : 4 + width]
        expected = Image.fromarray(cut)
        # One axis is reduced before the other is enlarged; Pillow 13 does so too.
        if height > size >= width:
            expected = expected.resize((width, size), BILINEAR)
        elif width > size >= height:
            expected = expected.resize((size, height), BILINEAR)
        expected = expected.resize((size, size), BILINEAR)
        if flip:
            expected = expected.transpose(MIRROR)
        np.testing.assert_array_equal(resize(cut, size, flip), np.asarray(expected))


@pytest.mark.parametrize("size", [7, 32, 100, 513])
def test_nearest_is_pillows(size: int) -> None:
    rng = np.random.default_rng(size)
    for _ in range(12):
        values = noise(*rng.integers(1, 3 * size, 2))
        expected = Image.fromarray(values).resize((size, size), NEAREST)
        np.testing.assert_array_equal(resize_nearest(values, size), np.asarray(expected))
        mirrored = np.asarray(expected.transpose(MIRROR))
        np.testing.assert_array_equal(resize_nearest(values, size, flip=True), mirrored)


@pytest.mark.filterwarnings("error")
def test_arrays_that_cannot_be_written_are_resized_too() -> None:
    pixels = noise(20, 30, 3)
    pixels.flags.writeable = False
    assert resize(pixels, 32).flags.writeable
    np.testing.assert_array_equal(resize(pixels, 32), resize(noise(20, 30, 3), 32))


def jpeg(mode: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(noise(61, 83, 3)).convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(
    "content",
    [
        *[jpeg("RGB", subsampling=subsampling) for subsampling in (0, 1, 2)],
        jpeg("RGB", progressive=True),
        jpeg("RGB") + b"left behind",
        jpeg("L"),
        jpeg("CMYK"),
    ],
    ids=["444", "422", "420", "progressive", "trailing", "grey", "cmyk"],
)
def test_jpeg_files_give_pillows_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, fast: bool
) -> None:
    if not fast:
        monkeypatch.setattr(images, "simplejpeg", None)
    else:
        pytest.importorskip("simplejpeg")
    (tmp_path / "i.jpg").write_bytes(content)
    with Image.open(tmp_path / "i.jpg") as expected:
        np.testing.assert_array_equal(
            read_image(tmp_path / "i.jpg"), np.asarray(expected.convert("RGB"))
        )


def png(**options: object) -> bytes:
    mask = Image.fromarray(noise(37, 53) % 21)
    mode = options.pop("mode", "P")
    if mode == "P":
        mask.putpalette(list(range(255, -1, -1)) * 3)
    buffer = io.BytesIO()
    mask.convert(str(mode)).save(buffer, "PNG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [png(), png(mode="L"), png(mode="1"), png(bits=4), png(optimize=True), png(mode="LA")],
    ids=["palette", "filtered grey", "bits", "four bits", "optimised", "alpha"],
)
def test_masks_are_read_as_pillow_reads_them(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.png").write_bytes(content)
    with Image.open(tmp_path / "m.png") as expected:
        np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), np.asarray(expected))


def test_masks_as_published_need_no_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.png").write_bytes(png())
    monkeypatch.setattr(images, "_decode", None)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), noise(37, 53) % 21)


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("content", [png(), png(mode="L"), jpeg("RGB")], ids=["P", "L", "JPEG"])
def test_truncated_files_are_named_in_one_line(tmp_path: Path, content: bytes, kept: float) -> None:
    path = tmp_path / "file"
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(CissError) as error:
        read_image(path) if content[:2] == b"\xff\xd8" else read_mask(path)
    assert str(error.value).startswith(f"cannot read {os.fspath(path)}: ")
    assert "\n" not in str(error.value)


def test_damaged_pixels_of_a_mask_are_found(tmp_path: Path) -> None:
    content = bytearray(png())
    content[-30] ^= 0xFF
    (tmp_path / "m.png").write_bytes(content)
    with pytest.raises(CissError, match="cannot read"):
        read_mask(tmp_path / "m.png")


def test_image_and_mask_of_other_sizes_stop(tmp_path: Path) -> None:
    (tmp_path / "i.jpg").write_bytes(jpeg("RGB"))
    (tmp_path / "m.png").write_bytes(png())
    with pytest.raises(CissError, match=r"m.png: its size is 53 × 37, its image's 83 × 61"):
        read_pair(tmp_path, ("i.jpg", "m.png"))
    with pytest.raises(CissError, match=r"cannot read .*absent.png: No such file"):
        read_pair(tmp_path, ("i.jpg", "absent.png"))
