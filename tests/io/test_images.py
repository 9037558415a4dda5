"""Reading photographs: formats and depths, damaged files, network sizes, folders."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import subprocess
import sys
import textwrap
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vitnp.errors import ImageError, UsageError
from vitnp.io import decode, preprocess, resample
from vitnp.io.source import content_hash

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def gradient(height: int = 24, width: int = 40) -> np.ndarray:
    """A smooth image, which lossy formats preserve well and every rotation or flip changes."""
    y, x = np.mgrid[:height, :width]
    return np.stack([5 * x, 9 * y, 255 - 3 * x - 4 * y], axis=-1).astype(np.uint8)


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def close(left: np.ndarray, right: np.ndarray, tolerance: int) -> bool:
    return left.shape == right.shape and int(np.abs(left.astype(int) - right.astype(int)).max()) <= tolerance


# --- Formats ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("JPEG", {"quality": 98, "subsampling": 0}, 6),
        ("JPEG", {"quality": 98, "subsampling": 0, "progressive": True}, 6),
        ("PNG", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("WEBP", {"quality": 100}, 12),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("TIFF", {"compression": "tiff_deflate", "big_tiff": True}, 0),
        ("BMP", {}, 0),
    ],
)
def test_color_round_trip_with_an_unknown_extension(tmp_path, kind, options, tolerance):
    path = tmp_path / "photograph.xyz"
    path.write_bytes(encoded(Image.fromarray(gradient()), kind, **options))
    rgb = decode.read_image(path)
    assert rgb.dtype == np.uint8
    assert rgb.flags.c_contiguous
    assert close(rgb, gradient(), tolerance)
    assert decode.pixels_of(str(path)) == 24 * 40


def test_gif_gives_its_first_frame(tmp_path):
    first, second = (Image.new("P", (9, 7), index) for index in (1, 2))
    for frame in (first, second):
        frame.putpalette([0, 0, 0, 200, 10, 30, 4, 5, 6])
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    assert (decode.read_image(tmp_path / "a.gif") == (200, 10, 30)).all()


def test_tiff_gives_its_first_page(tmp_path):
    pages = [Image.new("RGB", (9, 7), color) for color in ((1, 2, 3), (4, 5, 6))]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    assert (decode.read_image(tmp_path / "a.tif") == (1, 2, 3)).all()


def test_camera_raw_files_are_an_error(tmp_path):
    Image.new("RGB", (9, 7)).save(tmp_path / "a.dng", "TIFF", tiffinfo={50706: b"\1\4\0\0"})
    with pytest.raises(ImageError, match="raw"):
        decode.read_image(tmp_path / "a.dng")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP", "WEBP"])
def test_gray_becomes_three_equal_channels(tmp_path, kind):
    gray = gradient()[..., 0]
    path = tmp_path / "a"
    path.write_bytes(
        encoded(Image.fromarray(gray), kind, **({"lossless": True} if kind == "WEBP" else {"quality": 98}))
    )
    assert close(decode.read_image(path), np.repeat(gray[..., None], 3, axis=2), 5 if kind == "JPEG" else 0)


def test_cmyk_jpeg(tmp_path):
    # R = 255 - C, times 4/5 for the black channel of 1/5.
    Image.new("CMYK", (16, 16), (55, 155, 255, 51)).save(tmp_path / "a.jpg", quality=100)
    assert close(decode.read_image(tmp_path / "a.jpg")[:1, :1], np.array([[[160, 80, 0]]]), 2)


def test_ycck_jpeg(tmp_path):
    # The last byte of the Adobe marker declares the channels as YCC + K. Stored values are inverted and the chroma is
    # neutral (128), so each channel is 255 - Y = 255 - (255 - 200) = 200, times 4/5 for the black channel of 1/5.
    data = bytearray(encoded(Image.new("CMYK", (16, 16), (200, 127, 127, 51)), "JPEG", quality=100))
    data[data.index(b"Adobe") + 11] = 2
    (tmp_path / "a.jpg").write_bytes(data)
    assert close(decode.read_image(tmp_path / "a.jpg")[:1, :1], np.array([[[160, 160, 160]]]), 2)


def turned(upright: np.ndarray, orientation: int) -> np.ndarray:
    """Return the pixels as a file with this EXIF orientation stores them, by the definition of the standard."""
    by_rows = {1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1, :]}
    if orientation in by_rows:
        return by_rows[orientation]
    columns = {5: upright, 6: upright[:, ::-1], 7: upright[::-1, ::-1], 8: upright[::-1, :]}[orientation]
    return np.stack([columns[:, index] for index in range(columns.shape[1])])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, monkeypatch, kind, orientation):
    monkeypatch.setattr("vitnp.io.decode._BAND_PIXELS", 100)
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16] = (255, 0, 0)
    upright[:8, 16:] = (0, 255, 0)
    upright[8:, :16] = (0, 0, 255)
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}
    path = tmp_path / "a"
    stored = Image.fromarray(np.ascontiguousarray(turned(upright, orientation)))
    path.write_bytes(encoded(stored, kind, exif=exif, **lossless.get(kind, {})))
    rgb = decode.read_image(path)
    assert rgb.flags.c_contiguous
    assert close(rgb, upright, 3 if kind == "JPEG" else 0)
    with Image.open(path) as picture:
        assert (decode.read_image(picture) == rgb).all()


@pytest.mark.filterwarnings("ignore")  # of Pillow
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0junk", b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
)
def test_damaged_exif_is_ignored(tmp_path, exif):
    (tmp_path / "a.jpg").write_bytes(encoded(Image.fromarray(gradient()), "JPEG", quality=98, subsampling=0, exif=exif))
    assert close(decode.read_image(tmp_path / "a.jpg"), gradient(), 6)


def test_damaged_color_profile_is_ignored(tmp_path):
    for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
        path = tmp_path / kind
        path.write_bytes(encoded(Image.fromarray(gradient()), kind, quality=98, icc_profile=b"\0junk" * 1000))
        assert decode.read_image(path).shape == (24, 40, 3)


def test_a_text_chunk_that_decompresses_to_a_huge_size_is_an_error(tmp_path):
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text("bomb", "0" * 20_000_000, zip=True)
    Image.new("L", (8, 8)).save(tmp_path / "a.png", pnginfo=text)
    assert (tmp_path / "a.png").stat().st_size < 100_000
    with pytest.raises(ImageError, match=r"a\.png"):
        decode.read_image(tmp_path / "a.png")


# --- Depths and transparency -----------------------------------------------------------------------------------------


def test_sixteen_bits_keep_the_high_byte(tmp_path):
    gray = (np.arange(24 * 40, dtype=np.uint16) * 68).reshape(24, 40)
    expected = np.repeat((gray >> 8).astype(np.uint8)[..., None], 3, axis=2)
    for name in ("a.png", "a.tif"):
        Image.fromarray(gray).save(tmp_path / name)
        assert (decode.read_image(tmp_path / name) == expected).all()
    big_endian = Image.frombytes("I;16B", (40, 24), gray.astype(">u2").tobytes())
    assert (decode.read_image(big_endian) == expected).all()
    assert (decode.read_image(gray) == expected).all()
    assert (decode.read_image(gray.astype(">u2")) == expected).all()


def png16(channels: np.ndarray, color_type: int, transparent: bytes = b"", significant: bytes = b"") -> bytes:
    """Encode a 16-bit PNG; Pillow can only write gray ones."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = channels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in channels)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0))
    clear = chunk(b"tRNS", transparent) if transparent else b""
    depth = chunk(b"sBIT", significant) if significant else b""
    return b"\x89PNG\r\n\x1a\n" + header + depth + clear + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_sixteen_bit_color_png(tmp_path):
    colors = np.array([[[65535, 0x1234, 0], [0x8000, 0x7FFF, 0xFF]]], np.uint16)
    (tmp_path / "a.png").write_bytes(png16(colors, 2))
    assert decode.read_image(tmp_path / "a.png").tolist() == [[[255, 0x12, 0], [0x80, 0x7F, 0]]]
    (tmp_path / "a.png").write_bytes(png16(colors, 2, transparent=colors[0, 1].astype(">u2").tobytes()))
    assert decode.read_image(tmp_path / "a.png").tolist() == [[[255, 0x12, 0], [255, 255, 255]]]
    with_alpha = np.array([[[65535, 0, 0, 65535], [65535, 0, 0, 0]]], np.uint16)
    (tmp_path / "a.png").write_bytes(png16(with_alpha, 6))
    assert decode.read_image(tmp_path / "a.png").tolist() == [[[255, 0, 0], [255, 255, 255]]]


