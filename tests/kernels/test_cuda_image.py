"""The CUDA kernels around the network's pictures and maps, against Pillow and the CPU's code: emulated in check mode,
and on a GPU under ``pytest -m gpu``."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image

from vitnp.io import preprocess, resample
from vitnp.method import cleaning
from vitnp.refine import guided_filter


@pytest.fixture
def image(cupy):
    from vitnp.kernels.cuda import image

    return image


@pytest.fixture
def guided(cupy):
    from vitnp.kernels.cuda import guided

    return guided


def picture(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def score(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


@pytest.mark.parametrize(
    "before, after",
    [
        ((37, 53), (11, 20)),
        ((37, 53), (60, 71)),
        ((37, 53), (37, 20)),
        ((40, 9), (7, 9)),
        ((5, 5), (1, 1)),
        ((1, 3), (8, 2)),
        ((6, 7), (6, 7)),
    ],
)
def test_resize_gives_pillow_s_bytes(cupy, image, before, after):
    rgb = picture(0, *before)
    wanted = Image.fromarray(rgb).resize(after[::-1], Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(cupy.asnumpy(image.resize(cupy.asarray(rgb), after)), np.asarray(wanted))


def test_resize_clips_what_the_filter_overshoots(cupy, image):
    rgb = np.zeros((1, 12, 3), np.uint8)
    rgb[:, 6:] = 255
    wanted = Image.fromarray(rgb).resize((31, 1), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(cupy.asnumpy(image.resize(cupy.asarray(rgb), (1, 31))), np.asarray(wanted))


@pytest.mark.parametrize("length, size", [(1, 1), (1, 9), (9, 1), (640, 320), (4000, 322), (3, 1000)])
def test_filter_weights_sum_to_one_and_stay_inside(image, length, size):
    first, weights = image.filter_weights(length, size)
    np.testing.assert_allclose(weights.sum(axis=1) / 2**22, 1, atol=weights.shape[1] / 2**22)
    taps = np.arange(weights.shape[1])
    assert (first >= 0).all() and (weights[first[:, None] + taps >= length] == 0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_normalize(cupy, image, dtype):
    rgb, mean, std = picture(1, 13, 29), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    found = cupy.asnumpy(image.normalize(cupy.asarray(rgb), mean, std, dtype))
    np.testing.assert_array_equal(found, preprocess.normalize(rgb, mean, std).astype(dtype))


@pytest.mark.parametrize(
    "before, after", [((3, 4), (17, 23)), ((1, 1), (2, 3)), ((9, 8), (4, 3)), ((5, 5), (5, 5)), ((1, 7), (9, 7))]
)
def test_bilinear_gives_the_cpu_s_bits(cupy, image, before, after):
    values = score(2, *before)
    np.testing.assert_array_equal(
        cupy.asnumpy(image.bilinear(cupy.asarray(values), after)), resample.bilinear(values, after)
    )


def test_bilinear_window(cupy, image):
    values, window = score(3, 4, 5), {"rows": slice(3, 9), "columns": slice(10, None, 2)}
    found = image.bilinear(cupy.asarray(values), (13, 21), **window)
    np.testing.assert_array_equal(cupy.asnumpy(found), resample.bilinear(values, (13, 21), **window))


def test_fixed_point_rounds_to_nearest_and_clips(cupy, image):
    values = np.float32([[-1, 0, 0.25 / 65535, 0.75 / 65535], [0.5, 1 - 1e-6, 1, 7]])
    assert cupy.asnumpy(image.fixed_point(cupy.asarray(values))).tolist() == [
        [0, 0, 0, 1],
        [32768, 65535, 65535, 65535],
    ]


@pytest.mark.parametrize("shape, radius", [((1, 1), 0), ((1, 9), 2), ((14, 17), 1), ((14, 17), 4), ((6, 5), 30)])
def test_guided_filter(cupy, guided, shape, radius):
    target, rgb = score(4, *shape), picture(5, *shape)
    found = guided.guided_filter(cupy.asarray(target), cupy.asarray(rgb), radius=radius, eps=1e-3)
    np.testing.assert_allclose(
        cupy.asnumpy(found), guided_filter.guided_filter(target, rgb, radius=radius, eps=1e-3), atol=1e-6
    )


def test_guided_filter_where_a_window_holds_one_hue(cupy, guided):
    ramp = np.linspace(0, 255, 15).astype(np.uint8)
    rgb = np.stack(np.broadcast_arrays(ramp[:, None], ramp[:, None] // 2, np.zeros((15, 12), np.uint8)), axis=-1)
    target = score(6, 15, 12)
    found = guided.guided_filter(cupy.asarray(target), cupy.asarray(rgb), radius=3, eps=1e-6)
    np.testing.assert_allclose(
        cupy.asnumpy(found), guided_filter.guided_filter(target, rgb, radius=3, eps=1e-6), atol=1e-5
    )


@pytest.mark.parametrize("small, full", [((8, 11), (33, 47)), ((1, 1), (3, 5)), ((12, 16), (25, 16))])
def test_guided_upsample_is_within_one_level(cupy, guided, small, full):
    rgb = picture(7, *full)
    reduced, soft = resample.downscale(rgb, small), score(8, *small)
    found = cupy.asnumpy(guided.guided_upsample(*map(cupy.asarray, (soft, reduced, rgb))))
    assert found.dtype == np.uint16
    assert np.abs(found.astype(int) - guided_filter.guided_upsample(soft, reduced, rgb)).max() <= 1


def test_maps_of_several_photographs(cupy, image, guided):
    """Photographs of a size get the bits that they get alone."""
    rgb, soft = np.stack([picture(9, 17, 21), picture(10, 17, 21)]), score(11, 2, 5, 6)
    pixels, maps = cupy.asarray(rgb), cupy.asarray(soft)
    small = image.resize(pixels, (8, 10))
    enlarged = image.bilinear(maps, (8, 10))
    filtered = guided.guided_filter(enlarged, small, radius=2, eps=1e-3)
    found = [small, enlarged, filtered, guided.guided_upsample(filtered, small, pixels)]
    for index in range(2):
        one = image.resize(cupy.asarray(rgb[index]), (8, 10))
        large = image.bilinear(cupy.asarray(soft[index]), (8, 10))
        own = guided.guided_filter(large, one, radius=2, eps=1e-3)
        alone = [one, large, own, guided.guided_upsample(own, one, cupy.asarray(rgb[index]))]
        for together, single in zip(found, alone):
            np.testing.assert_array_equal(cupy.asnumpy(together[index]), cupy.asnumpy(single))


@pytest.mark.parametrize("name, value", [("radius", -1), ("radius", 1.5), ("eps", 0.0)])
def test_guided_filter_refuses(cupy, guided, name, value):
    with pytest.raises(ValueError, match=name):
        guided.guided_filter(
            cupy.asarray(score(0, 2, 2)), cupy.asarray(picture(0, 2, 2)), **{"radius": 1, "eps": 1e-3, name: value}
        )


def test_what_is_no_photograph_is_refused(cupy, image):
    with pytest.raises(ValueError, match=r"uint8 array of shape \(H, W, 3\), not float32"):
        image.resize(cupy.asarray(np.zeros((2, 2, 3), np.float32)), (1, 1))


def spiral(side: int) -> np.ndarray:
    """One component that winds through the whole grid: the worst case for joining labels."""
    grid, at, step = np.zeros((side, side), np.float32), [0, 0], (0, 1)
    grid[0, 0] = 0.9
    while True:
        for _ in range(2):
            ahead = [a + 2 * s for a, s in zip(at, step)]
            if all(0 <= a < side for a in ahead) and not grid[tuple(ahead)]:
                break
            step = (step[1], -step[0])
        else:
            return grid
        at = [a + s for a, s in zip(at, step)]
        grid[tuple(at)] = 0.9


@pytest.mark.parametrize(
    "made",
    [
        score(10, 20, 31) ** 2,
        score(11, 40, 40) * np.float32(0.55),
        score(12, 1, 50),
        np.zeros((5, 6), np.float32),
        np.ones((5, 6), np.float32),
        spiral(21),
        np.float32([[0.9]]),
        np.float32([[0.5, 0.6], [0.7, 0.5]]),
    ],
    ids=["dense", "islands", "row", "nothing", "everything", "spiral", "one", "diagonal"],
)
@pytest.mark.parametrize(
    "constants",
    [cleaning.CleaningConfig(), cleaning.CleaningConfig(relative=0.9, absolute=0.05, cap=0.1)],
    ids=["default", "strict"],
)
def test_clean(cupy, image, made, constants):
    np.testing.assert_array_equal(
        cupy.asnumpy(image.clean(cupy.asarray(made), *dataclasses.astuple(constants))), cleaning.clean(made, constants)
    )


def test_maps_of_several_photographs_are_cleaned_together(cupy, image):
    maps = np.stack([score(12, 9, 11), np.zeros((9, 11), np.float32), score(13, 9, 11)])
    maps[1, 3, 4] = 0.8
    constants = cleaning.CleaningConfig(relative=0.9, absolute=0.05, cap=0.1)
    found = image.clean(cupy.asarray(maps), *dataclasses.astuple(constants))
    np.testing.assert_array_equal(cupy.asnumpy(found), [cleaning.clean(one, constants) for one in maps])


def test_a_lone_component_stays_however_small(cupy, image):
    made = np.zeros((20, 20), np.float32)
    made[3, 4] = 0.8
    np.testing.assert_array_equal(
        cupy.asnumpy(image.clean(cupy.asarray(made), *dataclasses.astuple(cleaning.CleaningConfig()))), made
    )
