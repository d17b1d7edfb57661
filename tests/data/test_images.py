"""Every kind of pixel becomes upright, opaque 8-bit RGB or grey."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from lowtide.data import UnreadableImage, decode
from lowtide.data.images import bits_of, formats, look
from lowtide.data.tree import is_image
from lowtide.extras import extra

NOISE = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


def decoded(image: Image.Image, path, **options) -> np.ndarray:
    image.save(path, **options)
    result = decode(path)
    assert result.mode == "RGB" and look([path])[path].fault is None
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
    assert [p for p, seen in look([good, bad]).items() if seen.fault] == [bad]
    with pytest.raises(UnreadableImage, match=r"^cannot read image .*bad\.\w+: [^\n]+$"):
        decode(bad)


def test_what_has_no_range_is_refused(tmp_path):
    path = tmp_path / "x.tif"
    Image.fromarray(np.ones((4, 4), dtype=np.float32)).save(path)
    assert "32-bit pixels" in look([path])[path].fault


def png16(path, values: np.ndarray, *, transpose: int | None = None) -> None:
    """Write a PNG of 16 bits a channel, which Pillow writes for grey alone."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))]
    if transpose:
        exif = Image.Exif()
        exif[0x0112] = transpose
        parts.append((b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")))
    parts += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
            for name, data in parts
        )
    )


def tiff16(path, values: np.ndarray, order: str = "<") -> None:
    """Write an uncompressed TIFF of 16 bits a channel, grey or RGB, of either byte order."""
    height, width, channels = values.shape
    data = values.astype(f"{order}u2").tobytes()
    depths = struct.pack(f"{order}{channels}H", *[16] * channels)
    entries = [(256, width), (257, height), (259, 1), (262, 2 if channels == 3 else 1)]
    entries += [(273, 8), (277, channels), (278, height), (279, len(data))]
    at = 8 + len(data)
    fields = {key: struct.pack(f"{order}HHII", key, 4, 1, value) for key, value in entries}
    inline = depths.ljust(4, b"\0") if channels == 1 else struct.pack(f"{order}I", at)
    fields[258] = struct.pack(f"{order}HHI", 258, 3, channels) + inline
    if channels > 1:
        data, at = data + depths, at + len(depths)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", at)
    listed = b"".join(fields[key] for key in sorted(fields))
    path.write_bytes(head + data + struct.pack(f"{order}H", len(fields)) + listed + bytes(4))


WRITERS = {
    "png": png16,
    "tif": tiff16,
    "big-endian.tif": lambda path, values: tiff16(path, values, ">"),
}


@pytest.mark.parametrize("bits", [10, 12, 16])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", WRITERS)
def test_the_bits_in_use_of_sixteen_are_what_is_scaled(tmp_path, kind, channels, bits):
    values = np.random.default_rng(1).integers(0, 1 << bits, (6, 8, channels), dtype=np.uint16)
    values[2, 3] = (1 << bits) - 1
    path = tmp_path / f"x.{kind}"
    WRITERS[kind](path, values)
    assert look([path])[path] == (None, (1 << bits) - 1)
    assert bits_of((1 << bits) - 1) == bits
    expected = np.broadcast_to(values >> (bits - 8), (6, 8, 3))
    assert (np.asarray(decode(path, bits=bits)) == expected).all()
    brighter = np.minimum(values >> 2, 255)  # as of a set that uses 10
    assert (np.asarray(decode(path, bits=10)) == np.broadcast_to(brighter, (6, 8, 3))).all()


def test_sixteen_bit_colours_are_upright_and_opaque_too(tmp_path):
    values = np.random.default_rng(1).integers(0, 1 << 12, (6, 8, 3), dtype=np.uint16)
    png16(tmp_path / "x.png", values, transpose=6)
    assert (np.asarray(decode(tmp_path / "x.png", bits=12)) == np.rot90(values >> 4, -1)).all()
    clear = np.concatenate([values, np.full((6, 8, 1), (1 << 12) - 1, dtype=np.uint16)], -1)
    clear[0, 0, 3] = 0
    png16(tmp_path / "y.png", clear)
    seen = np.asarray(decode(tmp_path / "y.png", bits=12))
    assert (seen[0, 0] == 255).all() and (seen[1:] == values[1:] >> 4).all()