@pytest.mark.parametrize(
    ("highest", "significant", "expected", "words"),
    [
        (4095, 12, 255, "its values have 12 bits and are scaled to 16"),
        (1023, 10, 255, "its values have 10 bits and are scaled to 16"),
        (65520, 12, 255, ""),  # scaled to the full range, as the specification demands
        (4095, 0, 15, "its 16-bit values reach only 4095 of 65535, so it is close to black"),
        (20000, 0, 78, ""),
        (0, 12, 0, ""),
    ],
)
def test_gray_png_of_fewer_bits(tmp_path, caplog, highest, significant, expected, words):
    sbit = bytes([significant]) if significant else b""
    (tmp_path / "a.png").write_bytes(png16(np.array([[[0], [highest]]], np.uint16), 0, significant=sbit))
    assert decode.read_image(tmp_path / "a.png")[0, :, 0].tolist() == [0, expected]
    assert [message.partition(": ")[2].partition(";")[0] for message in caplog.messages] == ([words] if words else [])


def test_sixteen_bit_gray_png_with_a_transparent_value(tmp_path):
    (tmp_path / "a.png").write_bytes(png16(np.array([[[300], [301]]], np.uint16), 0, transparent=b"\x01\x2c"))
    assert decode.read_image(tmp_path / "a.png")[0].tolist() == [[255] * 3, [1] * 3]


