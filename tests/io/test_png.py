"""PNG files as Pillow reads them, for every kind of picture and any number of threads."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from vitnp.kernels.threads import pool

from vitnp.io import png


def encoded(pixels: np.ndarray, **options) -> bytes:
    return b"".join(png.encode_png(pixels, **options))


def decoded(content: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(content))
    image.load()
    return image


def pixels_of(shape: tuple[int, ...], dtype: str, seed: int) -> np.ndarray:
    """Noise, or runs of equal values."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)
    return noise if seed % 2 else np.where(rng.random(shape) < 0.03, noise, noise.flat[0])


@pytest.fixture(params=["zlib", "isal"], autouse=True)
def compressor(request, monkeypatch):
    """Compress with zlib, and with ISA-L where it is installed."""
    if request.param == "zlib":
        monkeypatch.setattr(png, "_isal", lambda: None)
    elif png._isal() is None:
        pytest.skip("isal is not installed")
    return request.param


@settings(derandomize=True, deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(1, 20), st.integers(1, 20), st.sampled_from([(), (3,), (4,), "16 bits"]),
    st.sampled_from([1, 7, 40, 1 << 20]), st.integers(0, 99),
)  # fmt: skip
def test_pixels_come_back_from_any_bands(height, width, kind, band, seed):
    shape, dtype = ((height, width), "uint16") if kind == "16 bits" else ((height, width, *kind), "uint8")
    pixels = pixels_of(shape, dtype, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(png, "_BAND_PIXELS", band)
        content = encoded(pixels)
    np.testing.assert_array_equal(np.asarray(decoded(content)), pixels)


def test_views_are_written_as_their_copies():
    pixels = pixels_of((30, 40, 3), "uint8", seed=1)
    for view in (pixels[::-1, ::2], pixels[..., ::-1], pixels.transpose(1, 0, 2)):
        assert encoded(view) == encoded(view.copy())


def test_bytes_do_not_depend_on_the_number_of_threads(monkeypatch):
    monkeypatch.setattr(png, "_BAND_PIXELS", 500)
    pixels = pixels_of((90, 60, 3), "uint8", seed=3)
    contents = set()
    for n_threads in (1, 2, 5):
        with pool.thread_limit(n_threads):
            contents.add(encoded(pixels))
    assert len(contents) == 1


def test_profile_resolution_and_texts_are_kept():
    pixels = pixels_of((5, 6, 3), "uint8", seed=0)
    image = decoded(encoded(pixels, texts=[(b"tEXt", b"Software\0vitnp")], profile=b"a profile", dpi=(72, 300)))
    assert image.info["icc_profile"] == b"a profile" and image.text == {"Software": "vitnp"}
    assert image.info["dpi"] == pytest.approx((72, 300), abs=0.02)


def test_a_palette_gives_values_their_colors():
    palette = np.random.default_rng(0).integers(0, 256, (256, 3), dtype=np.uint8)
    labels = pixels_of((5, 6), "uint8", seed=1)
    image = decoded(encoded(labels, palette=palette))
    assert image.mode == "P"
    np.testing.assert_array_equal(np.asarray(image), labels)
    np.testing.assert_array_equal(np.asarray(image.convert("RGB")), palette[labels])


def test_masks_are_small():
    rows, columns = np.indices((375, 500))
    mask = ((rows - 190) ** 2 + (columns - 240) ** 2 < 110**2).astype(np.uint8) * np.uint8(255)
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG", compress_level=6)
    assert len(encoded(mask)) <= file.tell()


def test_isal_and_zlib_write_the_same_pixels(monkeypatch):
    isal = pytest.importorskip("isal.isal_zlib")
    rows, columns = np.indices((300, 400))
    picture = np.stack([rows % 256, columns % 256, (rows + columns) // 3 % 256], -1).astype(np.uint8)
    monkeypatch.setattr(png, "_isal", lambda: isal)
    with_isal = encoded(picture)
    monkeypatch.setattr(png, "_isal", lambda: None)
    with_zlib = encoded(picture)
    np.testing.assert_array_equal(np.asarray(decoded(with_isal)), np.asarray(decoded(with_zlib)))
    assert with_isal != with_zlib and len(with_isal) < 1.3 * len(with_zlib)


@pytest.mark.parametrize(
    "pixels", [np.zeros((2, 2)), np.zeros((2, 2, 2), np.uint8), np.zeros((0, 2), np.uint8), np.zeros((2, 2), np.int8)]
)
def test_other_arrays_are_refused(pixels):
    with pytest.raises(ValueError, match="a PNG holds"):
        encoded(pixels)
