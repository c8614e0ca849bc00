"""The states of Slurm jobs."""

from __future__ import annotations

from enum import Enum

_MIN_TRUNCATED = 4


class JobState(str, Enum):
    """A job's state, or the flag that Slurm shows in its place; the value is the long name.

    Source: ``job_state_string()`` in Slurm's src/common/slurm_protocol_defs.c: a flag, where one
    is set, hides the state below it. EXPEDITING came with Slurm 25.11.
    """

    PENDING = 'PENDING'
    RUNNING = 'RUNNING'
    SUSPENDED = 'SUSPENDED'

    COMPLETED = 'COMPLETED'
    CANCELLED = 'CANCELLED'
    FAILED = 'FAILED'
    TIMEOUT = 'TIMEOUT'
    NODE_FAIL = 'NODE_FAIL'
    PREEMPTED = 'PREEMPTED'
    BOOT_FAIL = 'BOOT_FAIL'
    DEADLINE = 'DEADLINE'
    OUT_OF_MEMORY = 'OUT_OF_MEMORY'

    COMPLETING = 'COMPLETING'
    STAGE_OUT = 'STAGE_OUT'
    CONFIGURING = 'CONFIGURING'
    RESIZING = 'RESIZING'
    REQUEUED = 'REQUEUED'
    REQUEUE_FED = 'REQUEUE_FED'
    REQUEUE_HOLD = 'REQUEUE_HOLD'
    SPECIAL_EXIT = 'SPECIAL_EXIT'
    STOPPED = 'STOPPED'
    REVOKED = 'REVOKED'
    RESV_DEL_HOLD = 'RESV_DEL_HOLD'
    SIGNALING = 'SIGNALING'
    EXPEDITING = 'EXPEDITING'

    def __str__(self) -> str:
        return self.value

    @property
    def is_terminal(self) -> bool:
        """Whether the job has ended. A preempted one may start again: see `may_return`."""
        return self in _TERMINAL

    @property
    def is_live(self) -> bool:
        """Whether the job runs, waits, or is on its way from one to the other."""
        return self not in _TERMINAL

    @property
    def may_return(self) -> bool:
        """Whether the job may be PENDING next, under the same id: it was requeued or may be."""
        return self in _MAY_RETURN

    @property
    def needs_attention(self) -> bool:
        """Whether the job stays as it is until a person releases or cancels it."""
        return self in _NEEDS_ATTENTION

    @classmethod
    def parse(cls, text: str) -> JobState | None:
        """Read a state as any of Slurm's commands prints it.

        Args:
            text: A long name, a compact code (``PD``), ``CANCELLED by 1000`` (sacct), or a name
                cut by a narrow column (``CANCELLED+``).

        Returns:
            The state; None for a name that is not known or not unique. Whoever asks must take
            None for alive: a state that a newer Slurm invents is no proof of an end.
        """
        words = text.split()
        if not words:
            return None
        word = words[0].upper()
        if word.endswith('+'):
            return cls._complete(word[:-1])
        return cls.__members__.get(_COMPACT.get(word, word))

    @classmethod
    def _complete(cls, start: str) -> JobState | None:
        if start in cls.__members__:
            return cls.__members__[start]
        if len(start) < _MIN_TRUNCATED:
            return None
        found = [state for name, state in cls.__members__.items() if name.startswith(start)]
        return found[0] if len(found) == 1 else None


_TERMINAL = frozenset(
    {
        JobState.COMPLETED,
        JobState.CANCELLED,
        JobState.FAILED,
        JobState.TIMEOUT,
        JobState.NODE_FAIL,
        JobState.PREEMPTED,
        JobState.BOOT_FAIL,
        JobState.DEADLINE,
        JobState.OUT_OF_MEMORY,
    }
)

_NEEDS_ATTENTION = frozenset({JobState.REQUEUE_HOLD, JobState.SPECIAL_EXIT, JobState.RESV_DEL_HOLD})

_MAY_RETURN = _NEEDS_ATTENTION | {
    JobState.COMPLETING,
    JobState.REQUEUED,
    JobState.REQUEUE_FED,
    JobState.PREEMPTED,
}

# job_state_string_compact() in the same file; EXPEDITING has no code of its own.
_COMPACT = {
    'PD': 'PENDING',
    'R': 'RUNNING',
    'S': 'SUSPENDED',
    'CD': 'COMPLETED',
    'CA': 'CANCELLED',
    'F': 'FAILED',
    'TO': 'TIMEOUT',
    'NF': 'NODE_FAIL',
    'PR': 'PREEMPTED',
    'BF': 'BOOT_FAIL',
    'DL': 'DEADLINE',
    'OOM': 'OUT_OF_MEMORY',
    'CG': 'COMPLETING',
    'SO': 'STAGE_OUT',
    'CF': 'CONFIGURING',
    'RS': 'RESIZING',
    'RQ': 'REQUEUED',
    'RF': 'REQUEUE_FED',
    'RH': 'REQUEUE_HOLD',
    'SE': 'SPECIAL_EXIT',
    'ST': 'STOPPED',
    'RV': 'REVOKED',
    'RD': 'RESV_DEL_HOLD',
    'SI': 'SIGNALING',
}