def test_float_pictures_are_0_to_1(tmp_path):
    values = np.array([[0, 0.5, 1.0, 0.1]], np.float32)
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert decode.read_image(tmp_path / "a.tif")[0, :, 0].tolist() == [0, 128, 255, 26]
    for wrong in (np.nan, np.inf, 255.0, -0.5):
        Image.fromarray(np.array([[0, wrong]], np.float32)).save(tmp_path / "b.tif")
        with pytest.raises(ImageError, match=r"b\.tif.*0\.\.1"):
            decode.read_image(tmp_path / "b.tif")


def test_integer_pictures_are_16_bit(tmp_path):
    Image.fromarray(np.array([[0, 65535, 0x1234]], np.int32)).save(tmp_path / "a.tif")
    assert decode.read_image(tmp_path / "a.tif")[0, :, 0].tolist() == [0, 255, 0x12]
    Image.fromarray(np.array([[0, 65536]], np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(ImageError, match=r"0\.\.65535"):
        decode.read_image(tmp_path / "a.tif")


def test_transparency_is_composited_over_white(tmp_path):
    rgba = np.array([[[200, 100, 0, 255], [200, 100, 0, 0], [200, 100, 0, 51]]], np.uint8)
    expected = [[200, 100, 0], [255, 255, 255], [244, 224, 204]]  # a fifth of the color, four fifths of white
    for name in ("a.png", "a.tif", "a.webp"):
        Image.fromarray(rgba).save(tmp_path / name, lossless=True, exact=True)
        assert decode.read_image(tmp_path / name)[0].tolist() == expected
    assert decode.read_image(rgba)[0].tolist() == expected
    assert decode.read_image(Image.fromarray(rgba).convert("RGBa"))[0, :2].tolist() == expected[:2]
    Image.fromarray(rgba[..., [0, 3]]).save(tmp_path / "la.png")
    assert decode.read_image(tmp_path / "la.png")[0].tolist() == [[200] * 3, [255] * 3, [244] * 3]


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "P"])
def test_transparent_colors(tmp_path, mode):
    picture = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("P" if mode == "P" else mode)
    # Black is transparent; a palette has opacities of its entries.
    clear = {"1": 0, "L": 0, "RGB": (0, 0, 0), "P": b"\0"}[mode]
    picture.save(tmp_path / "a.png", transparency=clear)
    assert decode.read_image(tmp_path / "a.png").tolist() == [[[255] * 3, [255] * 3]]
    picture.save(tmp_path / "b.png")
    assert decode.read_image(tmp_path / "b.png").tolist() == [[[0] * 3, [255] * 3]]


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LA", "PA", "La", "RGBa"]
)
def test_pil_images_of_any_mode(mode):
    source = Image.new("RGB", (5, 4), (255, 255, 255))
    picture = (
        Image.new("La", (5, 4), (255, 255))
        if mode == "La"
        else (
            source.convert("P").convert("PA")
            if mode == "PA"
            else source.convert("RGBA").convert("RGBa")
            if mode == "RGBa"
            else source.convert(mode)
        )
    )
    before = picture.tobytes(), dict(picture.info)
    assert (decode.read_image(picture) == 255).all()
    assert (picture.tobytes(), dict(picture.info)) == before


