"""TIFF: what the tags say is what is read, or it is refused; files are written by hand."""

from __future__ import annotations

import itertools
import logging
import threading
import warnings

import numpy as np
import PIL
import pytest
from PIL import Image
from tiff_files import tiff_bytes

from vitnp.errors import ImageError
from vitnp.io import decode
from vitnp.io.pillow_warnings import collected

HEIGHT, WIDTH = 3, 5
RECENT = int(PIL.__version__.partition(".")[0]) >= 13

# Photometric interpretation, number of channels, ExtraSamples.
COLORS = {
    "white is zero": (0, 1, ()),
    "black is zero": (1, 1, ()),
    "gray and alpha": (1, 2, (2,)),
    "gray and something": (1, 2, (0,)),
    "RGB": (2, 3, ()),
    "RGB and something": (2, 4, (0,)),
    "RGB and premultiplied alpha": (2, 4, (1,)),
    "RGB and alpha": (2, 4, (2,)),
    "CMYK": (5, 4, ()),
    "YCbCr": (6, 3, ()),
}
DEPTHS = {
    "1": (np.uint8, 1), "2": (np.uint8, 2), "4": (np.uint8, 4), "8": (np.uint8, None), "12": (np.uint16, 12),
    "16": (np.uint16, None), "32": (np.uint32, None), "signed 8": (np.int8, None), "signed 16": (np.int16, None),
    "signed 32": (np.int32, None), "float": (np.float32, None),
}  # fmt: skip
# Compression and predictor.
PACKINGS = {"plain": (1, 1), "deflate": (8, 1), "differences": (8, 2), "float differences": (8, 3)}


def samples(dtype: type, bits: int | None, channels: int, extra: tuple[int, ...]) -> np.ndarray:
    """Random samples of the full range; of 32 bits, those of 16, by vitnp's rule."""
    random = np.random.default_rng(channels)
    shape = (HEIGHT, WIDTH, channels)
    if np.dtype(dtype).kind == "f":
        return random.random(shape).astype(dtype)
    size = bits or min(16, 8 * np.dtype(dtype).itemsize)
    if np.dtype(dtype).kind == "i" and size < 16:
        return random.integers(-128, 128, shape).astype(dtype)
    values = random.integers(0, 1 << min(size, 15 if dtype is np.int16 else 16), shape).astype(dtype)
    values[0, 0], values[0, 1] = 0, (1 << size) - 1 if dtype is not np.int16 else 32767
    return np.minimum(values, values[..., -1:]) if extra == (1,) else values


def seen(values: np.ndarray, bits: int | None, photometric: int, extra: tuple[int, ...]) -> np.ndarray:
    """Return the colors, 0 to 255, that the TIFF specification gives samples, over white."""
    white = 1 if values.dtype.kind == "f" else (1 << (bits or min(16, 8 * values.dtype.itemsize))) - 1
    unit = values.astype(float) / white
    if photometric == 0:
        unit = 1 - unit
    if extra:
        unit, alpha = unit[..., :-1], unit[..., -1:]
        unit = {0: unit, 1: unit + 1 - alpha, 2: unit * alpha + 1 - alpha}[extra[0]]
    if photometric == 5:
        unit = (1 - unit[..., :3]) * (1 - unit[..., 3:])
    if photometric == 6:
        luma, blue, red = unit[..., 0], unit[..., 1] - 128 / 255, unit[..., 2] - 128 / 255
        unit = np.stack([luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue], axis=-1)
    return np.broadcast_to(unit.clip(0, 1) * 255, (HEIGHT, WIDTH, 3))


