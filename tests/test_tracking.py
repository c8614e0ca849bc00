"""The state machine: which evidence ends a task, which starts a deadline, which moves nothing."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from slurm_futures.answers import History, Listing
from slurm_futures.remote.slurm_parsers import AccountingRow, JobRow
from slurm_futures.remote.states import JobState
from slurm_futures.tasks import CLOCK_SKEW, Claim, Task
from slurm_futures.tracking import (
    Ask,
    End,
    Policy,
    Tracker,
    deadline,
    decide_calls,
    decide_script,
)

GRACE = 60.0
REQUEUE_EXIT = 99
POLICY = Policy(GRACE, frozenset({REQUEUE_EXIT}))
SUBMITTED = 1_700_000_000.0

FINAL = sorted(s for s in JobState if s.is_terminal and not s.may_return)
LIVE = sorted(s for s in JobState if not s.is_terminal)


class Case:
    """A task, what happens to it, and what is decided.

    Args:
        script: whether it is a user's script.
    """

    def __init__(self, *, script: bool = False) -> None:
        self.task = Task('10', None)
        self.script = script
        self.now = 1000.0

    def decide(self, after: float = 0.0) -> End | Ask | None:
        """Return what is decided after so many seconds."""
        self.now += after
        judge = decide_script if self.script else decide_calls
        return judge(self.task, POLICY, self.now)

    def row(self, state: str, reason: str = 'None', *, stale: bool = False) -> None:
        """Have squeue list it; stale: in an answer that was begun before its last message."""
        self.now += 0.5
        began = self.now - 1e6 if stale else self.now
        self.task.on_row(row(state, reason), began, self.now)

    def absent(self, times: int = 2) -> None:
        """Have squeue leave it out, ten seconds apart."""
        for _ in range(times):
            self.now += 10
            self.task.on_absence(self.now)

    def message(self, restart: int = 0, job: str = '10', **members: Any) -> None:
        """Have its wrapper or worker report something."""
        self.task.on_message({'job': job, 'restart': restart, 'host': 'n1', **members}, self.now)

    def ended(self, code: int, *, term: bool = False, restart: int = 0, delivered: int = 0) -> None:
        """Have it report its end."""
        self.message(restart, ended={'code': code, 'term': term, 'delivered': delivered})

    def outcomes(self, *calls: int, restart: int = 0) -> None:
        """Have it report outcomes of calls."""
        items = [{'event': 'outcome', 'call': call} for call in calls]
        self.message(restart, items=items)

    def owner(self, owner: str) -> None:
        """Answer who has claimed it."""
        self.task.claim = Claim.ASKED
        self.task.on_owner(owner)

    def history(self, state: str | None, code: int = 0, submit: float = SUBMITTED) -> None:
        """Have sacct answer, with a row or without."""
        self.task.on_history(accounting(state, code, submit) if state else None, SUBMITTED)

    def given_up(self) -> End:
        """Let the grace period pass, answer what is asked, return the end."""
        self.now = self.task.since + GRACE - 0.001
        assert self.decide() in (None, Ask.ACCOUNTING)
        decision = self.decide(0.001)
        if decision is Ask.ACCOUNTING:
            self.history(None)
            decision = self.decide()
        assert decision is Ask.NEWS
        self.task.catch_up(self.task.since)
        end = self.decide()
        assert isinstance(end, End)
        return end


def row(state: str, reason: str = 'None', job: str = '10', tasks: str = '') -> JobRow:
    """Return a line of squeue."""
    return JobRow(job, tasks, state, reason, 'n1', job)


def accounting(state: str, code: int = 0, submit: float = SUBMITTED) -> AccountingRow:
    """Return a line of sacct."""
    return AccountingRow('10', '', '10', state, code, 0, int(submit), None, 'n2')


@pytest.fixture(params=[False, True], ids=['calls', 'script'])
def case(request: pytest.FixtureRequest) -> Case:
    """A task of either kind."""
    return Case(script=request.param)


@pytest.fixture
def begun(case: Case) -> Case:
    """A task of either kind whose job has claimed it."""
    case.message(started=True)
    return case


# ---- its own word


@pytest.mark.parametrize(('code', 'state'), [(0, JobState.COMPLETED), (3, JobState.FAILED)])
def test_report_ends_a_script_at_once(code: int, state: JobState) -> None:
    """The wrapper's report ends a script though squeue still shows it running."""
    case = Case(script=True)
    case.message(started=True)
    case.row('RUNNING')
    case.ended(code)
    assert case.decide() == End(state, code, node='n1', started=True)


