"""Properties that are computed once, in threads that must not wait for each other."""

from __future__ import annotations

import threading

from vitnp.cached import cached_property


class Slow:
    def __init__(self) -> None:
        self.started, self.go, self.calls = threading.Event(), threading.Event(), 0

    @cached_property
    def value(self) -> int:
        self.calls += 1
        self.started.set()
        self.go.wait(20)
        return self.calls


def test_it_is_computed_once():
    one = Slow()
    one.go.set()
    assert (one.value, one.value, one.calls) == (1, 1, 1)
    assert isinstance(Slow.value, cached_property)


def test_objects_do_not_wait_for_each_other():
    slow, other = Slow(), Slow()
    other.go.set()
    thread = threading.Thread(target=lambda: slow.value)
    thread.start()
    slow.started.wait()
    second = threading.Thread(target=lambda: other.value)
    second.start()
    second.join(5)
    found = other.__dict__.get("value")
    slow.go.set()
    thread.join()
    second.join()
    assert found == 1
