"""Prefetching: same items, bounded lead, errors in their place, and no thread left behind."""

import contextlib
import gc
import threading
import time

import pytest

from slam.io.prefetch import Prefetch


def threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "prefetch"]


def eventually(condition, seconds: float = 5.0) -> bool:
    """Wait for another thread; the limit is only reached when the test fails."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.001)
    return condition()


@pytest.mark.parametrize("ahead", [1, 2, 100])
def test_same_items_in_the_same_order(ahead):
    items = [3, None, "x", 0, ()]  # also those that look like nothing
    assert list(Prefetch(items, ahead)) == items
    assert list(Prefetch([], ahead)) == []
    assert not threads()


@pytest.mark.parametrize("ahead", [1, 3])
def test_works_ahead_and_no_further(ahead):
    made = []

    def source():
        for i in range(50):
            made.append(i)
            yield i

    with contextlib.closing(Prefetch(source(), ahead)) as items:
        for i in range(10):
            assert next(items) == i
            assert eventually(lambda i=i: len(made) == i + 1 + ahead)
            time.sleep(0.002)
            assert len(made) == i + 1 + ahead


def test_items_are_made_in_another_thread():
    names = []

    def source():
        for i in range(3):
            names.append(threading.current_thread().name)
            yield i

    list(Prefetch(source()))
    assert set(names) == {"prefetch"}


def test_exception_comes_after_the_items_before_it():
    def source():
        yield 1
        yield 2
        raise KeyError("third")

    got = []
    with pytest.raises(KeyError, match="third"):
        for item in Prefetch(source(), 10):
            got.append(item)
    assert got == [1, 2]
    assert not threads()


def test_exception_of_iter_itself():
    class Broken:
        def __iter__(self):
            raise OSError("cannot open")

    with pytest.raises(OSError, match="cannot open"):
        next(Prefetch(Broken()))
    assert not threads()


def test_closing_early_ends_the_thread_and_closes_the_source():
    closed = threading.Event()

    def endless():
        try:
            while True:
                yield 0
        finally:
            closed.set()

    with contextlib.closing(Prefetch(endless(), 2)) as items:
        next(items)
        assert len(threads()) == 1
    assert closed.is_set() and not threads()


def test_forgetting_it_ends_the_thread():
    def endless():
        while True:
            yield 0

    items = Prefetch(endless(), 2)
    next(items)
    del items
    gc.collect()
    assert not threads()


def test_never_started_never_made():
    made = []
    items = Prefetch((made.append(i) for i in range(3)), 2)
    assert not threads() and not made
    items.close()


def test_consumer_that_raises_ends_the_thread():
    def endless():
        while True:
            yield 0

    with (
        pytest.raises(RuntimeError, match="mine"),
        contextlib.closing(Prefetch(endless())) as items,
    ):
        for _ in items:
            raise RuntimeError("mine")
    assert not threads()


def test_must_work_ahead_at_all():
    with pytest.raises(ValueError, match="ahead=0 must be at least 1"):
        Prefetch([], 0)
