"""Every kind of pixel becomes upright, opaque 8-bit RGB or grey."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from lowtide.data import UnreadableImage, decode
from lowtide.data.images import faults

NOISE = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


def decoded(image: Image.Image, path, **options) -> np.ndarray:
    image.save(path, **options)
    result = decode(path)
    assert result.mode == "RGB" and faults([path]) == {}
    return np.asarray(result)


def test_colour_palette_and_grey(tmp_path):
    path = tmp_path / "x.png"
    assert (decoded(Image.fromarray(NOISE), path) == NOISE).all()
    palette = Image.fromarray(NOISE).quantize(16)
    assert (decoded(palette, path) == np.asarray(palette.convert("RGB"))).all()
    grey = NOISE[..., 0]
    assert (decoded(Image.fromarray(grey), path) == grey[..., None]).all()
    bits = Image.fromarray(grey > 127)
    assert bits.mode == "1"
    assert (decoded(bits, path) == np.where(grey > 127, 255, 0)[..., None]).all()
    one = decode(path, channels=1)
    assert one.mode == "L" and np.asarray(one).shape == (6, 8)


def test_sixteen_bits_keep_the_upper_byte(tmp_path):
    wide = np.random.default_rng(1).integers(0, 1 << 16, (6, 8), dtype=np.uint16)
    result = decoded(Image.fromarray(wide), tmp_path / "x.png")
    assert (result == (wide >> 8)[..., None]).all()


def test_transparency_is_laid_over_white(tmp_path):
    alpha = np.random.default_rng(1).integers(0, 256, (6, 8, 1), dtype=np.uint8)
    expected = (alpha / 255.0) * NOISE + (1 - alpha / 255.0) * 255
    result = decoded(Image.fromarray(np.concatenate([NOISE, alpha], -1)), tmp_path / "x.png")
    assert np.abs(result - expected).max() <= 1
    palette = Image.fromarray(NOISE).quantize(4)
    clear = np.asarray(palette) == 2
    result = decoded(palette, tmp_path / "y.png", transparency=2)
    assert clear.any() and (result[clear] == 255).all()
    assert (result[~clear] == np.asarray(palette.convert("RGB"))[~clear]).all()


def test_cmyk(tmp_path):
    ink = Image.new("CMYK", (8, 6), (0, 255, 255, 0))  # magenta and yellow: red
    result = decoded(ink, tmp_path / "x.jpg", quality=100)
    assert np.abs(result.astype(int) - [255, 0, 0]).max() <= 3


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to view
    path = tmp_path / "x.png"
    Image.fromarray(NOISE).save(path, exif=exif)
    assert (np.asarray(decode(path)) == np.rot90(NOISE, -1)).all()


@pytest.mark.parametrize(("suffix", "share"), [("jpg", 0.5), ("jpg", 0.95), ("png", 0.5)])
def test_truncation_behind_a_good_header_is_found(tmp_path, suffix, share):
    good, bad = tmp_path / f"good.{suffix}", tmp_path / f"bad.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(good)
    data = good.read_bytes()
    bad.write_bytes(data[: int(share * len(data))])
    with Image.open(bad) as header:
        assert header.size == (80, 64)
    assert list(faults([good, bad])) == [bad]
    with pytest.raises(UnreadableImage, match=r"^cannot read image .*bad\.\w+: [^\n]+$"):
        decode(bad)


def test_what_has_no_range_is_refused(tmp_path):
    path = tmp_path / "x.tif"
    Image.fromarray(np.ones((4, 4), dtype=np.float32)).save(path)
    assert "32-bit pixels" in faults([path])[path]
