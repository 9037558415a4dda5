"""Confusion, matching and their scores, and boxes: by hand, by loops, by all permutations, by scikit-learn."""

from __future__ import annotations

import itertools
import json
import math
import pathlib
import runpy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vitnp.evaluate.metrics.boxes import box_iou, corloc
from vitnp.evaluate.metrics.semantic import (
    confusion_matrix,
    iou_matrix,
    match_many_to_one,
    match_one_to_one,
    merge_clusters,
    semantic_scores,
)

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
quick = settings(derandomize=True, deadline=None, max_examples=80)

counts = st.integers(0, 30) | st.just(0)
shapes = st.tuples(st.integers(1, 6), st.integers(1, 6))
matrices = shapes.flatmap(lambda shape: hnp.arrays(np.int64, shape, elements=counts))


# Independent definitions: loops over pixels, and over everything that could be assigned.


def loop_confusion(truth, predicted, classes, clusters, ignore):
    matrix = [[0] * clusters for _ in range(classes)]
    for true, guess in zip(truth.ravel().tolist(), predicted.ravel().tolist()):
        if true != ignore:
            matrix[true][guess] += 1
    return matrix


def loop_scores(matrix, assignment):
    """(IoU of each class or None, pixel accuracy, foreground IoU) from one entry for each pixel."""
    pixels = [
        (true, int(assignment[cluster])) for (true, cluster), count in np.ndenumerate(matrix) for _ in range(count)
    ]
    per_class = []
    for label in range(len(matrix)):
        both = sum(true == label and guess == label for true, guess in pixels)
        either = sum(label in pixel for pixel in pixels)
        per_class.append(both / either if either else None)
    right = sum(true == guess for true, guess in pixels) / len(pixels)
    both = sum(true > 0 and guess > 0 for true, guess in pixels)
    either = sum(true > 0 or guess > 0 for true, guess in pixels)
    return per_class, right, both / either if either else 1.0


def every_injection(classes, clusters):
    """Every way to pair foreground classes with foreground clusters, as many pairs as there can be."""
    few, many = sorted((classes - 1, clusters - 1))
    for chosen in itertools.permutations(range(1, many + 1), few):
        pairs = list(zip(range(1, few + 1), chosen))
        yield pairs if classes <= clusters else [(cluster, label) for label, cluster in pairs]


def pair_iou(matrix, label, cluster):
    both = int(matrix[label, cluster])
    either = sum(map(int, matrix[label])) + sum(int(row[cluster]) for row in matrix) - both
    return both / either if either else 0.0


@quick
@given(st.data())
def test_confusion_by_loop(data):
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=2, max_side=8))
    truth = data.draw(hnp.arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 2, 255])))
    predicted = data.draw(hnp.arrays(np.int32, shape, elements=st.integers(0, 4)))
    found = confusion_matrix(truth, predicted, 3, 5)
    assert found.dtype == np.int64
    assert found.tolist() == loop_confusion(truth, predicted, 3, 5, 255)


@pytest.mark.parametrize("name", json.loads((GOLDEN / "semantic.json").read_text()))
def test_scikit_learn_agrees(name):
    golden = json.loads((GOLDEN / "semantic.json").read_text())[name]
    made = runpy.run_path(str(GOLDEN / "make_semantic.py"))
    _, _, classes, clusters, *_ = made["CASES"][name]
    truth, predicted = made["make_case"](*made["CASES"][name])
    expected = np.zeros((classes, clusters), np.int64)
    for row, column, count in golden["nonzero"]:
        expected[row, column] = count
    matrix = confusion_matrix(truth, predicted, classes, clusters)
    np.testing.assert_array_equal(matrix, expected)
    if classes == clusters:
        scores = semantic_scores(matrix)
        per_class = enumerate(scores.per_class.tolist())
        occurring = {str(label): value for label, value in per_class if not math.isnan(value)}
        assert occurring == pytest.approx(golden["iou"], abs=1e-12)
        assert scores.miou == pytest.approx(golden["mean"], abs=1e-12)
        assert scores.pixel_accuracy == pytest.approx(golden["accuracy"], abs=1e-12)
        assert scores.foreground_iou == pytest.approx(golden["foreground"], abs=1e-12)


def test_ignored_pixels_are_not_counted_and_cluster_255_is_an_ordinary_cluster():
    truth = np.array([[0, 255], [1, 1]], np.uint8)
    predicted = np.array([[0, 7], [255, 0]])
    matrix = confusion_matrix(truth, predicted, 2, 256)
    assert matrix.sum() == 3 and matrix[1, 255] == 1 and matrix[:, 7].sum() == 0
    # A prediction that would be out of range is harmless where nothing counts.
    assert confusion_matrix(np.array([0, 255]), np.array([1, 99]), 2).tolist() == [[0, 1], [0, 0]]
    assert confusion_matrix(np.array([255, 0]), np.array([1, 1]), 256, ignore=None)[255, 1] == 1
    assert confusion_matrix(np.array([255]), np.array([0]), 2).tolist() == [[0, 0], [0, 0]]