def test_death_by_signal() -> None:
    """A script that a signal ended has no exit code; one that exits with 137 has no signal."""
    case = Case(script=True)
    case.message(ended={'code': 139, 'signal': 11, 'term': False})
    assert case.decide() == End(JobState.FAILED, None, 11, 'n1', started=True)
    other = Case(script=True)
    other.ended(137)
    assert other.decide() == End(JobState.FAILED, 137, None, 'n1', started=True)


@pytest.mark.parametrize('state', ['FAILED', 'OUT_OF_MEMORY', 'NODE_FAIL'])
def test_death_by_sigkill(state: str) -> None:
    """Of a script that was killed by SIGKILL Slurm says why, at its next answer."""
    case = Case(script=True)
    case.row('RUNNING')
    case.message(ended={'code': 137, 'signal': 9, 'term': False})
    assert case.decide() is None
    case.row(state)
    end = case.decide()
    assert isinstance(end, End)
    assert (end.state, end.exit_code, end.signal) == (state, None, 9)


@pytest.mark.parametrize(
    ('code', 'term'), [(0, True), (143, True), (REQUEUE_EXIT, False)], ids=['0', '143', 'requeue']
)
def test_report_that_slurm_must_explain(code: int, term: bool) -> None:
    """After SIGTERM, or with a code on which Slurm requeues, the report ends nothing."""
    case = Case(script=True)
    case.message(started=True)
    case.row('RUNNING')
    case.ended(code, term=term)
    assert case.decide(10 * GRACE) is None
    case.row('PENDING', 'BeginTime')
    assert case.decide(10 * GRACE) is None


def test_report_of_a_worker_ends_nothing_alone() -> None:
    """Calls that a worker has left undone wait for Slurm's word: a newer copy may run them."""
    case = Case()
    case.row('RUNNING')
    case.ended(0)
    assert case.decide(10 * GRACE) is None
    case.row('FAILED')
    end = case.decide()
    assert isinstance(end, End)
    assert end.told


def test_worker_that_ended_and_vanished() -> None:
    """Calls left undone by a worker that reported its end, and whose job is gone, end as lost."""
    case = Case()
    case.ended(0)
    case.absent()
    end = case.given_up()
    assert end.lost
    assert end.started


def test_obstacle() -> None:
    """What kept a worker from starting ends its calls once its task can not run elsewhere."""
    case = Case()
    case.message(failed={'what': 'cwd', 'code': 1})
    assert case.decide() is Ask.OWNER
    case.task.claim = Claim.ASKED
    assert case.decide() is None
    case.task.on_owner('revoked')
    end = case.decide()
    assert isinstance(end, End)
    assert end.obstacle == {'what': 'cwd', 'code': 1}
    assert end.started is False


def test_obstacle_on_which_slurm_requeues() -> None:
    """An obstacle whose exit code makes Slurm requeue the job ends nothing."""
    case = Case()
    case.message(failed={'what': 'setup', 'code': REQUEUE_EXIT})
    assert case.decide(10 * GRACE) is None
    case.row('PENDING')
    case.message(restart=1, items=[])
    assert case.decide(10 * GRACE) is None


def test_obstacle_of_one_submission_of_two() -> None:
    """A copy that could not start ends nothing if another one has claimed the task."""
    case = Case()
    case.message(failed={'what': 'cwd', 'code': 1})
    case.owner('job:11')
    assert case.task.job == '11'
    assert case.decide(10 * GRACE) is None


# ---- Slurm's word


