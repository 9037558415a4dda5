"""Photographs in groups: nothing is lost, nobody waits for ever."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from vitnp.features.batching import group_by_shape


@settings(derandomize=True, deadline=None, max_examples=200)
@given(
    items=st.lists(st.tuples(st.sampled_from([None, 1, 2, 3]), st.integers(1, 9)), max_size=60),
    most=st.integers(1, 6), room=st.one_of(st.none(), st.integers(1, 60)),
)  # fmt: skip
def test_groups_have_one_shape_and_waiting_items_are_bounded(items, most, room):
    numbered = [(place, kind, weight) for place, (kind, weight) in enumerate(items)]
    weight = (lambda item: item[2]) if room else (lambda item: 1)
    read, given_back, waiting = [], [], []

    def source():
        for item in numbered:
            waiting.append(sum(weight(item) for item in read if item not in given_back))
            read.append(item)
            yield item

    groups = []
    for group in group_by_shape(source(), lambda item: item[1], most, weight=weight, room=room):
        groups.append(group)
        given_back += group
    assert sorted(given_back) == numbered
    assert all(1 <= len(group) <= most and len({item[1] for item in group}) == 1 for group in groups)
    assert all(len(group) == 1 for group in groups if group[0][1] is None)
    for kind in (1, 2, 3):
        in_order = [item for item in given_back if item[1] == kind]
        assert in_order == sorted(in_order)
    assert max(waiting, default=0) < (room or 4 * most)  # whenever another one is asked for


def test_the_oldest_group_is_released_first():
    items = ["a", "b", "b", "c", "c", "c", "c"]
    assert list(group_by_shape(items, str, 5, room=4)) == [["a"], ["b", "b"], ["c", "c", "c", "c"]]