def test_pooling_is_exact_beyond_small_integers():
    matrix = np.array([[2**40, 1], [0, 2**40]])
    pooled = sum([matrix] * 4)
    assert pooled.dtype == np.int64
    assert semantic_scores(pooled).pixel_accuracy == 2**43 / (2**43 + 4)


@pytest.mark.parametrize(
    ("truth", "predicted"),
    [
        (np.array([0, 2]), np.array([0, 0])),
        (np.array([0, 0]), np.array([0, 2])),
        (np.array([0, -1]), np.array([0, 0])),
        (np.array([0, 0]), np.array([0, -1])),
        (np.array([0.0]), np.array([0])),
        (np.array([0]), np.array([True])),
        (np.array([0, 1]), np.array([0])),
    ],
)
def test_invalid_labels_raise(truth, predicted):
    with pytest.raises(ValueError, match=r"labels|integers|shape"):
        confusion_matrix(truth, predicted, 2)


def test_matching_by_hand():
    # Cluster 2 is class 1 (6 / 8). Class 2 may have cluster 1 (5 / 12) or cluster 3 (7 / 15).
    matrix = np.array(
        [
            [50, 0, 0, 2],
            [1, 0, 6, 1],
            [0, 5, 0, 7],
        ]
    )
    np.testing.assert_array_equal(match_one_to_one(matrix), [0, 0, 1, 2])
    np.testing.assert_array_equal(match_many_to_one(matrix), [0, 2, 1, 2])
    one = semantic_scores(matrix, match_one_to_one(matrix))
    # Cluster 1 is left over: its 5 pixels of class 2 count as background.
    assert one.per_class == pytest.approx([50 / (52 + 1 + 5), 6 / 8, 7 / (12 + 3)])
    assert one.pixel_accuracy == pytest.approx(63 / 72)
    assert one.foreground_iou == pytest.approx(14 / (72 - 50))
    many = semantic_scores(matrix, match_many_to_one(matrix))
    assert many.per_class == pytest.approx([50 / 53, 6 / 8, 12 / (12 + 3)])
    assert many.miou == pytest.approx((50 / 53 + 6 / 8 + 12 / 15) / 3)
    assert many.assignment.tolist() == [0, 2, 1, 2]


def test_majority_and_iou_votes_differ_on_small_classes():
    # Cluster 1: 6 pixels of the large class 1 (IoU 6 / 104), 4 of the small class 2 (IoU 4 / 10).
    matrix = np.array([[10, 0, 0], [0, 6, 94], [0, 4, 0]])
    assert match_many_to_one(matrix, "precision").tolist() == [0, 1, 1]
    assert match_many_to_one(matrix, "iou").tolist() == [0, 2, 1]


def test_background_stays_background():
    # The prediction has it the wrong way round; cluster 0 isn't allowed to become class 1.
    matrix = np.array([[0, 9], [9, 0]])
    assert match_one_to_one(matrix).tolist() == [0, 0]
    assert match_many_to_one(matrix).tolist() == [0, 0]
    scores = semantic_scores(matrix, match_one_to_one(matrix))
    assert scores.per_class.tolist() == [0.5, 0.0] and scores.foreground_iou == 0.0


def test_over_clustering_many_clusters():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 5, (40, 50))
    # 100 pure clusters for each class, class 0 through cluster 0 alone.
    predicted = np.where(truth == 0, 0, (truth - 1) * 125 + 1 + rng.integers(0, 125, truth.shape))
    matrix = confusion_matrix(truth, predicted, 5, 501)
    assert semantic_scores(matrix, match_many_to_one(matrix)).miou == 1.0
    one = match_one_to_one(matrix)
    assert sorted(one[one > 0]) == [1, 2, 3, 4]
    assert semantic_scores(matrix, one).miou < 0.5


def test_missing_classes_are_left_out():
    # Class 2 occurs nowhere; class 3 is only predicted; class 4 is only true.
    matrix = np.zeros((5, 5), int)
    matrix[0, 0], matrix[1, 1], matrix[1, 3], matrix[4, 0] = 8, 6, 2, 2
    scores = semantic_scores(matrix)
    assert scores.per_class[:2] == pytest.approx([0.8, 0.75])
    assert math.isnan(scores.per_class[2]) and scores.per_class[3] == scores.per_class[4] == 0
    assert scores.miou == pytest.approx((0.8 + 0.75 + 0 + 0) / 4)
    # Matched, cluster 3 shares no pixel with a free class: it becomes background, and class 3 is left out too.
    matched = semantic_scores(matrix, match_one_to_one(matrix))
    assert matched.assignment.tolist() == [0, 1, 0, 0, 0]
    assert np.isnan(matched.per_class[[2, 3]]).all()
    assert matched.miou == pytest.approx((8 / 12 + 6 / 8 + 0) / 3)


def test_background_only_and_empty_matrices():
    scores = semantic_scores(np.array([[5, 0], [0, 0]]))
    assert (scores.miou, scores.pixel_accuracy, scores.foreground_iou) == (1.0, 1.0, 1.0)
    assert match_one_to_one(np.array([[5]])).tolist() == [0]
    assert match_one_to_one(np.array([[5, 1]])).tolist() == [0, 0]
    with pytest.raises(ValueError, match="at least one pixel"):
        semantic_scores(np.zeros((2, 2), int))


