"""The embedded queue's state machine: who runs next, who waits, who has ended."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from slurm_futures.remote.localjob import Ended
from slurm_futures.remote.localjobs import Jobs, Key, OtherVersion, Record
from slurm_futures.remote.localoptions import Spec

DONE = Ended('COMPLETED', 0)
BAD = Ended('FAILED', 3, reason='NonZeroExitCode')


class Clock:
    """A monotonic clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Desk:
    """Jobs, with everything that happens to them written down.

    Args:
        max_jobs: how many tasks may run at once.
    """

    def __init__(self, max_jobs: int = 4) -> None:
        self.clock = Clock()
        self.max_jobs = max_jobs
        self.records: list[Record] = []
        self.jobs = Jobs(self.clock, kill_wait=30.0, min_job_age=300.0)

    def apply(self, *records: Record) -> None:
        """Let something happen."""
        for record in records:
            self.records.append(record)
            self.jobs.apply(record)

    def submit(self, **asked: Any) -> int:
        """Submit a job; return its id."""
        number = self.jobs.next_number
        asked = {'script': f'/{number}.sh', 'name': 'job', 'submit_dir': '/', 'cwd': '/'} | asked
        self.apply(*self.jobs.submission(Spec(**asked), {'A': '1'}, self.max_jobs, 1000.0))
        return number

    def start(self, key: Key) -> None:
        """Start a task."""
        who = f'host:boot:{1000 + self.jobs[key[0]].raw_id(key[1])}:1'
        task = {'job': key[0], 'task': key[1]}
        self.apply({'what': 'start', **task, 'who': who, 'since': self.clock()})

    def start_all(self) -> list[Key]:
        """Start all tasks that may run now; return them in their order."""
        started = []
        while key := self.jobs.next_task():
            self.start(key)
            started.append(key)
        return started

    def end(self, number: int, *indices: int, how: Ended = DONE) -> None:
        """End tasks."""
        at = how.at or 1000.0 + self.clock()
        self.apply(self.jobs.end(self.jobs[number], indices or (0,), how._replace(at=at)))

    def states(self) -> dict[str, str]:
        """Return the state that is shown of each job, or of each row of an array."""
        rows = self.jobs.rows('host')
        return {f'{r.job_id}_{r.tasks}' if r.tasks else r.job_id: r.state for r in rows}

    def reason(self, number: int) -> str:
        """Return why a job waits."""
        return next(r.reason for r in self.jobs.rows('host') if r.job_id == str(number))

    def reread(self) -> Jobs:
        """Return the jobs as somebody finds them who has only the records."""
        jobs = Jobs(self.clock, kill_wait=30.0, min_job_age=300.0)
        for record in self.records:
            jobs.apply(record)
        return jobs


@pytest.fixture
def desk() -> Desk:
    """No job yet; four may run at once."""
    return Desk()


def test_first_in_first_out(desk: Desk) -> None:
    """Tasks start in the order of their submission, as many as may run at once."""
    first, array, last = desk.submit(), desk.submit(array='5,1-3'), desk.submit()
    assert desk.start_all() == [(first, 0), (array, 1), (array, 2), (array, 3)]
    desk.end(array, 2)
    assert desk.start_all() == [(array, 5)]
    desk.end(first)
    assert desk.start_all() == [(last, 0)]
    assert desk.jobs.next_task() is None


def test_an_array_takes_an_id_for_each_task(desk: Desk) -> None:
    """Each task has an id of its own, the first one the array's, and no other job has it."""
    array, after = desk.submit(array='2,4,8'), desk.submit()
    assert [desk.jobs[array].raw_id(index) for index in (2, 4, 8)] == [array, array + 1, array + 2]
    assert after == array + 3


def test_limit_of_an_array(desk: Desk) -> None:
    """No more tasks of an array run than it wants, and those behind it need not wait."""
    array, after = desk.submit(array='0-3', parallelism=2), desk.submit()
    assert desk.start_all() == [(array, 0), (array, 1), (after, 0)]
    assert desk.reason(array) == 'JobArrayTaskLimit'
    desk.end(array, 0)
    assert desk.start_all() == [(array, 2)]


