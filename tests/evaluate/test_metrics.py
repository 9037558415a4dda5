"""The five scores against cases worked by hand, plain loops, and the field's common toolbox."""

from __future__ import annotations

import json
import math
import pathlib
import runpy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vitnp.evaluate.metrics.saliency import accuracy, boundary_f, iou, mae, max_f_beta, s_measure, saliency_scores

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9)
quick = settings(derandomize=True, deadline=None, max_examples=60)


def grid(*rows: str) -> np.ndarray:
    """A truth or mask from rows of '#' and '.'."""
    return np.array([[character == "#" for character in row] for row in rows])


@st.composite
def maps(draw):
    """A soft map and a truth of one shape; values meet the thresholds k / 255 or lie between them."""
    shape = draw(SHAPES)
    truth = draw(hnp.arrays(bool, shape))
    levels = draw(hnp.arrays(np.int64, shape, elements=st.integers(0, 510)))
    return levels / 510, truth


@st.composite
def masks(draw):
    shape = draw(SHAPES)
    return draw(hnp.arrays(bool, shape)), draw(hnp.arrays(bool, shape))


# Independent definitions: a loop over pixels for each.


def loop_confusion(mask, truth):
    tally = {(called, real): 0 for called in (False, True) for real in (False, True)}
    for called, real in zip(mask.ravel().tolist(), truth.ravel().tolist()):
        tally[called, real] += 1
    return tally


def loop_max_f(soft, truth, beta2=0.3):
    best = 0.0
    for k in range(256):
        tally = loop_confusion(soft >= k / 255, truth)
        hits = tally[True, True]
        if hits:
            precision = hits / (hits + tally[True, False])
            recall = hits / (hits + tally[False, True])
            best = max(best, (1 + beta2) * precision * recall / (beta2 * precision + recall))
    return best


def loop_s_measure(soft, truth, alpha=0.5):
    """The structure measure from the paper's text, over lists of (value, label), coordinates counted from 1."""
    rows, columns = truth.shape
    pixels = {(i + 1, j + 1): (float(soft[i, j]), int(truth[i, j])) for i in range(rows) for j in range(columns)}
    mu = sum(label for _, label in pixels.values()) / len(pixels)
    average = math.fsum(value for value, _ in pixels.values()) / len(pixels)
    if mu == 0:
        return 1 - average
    if mu == 1:
        return average

    def similarity_to_one(values):
        mean = math.fsum(values) / len(values)
        squares = math.fsum((value - mean) ** 2 for value in values)
        sigma = math.sqrt(squares / (len(values) - 1)) if len(values) > 1 else 0.0
        return 2 * mean / (mean**2 + 1 + sigma)

    s_object = mu * similarity_to_one([value for value, label in pixels.values() if label])
    s_object += (1 - mu) * similarity_to_one([1 - value for value, label in pixels.values() if not label])

    inside = [place for place, (_, label) in pixels.items() if label]
    middle_row = math.floor(sum(i for i, _ in inside) / len(inside) + 0.5)
    middle_column = math.floor(sum(j for _, j in inside) / len(inside) + 0.5)
    blocks = {}
    for (i, j), pixel in pixels.items():
        blocks.setdefault((i <= middle_row, j <= middle_column), []).append(pixel)
    s_region = 0.0
    for block in blocks.values():
        n = len(block)
        x, y = math.fsum(value for value, _ in block) / n, sum(label for _, label in block) / n
        flat = len({value for value, _ in block}) == 1
        freedom = max(n - 1, 1)
        var_x = 0.0 if flat else math.fsum((value - x) ** 2 for value, _ in block) / freedom
        var_y = math.fsum((label - y) ** 2 for _, label in block) / freedom
        covariance = 0.0 if flat else math.fsum((value - x) * (label - y) for value, label in block) / freedom
        # Luminance times contrast times structure; where the quotient is 0/0 the block agrees.
        over, under = 4 * x * y * covariance, (x**2 + y**2) * (var_x + var_y)
        s_region += n / len(pixels) * (over / (under + 2**-52) if over else float(under == 0))
    return max(0.0, alpha * s_object + (1 - alpha) * s_region)


# Worked by hand.