@pytest.mark.parametrize('state', FINAL)
def test_final_state_with_a_report(begun: Case, state: JobState) -> None:
    """A final state ends at once what has reported its end after SIGTERM, if the two agree."""
    begun.ended(1 if state is not JobState.COMPLETED else 0, term=True)
    begun.row(state.value)
    agree = begun.script or state not in {JobState.COMPLETED, JobState.FAILED}
    assert isinstance(begun.decide(), End) is agree


@pytest.mark.parametrize('state', [*FINAL, JobState.PREEMPTED])
def test_final_state_without_a_report(begun: Case, state: JobState) -> None:
    """Without a report a final state waits for the grace period, and for what the spool holds."""
    begun.row(state.value, 'Why')
    end = begun.given_up()
    assert (end.state, end.started, end.lost, end.reason) == (state, True, False, 'Why')


@pytest.mark.parametrize('state', FINAL)
def test_final_state_of_what_never_began(case: Case, state: JobState) -> None:
    """A final state of a task that can still be claimed ends it at once: it never began."""
    case.row(state.value)
    assert case.decide() is Ask.OWNER
    case.task.claim = Claim.ASKED
    assert case.decide(10 * GRACE) is None
    case.task.on_owner('revoked')
    end = case.decide()
    assert isinstance(end, End)
    assert end.started is False
    assert end.lost is (state is JobState.COMPLETED)


def test_final_state_while_messages_are_slow(case: Case) -> None:
    """A task that turns out to be claimed by its job did begin: the grace period decides."""
    case.row('FAILED')
    assert case.decide() is Ask.OWNER
    case.owner('job:10')
    assert case.given_up().started


def test_owner_cannot_be_found_out(case: Case) -> None:
    """Where the claim cannot be had, for a full disk, say, the grace period decides."""
    case.row('FAILED')
    case.owner('')
    assert case.given_up().started is None


@pytest.mark.parametrize('state', [*LIVE, 'SOMETHING_NEW', ''])
def test_live_state_takes_an_end_back(begun: Case, state: str) -> None:
    """A task seen alive, in a state unknown to us too, is alive, whatever was seen before."""
    begun.row('NODE_FAIL')
    begun.row(state)
    assert begun.decide(10 * GRACE) is None
    begun.absent(1)
    assert begun.decide(10 * GRACE) is None
    begun.row(state)
    begun.absent(1)
    assert begun.decide(10 * GRACE) is None


@pytest.mark.parametrize('report', [False, True])
def test_preempted_may_return(begun: Case, report: bool) -> None:
    """PREEMPTED ends nothing within the grace period, and a task that returns goes on."""
    begun.message(stopping=True)
    if report:
        begun.ended(143, term=True)
    begun.row('PREEMPTED')
    assert begun.decide(GRACE - 1) is None
    begun.row('PENDING')
    assert begun.decide(10 * GRACE) is None
    begun.row('PREEMPTED')
    assert begun.given_up().state is JobState.PREEMPTED


def test_preempted_before_it_began(case: Case) -> None:
    """A preempted task is not claimed before the grace period is over: it may run yet."""
    case.row('PREEMPTED')
    assert case.decide(GRACE - 1) is None
    assert case.decide(1) is Ask.OWNER


# ---- absence


def test_absent_once(begun: Case) -> None:
    """One answer without the task starts nothing: squeue may be cached."""
    begun.absent(1)
    assert begun.decide(10 * GRACE) is None


def test_absent_and_begun(begun: Case) -> None:
    """A task that has begun and is gone is lost after the grace period; sacct is asked first."""
    begun.absent()
    assert begun.decide() is Ask.ACCOUNTING
    end = begun.given_up()
    assert (end.lost, end.started) == (True, True)


def test_absent_and_not_begun(case: Case) -> None:
    """A task that is gone and never began was cancelled; it is claimed only when time is up."""
    case.absent()
    assert case.decide() is Ask.ACCOUNTING
    assert case.decide(GRACE - 10.001) is Ask.ACCOUNTING
    assert case.decide(0.1) is Ask.OWNER
    case.owner('revoked')
    case.history(None)
    end = case.decide()
    assert end == End(JobState.CANCELLED, reason='', node='', started=False)


