"""Work that threads do ahead of whoever takes its results."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_order(work: Callable[[T], R], items: Iterable[T], workers: int) -> Generator[R, None, None]:
    """``work`` of each item, in the order of the items. Few items are under way at a time, however
    many there are.

    Threads are enough, since Pillow works without the interpreter's lock where it takes long; and
    they end with the process. What ``work`` raises ends it.
    """
    pool = ThreadPoolExecutor(workers)
    ahead: deque[Future[R]] = deque()
    try:
        for item in items:
            ahead.append(pool.submit(work, item))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