def test_iou_and_accuracy_by_hand():
    mask = grid("##..", "##..")
    truth = grid(".##.", ".##.")
    # 2 pixels in both, 6 in either; 2 + 2 of 8 agree.
    assert iou(mask, truth) == 2 / 6
    assert accuracy(mask, truth) == 4 / 8


def test_iou_of_empty_masks():
    nothing, something = grid("...", "..."), grid("#..", "...")
    assert iou(nothing, nothing) == 1.0
    assert iou(nothing, something) == iou(something, nothing) == 0.0
    assert accuracy(nothing, something) == 5 / 6


def test_boundary_f_by_hand():
    truth = grid("........", ".####...", ".####...", ".####...", "........")
    # One column more. All but the middle rows' inner pixels are boundary: twelve here, ten there. The three of the new
    # column are not true ones, and of the true ones that in the middle of the last column lies inside the mask.
    mask = grid("........", ".#####..", ".#####..", ".#####..", "........")
    precision, recall = 9 / 12, 9 / 10
    assert boundary_f(mask, truth, 0) == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-15)
    assert boundary_f(mask, truth, 1) == 1.0
    # A column two pixels away from a column: within 2, not within 1.9. Both have the full height, so the frame counts
    # for nothing.
    one, other = grid("#....", "#....", "#...."), grid("..#..", "..#..", "..#..")
    assert boundary_f(one, other, 2) == 1.0 and boundary_f(one, other, 1.9) == 0.0
    # Diagonal distances are Euclidean: 3, 3 is sqrt(18) away.
    one, other = np.zeros((9, 9), bool), np.zeros((9, 9), bool)
    one[2, 2] = other[5, 5] = True
    assert boundary_f(one, other) == 0.0 and boundary_f(one, other, 4.25) == 1.0


def test_boundary_f_without_a_boundary():
    nothing, everything, something = np.zeros((3, 3), bool), np.ones((3, 3), bool), grid("...", ".#.", "...")
    assert boundary_f(nothing, nothing) == boundary_f(everything, everything) == 1.0
    assert boundary_f(nothing, something) == boundary_f(something, everything) == 0.0
    with pytest.raises(ValueError, match="tolerance must be at least 0 pixels, got -1"):
        boundary_f(nothing, nothing, -1)


def loop_boundary_f(mask, truth, tolerance):
    def boundary(m):
        rows, columns = m.shape
        inside = {(y, x) for y in range(rows) for x in range(columns) if m[y, x]}
        steps = ((0, 1), (1, 0), (0, -1), (-1, 0))
        around = lambda y, x: [(y + a, x + b) for a, b in steps if 0 <= y + a < rows and 0 <= x + b < columns]  # noqa: E731
        return [p for p in inside if any(n not in inside for n in around(*p))]

    found, true = boundary(mask), boundary(truth)
    if not found or not true:
        return float(bool(found) == bool(true))
    near = lambda some, others: sum(any(math.dist(p, q) <= tolerance for q in others) for p in some) / len(some)  # noqa: E731
    precision, recall = near(found, true), near(true, found)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def test_max_f_by_hand():
    soft = np.array([[0.9, 0.8, 0.7, 0.1]])
    truth = grid("#.#.")
    # The cuts give (precision, recall) = (1, 1/2), (1/2, 1/2), (2/3, 1), (1/2, 1), so F is
    # 1.3/2 / (0.3 + 1/2) = 0.8125, 0.5, 1.3 * 2/3 / (0.2 + 1) = 0.7222, 1.3/2 / (0.15 + 1) = 0.5652.
    assert max_f_beta(soft, truth) == pytest.approx(0.8125, abs=1e-15)
    # With beta2 = 1: 2/3, 1/2, 4/5, 2/3.
    assert max_f_beta(soft, truth, beta2=1.0) == pytest.approx(0.8, abs=1e-15)


def test_max_f_thresholds_are_inclusive_255ths():
    truth = grid("#.")
    # 0.5 and 0.502 are both above 127/255 = 0.49804; 128/255 = 0.50196 tells them apart.
    assert max_f_beta(np.array([[0.502, 0.5]]), truth) == 1.0
    # No threshold lies between 0.5 and 0.501: precision 1/2, recall 1.
    assert max_f_beta(np.array([[0.501, 0.5]]), truth) == pytest.approx(1.3 * 0.5 / (0.15 + 1), abs=1e-15)
    # A value on the threshold is foreground, also in a map of 16 bits: 128/255 = 32896/65535.
    for dtype in (np.float32, np.float64):
        sixteen_bits = np.array([[32896, 32895]], dtype=dtype) / dtype(65535)
        assert max_f_beta(sixteen_bits, truth) == 1.0