def test_accounting_explains(begun: Case) -> None:
    """A row of sacct gives a gone task its state; the deadline still counts from its absence."""
    begun.absent()
    begun.history('TIMEOUT', code=0)
    assert begun.task.since == pytest.approx(begun.now - 10)
    end = begun.given_up()
    assert (end.state, end.lost, end.exit_code, end.node) == (JobState.TIMEOUT, False, 0, 'n1')


@pytest.mark.parametrize('state', ['RUNNING', 'PENDING', 'SOMETHING_NEW', 'REQUEUED'])
def test_accounting_is_behind(begun: Case, state: str) -> None:
    """A live state in sacct proves nothing, neither life nor death."""
    begun.absent()
    begun.history(state)
    assert begun.decide() is Ask.ACCOUNTING
    assert begun.given_up().lost


def test_accounting_of_an_old_job(begun: Case) -> None:
    """A row of a job that was submitted long before is of another job with the same id."""
    begun.absent()
    begun.history('COMPLETED', submit=SUBMITTED - CLOCK_SKEW - 1)
    assert begun.given_up().lost


def test_accounting_comes_too_late(begun: Case) -> None:
    """An answer of sacct about a task that squeue lists again is dropped."""
    begun.absent()
    begun.row('RUNNING')
    begun.history('COMPLETED')
    assert begun.decide(10 * GRACE) is None


def test_accounting_is_asked_again_after_a_return(begun: Case) -> None:
    """What sacct said before a task was seen alive again is no word on its next end."""
    begun.absent()
    begun.history('NODE_FAIL')
    begun.row('PENDING')
    begun.absent()
    assert begun.decide() is Ask.ACCOUNTING


def test_news_must_be_newer_than_the_evidence(begun: Case) -> None:
    """Having read the spool for an end that was taken back does not count for the next."""
    begun.row('FAILED')
    assert begun.decide(GRACE) is Ask.NEWS
    since = begun.task.since
    begun.row('PENDING')
    begun.row('FAILED')
    begun.task.catch_up(since)
    assert begun.decide(GRACE) is Ask.NEWS


# ---- restarts and copies


def test_restart_takes_everything_back(begun: Case) -> None:
    """A message of a new run makes an end, an absence and a report of the run before void."""
    begun.ended(1, term=True)
    begun.row('FAILED')
    begun.absent()
    begun.message(restart=1, items=[])
    assert begun.task.state is JobState.RUNNING
    assert begun.decide(10 * GRACE) is None


def test_old_run_does_not_end_the_new(begun: Case) -> None:
    """What an older copy reports, or fails to report, does not touch the run after it."""
    begun.message(restart=2, items=[])
    begun.outcomes(5, 6, restart=1)
    begun.ended(0, restart=1, delivered=2)
    assert begun.task.exit is None
    assert begun.task.received == set()
    assert begun.decide(10 * GRACE) is None


def test_queued_again(begun: Case) -> None:
    """Once it waits again, the last run's report is no word on how the next one ends."""
    begun.ended(143, term=True)
    begun.row('REQUEUED')
    begun.row('RUNNING')
    begun.row('NODE_FAIL')
    assert begun.given_up().told is False


def test_stale_answer(case: Case) -> None:
    """An answer that squeue began before the newest message does not void that message."""
    case.message(started=True)
    case.ended(1, term=True)
    case.row('PENDING', stale=True)
    assert case.task.exit is not None


def test_another_submission_is_followed(begun: Case) -> None:
    """Whatever is known of one submission says nothing about the other that has the claim."""
    begun.ended(143, term=True, restart=3)
    begun.row('CANCELLED')
    begun.task.follow('11')
    assert (begun.task.job, begun.task.restart) == ('11', 0)
    assert begun.decide(10 * GRACE) is None


def test_owner_is_another_submission(case: Case) -> None:
    """A final state of a copy that did not get the claim ends nothing."""
    case.row('COMPLETED')
    assert case.decide() is Ask.OWNER
    case.owner('job:11')
    assert case.task.job == '11'
    assert case.decide(10 * GRACE) is None


# ---- outcomes on their way


