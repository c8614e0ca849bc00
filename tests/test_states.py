"""Job states: what each means for a job's future, and how they are read."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_futures.remote.states import JobState

ENDED = {
    'COMPLETED',
    'CANCELLED',
    'FAILED',
    'TIMEOUT',
    'NODE_FAIL',
    'PREEMPTED',
    'BOOT_FAIL',
    'DEADLINE',
    'OUT_OF_MEMORY',
}
RETURNING = {
    'COMPLETING',
    'REQUEUED',
    'REQUEUE_FED',
    'REQUEUE_HOLD',
    'SPECIAL_EXIT',
    'RESV_DEL_HOLD',
    'PREEMPTED',
}
WAITING_FOR_A_PERSON = {'REQUEUE_HOLD', 'SPECIAL_EXIT', 'RESV_DEL_HOLD'}


def names(attribute: str) -> set[str]:
    """Names of the states for which a property is true."""
    return {state.value for state in JobState if getattr(state, attribute)}


def test_ended_states_are_just_those_that_slurm_calls_finished() -> None:
    """A flag such as COMPLETING is no end: a requeued job shows it before PENDING."""
    assert names('is_terminal') == ENDED
    assert names('is_live') == {state.value for state in JobState} - ENDED


def test_states_that_may_go_back_to_pending() -> None:
    """Seven states may be followed by PENDING under the same id, PREEMPTED among them."""
    assert names('may_return') == RETURNING


def test_states_that_wait_for_a_person() -> None:
    """Three states last until somebody releases the job."""
    assert names('needs_attention') == WAITING_FOR_A_PERSON


@pytest.mark.parametrize('state', JobState)
def test_long_names_are_read(state: JobState) -> None:
    """Each state is read from its long name, which is its value and what it prints as."""
    assert JobState.parse(state.value) is state
    assert f'{state}' == str(state) == state == state.value


@pytest.mark.parametrize(
    ('code', 'name'),
    [
        *[('PD', 'PENDING'), ('R', 'RUNNING'), ('S', 'SUSPENDED'), ('CD', 'COMPLETED')],
        *[('CA', 'CANCELLED'), ('F', 'FAILED'), ('TO', 'TIMEOUT'), ('NF', 'NODE_FAIL')],
        *[('PR', 'PREEMPTED'), ('BF', 'BOOT_FAIL'), ('DL', 'DEADLINE'), ('OOM', 'OUT_OF_MEMORY')],
        *[('CG', 'COMPLETING'), ('SO', 'STAGE_OUT'), ('CF', 'CONFIGURING'), ('RS', 'RESIZING')],
        *[('RQ', 'REQUEUED'), ('RF', 'REQUEUE_FED'), ('RH', 'REQUEUE_HOLD'), ('ST', 'STOPPED')],
        *[('SE', 'SPECIAL_EXIT'), ('RV', 'REVOKED'), ('RD', 'RESV_DEL_HOLD'), ('SI', 'SIGNALING')],
    ],
)
def test_compact_codes_are_read(code: str, name: str) -> None:
    """Each compact code stands for its state."""
    assert JobState.parse(code) is JobState(name)


@pytest.mark.parametrize(
    ('text', 'name'),
    [
        ('CANCELLED by 1000', 'CANCELLED'),
        ('CANCELLED+', 'CANCELLED'),
        ('CANCEL+', 'CANCELLED'),
        ('OUT_OF_ME+', 'OUT_OF_MEMORY'),
        ('COMPLETED+', 'COMPLETED'),
        (' running\n', 'RUNNING'),
    ],
)
def test_other_spellings_are_read(text: str, name: str) -> None:
    """The first word counts, cut by a narrow column or not, in any case."""
    assert JobState.parse(text) is JobState(name)


@pytest.mark.parametrize(
    'text', ['', '  ', 'COMPLET+', 'REQUEU+', 'CA+', '+', 'FINISHED', 'by 1000', '?', 'COMPLETE']
)
def test_what_is_unknown_or_not_unique_is_no_state(text: str) -> None:
    """COMPLET+ may be COMPLETING, and a name of a newer Slurm may be anything: None."""
    assert JobState.parse(text) is None


@given(st.text())
def test_any_text_is_a_state_or_none(text: str) -> None:
    """Reading never raises."""
    assert JobState.parse(text) in {None, *JobState}


def test_states_survive_pickling() -> None:
    """A state is the same object after a pickle round trip, and hashes as its name does."""
    for state in JobState:
        assert pickle.loads(pickle.dumps(state)) is state
        assert hash(state) == hash(state.value)