def test_max_f_threshold_zero_predicts_everything_foreground():
    # Nothing is found above 0; all foreground has precision 1/4, recall 1.
    assert max_f_beta(np.zeros((1, 4)), grid("#...")) == pytest.approx(1.3 / 4 / (0.3 / 4 + 1), abs=1e-15)


def test_max_f_of_an_empty_truth():
    nothing = grid("..", "..")
    assert max_f_beta(np.zeros((2, 2)), nothing) == 1.0
    assert max_f_beta(np.full((2, 2), 0.0039), nothing) == 1.0  # below 1/255 = 0.00392
    assert max_f_beta(np.array([[0, 0], [0, 1 / 255]]), nothing) == 0.0


def test_mae_by_hand():
    # (0.25 + 0.5 + 0.5 + 0) / 4
    assert mae(np.array([[0.75, 0.5], [0.5, 0.0]]), grid("##", "..")) == 0.3125


def test_mae_of_single_precision_is_computed_in_double():
    # The float32 nearest to 0.1 is 0.100000001490116; 1 minus that, in float32, would give 0.9 to only eight digits.
    soft = np.full((3, 5), 0.1, dtype=np.float32)
    assert mae(soft, np.ones((3, 5), bool)) == pytest.approx(1 - 0.100000001490116, abs=1e-14)


def test_s_measure_of_empty_and_full_truths():
    soft = np.array([[0.25, 0.75], [0.5, 0.25]])  # mean 0.4375
    assert s_measure(soft, grid("..", "..")) == 0.5625
    assert s_measure(soft, grid("##", "##")) == 0.4375


def test_s_measure_object_part_by_hand():
    soft = np.array([[1.0, 0.5, 0.0, 0.5]])
    truth = grid("##..")
    # Foreground values 1 and 1/2: mean 3/4, sample deviation sqrt(2/16) = 0.353553; 1.5 / (0.5625 + 1 + 0.353553).
    # The background's complements 1 and 1/2 are the same, so both halves score alike.
    assert s_measure(soft, truth, alpha=1.0) == pytest.approx(1.5 / (1.5625 + math.sqrt(0.125)), abs=1e-12)


def test_s_measure_region_part_by_hand():
    soft = np.array([[0.8, 0.4, 0.0, 0.2]])
    truth = grid("##..")
    # The centroid's column, from 1, is 1.5 and rounds up to 2: blocks of columns 1-2 and 3-4, no rows below.
    # Left: the truth is constant, the map not: covariance 0, variance > 0, so 0. Right likewise.
    assert s_measure(soft, truth, alpha=0.0) == 0.0
    truth = grid("#...")
    # Centroid column 1. Left block: one pixel, no variance anywhere: 1, weight 1/4. Right: truth 0, map varies: 0.
    assert s_measure(soft, truth, alpha=0.0) == 0.25
    truth = grid("##.#")
    # Columns 1, 2, 4: mean 7/3, rounds to 2. Left: 0. Right, map (0, 0.2), truth (0, 1): means 0.1 and 0.5,
    # variances 0.02 and 0.5, covariance 0.1: 4 * 0.05 * 0.1 / (0.26 * 0.52), weight 1/2.
    assert s_measure(soft, truth, alpha=0.0) == pytest.approx(0.5 * 0.02 / 0.1352, abs=1e-12)


def test_s_measure_rounds_the_centroid_upwards():
    # Columns 2 and 3, mean 2.5: the cut comes after column 3 (after 2 with rounding to even). Left, map (0, 1, 0),
    # truth (0, 1, 1): means 1/3 and 2/3, both variances 1/3, covariance 1/6; right: one pixel, 1.
    left = 4 * (2 / 9) * (1 / 6) / ((5 / 9) * (2 / 3))
    assert s_measure(np.array([[0.0, 1.0, 0.0, 0.0]]), grid(".##."), alpha=0.0) == pytest.approx(
        0.75 * left + 0.25, abs=1e-12
    )