# Layouts that have to be right; all others may be refused. Older versions of Pillow read fewer.
MUST_BE_READ = {
    *itertools.product("<>", ("white is zero", "black is zero"), ("1", "2", "4", "8"), (1,), ("plain", "deflate")),
    *itertools.product("<", ("white is zero", "black is zero"), ("16",), (1,), ("plain", "deflate", "differences")),
    *itertools.product(">", ("black is zero",), ("16",), (1,), ("plain", "deflate", "differences")),
    *itertools.product("<", ("black is zero",), ("12",), (1,), ("plain", "deflate")),
    *itertools.product("<>", ("RGB", "CMYK"), ("8", "16"), (1, 2), ("plain", "deflate", "differences")),
    *itertools.product("<>", ("RGB and alpha", "RGB and something"), ("8", "16"), (1,), ("plain", "differences")),
    *itertools.product("<>", ("YCbCr",), ("8",), (1,), ("plain", "deflate")),
    *itertools.product("<>", ("white is zero", "black is zero"), ("float",), (1,), ("plain", "float differences")),
    *itertools.product("<>", ("black is zero",), ("signed 32",), (1,), ("plain", "deflate", "differences")),
}


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("color", COLORS)
def test_every_layout_is_right_or_refused(tmp_path, depth, color):
    """All combinations of byte order, planes, compression and predictor."""
    (photometric, channels, extra), (dtype, bits) = COLORS[color], DEPTHS[depth]
    read = set()
    for byte_order, planar, (packing, (compression, predictor)) in itertools.product("<>", (1, 2), PACKINGS.items()):
        if predictor != (1 if packing in ("plain", "deflate") else 3 if depth == "float" else 1 if bits else 2):
            continue
        if planar == 2 and channels == 1:
            continue
        values = samples(dtype, bits, channels, extra)
        tags: dict[int, list[int]] = {
            **({338: list(extra)} if extra else {}),
            **({530: [1, 1]} if photometric == 6 else {}),
        }
        (tmp_path / "a.tif").write_bytes(
            tiff_bytes(
                values, photometric, byte_order=byte_order, bits=bits, planar=planar, compression=compression,
                predictor=predictor, tags=tags,
            )
        )  # fmt: skip
        layout = (byte_order, color, depth, planar, packing)
        try:
            rgb = decode.read_image(tmp_path / "a.tif")
        except ImageError as error:
            assert not RECENT or layout not in MUST_BE_READ, error
            continue
        read.add(layout)
        # Two levels: the high byte instead of rounding, and premultiplied colors are divided and multiplied again.
        np.testing.assert_allclose(rgb, seen(values, bits, photometric, extra), atol=2.5, err_msg=str(layout))
    if RECENT:
        assert {layout for layout in MUST_BE_READ if layout[1:3] == (color, depth)} <= read


def read(tmp_path, data: bytes, **options) -> np.ndarray:
    (tmp_path / "a.tif").write_bytes(data)
    return decode.read_image(tmp_path / "a.tif", **options)


def gray(*values: int, dtype: type = np.uint16) -> np.ndarray:
    return np.array([values], dtype)


@pytest.mark.parametrize(("photometric", "expected"), [(0, [0, 0xFF - 0x12, 255]), (1, [255, 0x12, 0])])
def test_sixteen_bits_white_is_zero(tmp_path, photometric, expected):
    data = tiff_bytes(gray(65535, 0x1234, 0), photometric)
    assert read(tmp_path, data)[0, :, 1].tolist() == expected
    with Image.open(tmp_path / "a.tif") as picture:  # before and after its pixels are loaded
        for _ in range(2):
            assert decode.read_image(picture)[0, :, 1].tolist() == expected


def test_twelve_bits_fill_the_range(tmp_path):
    data = tiff_bytes(gray(0, 0x7FF, 0x800, 4095, 5), bits=12)
    assert read(tmp_path, data)[0, :, 0].tolist() == [0, 127, 128, 255, 0]


