"""The tasks of a job array, as Slurm writes them: ``0-2,5-9``."""

from __future__ import annotations

import re
from itertools import chain
from typing import Iterable, Iterator

MAX_INDEX = 4_000_001
"""slurm.conf(5): MaxArraySize is never larger."""

_PART = re.compile(r'(\d+)(?:-(\d+)(?::(\d+))?)?', re.ASCII)


class TaskSet:
    """The task indices that a line of squeue or sacct speaks about.

    Iterating, ``len()`` and ``in`` see the indices that are known to be in it.

    Attributes:
        ranges: these indices.
        truncated: there may be more that nobody printed.
    """

    __slots__ = ('ranges', 'truncated')

    def __init__(self, ranges: Iterable[range], *, truncated: bool = False) -> None:
        self.ranges = tuple(ranges)
        self.truncated = truncated

    def __iter__(self) -> Iterator[int]:
        return chain.from_iterable(self.ranges)

    def __len__(self) -> int:
        return sum(map(len, self.ranges))

    def __contains__(self, index: object) -> bool:
        return any(index in part for part in self.ranges)

    def __repr__(self) -> str:
        return f'TaskSet({list(self.ranges)}, truncated={self.truncated})'

    def may_contain(self, index: int) -> bool:
        """Return False only when the task is provably not in the set."""
        return self.truncated or index in self


def expand_tasks(spec: str) -> TaskSet:
    """Read the specification of an array's tasks.

    Slurm cuts a long one and ends it with ``...``, perhaps in the middle of a number: what is
    cut, or not understood, is left out, and the set says that it is truncated.

    Args:
        spec: such as ``7``, ``0-2,5-9``, ``0-69:3%5`` or ``[0-2,5...]``; empty for a plain job.
    """
    parts = strip_tasks(spec).split(',') if spec else []
    ranges = [_range(part) for part in parts]
    return TaskSet([r for r in ranges if r is not None], truncated=None in ranges)


def strip_tasks(spec: str) -> str:
    """Return a specification without its brackets and its ``%limit``."""
    return spec.strip().strip('[]').partition('%')[0]


def _range(part: str) -> range | None:
    match = _PART.fullmatch(part)
    if match is None:
        return None
    first, last, step = (int(group) if group else None for group in match.groups())
    if first is None or step == 0:
        return None
    last = first if last is None else last
    return range(first, last + 1, step or 1) if first <= last <= MAX_INDEX else None


def format_tasks(indices: Iterable[int]) -> str:
    """Write indices as Slurm reads them, without steps: scancel takes none (measured, 22.05)."""
    parts: list[list[int]] = []
    for index in sorted(set(indices)):
        if parts and index == parts[-1][1] + 1:
            parts[-1][1] = index
        else:
            parts.append([index, index])
    return ','.join(f'{a}' if a == b else f'{a}-{b}' for a, b in parts)