def test_s_measure_with_the_centroid_in_the_last_row_and_column():
    soft = np.array([[0.1, 0.2], [0.3, 0.9]])
    truth = grid("..", ".#")
    # All four pixels are the one block: mean 0.375 and 0.25, variances 0.3875/3 and 1/4, covariance 0.525/3.
    expected = 4 * 0.375 * 0.25 * 0.175 / ((0.375**2 + 0.25**2) * (0.3875 / 3 + 0.25))
    assert s_measure(soft, truth, alpha=0.0) == pytest.approx(expected, abs=1e-12)


def test_s_measure_of_a_constant_block_is_exact():
    # 0.1 * 3 / 3 is not 0.1 in binary: with a rounded mean the block of columns 2-4 would have a variance of 1e-34.
    soft = np.array([[1.0, 0.1, 0.1, 0.1]])
    assert s_measure(soft, grid("#..."), alpha=0.0) == 1.0


def test_s_measure_is_never_negative():
    truth = grid("#..#", "....", "#..#")
    assert s_measure(1.0 - truth, truth) == 0.0
    assert loop_s_measure(1.0 - truth, truth) == 0.0


# Against loops and the toolbox.


@quick
@given(masks())
def test_iou_and_accuracy_agree_with_loops(case):
    mask, truth = case
    tally = loop_confusion(mask, truth)
    union = mask.size - tally[False, False]
    assert iou(mask, truth) == (tally[True, True] / union if union else 1.0)
    assert accuracy(mask, truth) == (tally[True, True] + tally[False, False]) / mask.size


@quick
@given(masks(), st.sampled_from([0, 1, 1.5, 3]))
def test_boundary_f_agrees_with_a_loop(case, tolerance):
    mask, truth = case
    assert boundary_f(mask, truth, tolerance) == pytest.approx(loop_boundary_f(mask, truth, tolerance), abs=1e-12)


@quick
@given(maps(), st.sampled_from([0.3, 1.0, 4.0]))
def test_max_f_agrees_with_a_loop_over_thresholds(case, beta2):
    soft, truth = case
    if truth.any():
        assert max_f_beta(soft, truth, beta2) == pytest.approx(loop_max_f(soft, truth, beta2), abs=1e-12)


@pytest.mark.slow(reason="many inputs")
@settings(derandomize=True, deadline=None, max_examples=300)
@given(maps(), st.sampled_from([0.0, 0.5, 1.0]))
def test_s_measure_agrees_with_the_loop(case, alpha):
    soft, truth = case
    assert s_measure(soft, truth, alpha) == pytest.approx(loop_s_measure(soft, truth, alpha), abs=1e-9)


def golden_cases():
    maker = runpy.run_path(str(GOLDEN / "make_metrics.py"))
    stored = json.loads((GOLDEN / "metrics.json").read_text())
    assert stored.keys() == maker["CASES"].keys()
    return [pytest.param(*maker["make_case"](*maker["CASES"][name]), stored[name], id=name) for name in stored]


@pytest.mark.parametrize(("soft", "truth", "expected"), golden_cases())
def test_agrees_with_the_common_toolbox(soft, truth, expected):
    assert max_f_beta(soft, truth) == pytest.approx(expected["max_f"], abs=1e-12)
    assert mae(soft, truth) == pytest.approx(expected["mae"], abs=1e-12)
    assert s_measure(soft, truth) == pytest.approx(expected["s_measure"], abs=1e-12)
    single = soft.astype(np.float32)
    assert s_measure(single, truth) == pytest.approx(expected["s_measure"], abs=1e-6)


# Properties.


@quick
@given(hnp.arrays(bool, SHAPES))
def test_a_perfect_prediction(truth):
    scores = saliency_scores(truth, truth.astype(np.float32), truth)
    assert scores[:4] == (1.0, 1.0, 1.0, 0.0)
    assert scores.s_measure == pytest.approx(1.0, abs=1e-9)


@quick
@given(maps())
def test_scores_stay_in_range_and_all_but_s_measure_are_invariant_to_mirroring(case):
    soft, truth = case
    mask = soft >= 0.5
    scores = saliency_scores(mask, soft, truth)
    assert all(0.0 <= score <= 1.0 + 1e-12 for score in scores)
    assert all(type(score) is float for score in scores)
    for turn in (np.fliplr, np.flipud, np.transpose):
        turned = saliency_scores(turn(mask), turn(soft), turn(truth))
        assert turned[:4] == pytest.approx(scores[:4], abs=1e-12)
    # The centroid's row and column go to the upper and left blocks, so only the transpose leaves the S-measure alone.
    assert turned.s_measure == pytest.approx(scores.s_measure, abs=1e-9)