def test_what_cannot_be_read_whole_of_sixteen_bits_is_refused_where_it_would_be_dark(tmp_path):
    bright = np.full((4, 4, 2), 0xFFFF, dtype=np.uint16)
    png16(tmp_path / "bright.png", bright)
    png16(tmp_path / "dark.png", bright >> 4)
    paths = [tmp_path / "bright.png", tmp_path / "dark.png"]
    assert [seen.fault is None for seen in look(paths).values()] == [True, False]
    assert (np.asarray(decode(paths[0])) == 255).all()


def test_a_portable_grey_map_says_its_own_range(tmp_path):
    values = np.arange(0, 4096, 64, dtype=">u2")
    path = tmp_path / "x.pgm"
    path.write_bytes(b"P5 8 8 4095\n" + values.tobytes())
    assert (np.asarray(decode(path))[..., 0].ravel() == values // 16).all()


@pytest.mark.parametrize("peak", [0, 255, 256, 1023, 1024, 4095, 5000, 16383, 16384, 65535])
def test_bits_hold_the_peak_and_are_the_fewest_of_their_steps(peak):
    assert bits_of(peak) == next(n for n in (8, 10, 12, 14, 16) if peak < 1 << n)


@pytest.mark.parametrize("suffix", ["gif", "jfif", "avif", "jp2", "webp", "bmp", "jpe", "tiff"])
def test_a_suffix_of_what_can_be_read_is_one_of_an_image(tmp_path, suffix):
    kind = Image.registered_extensions()[f".{suffix}"]
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow was built without {kind}")
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(NOISE).save(path)
    assert is_image(path) and is_image(tmp_path / f"X.{suffix.upper()}")
    assert decode(path).size == (8, 6)


def test_photographs_of_telephones(tmp_path):
    path = tmp_path / "x.heic"
    extra("pillow_heif", "heif")
    assert "HEIF" in formats()
    Image.new("RGB", (64, 48), (200, 30, 40)).save(path, format="HEIF")
    assert is_image(path) and look([path])[path].fault is None
    assert np.abs(np.asarray(decode(path)).astype(int) - [200, 30, 40]).max() <= 8


def test_photographs_of_telephones_are_not_passed_over_without_their_decoder(tmp_path, monkeypatch):
    path = tmp_path / "x.heic"
    path.write_bytes(b"\0\0\0\x18ftypheic" + bytes(64))
    monkeypatch.setattr("lowtide.data.images.formats", lambda: ("PNG",))
    assert is_image(path)
    expected = 'HEIC photographs need pillow-heif: pip install "lowtide[heif]"'
    assert look([path])[path].fault == expected


def test_decoders_that_run_programs_are_not_tried(tmp_path):
    path = tmp_path / "x.png"
    Image.fromarray(NOISE).save(path, format="EPS")
    with pytest.raises(UnreadableImage, match="not an image"):
        decode(path)


def test_images_of_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    path = tmp_path / "x.png"
    Image.fromarray(NOISE).save(path)
    monkeypatch.setattr("lowtide.data.images.MAX_PIXELS", 48)
    assert decode(path).size == (8, 6)
    monkeypatch.setattr("lowtide.data.images.MAX_PIXELS", 47)
    with pytest.raises(UnreadableImage, match="8 x 6 pixels: expected at most"):
        decode(path)
    assert "8 x 6 pixels" in look([path])[path].fault


def test_a_broken_link_says_where_it_leads(tmp_path):
    (tmp_path / "x.png").symlink_to("gone.png")
    with pytest.raises(UnreadableImage, match=r"a link to gone\.png, which is not there"):
        decode(tmp_path / "x.png")
