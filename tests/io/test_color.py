"""Color management: profiles and other descriptions of colors, against published conversions."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from vitnp import segment_image
from vitnp.io import color, decode, icc
from vitnp.io.source import fingerprint

# CSS Color 4, 17: linear Display P3 to XYZ, and XYZ to linear sRGB.
P3_TO_XYZ = np.array(
    [
        [0.48657094864821626, 0.26566769316909294, 0.1982172852343625],
        [0.22897456406974884, 0.6917385218365062, 0.079286914093745],
        [0, 0.045113381858902575, 1.0439443689009757],
    ]
)
XYZ_TO_SRGB = np.array(
    [
        [3.2409699419045213, -1.5373831775700935, -0.4986107602930033],
        [-0.9692436362808798, 1.8759675015077206, 0.04155505740717561],
        [0.05563007969699361, -0.20397695888897657, 1.0569715142428786],
    ]
)
# Adobe RGB (1998) specification, 4.3.5.3.
ADOBE_TO_XYZ = np.array([[0.57667, 0.18556, 0.18823], [0.29734, 0.62736, 0.07529], [0.02703, 0.07069, 0.99134]])

P3 = icc.from_code_points(12, 13)


def decoded(values: np.ndarray) -> np.ndarray:
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def srgb_of(light: np.ndarray, to_xyz: np.ndarray) -> np.ndarray:
    """Return the sRGB values, 0 to 255, of linear light in other primaries."""
    linear = (light @ (XYZ_TO_SRGB @ to_xyz).T).clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def colors() -> np.ndarray:
    """Grays, primaries, and random colors."""
    rgb = np.random.default_rng(5).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    rgb[0] = np.linspace(0, 255, 9)[:, None]
    rgb[1, :3] = np.eye(3) * 255
    return rgb


@pytest.fixture(params=["PNG", "TIFF", "WEBP", "JPEG", "PIL image"])
def tagged(request, tmp_path):
    """Return a function that makes a picture with a profile, and what it decodes to without one."""

    def make(rgb: np.ndarray, profile: bytes):
        picture = Image.fromarray(rgb)
        if request.param == "PIL image":
            picture.info["icc_profile"] = profile
            return picture, rgb
        options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(request.param, {})
        picture.save(tmp_path / "plain", request.param, **options)
        picture.save(tmp_path / "tagged", request.param, icc_profile=profile, **options)
        return tmp_path / "tagged", decode.read_image(tmp_path / "plain")

    return make


def test_display_p3(tagged):
    source, stored = tagged(colors(), P3)
    expected = srgb_of(decoded(stored / 255), P3_TO_XYZ)
    np.testing.assert_allclose(decode.read_image(source), expected, atol=1.5)
    kept = decode.decode_image(source)
    assert kept.profile == P3
    assert (kept.rgb == stored).all()


def test_a_profile_of_srgb_changes_nothing(tagged):
    for profile in (
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        icc.from_code_points(1, 13),
        icc.from_code_points(1, 1),
    ):
        source, stored = tagged(colors(), profile)
        kept = decode.decode_image(source)
        assert kept.profile is None
        assert (kept.rgb == stored).all()
        assert not kept.notices


@pytest.mark.parametrize("profile", [b"\0junk" * 100, P3[:200], P3[:36] + b"xxxx" + P3[40:]])
def test_a_damaged_profile_is_ignored_with_a_notice(tagged, profile):
    source, stored = tagged(colors(), profile)
    kept = decode.decode_image(source)
    assert (kept.rgb == stored).all()
    assert kept.profile is None
    assert "its color profile is not used" in kept.notices[0]
    assert "taken as sRGB" in kept.notices[0]


def gray_profile(gamma: float) -> bytes:
    """A profile of gray with a gamma, written by hand."""
    tags = {
        b"desc": icc._text("gray"),
        b"cprt": icc._text("none"),
        b"wtpt": b"XYZ \0\0\0\0" + icc._fixed([0.9642, 1, 0.8249]),
        b"kTRC": b"curv\0\0\0\0" + struct.pack(">IHxx", 1, round(gamma * 256)),
    }
    profile = bytearray(icc._assemble(tags))
    profile[16:20] = b"GRAY"
    return bytes(profile)


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_gray_profile(tmp_path, mode):
    levels = np.linspace(0, 255, 52).astype(np.uint8)[None]
    pixels = {"L": levels, "LA": np.dstack([levels, np.full_like(levels, 255)]), "I;16": levels * np.uint16(257)}[mode]
    Image.fromarray(pixels).save(tmp_path / "a.png", icc_profile=gray_profile(1))
    kept = decode.decode_image(tmp_path / "a.png")
    assert kept.profile is None
    np.testing.assert_allclose(
        kept.rgb[..., 0], srgb_of(np.repeat(levels[..., None] / 255, 3, 2), P3_TO_XYZ)[..., 0], atol=1.5
    )


def test_gray_with_a_profile_of_rgb(tmp_path):
    Image.new("L", (2, 2), 100).save(tmp_path / "a.png", icc_profile=P3)
    assert decode.decode_image(tmp_path / "a.png").profile == P3
    assert (decode.read_image(tmp_path / "a.png") == 100).all()


def test_a_profile_for_other_pixels_is_not_used(tmp_path):
    Image.fromarray(colors()).save(tmp_path / "a.png", icc_profile=gray_profile(1.8))
    kept = decode.decode_image(tmp_path / "a.png")
    assert (kept.rgb == colors()).all()
    assert "it is for grayscale, not RGB" in kept.notices[0]
    Image.new("CMYK", (16, 16), (55, 155, 255, 51)).save(tmp_path / "a.jpg", icc_profile=P3, quality=100)
    assert "it is for RGB, not CMYK" in decode.decode_image(tmp_path / "a.jpg").notices[0]


def cmyk_profile() -> bytes:
    """An output profile whose table maps ink to Lab: only black counts, and half of it is L* = 50."""
    # lut8Type: 4 inputs, 3 outputs, 2 grid points; the identity matrix; input and output curves are linear.
    header = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + icc._fixed(np.eye(3).ravel())
    linear = bytes(range(256))
    table = b"".join(bytes([0 if black else 255, 128, 128]) for _ in range(8) for black in (0, 1))
    lut = header + linear * 4 + table + linear * 3
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 2) + b"K\0" + bytes(78),
        b"cprt": b"text\0\0\0\0K\0",
        b"wtpt": b"XYZ \0\0\0\0" + icc._fixed([0.9642, 1, 0.8249]),
        b"A2B0": lut,
        b"A2B1": lut,
    }
    profile = bytearray(icc._assemble(tags))
    profile[8:12], profile[12:24] = b"\2\x40\0\0", b"prtrCMYKLab "
    return bytes(profile)


def test_cmyk_profile(tmp_path):
    """Without a profile cyan would be cyan; this one says that only black ink is seen. L* = 50 is 119 in sRGB."""
    for name, options in (("a.tif", {}), ("a.jpg", {"quality": 100})):
        for ink, expected in (((255, 0, 0, 0), 255), ((0, 255, 255, 127), 119), ((0, 0, 0, 255), 0)):
            Image.new("CMYK", (16, 16), ink).save(tmp_path / name, icc_profile=cmyk_profile(), **options)
            kept = decode.decode_image(tmp_path / name)
            assert not kept.notices
            assert kept.profile is None
            np.testing.assert_allclose(kept.rgb, expected, atol=3)


# --- Without a profile ----------------------------------------------------------------------------------------------


def png_with(rgb: np.ndarray, chunks: dict[bytes, bytes]) -> bytes:
    """Return a PNG with more chunks before the pixels."""
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "PNG")
    data, end_of_header = buffer.getvalue(), 8 + 25
    more = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks.items()
    )
    return data[:end_of_header] + more + data[end_of_header:]


def chromaticities(*numbers: float) -> bytes:
    return struct.pack(">8I", *(round(number * 100_000) for number in numbers))


P3_CHROMATICITIES = chromaticities(0.3127, 0.3290, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060)
SRGB_CHROMATICITIES = chromaticities(0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)


@pytest.mark.parametrize(
    ("chunks", "to_xyz", "curve"),
    [
        ({b"cICP": bytes([12, 13, 0, 1])}, P3_TO_XYZ, decoded),
        ({b"cHRM": P3_CHROMATICITIES, b"gAMA": struct.pack(">I", 45455)}, P3_TO_XYZ, decoded),
        ({b"cHRM": P3_CHROMATICITIES, b"gAMA": struct.pack(">I", 100_000)}, P3_TO_XYZ, lambda values: values),
        ({b"gAMA": struct.pack(">I", 55556)}, np.linalg.inv(XYZ_TO_SRGB), lambda values: values**1.8),
        # The code points come before everything else.
        ({b"cICP": bytes([12, 13, 0, 1]), b"gAMA": struct.pack(">I", 100_000)}, P3_TO_XYZ, decoded),
    ],
)
def test_png_chunks(tmp_path, chunks, to_xyz, curve):
    (tmp_path / "a.png").write_bytes(png_with(colors(), chunks))
    expected = srgb_of(curve(colors() / 255), to_xyz)
    np.testing.assert_allclose(decode.read_image(tmp_path / "a.png"), expected, atol=1.7)


@pytest.mark.parametrize(
    "chunks",
    [
        {b"gAMA": struct.pack(">I", 45455)},
        {b"gAMA": struct.pack(">I", 45455), b"cHRM": SRGB_CHROMATICITIES},
        {b"sRGB": b"\0", b"gAMA": struct.pack(">I", 100_000)},
        {b"cICP": bytes([1, 13, 0, 1])},
        {b"cICP": bytes([2, 2, 0, 1])},
    ],
)
def test_png_chunks_of_srgb_change_nothing(tmp_path, chunks):
    (tmp_path / "a.png").write_bytes(png_with(colors(), chunks))
    kept = decode.decode_image(tmp_path / "a.png")
    assert (kept.rgb == colors()).all()
    assert kept.profile is None
    assert not kept.notices


@pytest.mark.parametrize(
    "chunks",
    [
        {b"cICP": bytes([9, 16, 0, 1])},  # PQ, of HDR
        {b"cICP": bytes([77, 13, 0, 1])},
        {b"gAMA": struct.pack(">I", 0), b"cHRM": bytes(32)},
        {b"cHRM": chromaticities(0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3)},
        {b"cHRM": struct.pack(">8I", *[2**31 - 1] * 8)},
    ],
)
def test_png_chunks_without_meaning_are_said(tmp_path, chunks):
    (tmp_path / "a.png").write_bytes(png_with(colors(), chunks))
    kept = decode.decode_image(tmp_path / "a.png")
    assert (kept.rgb == colors()).all()
    assert len(kept.notices) == 1
    assert "a.png: its color profile is not used" in kept.notices[0]


def test_adobe_rgb_by_exif(tmp_path):
    """Cameras that are set to Adobe RGB may embed no profile, only the mark R03."""
    ifd, end = struct.Struct("<HHHII"), bytes(4)
    exif = b"Exif\0\0II*\0" + struct.pack("<I", 8)
    exif += ifd.pack(1, 0x8769, 4, 1, 26) + end  # the EXIF IFD
    exif += ifd.pack(1, 0xA005, 4, 1, 44) + end  # the interoperability IFD
    exif += struct.pack("<HHHI4s", 1, 1, 2, 4, b"R03\0") + end
    Image.fromarray(colors()).save(tmp_path / "a.jpg", quality=100, subsampling=0, exif=exif)
    kept = decode.decode_image(tmp_path / "a.jpg")
    assert kept.profile is not None
    expected = srgb_of((kept.rgb / 255) ** 2.19921875, ADOBE_TO_XYZ)
    np.testing.assert_allclose(decode.read_image(tmp_path / "a.jpg"), expected, atol=2)


def test_code_points_of_avif(tmp_path):
    """Pillow writes those of sRGB; here they are changed to those of Display P3, and to HDR."""
    pytest.importorskip("PIL._avif")
    Image.fromarray(colors()).save(tmp_path / "a.avif", quality=100)
    data = (tmp_path / "a.avif").read_bytes()
    place = data.index(b"colrnclx") + 8
    assert decode.decode_image(tmp_path / "a.avif").profile is None
    for primaries, transfer in ((12, 13), (9, 16)):
        (tmp_path / "a.avif").write_bytes(data[:place] + struct.pack(">HH", primaries, transfer) + data[place + 4 :])
        kept = decode.decode_image(tmp_path / "a.avif")
        if transfer == 13:
            assert kept.profile == P3
        else:
            assert "code points 9 and 16" in kept.notices[0]


def test_one_transform_in_many_threads():
    from concurrent.futures import ThreadPoolExecutor

    rgb = np.random.default_rng(0).integers(0, 256, (64, 500, 3), dtype=np.uint8)
    expected = color.to_srgb(rgb, P3)
    with ThreadPoolExecutor(4) as threads:
        assert all((found == expected).all() for found in threads.map(lambda _: color.to_srgb(rgb, P3), range(40)))


# --- Through the pipeline -------------------------------------------------------------------------------------------


def scene() -> np.ndarray:
    rgb = np.full((96, 128, 3), (40, 160, 60), np.uint8)
    y, x = np.mgrid[:96, :128]
    rgb[np.hypot(y - 48, x - 60) < 25] = (250, 80, 30)
    return rgb


def test_overlay_and_cutout_keep_colors_and_profile(tmp_path, builtin):
    Image.fromarray(scene()).save(tmp_path / "a.png", icc_profile=P3)
    result = segment_image(tmp_path / "a.png", builtin, short_side=96)
    files = result.save(tmp_path / "a", ["overlay", "cutout", "mask"])
    for kind in ("overlay", "cutout"):
        with Image.open(files[kind]) as picture:
            assert picture.info["icc_profile"] == P3
        assert getattr(result, kind)().info["icc_profile"] == P3
    with Image.open(files["mask"]) as picture:
        assert "icc_profile" not in picture.info
    with Image.open(files["cutout"]) as picture:
        rgba = np.asarray(picture)
    assert (rgba[..., :3][rgba[..., 3] == 255] == scene()[rgba[..., 3] == 255]).all()
    # Of sRGB there is no profile, and nothing in the files changes.
    Image.fromarray(scene()).save(tmp_path / "b.png")
    plain = segment_image(tmp_path / "b.png", builtin, short_side=96).save(tmp_path / "b", ["overlay"])
    with Image.open(plain["overlay"]) as picture:
        assert "icc_profile" not in picture.info


def test_the_network_sees_srgb(tmp_path, builtin):
    Image.fromarray(scene()).save(tmp_path / "a.png", icc_profile=P3)
    tagged = segment_image(tmp_path / "a.png", builtin, short_side=96).keys
    converted = segment_image(color.to_srgb(scene(), P3), builtin, short_side=96).keys
    untagged = segment_image(scene(), builtin, short_side=96).keys
    # The photograph has the size of the network's input, so it makes no difference when it is converted.
    np.testing.assert_array_equal(tagged, converted)
    assert np.abs(tagged - untagged).max() > 0.1


def test_fingerprints_in_memory_depend_on_the_profile():
    plain, p3 = Image.fromarray(scene()), Image.fromarray(scene())
    p3.info["icc_profile"] = P3
    assert fingerprint(plain) == fingerprint(scene())
    assert fingerprint(p3) != fingerprint(plain)
