"""Maps: their calls pickled, their results in order, more calls as results are taken."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

from slurm_futures import payload
from slurm_futures.batching import CallSet
from slurm_futures.futures import JobFuture

T = TypeVar('T')


def pickle_calls(
    work: CallSet,
    fn: Callable[..., Any],
    calls: Iterable[tuple[JobFuture[Any], tuple[Any, ...]]],
    refuse: Callable[[JobFuture[Any], BaseException], None],
) -> payload.Codes:
    """Add calls to a set, but for those that cannot be pickled; return what code they carry.

    Args:
        work: what they are added to.
        fn: the function.
        calls: the future and the arguments of each.
        refuse: given the future of one that cannot be pickled, and why.
    """
    function: bytes | None = None
    codes: payload.Codes = {}
    for future, args in calls:
        try:
            if function is None:
                function = payload.dump_function(fn, codes)
            work.add(future, function, payload.dump_arguments(args, {}, codes))
        except Exception as error:
            refuse(future, error)
    return codes


class Refill(Generic[T]):
    """Submits further calls of a map as its results are taken.

    Args:
        submit: submits at most so many more calls.
        most: so many calls may be ahead of the results taken.
        at_once: so many are submitted together.
    """

    def __init__(
        self, submit: Callable[[int], list[JobFuture[T]]], most: int, at_once: int
    ) -> None:
        self._submit = submit
        self._most = most
        self._at_once = at_once

    def __call__(self, ahead: int) -> list[JobFuture[T]]:
        """Return new futures, given how many are ahead already."""
        room = self._most - ahead
        return self._submit(room) if room >= self._at_once else []


def results(
    futures: Iterable[JobFuture[T]], end: float | None, refill: Refill[T] | None = None
) -> Iterator[T]:
    """Yield results in order; whatever ends the iteration cancels the rest."""
    waiting = collections.deque(futures)
    del futures
    try:
        while waiting:
            yield _result_or_cancel(waiting.popleft(), end)
            if refill:
                waiting.extend(refill(len(waiting)))
    finally:
        for future in waiting:
            future.cancel()


def _result_or_cancel(future: JobFuture[T], end: float | None) -> T:
    try:
        try:
            return future.result(None if end is None else end - time.monotonic())
        finally:
            future.cancel()
    finally:
        del future  # a cycle with the traceback
