"""Read ahead: the results of work in order, some of it done on threads before they are asked for."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def ahead(work: Callable[[int], T], numbers: Iterable[int], threads: int, most: int) -> Iterator[tuple[int, T]]:
    """Each number and work(number), in order; `most` more are in work meanwhile."""
    with ThreadPoolExecutor(threads) as pool:
        jobs: deque[tuple[int, Future[T]]] = deque()
        for number in numbers:
            jobs.append((number, pool.submit(work, number)))
            if len(jobs) > most:
                number, job = jobs.popleft()
                yield number, job.result()
        for number, job in jobs:
            yield number, job.result()