def test_a_picture_without_pixels_is_an_error():
    with pytest.raises(ImageError, match="no pixels"):
        decode.read_image(Image.new("RGB", (0, 4)))


def test_arrays():
    rgb = gradient()
    assert decode.read_image(rgb) is rgb
    assert (decode.read_image(rgb[:, ::-1]) == rgb[:, ::-1]).all()
    assert decode.read_image(rgb[:, ::-1]).flags.c_contiguous
    assert decode.read_image(rgb[..., :1]).tolist() == decode.read_image(rgb[..., 0]).tolist()
    assert decode.read_image(np.array([[True, False]]))[0].tolist() == [[255] * 3, [0] * 3]
    for dtype in (np.float16, np.float32, np.float64):
        assert (decode.read_image((rgb / 255).astype(dtype)) == rgb).all()


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((4, 4), np.int64), "dtype"),
        (np.zeros((4, 4), complex), "dtype"),
        (np.array([["a"]]), "dtype"),
        (np.zeros((3, 40, 60), np.uint8), "shape"),
        (np.zeros((4, 4, 2), np.uint8), "shape"),
        (np.zeros(4, np.uint8), "shape"),
        (np.zeros((1, 4, 4, 3), np.uint8), "shape"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (np.array([[0.0, np.nan]]), "NaN"),
        (np.array([[0.0, 200.0]]), "0..1"),
        (np.array([[-1.0, 0.5]]), "0..1"),
        (["a.jpg"], "list"),
        (None, "NoneType"),
    ],
)
def test_unsupported_arrays_are_named(array, words):
    with pytest.raises(ImageError) as error:
        decode.read_image(array)
    assert words in str(error.value)


# --- Sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (8, 8)])
def test_small_pictures(tmp_path, size):
    Image.new("RGB", size, (9, 9, 9)).save(tmp_path / "a.png")
    assert decode.read_image(tmp_path / "a.png").shape == (size[1], size[0], 3)


def test_pixel_limit_is_checked_in_the_header(tmp_path):
    """A file with the header of a 130-megapixel image and few pixels."""
    data = bytearray(encoded(Image.new("L", (8, 8)), "BMP"))
    data[18:26] = (13_000).to_bytes(4, "little") + (10_000).to_bytes(4, "little")
    (tmp_path / "a.bmp").write_bytes(data)
    with pytest.raises(ImageError, match=r"a\.bmp: 13000 x 10000 .* 120,000,000.*--max-pixels"):
        decode.read_image(tmp_path / "a.bmp")
    with pytest.raises(ImageError, match="truncated"):
        decode.read_image(tmp_path / "a.bmp", max_pixels=130_000_000)
    for array in (np.zeros((10, 11), bool), Image.new("1", (11, 10))):
        with pytest.raises(ImageError, match="11 x 10"):
            decode.read_image(array, max_pixels=109)
        assert decode.read_image(array, max_pixels=110).shape == (10, 11, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP", "GIF"])
def test_pillows_own_limit_is_neither_used_nor_changed(tmp_path, monkeypatch, kind):
    """A warning would be an error in these tests."""
    path = tmp_path / "a"
    path.write_bytes(encoded(Image.new("L", (300, 300)), kind))
    monkeypatch.setattr("vitnp.io.decode._BAND_PIXELS", 300)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert decode.read_image(path).shape == (300, 300, 3)
    assert Image.MAX_IMAGE_PIXELS == 1000


def test_a_tiff_with_huge_tiles_is_an_error(tmp_path):
    """Eight pixels a side by the header, but in a tile of 65,520: 4 GB to unpack. Written by hand, field by field."""
    fields = {256: 8, 257: 8, 258: 8, 259: 8, 262: 1, 277: 1, 322: 65520, 323: 65520, 324: 8, 325: 100}
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields.items())
    (tmp_path / "a.tif").write_bytes(
        b"II*\0"
        + struct.pack("<I", 108)
        + zlib.compress(bytes(5000)).ljust(100, b"\0")
        + struct.pack("<H", len(fields))
        + directory
        + bytes(4)
    )
    with pytest.raises(ImageError, match=r"a\.tif.*tiles of 65520 x 65520"):
        decode.read_image(tmp_path / "a.tif")