def test_newest_limit_counts(desk: Desk) -> None:
    """How many may run at once is what was asked for last."""
    for _ in range(6):
        desk.submit()
    assert len(desk.start_all()) == 4
    desk.max_jobs = 2
    desk.submit()
    desk.end(1)
    desk.end(2)
    assert desk.start_all() == []
    desk.end(3)
    assert desk.start_all() == [(5, 0)]


def test_held(desk: Desk) -> None:
    """A job that is held stays where it is."""
    held, other = desk.submit(held=True), desk.submit()
    assert desk.start_all() == [(other, 0)]
    assert desk.reason(held) == 'JobHeldUser'


def wait_on(kind: str, number: int, index: int | None = None) -> list[list[Any]]:
    """Return a dependency."""
    return [[kind, number, index]]


@pytest.mark.parametrize(
    ('kind', 'how', 'starts'),
    [
        ('after', None, True),
        ('afterany', None, False),
        ('afterany', BAD, True),
        ('afterok', None, False),
        ('afterok', DONE, True),
        ('afterok', BAD, False),
        ('afternotok', None, False),
        ('afternotok', BAD, True),
        ('afternotok', DONE, False),
    ],
)
def test_dependency(desk: Desk, kind: str, how: Ended | None, starts: bool) -> None:
    """Each kind waits for its moment, and a job whose moment cannot come is cancelled."""
    first = desk.submit()
    after = desk.submit(dependency=wait_on(kind, first))
    assert desk.start_all() == [(first, 0), (after, 0)][: 1 + (kind == 'after')]
    if how is None:
        assert starts == (kind == 'after')
        return
    assert desk.reason(after) == 'Dependency'
    desk.end(first, how=how)
    hopeless = list(desk.jobs.hopeless())
    desk.apply(*hopeless)
    assert bool(hopeless) is not starts
    assert desk.start_all() == ([(after, 0)] if starts else [])
    assert starts or desk.states()[str(after)] == 'CANCELLED'


def test_dependency_on_a_task(desk: Desk) -> None:
    """One task of an array may be waited for, too."""
    array = desk.submit(array='0-1')
    after = desk.submit(dependency=wait_on('afterok', array, 1))
    desk.start_all()
    desk.end(array, 0, how=BAD)
    assert list(desk.jobs.hopeless()) == []
    assert desk.start_all() == []
    desk.end(array, 1)
    assert desk.start_all() == [(after, 0)]


def test_dependency_on_a_whole_array(desk: Desk) -> None:
    """An array has ended with the last of its tasks, and well only if all of them have."""
    array = desk.submit(array='0-1')
    ok = desk.submit(dependency=wait_on('afterok', array))
    bad = desk.submit(dependency=wait_on('afternotok', array))
    desk.start_all()
    desk.end(array, 0, how=BAD)
    assert [record['job'] for record in desk.jobs.hopeless()] == [ok]
    assert desk.start_all() == []
    desk.end(array, 1)
    assert desk.start_all() == [(bad, 0)]


def test_dependency_on_what_is_forgotten(desk: Desk) -> None:
    """A job that ended long ago keeps nobody waiting."""
    first = desk.submit()
    desk.start_all()
    desk.end(first, how=BAD)
    desk.clock.now += 301
    desk.jobs.forget()
    after = desk.submit(dependency=wait_on('afterok', first))
    assert desk.start_all() == [(after, 0)]


def test_hopeless_jobs_take_others_with_them(desk: Desk) -> None:
    """What waits for the success of a job that never runs never runs."""
    first = desk.submit()
    second = desk.submit(dependency=wait_on('afterok', first))
    third = desk.submit(dependency=wait_on('afterok', second))
    desk.start_all()
    desk.end(first, how=BAD)
    for record in desk.jobs.hopeless():
        desk.apply(record)
    assert desk.states() == {
        str(first): 'FAILED',
        str(second): 'CANCELLED',
        str(third): 'CANCELLED',
    }
    assert desk.jobs.is_idle