def test_delivered_outcomes_are_waited_for() -> None:
    """A report that counts more outcomes than have come makes the final state wait."""
    case = Case()
    case.outcomes(1, 2)
    case.ended(1, delivered=3)
    case.row('FAILED')
    assert case.decide() is None
    case.outcomes(1, 2)
    assert case.decide() is None, 'the same message again is nothing new'
    case.outcomes(3)
    assert isinstance(case.decide(), End)


def test_outcomes_of_the_run_before_do_not_count() -> None:
    """A worker counts the outcomes that it has delivered itself, not those of the run before."""
    case = Case()
    case.outcomes(1, 2)
    case.ended(1, restart=1, delivered=2)
    case.row('FAILED')
    assert case.decide() is None
    case.outcomes(3, 4, restart=1)
    assert isinstance(case.decide(), End)


@pytest.mark.parametrize(('member', 'told'), [({'stopping': True}, True), ({'items': []}, False)])
def test_calls_that_were_not_begun(member: Mapping[str, Any], told: bool) -> None:
    """A worker that got SIGTERM has said what it had begun; of one that vanished nobody knows."""
    case = Case()
    case.message(**member)
    case.row('TIMEOUT')
    assert case.given_up().told is told


# ---- what is shown


def shown(case: Case) -> JobState:
    """Return the state that the future shows."""
    return case.task.state


def is_held(case: Case) -> bool:
    """Return whether a person has to do something."""
    return case.task.held


def test_shown_state() -> None:
    """The state follows squeue and messages; one that nobody knows leaves it as it was."""
    case = Case()
    case.row('CONFIGURING')
    assert shown(case) is JobState.CONFIGURING
    case.message(items=[])
    assert shown(case) is JobState.RUNNING
    case.row('SOMETHING_NEW')
    assert shown(case) is JobState.RUNNING
    case.ended(1)
    assert shown(case) is JobState.FAILED
    case.outcomes(1)
    assert shown(case) is JobState.FAILED, 'messages of one run may come twice'


def test_held_for_a_person() -> None:
    """A task is held when Slurm waits for a person, unless it was submitted so (--hold)."""
    case = Case()
    case.row('PENDING', 'JobHeldUser')
    assert not is_held(case)
    case.row('PENDING', 'JobHeldAdmin')
    assert is_held(case)
    case.message(items=[])
    case.row('PENDING', 'JobHeldUser')
    assert is_held(case)
    case.row('RUNNING')
    assert not is_held(case)


# ---- many tasks


def tracker(indices: Sequence[int | None], *, script: bool = False) -> Tracker:
    """Return a tracker of tasks that have begun."""
    tasks = {index or 0: Task('10', index, claim=Claim.TAKEN) for index in indices}
    return Tracker(POLICY, script, tasks)


def test_listing_by_task() -> None:
    """Each task of an array gets its own row, or its absence."""
    tracked = tracker([0, 1, 2, 3])
    rows = [row('PENDING', tasks='0,2'), row('FAILED', tasks='1'), row('FAILED', job='11')]
    tracked.on_listing(Listing(rows), 5.0, 6.0)
    tasks = tracked.tasks
    assert [tasks[n].state for n in (0, 1, 2)] == ['PENDING', 'FAILED', 'PENDING']
    assert [tasks[n].absences for n in range(4)] == [0, 0, 0, 1]


def test_decisions_name_their_tasks() -> None:
    """Only tasks about which something is decided are named, each with its number."""
    tracked = tracker([3, 4, 5])
    tracked.on_listing(Listing([row('TIMEOUT', tasks='3-4'), row('RUNNING', tasks='5')]), 5.0, 6.0)
    assert list(tracked.decide(6.0)) == []
    assert tracked.deadline(6.0) == 6.0 + GRACE
    decided = list(tracked.decide(6.0 + GRACE))
    assert [(number, task.job_id, ask) for number, task, ask in decided] == [
        (3, '10_3', Ask.NEWS),
        (4, '10_4', Ask.NEWS),
    ]


def test_deadline_passes() -> None:
    """A deadline that has passed is none any more: nothing is gained by deciding over and over."""
    tracked = tracker([None])
    assert tracked.deadline(5.0) == math.inf
    tracked.on_listing(Listing([row('FAILED')]), 5.0, 6.0)
    assert tracked.deadline(6.0 + GRACE) == math.inf