@pytest.mark.slow(reason="a large image in a process of its own")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss counts kilobytes on Linux only")
def test_memory_for_a_jpeg_with_exif_orientation(tmp_path):
    """At most 12 bytes per pixel, or 1.2 GB for 100 megapixels: measured with 25 megapixels, in another process."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6250, 4000), (10, 200, 30)).save(tmp_path / "a.jpg", exif=exif)
    script = textwrap.dedent("""
        import resource, sys
        from PIL import Image, JpegImagePlugin
        from vitnp.io.decode import read_image
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        before = peak()
        assert read_image(sys.argv[1]).shape == (6250, 4000, 3)
        print((peak() - before) / 25_000_000)
    """)
    run = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "a.jpg")], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert float(run.stdout) < 12


# --- Damage ----------------------------------------------------------------------------------------------------------


def samples() -> dict[str, bytes]:
    """A small file of each kind."""
    color = Image.fromarray(gradient(13, 17))
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "jpeg": encoded(color, "JPEG", exif=exif),
        "progressive jpeg": encoded(color, "JPEG", progressive=True),
        "png": encoded(color, "PNG", exif=exif),
        "palette png": encoded(color.quantize(8), "PNG", transparency=1),
        "webp": encoded(color, "WEBP", lossless=True),
        "tiff": encoded(color, "TIFF"),
        "lzw tiff": encoded(color, "TIFF", compression="tiff_lzw"),
        "gif": encoded(color.quantize(8), "GIF"),
        "bmp": encoded(color, "BMP"),
    }


@pytest.mark.parametrize("kind", sorted(samples()))
def test_files_truncated_anywhere_are_an_error(tmp_path, kind):
    data = samples()[kind]
    path = tmp_path / "holiday.jpg"
    path.write_bytes(data)
    whole = decode.read_image(path)
    # All pixels are present without a PNG's last checksum and chunk, a GIF's trailer, and a BMP's last padding.
    tail = {"png": 20, "palette png": 20, "gif": 2, "bmp": 1}.get(kind, 0)
    for length in range(0, len(data), 1 if len(data) < 400 else 3):
        path.write_bytes(data[:length])
        try:
            rgb = decode.read_image(path)
        except ImageError as error:
            assert "holiday.jpg" in str(error)
            assert "\n" not in str(error)
        else:
            assert length >= len(data) - tail
            assert (rgb == whole).all()


@pytest.mark.slow(reason="many inputs")
@settings(derandomize=True, deadline=None, max_examples=300)
@given(
    kind=st.sampled_from(sorted(samples())),
    edits=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=8),
    keep=st.floats(0.3, 1),
    header_only=st.booleans(),
)
def test_corrupted_bytes_raise_nothing_but_an_image_error(tmp_path_factory, kind, edits, keep, header_only):
    data = bytearray(samples()[kind])
    for position, value in edits:
        data[position % (min(len(data), 120) if header_only else len(data))] = value
    path = tmp_path_factory.getbasetemp() / "fuzzed"
    path.write_bytes(data[: int(len(data) * keep)] if keep < 0.7 else data)
    try:
        rgb = decode.read_image(path, max_pixels=1_000_000)
    except ImageError as error:
        assert "fuzzed" in str(error)
        assert "\n" not in str(error)
    else:
        assert rgb.dtype == np.uint8
        assert rgb.ndim == 3
        assert rgb.shape[2] == 3
        assert rgb.flags.c_contiguous


@settings(derandomize=True, deadline=None, max_examples=200)
@given(
    head=st.sampled_from(
        [
            b"",
            b"\xff\xd8\xff",
            b"\x89PNG\r\n\x1a\n",
            b"RIFF\0\0\0\0WEBP",
            b"II*\0",
            b"MM\0*",
            b"GIF89a",
            b"BM",
            b"\0\0\0\x18ftypheic",
            b"\0\0\0\x18ftypavif",
        ]
    ),
    rest=st.binary(max_size=300),
)
def test_random_bytes_are_an_image_error(tmp_path_factory, head, rest):
    path = tmp_path_factory.getbasetemp() / "junk"
    path.write_bytes(head + rest)
    with pytest.raises(ImageError, match="junk"):
        decode.read_image(path)


@pytest.mark.parametrize(
    "error",
    [SyntaxError("x"), OverflowError(), RecursionError("deep"), MemoryError(), KeyError(3), ValueError("two\nlines")],
)
def test_any_exception_of_pillow_becomes_an_image_error(tmp_path, monkeypatch, error):
    from PIL.PngImagePlugin import PngImageFile

    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    for method in ("_open", "load"):
        with monkeypatch.context() as patch:
            patch.setattr(PngImageFile, method, lambda self: (_ for _ in ()).throw(error))
            with pytest.raises(ImageError) as caught:
                decode.read_image(tmp_path / "a.png")
        assert str(tmp_path / "a.png") in str(caught.value)
        assert "\n" not in str(caught.value)


# --- Files that are not photographs ----------------------------------------------------------------------------------


def test_files_that_are_not_photographs(tmp_path):
    cases = {
        "text.jpg": (b"no image at all", "not an image"),
        "empty.jpg": (b"", "empty"),
        "film.heic": (b"\0\0\0\x18ftypisom\0\0\0\0isommp41", "not an image"),
        "page.pdf": (b"%PDF-1.7 ...", "not an image"),
    }
    for name, (data, words) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ImageError, match=f"{name}.*{words}"):
            decode.read_image(tmp_path / name)
    with pytest.raises(ImageError, match="folder"):
        decode.read_image(tmp_path)
    for missing in (tmp_path / "missing.jpg", tmp_path / "text.jpg" / "below", "nul\0byte"):
        with pytest.raises(ImageError):
            decode.read_image(missing)
    with pytest.raises(ImageError, match=r"missing\.jpg: there is no such file"):
        decode.file_hash(tmp_path / "missing.jpg")


def test_pipes_are_an_error(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ImageError, match="regular file"):
        decode.read_image(tmp_path / "pipe")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(Image.new("L", (8, 8)), "PNG"))
    (tmp_path / "a.png").chmod(0)
    with pytest.raises(ImageError, match=r"a\.png: no permission"):
        decode.read_image(tmp_path / "a.png")


@pytest.mark.parametrize("brands", [b"heic\0\0\0\0mif1heic", b"mif1\0\0\0\0mif1heix", b"msf1\0\0\0\0hevc    "])
def test_error_for_heic_names_the_missing_extra(tmp_path, monkeypatch, brands):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "a.jpg").write_bytes((8 + len(brands)).to_bytes(4, "big") + b"ftyp" + brands + bytes(100))
    with pytest.raises(ImageError, match=r"a\.jpg.*vitnp\[heic\]"):
        decode.read_image(tmp_path / "a.jpg")


def test_heic(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    heif.from_pillow(Image.fromarray(gradient(64, 96))).save(tmp_path / "a.heic", quality=100, chroma=444)
    assert close(decode.read_image(tmp_path / "a.heic"), gradient(64, 96), 12)
    (tmp_path / "b.heic").write_bytes((tmp_path / "a.heic").read_bytes()[:-200])
    with pytest.raises(ImageError, match=r"b\.heic"):
        decode.read_image(tmp_path / "b.heic")


# --- Size, scale and fingerprint -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("photograph", "options", "size"),
    [
        ((375, 500), {}, (320, 432)),  # 426.7 is nearer to 432 than to 416
        ((500, 375), {}, (432, 320)),
        ((320, 320), {}, (320, 320)),
        ((1, 1), {}, (320, 320)),
        ((400, 600), {"patch": 14}, (322, 490)),  # 322 * 1.5 = 483, 34.5 patches: halves go up
        ((400, 600), {"patch": 8}, (320, 480)),
        ((400, 600), {"short_side": 500}, (496, 752)),  # 496 * 1.5 = 744, 46.5 patches
        ((400, 600), {"short_side": 3}, (16, 32)),
    ],
)
def test_network_size(photograph, options, size):
    assert preprocess.network_size(*photograph, **options) == (size, False)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(
    height=st.integers(1, 20_000),
    width=st.integers(1, 20_000),
    patch=st.sampled_from([8, 14, 16]),
    stride_share=st.sampled_from([1, 2, 4]),
    max_tokens=st.integers(1, 6000),
    short_side=st.integers(1, 900),
)
def test_network_size_is_the_largest_within_max_tokens(height, width, patch, stride_share, max_tokens, short_side):
    stride = max(1, patch // stride_share)

    def tokens(size):
        # Count the positions of a patch, instead of using the formula.
        return len(range(0, size[0] - patch + 1, stride)) * len(range(0, size[1] - patch + 1, stride))

    options = {"patch": patch, "stride": stride, "short_side": short_side}
    free, _ = preprocess.network_size(height, width, **options, max_tokens=10**12)
    size, capped = preprocess.network_size(height, width, **options, max_tokens=max_tokens)
    assert all(side % patch == 0 and side >= patch for side in size)
    assert tokens(size) <= max_tokens
    assert capped == (tokens(free) > max_tokens)
    if not capped:
        assert size == free
    elif height == width:
        # A square can only grow by one patch on both sides.
        assert tokens((size[0] + patch, size[1] + patch)) > max_tokens
    mirrored, _ = preprocess.network_size(width, height, **options, max_tokens=max_tokens)
    assert mirrored == size[::-1]


def test_network_size_of_extreme_shapes():
    for height, width in ((10, 10_000), (10_000, 10), (1, 100_000_000)):
        (h, w), capped = preprocess.network_size(height, width)
        assert capped
        assert (h // 16) * (w // 16) <= 4096
        assert (h // 16) * (w // 16) > 3500


@pytest.mark.parametrize("options", [{"patch": 0}, {"stride": 17}, {"stride": 0}, {"max_tokens": 0}, {"short_side": 0}])
def test_network_size_out_of_range(options):
    with pytest.raises(UsageError):
        preprocess.network_size(100, 100, **options)


def test_resize_is_pillows_bicubic():
    rgb = np.random.default_rng(0).integers(0, 256, (300, 211, 3), dtype=np.uint8)
    for height, width in ((64, 48), (300, 48), (64, 211), (320, 400), (1, 1)):
        expected = np.asarray(Image.fromarray(rgb).resize((width, height), Image.Resampling.BICUBIC))
        assert (resample.downscale(rgb, (height, width)) == expected).all()


def test_normalize():
    rgb = gradient()
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    unit = preprocess.normalize(rgb, mean, std)
    assert unit.dtype == np.float32
    assert unit.flags.c_contiguous
    expected = ((rgb / 255 - mean) / std).transpose(2, 0, 1)
    np.testing.assert_allclose(unit, expected, atol=1e-6)


def test_content_hash_depends_on_pixels_and_shape(tmp_path):
    rgb = gradient()
    assert len(content_hash(rgb)) == 32
    assert content_hash(rgb) == content_hash(np.asfortranarray(rgb))
    assert content_hash(rgb) != content_hash(rgb.reshape(40, 24, 3))
    other = rgb.copy()
    other[3, 4, 1] ^= 1
    assert content_hash(rgb) != content_hash(other)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    Image.fromarray(rgb).save(tmp_path / "b.bmp")
    assert content_hash(decode.read_image(tmp_path / "a.png")) == content_hash(decode.read_image(tmp_path / "b.bmp"))
    assert (
        decode.file_hash(tmp_path / "a.png")
        == hashlib.blake2b((tmp_path / "a.png").read_bytes(), digest_size=16).hexdigest()
    )
