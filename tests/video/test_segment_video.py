"""Clips segmented by the library: flicker, threads, classes, frames that cannot be read."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import vitnp
from bench.quality.clips import Clip, moving_object, moving_view
from vitnp.errors import ImageError, UsageError
from vitnp.io.decode import read_image
from vitnp.video.smoothing import SmoothingConfig


def masks(clip: Clip, steps: int | None = None, **arguments) -> np.ndarray:
    smoothing = {} if steps is None else {"smoothing": SmoothingConfig(steps=steps)}
    return np.stack([result.mask for result in vitnp.segment_video(list(clip.frames), **smoothing, **arguments)])


def small(n_frames: int = 6) -> list[np.ndarray]:
    return list(moving_object(0, n_frames, (96, 128)).frames)


def check_smoothing(seeds, n_frames: int) -> None:
    """Flicker is halved at least, and the masks are no worse."""
    clips = [moving_object(seed, n_frames) for seed in seeds]
    before, after = ([masks(clip, steps) for clip in clips] for steps in (0, None))

    def mean(score, found):
        return np.mean([score(clip, one) for clip, one in zip(clips, found)])

    assert mean(Clip.flicker, before) > 0.005
    assert mean(Clip.flicker, after) < mean(Clip.flicker, before) / 2
    assert mean(Clip.iou, after) >= mean(Clip.iou, before)


def test_flicker_is_halved_without_losing_iou():
    check_smoothing((1,), 14)


@pytest.mark.slow(reason="eight clips")
def test_flicker_is_halved_for_other_textures_and_paths():
    check_smoothing(range(2, 10), 14)


def test_clips_know_their_own_flicker():
    clip = moving_object(3, 5)
    assert clip.flicker(clip.truths) == 0 and clip.iou(clip.truths) == 1
    wrong = clip.truths.copy()
    wrong[2] = ~wrong[2]
    assert clip.flicker(wrong) > 0.4
    rgb = np.random.default_rng(0).integers(0, 255, (120, 160, 3), np.uint8)
    truth = np.zeros((120, 160), bool)
    truth[40:80, 50:100] = True
    pan = moving_view(rgb, truth, 1, 6, (80, 100), noise=0)
    assert pan.flicker(pan.truths) == 0  # in whole pixels
    here, there = pan.same(2)
    np.testing.assert_array_equal(pan.frames[2].reshape(-1, 3)[here], pan.frames[3].reshape(-1, 3)[there])


def test_same_bits_for_any_number_of_threads():
    found = [
        list(vitnp.segment_video(small(), short_side=96, n_threads=threads, batch=batch))
        for threads, batch in ((1, 1), (3, 4))
    ]
    for one, other in zip(*found):
        np.testing.assert_array_equal(one.soft, other.soft)
        assert one.photograph == other.photograph and one.confidence == other.confidence


def test_without_smoothing_frames_are_segmented_as_photographs_are():
    frames = small(3)
    settings = {"short_side": 96, "collection": None}
    alone = [vitnp.segment_image(frame, **settings) for frame in frames]
    for one, other in zip(vitnp.segment_video(frames, smoothing=SmoothingConfig(steps=0), **settings), alone):
        np.testing.assert_array_equal(one.soft, other.soft)


def test_classes_are_those_of_one_collection():
    """A clip of two shots has two classes, one for each shot."""
    height, width = 96, 128
    shots = []
    for name in ("chelsea", "coffee"):
        picture = Image.fromarray(read_image(f"tests/photographs/{name}.jpg")).resize((width, height))
        shots.append([np.roll(np.asarray(picture), shift, axis=1) for shift in range(5)])
    results = list(vitnp.segment_video(shots[0] + shots[1], short_side=96, n_classes=2))
    first, second = (
        {int(label) for result in part for label in np.unique(result.labels) if label}
        for part in (results[:5], results[5:])
    )
    assert len(first) == len(second) == 1 and first != second


def test_collection_is_fitted_on_request_and_given():
    frames = small(4)
    fitted = list(vitnp.segment_video(frames, short_side=96, collection="fit"))
    collection = vitnp.Segmenter(short_side=96).fit(frames).collection
    given = list(vitnp.segment_video(iter(frames), short_side=96, collection=collection))
    for one, other in zip(fitted, given):
        np.testing.assert_array_equal(one.soft, other.soft)


def test_iterator_is_read_once_and_so_cannot_be_fitted():
    with pytest.raises(UsageError, match="reads the frames twice, got an iterator"):
        list(vitnp.segment_video(iter(small(2)), collection="fit"))


def test_frame_that_cannot_be_read_is_left_out_and_logged(caplog):
    frames = small(4)
    results = list(vitnp.segment_video([frames[0], b"no picture", *frames[1:]], short_side=96))
    assert len(results) == 4 and "the bytes" in caplog.text


def test_frame_of_another_size_ends_the_clip():
    frames = [*small(2), np.zeros((50, 60, 3), np.uint8)]
    with pytest.raises(ImageError, match="frame_000002: this frame has 60 x 50 pixels, and those before it 128 x 96"):
        list(vitnp.segment_video(frames, short_side=96))


def test_wrong_setting_is_refused_at_once():
    with pytest.raises(UsageError, match="facet must be"):
        vitnp.segment_video("clip.mp4", facet="keys")