def test_history_by_task() -> None:
    """Tasks of an array are found in sacct's answer, those that share a row too."""
    rows = [
        AccountingRow('10', '1', '12', 'FAILED', 1, 0, None, None, 'n1'),
        AccountingRow('10', '2-3,7', '10', 'CANCELLED by 0', None, 0, None, None, ''),
        AccountingRow('11', '', '11', 'COMPLETED', 0, 0, None, None, 'n1'),
    ]
    history = History(rows)
    assert history.find('10', 7) == rows[1]
    assert history.find('10', 1) == rows[0]
    assert history.find('11', None) == rows[2]
    assert history.find('10', 4) is None


# ---- anything, in any order

WAITING = ['PENDING', 'REQUEUED', 'REQUEUE_FED', 'REQUEUE_HOLD', 'RESV_DEL_HOLD', 'SPECIAL_EXIT']
COMMON = ['PENDING', 'RUNNING', 'COMPLETED', 'FAILED', 'PREEMPTED']
STATES = st.sampled_from(COMMON) | st.sampled_from([*JobState, 'SOMETHING_NEW', ''])


def answer_all(case: Case) -> End | Ask | None:
    """Answer what is asked, in vain, until nothing more is; return the last decision."""
    for _ in range(4):
        decision = case.decide()
        if case.task.claim is Claim.ASKED or decision is Ask.OWNER:
            case.owner('')
        elif decision is Ask.ACCOUNTING:
            case.history(None)
        elif decision is Ask.NEWS:
            case.task.catch_up(case.task.since)
    return case.decide()


