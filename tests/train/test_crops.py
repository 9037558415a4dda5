"""Crops show what their plan says, cut on the host or on the device."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from PIL import Image
from toy import picture
from vitnp.weights.train.data.crops import Ahead, DeviceCrops, HostCrops, Normalize
from vitnp.weights.train.data.packs import Picture, pictures_of
from vitnp.weights.train.data.sampler import Plan, boxes, plan

from vitnp.errors import ImageError
from vitnp.io.preprocess import normalize


def refuse(message):
    raise AssertionError(message)


@pytest.fixture
def coordinates(tmp_path) -> list[Picture]:
    """Two pictures whose red is the column and whose green is the row, one of them upright."""
    found = []
    for name, (height, width) in {"wide.png": (200, 250), "upright.png": (250, 180)}.items():
        rgb = np.zeros((height, width, 3), np.uint8)
        rgb[..., 0], rgb[..., 1] = np.arange(width), np.arange(height)[:, None]
        Image.fromarray(rgb).save(tmp_path / name)
        found.append(Picture(name, tmp_path / name))
    return found


@pytest.fixture(params=["host", "device"])
def cutter(request):
    def make(pictures, notice=refuse):
        return (
            HostCrops(pictures, notice)
            if request.param == "host"
            else DeviceCrops(pictures, torch.device("cpu"), 1, notice)
        )

    return make


def a_plan(shape=(64, 96), pictures=(0, 1), mirrored=(False, True)) -> Plan:
    many = np.ones(len(pictures))
    return Plan(shape, np.array(pictures), 0.6 * many, 1.1 * many, 0.3 * many, 0.8 * many, np.array(mirrored))


def test_crops_show_their_boxes(cutter, coordinates):
    one = a_plan()
    crops = cutter(coordinates)(one).float().numpy()
    assert crops.shape == (2, 3, 64, 96)
    for crop, box, mirrored in zip(crops, boxes(one, [[200, 250], [250, 180]]), one.mirrored):
        left, top, right, bottom = box
        # Centers of the crop's pixels, in the photograph, whose pixel i has its center at i + 1/2.
        columns = left + (np.arange(96) + 0.5) / 96 * (right - left) - 0.5
        rows = top + (np.arange(64) + 0.5) / 64 * (bottom - top) - 0.5
        inner = np.s_[2:-2, 2:-2]
        assert np.abs(crop[0] - (columns[::-1] if mirrored else columns))[inner].max() < 1.5
        assert np.abs(crop[1] - rows[:, None])[inner].max() < 1.5


def test_host_and_device_agree(photographs):
    pictures = pictures_of([photographs])
    host, device = HostCrops(pictures, refuse), DeviceCrops(pictures, torch.device("cpu"), 2, refuse)
    for number in range(4):
        one = plan(number, len(pictures), 4, 16, 0)
        a, b = host(one), device(one)
        assert a.shape == b.shape == (4, 3, *one.shape)
        assert (a.float() - b).abs().mean() < 2


def test_a_damaged_picture_is_told_of_and_done_without(cutter, photographs, tmp_path):
    (tmp_path / "damaged.jpg").write_bytes(b"\xff\xd8\xff nothing")
    pictures = [*pictures_of([photographs])[:2], Picture("damaged.jpg", tmp_path / "damaged.jpg")]
    told = []
    cut = cutter(pictures, told.append)
    few = cut(a_plan(pictures=(0, 2, 1), mirrored=(False,) * 3))
    cut(a_plan(pictures=(2, 1), mirrored=(False,) * 2))
    assert told == ["damaged.jpg: this picture can't be read; leave it out"]
    assert torch.equal(few, cut(a_plan(pictures=(0, 1), mirrored=(False,) * 2)))
    with pytest.raises(ImageError, match="none of 1 photographs"):
        cut(a_plan(pictures=(2,), mirrored=(False,)))


def test_normalize_is_the_network_s_own(teacher):
    rgb = picture(5)
    mine = Normalize(teacher.config, torch.device("cpu"))(torch.tensor(rgb).permute(2, 0, 1)[None])
    assert np.allclose(mine[0].numpy(), normalize(rgb, teacher.config.mean, teacher.config.std), atol=1e-5)


def test_ahead_keeps_the_order():
    ahead = Ahead(lambda number: number * number, iter(range(3, 100)), workers=2)
    assert [ahead() for _ in range(5)] == [9, 16, 25, 36, 49]
    ahead.close()