@pytest.mark.parametrize("tag", [281, 341])
@pytest.mark.parametrize("bits", [10, 12, 14])
def test_values_of_fewer_bits_are_scaled_if_the_tags_say_so(tmp_path, caplog, tag, bits):
    white = (1 << bits) - 1
    values = gray(0, white // 3, white)
    assert read(tmp_path, tiff_bytes(values, tags={tag: white}))[0, :, 0].tolist() == [0, 85, 255]
    assert f"a.tif: its values have {bits} bits and are scaled to 16" in caplog.text
    inverted = tiff_bytes(values, 0, tags={tag: white})
    assert read(tmp_path, inverted)[0, :, 0].tolist() == [255, 170, 0]
    # The tag is wrong.
    assert read(tmp_path, tiff_bytes(gray(0, 65535), tags={tag: white}))[0, :, 0].tolist() == [0, 255]


def test_the_largest_value_that_occurs_is_no_depth(tmp_path, caplog):
    """TIFF 6.0: MaxSampleValue is for statistics, and doesn't change how an image looks."""
    assert read(tmp_path, tiff_bytes(gray(0, 40000), tags={281: 40000}))[0, :, 0].tolist() == [0, 156]
    assert not caplog.records


@pytest.mark.parametrize(("photometric", "shade"), [(0, "white"), (1, "black")])
def test_values_that_may_be_of_fewer_bits_are_said(tmp_path, caplog, photometric, shade):
    read(tmp_path, tiff_bytes(gray(0, 4095), photometric))
    assert f"a.tif: its 16-bit values reach only 4095 of 65535, so it is close to {shade}" in caplog.text
    caplog.clear()
    read(tmp_path, tiff_bytes(np.full((1, 2, 3), 4095, np.uint16), 2))
    assert "reach only 4095 of 65535" in caplog.text


def test_color_of_fewer_bits_is_refused(tmp_path):
    """Pillow keeps the high bytes, so that 16 of 4096 levels would be left."""
    with pytest.raises(ImageError, match=r"a\.tif: it has color of 12 bits in 16, of which Pillow keeps 4"):
        read(tmp_path, tiff_bytes(np.full((1, 2, 3), 4095, np.uint16), 2, tags={281: [4095] * 3}))


@pytest.mark.parametrize(
    ("values", "photometric", "options", "words"),
    [
        (gray(-1, 1, dtype=np.int8), 1, {}, "signed 8-bit values"),
        (gray(-1, 1, dtype=np.int16), 1, {}, "signed 16-bit values"),
        (gray(-1, 1, dtype=np.int32), 1, {}, r"0\.\.65535"),
        (gray(0, np.nan, dtype=np.float32), 1, {}, "NaN"),
        (gray(0, 255, dtype=np.float32), 1, {}, r"0\.\.1"),
        (np.zeros((2, 2, 4), np.uint8), 5, {"tags": {332: 2}}, "inks other than cyan"),
        (np.zeros((2, 2, 3), np.uint8), 6, {}, "subsampled YCbCr"),
        (np.zeros((2, 2, 3), np.uint8), 8, {"planar": 2}, "plane per channel"),
    ],
)
def test_refusals_say_why(tmp_path, values, photometric, options, words):
    with pytest.raises(ImageError, match=rf"a\.tif: .*{words}"):
        read(tmp_path, tiff_bytes(values, photometric, **options))


def test_lab(tmp_path):
    """CIELab of gray, white, and the red of sRGB (L* 54.29, a* 80.81, b* 69.89 under D50), rounded."""
    lab = np.array([[[50 * 255 // 100, 0, 0], [255, 0, 0], [round(54.29 * 2.55), 81, 70]]], np.uint8)
    rgb = read(tmp_path, tiff_bytes(lab, 8))
    np.testing.assert_allclose(rgb[0], [[118] * 3, [255] * 3, [255, 0, 0]], atol=6)


@pytest.mark.parametrize(("scale", "bits"), [(257, None), (1, None), (257, 4)])
def test_palettes_of_16_and_of_8_bits(tmp_path, scale, bits):
    """Some programs write 0..255 into the map, whose values have 16 bits."""
    size = 1 << (bits or 8)
    colors = np.zeros((3, size), int)
    colors[:, 3] = 200, 100, 7
    tags = {320: [int(value) * scale for value in colors.ravel()]}
    rgb = read(tmp_path, tiff_bytes(gray(3, 0, 3, dtype=np.uint8), 3, bits=bits, tags=tags))
    assert rgb.tolist() == [[[200, 100, 7], [0, 0, 0], [200, 100, 7]]]


def test_several_pages_are_said(tmp_path, caplog):
    pages = [Image.new("RGB", (9, 7), color) for color in ("red", "blue")]
    for name in ("a.tif", "a.gif", "a.png", "a.webp"):
        caplog.clear()
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
        decode.read_image(tmp_path / name)
        assert caplog.messages == [f"{tmp_path / name}: it holds several pictures, of which the first is used"]
    caplog.clear()
    pages[0].save(tmp_path / "b.tif")
    decode.read_image(tmp_path / "b.tif")
    assert not caplog.messages


@pytest.mark.parametrize("action", ["default", "error", "ignore"])
def test_warnings_of_pillow_are_one_line_each(tmp_path, caplog, recwarn, action):
    """More values than the tag should have; the text is Pillow's."""
    warnings.simplefilter(action)  # undone by pytest
    data = tiff_bytes(gray(1, 2, dtype=np.uint8), tags={282: [1, 2, 3]})
    for name in ("a.tif", "b.tif"):
        (tmp_path / name).write_bytes(data)
        decode.read_image(tmp_path / name)
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [line.split(": ")[:2] for line in lines] == [
        [str(tmp_path / name), "Pillow warns"] for name in ("a.tif", "b.tif")
    ]
    assert not any("\n" in line for line in lines)
    assert not recwarn.list


def test_warnings_of_other_threads_are_shown_as_before():
    """One thread reads an image while another warns, and both leave no trace."""
    before = warnings.showwarning, list(warnings.filters)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with collected() as messages:
            thread = threading.Thread(target=warnings.warn, args=("of another thread",))
            thread.start()
            thread.join()
            warnings.warn("of this thread", stacklevel=1)
    assert messages == ["of this thread"]
    assert [str(warning.message) for warning in shown] == ["of another thread"]
    assert (warnings.showwarning, list(warnings.filters)) == before