@quick
@given(matrices)
def test_hungarian_is_as_good_as_every_permutation(matrix):
    assignment = match_one_to_one(matrix)
    assert assignment.shape == (matrix.shape[1],) and assignment[0] == 0
    matched = [(int(label), cluster) for cluster, label in enumerate(assignment) if label]
    assert len({label for label, _ in matched}) == len(matched)
    assert all(matrix[pair] > 0 for pair in matched)
    best = max(sum(pair_iou(matrix, *pair) for pair in pairs) for pairs in every_injection(*matrix.shape))
    assert sum(pair_iou(matrix, *pair) for pair in matched) == pytest.approx(best, abs=1e-12)


@quick
@given(matrices, st.sampled_from(["precision", "iou"]))
def test_many_to_one_takes_each_clusters_best(matrix, by):
    assignment = match_many_to_one(matrix, by)
    assert assignment[0] == 0
    for cluster in range(1, matrix.shape[1]):
        labels = range(len(matrix))
        score = [pair_iou(matrix, label, cluster) if by == "iou" else matrix[label, cluster] for label in labels]
        assert assignment[cluster] == score.index(max(score))


@quick
@given(matrices.filter(lambda matrix: matrix.sum() > 0), st.data())
def test_scores_by_loop(matrix, data):
    assignment = data.draw(hnp.arrays(np.int64, matrix.shape[1], elements=st.integers(0, len(matrix) - 1)))
    per_class, right, foreground = loop_scores(matrix, assignment)
    scores = semantic_scores(matrix, assignment)
    known = [value for value in per_class if value is not None]
    assert [None if math.isnan(value) else value for value in scores.per_class] == pytest.approx(per_class, abs=1e-12)
    assert scores.miou == pytest.approx(sum(known) / len(known), abs=1e-12)
    assert scores.pixel_accuracy == pytest.approx(right, abs=1e-12)
    assert scores.foreground_iou == pytest.approx(foreground, abs=1e-12)
    assert merge_clusters(matrix, assignment).sum() == matrix.sum()


@quick
@given(matrices)
def test_iou_matrix_by_loop(matrix):
    classes, clusters = matrix.shape
    expected = [[pair_iou(matrix, label, cluster) for cluster in range(clusters)] for label in range(classes)]
    np.testing.assert_allclose(iou_matrix(matrix), expected, atol=1e-12)


@pytest.mark.parametrize("matrix", [np.zeros(3, int), np.zeros((2, 2)), np.array([[-1]]), np.zeros((0, 2), int)])
def test_invalid_confusion_matrices_raise(matrix):
    with pytest.raises(ValueError, match="two-dimensional array of counts"):
        match_one_to_one(matrix)


@pytest.mark.parametrize("assignment", [[0], [0, 2], [0, -1], [[0, 1]]])
def test_invalid_assignments_raise(assignment):
    with pytest.raises(ValueError, match="assignment"):
        semantic_scores(np.eye(2, dtype=int), assignment)


def test_unknown_matching_criterion_raises():
    with pytest.raises(ValueError, match="recall"):
        match_many_to_one(np.eye(2, dtype=int), "recall")


@quick
@given(st.lists(st.tuples(*[st.integers(0, 9)] * 4), min_size=1, max_size=4), st.tuples(*[st.integers(0, 9)] * 4))
def test_box_iou_counts_pixels(others, box):
    def pixels(left, top, right, bottom):
        return {(x, y) for x in range(left, right) for y in range(top, bottom)}

    expected = []
    for other in others:
        either = pixels(*box) | pixels(*other)
        expected.append(len(pixels(*box) & pixels(*other)) / len(either) if either else 0.0)
    assert box_iou(box, others).tolist() == pytest.approx(expected)


def test_corloc_by_hand():
    truth = [
        [[0, 0, 10, 10], [20, 20, 30, 30]],  # the second one is hit: 90 / 100
        [[0, 0, 10, 10]],  # 50 / 100 is not above a half
        [[0, 0, 4, 4]],  # nothing found
        np.zeros((0, 4)),  # nothing to find: doesn't count
    ]
    predicted = [[20, 20, 30, 29], [0, 0, 10, 5], None, [0, 0, 1, 1]]
    assert corloc(predicted, truth) == pytest.approx(1 / 3)
    assert corloc(predicted, truth, threshold=0.49) == pytest.approx(2 / 3)
    assert corloc(predicted, truth, threshold=0.95) == 0.0


def test_corloc_raises_for_invalid_boxes():
    with pytest.raises(ValueError, match="same length, got 2 and"):
        corloc([None, None], [[[0, 0, 1, 1]]])
    with pytest.raises(ValueError, match="at least one box"):
        corloc([[0, 0, 1, 1]], [[]])
    with pytest.raises(ValueError, match="4 numbers"):
        box_iou([0, 0, 1], [[0, 0, 1, 1]])
