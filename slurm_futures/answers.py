"""What Slurm answers about many jobs at once, to be looked up by job and task."""

from __future__ import annotations

from collections.abc import Iterable

from slurm_futures.remote.slurm_parsers import AccountingRow, ArrayRows, JobRow, expand_tasks


class Listing:
    """One answer of squeue, by job and task."""

    def __init__(self, rows: Iterable[JobRow]) -> None:
        self._rows: dict[str, list[JobRow]] = {}
        self._jobs: dict[str, ArrayRows] = {}
        for row in rows:
            self._rows.setdefault(row.job_id, []).append(row)

    def find(self, job: str, index: int | None) -> JobRow | None:
        """Return the row about a task; None when it is absent."""
        if job not in self._jobs:
            self._jobs[job] = ArrayRows(self._rows.get(job, ()))
        return self._jobs[job].find(index)


class History:
    """One answer of sacct, by job and task."""

    def __init__(self, rows: Iterable[AccountingRow]) -> None:
        self._rows: dict[tuple[str, int | None], AccountingRow] = {}
        for row in rows:
            indices: Iterable[int | None] = expand_tasks(row.tasks) if row.tasks else [None]
            self._rows.update(dict.fromkeys(((row.job_id, index) for index in indices), row))

    def find(self, job: str, index: int | None) -> AccountingRow | None:
        """Return the row about a task; None when there is none yet."""
        return self._rows.get((job, index))