@pytest.mark.parametrize('any_of', [True, False])
def test_several_dependencies(desk: Desk, any_of: bool) -> None:
    """All must be met, or one of them."""
    jobs = [desk.submit(), desk.submit()]
    both = [['afterok', number, None] for number in jobs]
    after = desk.submit(dependency=both, any_dependency=any_of)
    desk.start_all()
    desk.end(jobs[0], how=BAD)
    assert [record['job'] for record in desk.jobs.hopeless()] == ([] if any_of else [after])
    desk.end(jobs[1])
    assert desk.start_all() == ([(after, 0)] if any_of else [])


def test_singleton(desk: Desk) -> None:
    """A singleton waits for all older jobs of its name."""
    first = desk.submit(name='one')
    second = desk.submit(name='one', dependency=[['singleton', 0, None]])
    other = desk.submit(name='two', dependency=[['singleton', 0, None]])
    assert desk.start_all() == [(first, 0), (other, 0)]
    desk.end(first, how=BAD)
    assert desk.start_all() == [(second, 0)]


def test_time_limit(desk: Desk) -> None:
    """A task is warned, told to end, and killed, each when it is time and once."""
    job = desk.submit(time=60.0, warning=[10, 20])
    assert desk.jobs.deadline() == math.inf
    desk.start_all()
    start = desk.clock.now
    assert desk.jobs.deadline() == start + 40
    assert list(desk.jobs.due()) == []
    desk.clock.now = start + 40
    assert list(desk.jobs.due()) == [((job, 0), 'warn')]
    desk.apply({'what': 'warn', 'job': job, 'task': 0})
    assert same(desk.jobs, tidied(desk.jobs))
    assert desk.jobs.deadline() == start + 60
    desk.clock.now = start + 60
    assert list(desk.jobs.due()) == [((job, 0), 'stop')]
    desk.apply(desk.jobs.stop((job, 0), 'TIMEOUT'))
    assert desk.states() == {str(job): 'COMPLETING'}
    assert same(desk.jobs, tidied(desk.jobs))
    assert desk.jobs.deadline() == start + 90
    desk.clock.now = start + 90
    assert list(desk.jobs.due()) == [((job, 0), 'kill')]
    desk.jobs.running[job, 0].killed = True
    assert desk.jobs.deadline() == math.inf


def tidied(jobs: Jobs) -> Jobs:
    """Return the same jobs, made of the records that they amount to."""
    copy = Jobs(jobs._clock, jobs._kill_wait, jobs._min_job_age)
    for record in json.loads(json.dumps(list(jobs.records()))):
        copy.apply(record)
    return copy


def same(one: Jobs, other: Jobs) -> bool:
    """Return whether the same is known of the same jobs."""
    return all(
        (
            one.running == other.running,
            sorted(one.rows('host')) == sorted(other.rows('host')),
            one.next_number == other.next_number,
            one.max_jobs == other.max_jobs,
            one.environments == other.environments,
            one.deadline() == other.deadline(),
        )
    )


def test_rows(desk: Desk) -> None:
    """Tasks in the same situation stand in one row, as many as there may be."""
    array, plain = desk.submit(array='0-9'), desk.submit()
    desk.start_all()
    desk.end(array, 0)
    desk.end(array, 2)
    desk.end(array, 1, how=BAD)
    desk.apply(desk.jobs.end(desk.jobs[array], [8, 9], Ended('CANCELLED', ran=False)))
    assert [tuple(row) for row in desk.jobs.rows('host')] == [
        (str(array), '4-7', 'PENDING', 'Resources', '', str(array)),
        (str(array), '3', 'RUNNING', 'None', 'host', str(array + 3)),
        (str(array), '0,2', 'COMPLETED', 'None', 'host', str(array)),
        (str(array), '1', 'FAILED', 'NonZeroExitCode', 'host', str(array + 1)),
        (str(array), '8-9', 'CANCELLED', 'None', '', str(array + 8)),
        (str(plain), '', 'PENDING', 'Resources', '', str(plain)),
    ]


def test_history(desk: Desk) -> None:
    """The exit code and times of tasks that have ended can be had, of others nothing."""
    array = desk.submit(array='0-1')
    desk.start_all()
    desk.end(array, 1, how=BAD._replace(at=2000.5))
    assert [tuple(row) for row in desk.jobs.history([str(array), '77', 'x'], 'host')] == [
        (str(array), '1', str(array + 1), 'FAILED', 3, 0, 1000, 2000, 'host')
    ]