class Anything(RuleBasedStateMachine):
    """Feeds a task facts in any order, and keeps books of its own on what they prove."""

    @initialize(script=st.booleans())
    def begin(self, script: bool) -> None:
        """A task is submitted."""
        self.case = Case(script=script)
        self.final = False  # by the last answer that said anything of its state
        self.missing = 0  # so many answers of squeue in a row did not list it
        self.report: dict[str, Any] | None = None  # of the newest run, unless it waits again
        self.outcomes: set[int] = set()
        self.obstacle = False
        self.restart = 0
        self.over = False

    @property
    def live(self) -> bool:
        """Whether squeue has shown it alive, and nothing has been heard since that it is not."""
        return not self.final and self.missing < 2

    def check(self) -> None:
        """Decide, and hold the decision against the books."""
        decision = self.case.decide()
        task = self.case.task
        if decision is Ask.OWNER:
            task.claim = Claim.ASKED
        if isinstance(decision, End):
            self.over = True
            if not self.own_word():
                self.check_end(task)
        elif not self.live and self.case.now - task.since >= GRACE:
            twin = copy.deepcopy(self.case)
            assert isinstance(answer_all(twin), End), f'it hangs: {task}'

    def own_word(self) -> bool:
        """Whether the task itself has said that it is over."""
        if not self.case.script:
            return self.obstacle
        report = self.report
        return bool(report and not report['term'] and report['code'] != REQUEUE_EXIT)

    def check_end(self, task: Task) -> None:
        """An end that Slurm's word is the reason for."""
        assert not self.live, 'squeue showed it alive'
        waited = self.case.now - task.since >= GRACE
        if task.terminal is None or task.terminal.may_return:
            assert waited, 'absence, or a state that may be taken back, ended it early'
        elif task.claim is not Claim.REVOKED and not waited:
            assert self.report is not None, 'it may have outcomes on their way'
            assert len(self.outcomes) >= self.report['delivered'] or self.case.script

    @precondition(lambda self: not self.over)
    @rule(seconds=st.floats(0, 2 * GRACE))
    def time_passes(self, seconds: float) -> None:
        """Nothing happens; queries that fail are nothing, too."""
        self.case.now += seconds
        self.check()

    @rule()
    def rest(self) -> None:
        """Do nothing: all that can be done once it is over."""

    @precondition(lambda self: not self.over)
    @rule(state=STATES)
    def listed(self, state: str) -> None:
        """Squeue answers with a row."""
        self.case.row(state)
        known = JobState.parse(state)
        self.final, self.missing = known is not None and known.is_terminal, 0
        if state in WAITING:
            self.report, self.obstacle = None, False
        self.check()

    @precondition(lambda self: not self.over)
    @rule()
    def absent(self) -> None:
        """Squeue answers without it."""
        self.case.absent(1)
        self.missing += 1
        self.check()

    @precondition(lambda self: not self.over)
    @rule(back=st.integers(-1, 1), calls=st.sets(st.integers(0, 3)))
    def outcomes_come(self, back: int, calls: set[int]) -> None:
        """A message of the newest run, of an older or of a newer one."""
        if self.of_newest(back):
            self.outcomes |= calls
        self.case.outcomes(*calls, restart=self.restart + min(back, 0))
        self.check()

    @precondition(lambda self: not self.over)
    @rule(
        back=st.integers(-1, 1),
        code=st.sampled_from([0, 1, 143, REQUEUE_EXIT]),
        term=st.booleans(),
        delivered=st.integers(0, 4),
    )
    def ended(self, back: int, code: int, term: bool, delivered: int) -> None:
        """A run reports its end."""
        if self.of_newest(back):
            self.report = {'code': code, 'term': term, 'delivered': delivered}
        restart = self.restart + min(back, 0)
        self.case.ended(code, term=term, restart=restart, delivered=delivered)
        self.check()

    @precondition(lambda self: not self.over and not self.case.script)
    @rule(back=st.integers(-1, 1), code=st.sampled_from([1, REQUEUE_EXIT]))
    def failed(self, back: int, code: int) -> None:
        """A wrapper reports what kept it from starting the worker."""
        newest = self.of_newest(back)
        restart = self.restart + min(back, 0)
        self.case.message(restart, failed={'what': 'setup', 'code': code})
        if newest:
            self.obstacle = code != REQUEUE_EXIT
        self.check()

    @precondition(lambda self: not self.over)
    @rule()
    def stopping(self) -> None:
        """The newest run reports SIGTERM."""
        self.of_newest(0)
        self.case.message(self.restart, stopping=True)
        self.check()

    def of_newest(self, back: int) -> bool:
        """Keep the books on the restart of a message; return whether it is of the newest run."""
        if back > 0:
            self.restart += 1
            self.report, self.outcomes = None, set()
            self.final, self.missing = False, 0
        if back >= 0:
            self.obstacle = False
        return back >= 0

    @precondition(lambda self: not self.over)
    @rule(state=st.none() | STATES)
    def accounted(self, state: str | None) -> None:
        """Sacct answers, asked or not."""
        self.case.history(state)
        known = JobState.parse(state or '')
        if self.missing and known is not None and known.is_terminal:
            self.final = True
        self.check()

    @precondition(lambda self: not self.over and self.case.task.claim is Claim.ASKED)
    @rule(owner=st.sampled_from(['', 'revoked', 'job:10', 'job:11']))
    def owned(self, owner: str) -> None:
        """The owner is found out, or cannot be."""
        before = self.case.task.job
        self.case.task.on_owner(owner)
        if self.case.task.job != before:
            self.restart, self.report, self.outcomes, self.obstacle = 0, None, set(), False
            self.final, self.missing = False, 0
        self.check()

    @precondition(lambda self: not self.over)
    @rule()
    def answered(self) -> None:
        """All that is asked is answered: nothing could be found out."""
        answer_all(self.case)
        self.check()

    @invariant()
    def deadline_is_to_come(self) -> None:
        """A deadline never lies in the past."""
        if hasattr(self, 'case'):
            assert deadline(self.case.task, POLICY, self.case.now) > self.case.now


def test_any_order_of_facts() -> None:
    """Whatever comes in whatever order: what lives is not ended, and what is over does end.

    A task that squeue shows alive is ended by its own report only, of its newest run; absence, and
    a state that may be taken back, only after the grace period; what is over for as long is ended
    as soon as all that is asked is answered; queries that fail, and older runs, move nothing.
    """
    run_state_machine_as_test(
        Anything, settings=settings(max_examples=500, stateful_step_count=30, deadline=None)
    )
