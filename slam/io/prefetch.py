"""Work of the host ahead of the device: a thread, a bounded queue, and no surprises at the end."""

import contextlib
import dataclasses
import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class _Made(Generic[T]):
    item: T


@dataclasses.dataclass(frozen=True)
class _Ended:
    failure: BaseException | None


class Prefetch(Generic[T]):
    """The same items in the same order, made in a background thread up to ``ahead`` in advance.

    An exception of ``items`` is raised here, after the items before it. The thread starts at the
    first ``next`` and has ended, with ``items`` closed, when this iterator is exhausted, closed or
    forgotten; whoever may stop early says ``with contextlib.closing(Prefetch(...)) as frames``.
    Raises ``ValueError`` if ``ahead`` is below 1.
    """

    def __init__(self, items: Iterable[T], ahead: int = 2) -> None:
        if ahead < 1:
            raise ValueError(f"ahead={ahead} must be at least 1")
        self._ready: queue.SimpleQueue[_Made[T] | _Ended] = queue.SimpleQueue()
        self._items = _consume(items, ahead, self._ready)

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        return next(self._items)

    def ready(self) -> bool:
        """Whether ``next`` would answer at once: with an item, an exception or the end."""
        return not self._ready.empty()

    def close(self) -> None:
        """End the thread and wait for it."""
        self._items.close()


def _consume(
    items: Iterable[T], ahead: int, ready: queue.SimpleQueue[_Made[T] | _Ended]
) -> Generator[T, None, None]:
    # The semaphore bounds the queue, and is taken BEFORE an item is made: no item waits outside.
    free = threading.Semaphore(ahead)
    stopped = threading.Event()

    def produce() -> None:
        failure = None
        try:
            with contextlib.ExitStack() as stack:
                iterator = iter(items)
                if isinstance(iterator, Generator):
                    stack.callback(iterator.close)
                while free.acquire() and not stopped.is_set():
                    try:
                        item = next(iterator)
                    except StopIteration:
                        break
                    ready.put(_Made(item))
        except BaseException as error:
            failure = error
        ready.put(_Ended(failure))

    thread = threading.Thread(target=produce, name="prefetch", daemon=True)
    thread.start()
    try:
        while isinstance(message := ready.get(), _Made):
            free.release()
            yield message.item
        if message.failure is not None:
            raise message.failure
    finally:
        stopped.set()
        free.release()
        thread.join()
