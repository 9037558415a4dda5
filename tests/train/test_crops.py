"""Crops show the sampled boxes, whether cropped on the host or on a device."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from PIL import Image
from toy import picture
from vitnp.weights.train.data.crops import DeviceCropper, HostCropper, Normalizer
from vitnp.weights.train.data.loader import CropLoader
from vitnp.weights.train.data.packs import Picture, list_pictures
from vitnp.weights.train.data.sampler import CropParams, crop_boxes, sample_crops

from vitnp.errors import ImageError
from vitnp.io.preprocess import normalize


@pytest.fixture
def coordinates(tmp_path) -> list[Picture]:
    """Two pictures, one of them in portrait format, whose red is the column and whose green is the row."""
    pictures = []
    for name, (height, width) in {"landscape.png": (200, 250), "portrait.png": (250, 180)}.items():
        rgb = np.zeros((height, width, 3), np.uint8)
        rgb[..., 0], rgb[..., 1] = np.arange(width), np.arange(height)[:, None]
        Image.fromarray(rgb).save(tmp_path / name)
        pictures.append(Picture(name, tmp_path / name))
    return pictures


@pytest.fixture(params=["host", "device"])
def make_cropper(request):
    def make(pictures):
        return HostCropper(pictures) if request.param == "host" else DeviceCropper(pictures, torch.device("cpu"), 1)

    return make


def crop_params(indices, flipped) -> CropParams:
    ones = np.ones(len(indices))
    return CropParams((64, 96), np.array(indices), 0.6 * ones, 1.1 * ones, 0.3 * ones, 0.8 * ones, np.array(flipped))


def test_crops_show_their_boxes(make_cropper, coordinates):
    params = crop_params((0, 1), flipped=(False, True))
    crops = make_cropper(coordinates)(params).float().numpy()
    assert crops.shape == (2, 3, 64, 96)
    for crop, box, flipped in zip(crops, crop_boxes(params, [[200, 250], [250, 180]]), params.flipped):
        left, top, right, bottom = box
        # Centers of the pixels of the crop, as coordinates of the photograph, whose pixel i has its center at i + 1/2.
        columns = left + (np.arange(96) + 0.5) / 96 * (right - left) - 0.5
        rows = top + (np.arange(64) + 0.5) / 64 * (bottom - top) - 0.5
        inner = np.s_[2:-2, 2:-2]
        assert np.abs(crop[0] - (columns[::-1] if flipped else columns))[inner].max() < 1.5
        assert np.abs(crop[1] - rows[:, None])[inner].max() < 1.5


def test_host_and_device_agree(photographs):
    pictures = list_pictures([photographs])
    host, device = HostCropper(pictures), DeviceCropper(pictures, torch.device("cpu"), 2)
    for index in range(4):
        params = sample_crops(index, len(pictures), 4, 16, 0)
        a, b = host(params), device(params)
        assert a.shape == b.shape == (4, 3, *params.shape)
        assert (a.float() - b).abs().mean() < 2


def test_damaged_pictures_are_reported_once_and_left_out(make_cropper, photographs, tmp_path, caplog):
    (tmp_path / "damaged.jpg").write_bytes(b"\xff\xd8\xff nothing")
    pictures = [*list_pictures([photographs])[:2], Picture("damaged.jpg", tmp_path / "damaged.jpg")]
    cropper = make_cropper(pictures)
    crops = cropper(crop_params((0, 2, 1), flipped=(False,) * 3))
    cropper(crop_params((2, 1), flipped=(False,) * 2))
    assert caplog.messages == ["damaged.jpg: cannot read this image; leave it out"]
    assert torch.equal(crops, cropper(crop_params((0, 1), flipped=(False,) * 2)))
    with pytest.raises(ImageError, match="none of the 1 photographs"):
        cropper(crop_params((2,), flipped=(False,)))


def test_normalizer_equals_that_of_vitnp(teacher):
    rgb = picture(5)
    result = Normalizer(teacher.config, torch.device("cpu"))(torch.tensor(rgb).permute(2, 0, 1)[None])
    assert np.allclose(result[0].numpy(), normalize(rgb, teacher.config.mean, teacher.config.std), atol=1e-5)


def test_prefetching_keeps_the_order(photographs):
    loader = CropLoader(list_pictures([photographs]), batch_size=2, patch=32, seed=0, n_threads=2)
    batches = loader.prefetch(3)
    for index in range(3, 8):
        assert torch.equal(next(batches), loader.batch(index))
    batches.close()
