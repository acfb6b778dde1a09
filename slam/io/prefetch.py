"""Work of the host ahead of the device: a thread, a bounded queue, and no surprises at the end."""

import contextlib
import dataclasses
import queue
import threading
from collections.abc import Generator, Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


def prefetch(items: Iterable[T], ahead: int = 2) -> Generator[T, None, None]:
    """The same items in the same order, made in a background thread up to ``ahead`` in advance.

    An exception of ``items`` is raised here, after the items before it. The thread starts at the
    first ``next`` and has ended, with ``items`` closed, when this generator is exhausted or closed;
    whoever may stop early says ``with contextlib.closing(prefetch(...)) as frames``. Raises
    ``ValueError`` if ``ahead`` is below 1.
    """
    if ahead < 1:
        raise ValueError(f"ahead={ahead} must be at least 1")
    return _consume(items, ahead)


@dataclasses.dataclass(frozen=True)
class _Made(Generic[T]):
    item: T


@dataclasses.dataclass(frozen=True)
class _Ended:
    failure: BaseException | None


def _consume(items: Iterable[T], ahead: int) -> Generator[T, None, None]:
    # The semaphore bounds the queue, and is taken BEFORE an item is made: no item waits outside.
    ready: queue.SimpleQueue[_Made[T] | _Ended] = queue.SimpleQueue()
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