def test_ids_that_cancelling_takes(desk: Desk) -> None:
    """Jobs, tasks and sets of tasks can be named; what is unknown is left out."""
    plain, array = desk.submit(), desk.submit(array='0-9')
    names = [str(plain), f'{array}_3', f'{array}_[0-2,5,77]', '999', 'x', f'{plain}_[']
    chosen = [(job.number, indices) for job, indices in desk.jobs.chosen(names)]
    assert chosen == [(plain, [0]), (array, [3]), (array, [0, 1, 2, 5]), (plain, [])]


def test_what_is_over_is_forgotten(desk: Desk) -> None:
    """A job is known for some time after its end, which begins with the end of its last task."""
    array = desk.submit(array='0-1')
    desk.start_all()
    desk.end(array, 0)
    desk.clock.now += 299
    desk.end(array, 1)
    desk.clock.now += 299
    desk.jobs.forget()
    assert desk.jobs.find(f'/{array}.sh') == array
    desk.clock.now += 1
    desk.jobs.forget()
    assert desk.jobs.rows('host') == []
    assert desk.jobs.find(f'/{array}.sh') is None
    assert desk.submit() == array + 2


def test_old_ends_are_forgotten_by_whoever_reads_the_records(desk: Desk) -> None:
    """What was over long before is not remembered for another while."""
    old, new = desk.submit(), desk.submit()
    desk.start_all()
    desk.end(old, how=DONE._replace(at=5000.0))
    desk.end(new, how=DONE._replace(at=6000.0))
    jobs = desk.reread()
    jobs.forget(before=5500.0)
    assert [row.job_id for row in jobs.rows('host')] == [str(new)]


def test_environments_are_kept_while_they_are_wanted(desk: Desk) -> None:
    """Jobs share an environment that is equal, and it goes with the last that waits."""
    desk.max_jobs = 1
    desk.submit()
    desk.submit()
    assert [record['what'] for record in desk.records].count('environment') == 1
    desk.start_all()
    desk.jobs.forget()
    assert list(desk.jobs.environments.values()) == [{'A': '1'}]
    desk.end(1)
    desk.start_all()
    desk.jobs.forget()
    assert desk.jobs.environments == {}


def test_records_of_another_version(desk: Desk) -> None:
    """What another version has written is not guessed at."""
    with pytest.raises(OtherVersion, match=r'another version \(99\)'):
        desk.apply({'what': 'queue', 'version': 99, 'next': 1, 'max_jobs': 1})