@quick
@given(masks())
def test_iou_and_accuracy_are_symmetric_and_a_complement_disagrees(case):
    mask, truth = case
    assert iou(mask, truth) == iou(truth, mask)
    assert accuracy(mask, truth) == accuracy(truth, mask) == accuracy(~mask, ~truth)
    assert accuracy(~truth, truth) == 0.0
    assert iou(~truth, truth) == 0.0


@quick
@given(maps())
def test_max_f_is_unmoved_by_a_change_that_keeps_each_pixel_between_its_thresholds(case):
    soft, truth = case
    floored = np.floor(soft * 255 + 1e-9) / 255
    assert max_f_beta(floored, truth) == max_f_beta(soft, truth)


@quick
@given(maps())
def test_max_f_grows_when_the_object_gets_brighter_and_the_rest_darker(case):
    soft, truth = case
    better = np.where(truth, np.minimum(1.0, soft + 0.1), np.maximum(0.0, soft - 0.1))
    assert max_f_beta(better, truth) >= max_f_beta(soft, truth) - 1e-12
    assert mae(better, truth) <= mae(soft, truth) + 1e-12


# Wrong arguments.

TRUTH = grid("#.", "..")
SOFT = np.array([[0.5, 0.25], [0.0, 1.0]])


@pytest.mark.parametrize("score", [iou, accuracy])
@pytest.mark.parametrize(
    ("mask", "truth", "words"),
    [
        (TRUTH.astype(np.uint8), TRUTH, "mask must be a bool array, got an array of uint8"),
        (TRUTH.tolist(), TRUTH, "mask must be a bool array, got a list"),
        (TRUTH, TRUTH.astype(float), "truth must be a bool array, got an array of float64"),
        (TRUTH[:1], TRUTH, r"shape of truth, \(2, 2\), got \(1, 2\)"),
        (TRUTH[0], TRUTH[0], r"shape \(rows, columns\) without zeros, got \(2,\)"),
        (TRUTH[:0], TRUTH[:0], r"without zeros, got \(0, 2\)"),
    ],
)
def test_masks_are_checked(score, mask, truth, words):
    with pytest.raises(ValueError, match=words):
        score(mask, truth)


@pytest.mark.parametrize("score", [max_f_beta, mae, s_measure])
@pytest.mark.parametrize(
    ("soft", "truth", "words"),
    [
        ((SOFT * 65535).astype(np.uint16), TRUTH, "floating array with values in 0..1, got an array of uint16"),
        (TRUTH, TRUTH, "floating array with values in 0..1, got an array of bool"),
        (SOFT[:, :1], TRUTH, r"soft must have the shape of truth, \(2, 2\), got \(2, 1\)"),
        (SOFT * 255, TRUTH, "values in 0..1, got 0..255"),
        (SOFT - 0.5, TRUTH, "values in 0..1, got -0.5..0.5"),
        (SOFT * np.nan, TRUTH, "values in 0..1, got nan..nan"),
        (SOFT, TRUTH.astype(np.uint8), "truth must be a bool array"),
        (SOFT[:0], TRUTH[:0], "without zeros"),
    ],
)
def test_soft_maps_are_checked(score, soft, truth, words):
    with pytest.raises(ValueError, match=words):
        score(soft, truth)


@pytest.mark.parametrize("beta2", [0.0, -1.0, math.nan, math.inf])
def test_beta_is_checked(beta2):
    with pytest.raises(ValueError, match="beta2 must be a positive number"):
        max_f_beta(SOFT, TRUTH, beta2)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan])
def test_alpha_is_checked(alpha):
    with pytest.raises(ValueError, match="alpha must be between 0 and 1"):
        s_measure(SOFT, TRUTH, alpha)


def test_arguments_are_not_modified():
    soft, truth, mask = SOFT.copy(), TRUTH.copy(), TRUTH.copy()
    saliency_scores(mask, soft, truth)
    assert (soft == SOFT).all() and (truth == TRUTH).all() and (mask == TRUTH).all()