class Machine(RuleBasedStateMachine):
    """Whatever happens in whatever order: the rules of the queue hold."""

    def __init__(self) -> None:
        super().__init__()
        self.desk = Desk(max_jobs=2)
        self.started: list[Key] = []
        self.ids: list[int] = []
        self.ended: dict[Key, str] = {}

    @rule(
        tasks=st.integers(0, 5),
        limit=st.integers(0, 2),
        max_jobs=st.integers(1, 4),
        kind=st.sampled_from(['', 'after', 'afterany', 'afterok', 'afternotok', 'singleton']),
        on=st.integers(0, 50),
        time=st.sampled_from([None, 10.0]),
        warning=st.sampled_from([None, [10, 5]]),
    )
    def submit(
        self,
        tasks: int,
        limit: int,
        max_jobs: int,
        kind: str,
        on: int,
        time: float | None,
        warning: list[int] | None,
    ) -> None:
        """Somebody submits a job, or an array, that may depend on an earlier one."""
        desk, earlier = self.desk, self.desk.jobs.next_number - 1
        number = 0 if kind == 'singleton' else 1 + on % max(1, earlier)
        depends = [[kind, number, None]] if kind and earlier else []
        desk.max_jobs = max_jobs
        array = f'1-{tasks}' if tasks else ''
        job = desk.jobs[
            desk.submit(
                array=array, parallelism=limit, dependency=depends, time=time, warning=warning
            )
        ]
        self.ids += [job.raw_id(index) for index in job.indices]

    @rule()
    def start(self) -> None:
        """The daemon starts the next task."""
        key = self.desk.jobs.next_task()
        if key:
            assert len(self.desk.jobs.running) < self.desk.max_jobs
            self.desk.start(key)
            self.started.append(key)

    @precondition(lambda self: self.desk.jobs.running)
    @rule(which=st.integers(0, 50), how=st.sampled_from([DONE, BAD]))
    def end(self, which: int, how: Ended) -> None:
        """A task ends, perhaps because it was told to."""
        running = self.desk.jobs.running
        key = sorted(running)[which % len(running)]
        state = running[key].ending or how.state
        self.desk.end(key[0], key[1], how=how._replace(state=state))
        self.ended[key] = state

    @precondition(lambda self: self.desk.jobs.rows(''))
    @rule(which=st.integers(0, 50))
    def cancel(self, which: int) -> None:
        """Somebody cancels a job."""
        rows = self.desk.jobs.rows('')
        for job, indices in self.desk.jobs.chosen([rows[which % len(rows)].job_id]):
            waiting = sorted({*indices} & {*job.waiting})
            if waiting:
                self.desk.end(job.number, *waiting, how=Ended('CANCELLED', ran=False))
                self.ended.update({(job.number, index): 'CANCELLED' for index in waiting})
            for index, run in job.running.items():
                if not run.ending:
                    self.desk.apply(self.desk.jobs.stop((job.number, index), 'CANCELLED'))

    @rule(seconds=st.sampled_from([1.0, 10.0, 30.0]))
    def wait(self, seconds: float) -> None:
        """Time goes by, and the daemon does what is due."""
        self.desk.clock.now += seconds
        for key, what in list(self.desk.jobs.due()):
            run = self.desk.jobs.running[key]
            if what == 'stop':
                assert not run.ending
                self.desk.apply(self.desk.jobs.stop(key, 'TIMEOUT'))
            elif what == 'warn':
                assert not run.warned
                self.desk.apply({'what': 'warn', 'job': key[0], 'task': key[1]})
            else:
                assert run.ending
                run.killed = True
        for record in self.desk.jobs.hopeless():
            self.desk.apply(record)
            job = self.desk.jobs[record['job']]
            self.ended.update({(job.number, i): 'CANCELLED' for i in job.parse(record['tasks'])})

    @rule(tidy=st.booleans())
    def read_again(self, tidy: bool) -> None:
        """The daemon is killed, and the next one reads the records, or what they amount to."""
        before = self.desk.jobs
        for run in before.running.values():
            run.killed = False
        if tidy:
            self.desk.records = list(before.records())
        self.desk.jobs = self.desk.reread()
        assert same(self.desk.jobs, before)
        ids = list(map(str, self.ids))
        history = before.history(ids, 'host')
        assert set(self.desk.jobs.history(ids, 'host')) == set(history)

    @invariant()
    def ids_are_never_given_twice(self) -> None:
        """No two tasks ever have the same id."""
        assert len(set(self.ids)) == len(self.ids)

    @invariant()
    def nothing_starts_twice(self) -> None:
        """A task is started once, and never after its end."""
        assert len(set(self.started)) == len(self.started)
        assert all(key in self.started or how == 'CANCELLED' for key, how in self.ended.items())

    @invariant()
    def next_task_is_the_oldest_that_may_run(self) -> None:
        """First in, first out: an older task than the next one has a reason to wait."""
        key = self.desk.jobs.next_task()
        waiting = [row for row in self.desk.jobs.rows('') if row.state == 'PENDING']
        free = [row for row in waiting if row.reason == 'Resources']
        if len(self.desk.jobs.running) >= self.desk.jobs.max_jobs or not free:
            assert key is None
        else:
            assert key == (
                int(free[0].job_id),
                int((free[0].tasks or '0').split('-')[0].split(',')[0]),
            )

    def teardown(self) -> None:
        """Every job ends, if only every task that is started does."""
        desk = self.desk
        for _ in range(len(self.ids) + 1):
            for record in desk.jobs.hopeless():
                desk.apply(record)
            for number, index in desk.start_all():
                assert (number, index) not in self.started
            for number, index in list(desk.jobs.running):
                desk.end(number, index)
        assert desk.jobs.is_idle


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
