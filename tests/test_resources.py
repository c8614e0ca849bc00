"""Resources: their normal forms, their merging, and what they give to sbatch."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError, fields, replace
from datetime import timedelta
from typing import Any, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slurm_futures.errors import ConfigError
from slurm_futures.resources import ResourceOptions, Resources, merge

repeatable = settings(derandomize=True, database=None, deadline=None)


def made(**options: Any) -> Resources:
    """Return Resources from options of any type, as a user without a type checker gives them."""
    return merge(None, options)  # type: ignore[arg-type]


def refusal(**options: Any) -> str:
    """Return the words with which resources are refused."""
    with pytest.raises(ConfigError) as caught:
        made(**options)
    return str(caught.value).removeprefix('invalid resources: ')


def test_options_and_resources_have_the_same_fields() -> None:
    """What with_resources takes by type is what Resources has, in the same order."""
    assert list(get_type_hints(ResourceOptions)) == [field.name for field in fields(Resources)]


def test_every_option_reaches_sbatch() -> None:
    """sbatch_options gives all options in a fixed order, without what slurm_futures does itself."""
    resources = made(
        extra={'mail_type': 'END', 'hold': True, 'nice': 5, 'begin': None, 'reboot': False},
        partition='cpu,gpu',
        time=timedelta(hours=36, seconds=0.5),
        nodes='2-4',
        ntasks=8,
        ntasks_per_node=4,
        cpus_per_task=2,
        mem='4G',
        gpus=2,
        gres='shard:1',
        account='lab',
        qos='high',
        constraint='intel&avx512',
        exclusive=True,
        requeue=False,
        dependency='afterok:12',
        clusters='c1',
        job_name='my job',
        array_parallelism=5,
        arrays=False,
        setup='module load x',
        env={'A': '1'},
    )
    assert resources.sbatch_options() == (
        ('partition', 'cpu,gpu'),
        ('time', '1-12:00:01'),
        ('nodes', '2-4'),
        ('ntasks', '8'),
        ('ntasks-per-node', '4'),
        ('cpus-per-task', '2'),
        ('mem', '4G'),
        ('gpus', '2'),
        ('gres', 'shard:1'),
        ('account', 'lab'),
        ('qos', 'high'),
        ('constraint', 'intel&avx512'),
        ('exclusive', None),
        ('no-requeue', None),
        ('dependency', 'afterok:12'),
        ('clusters', 'c1'),
        ('job-name', 'my job'),
        ('hold', None),
        ('mail-type', 'END'),
        ('nice', '5'),
    )
    assert (resources.array_parallelism, resources.arrays) == (5, False)
    assert (resources.setup, resources.env) == (('module load x',), (('A', '1'),))


def test_nothing_asked_is_nothing_given() -> None:
    """Without options sbatch gets none: its own defaults hold."""
    assert Resources().sbatch_options() == ()


@pytest.mark.parametrize(
    ('options', 'given_to_sbatch'),
    [
        ({'requeue': True}, ('requeue', None)),
        ({'requeue': False}, ('no-requeue', None)),
        ({'exclusive': 'user'}, ('exclusive', 'user')),
        ({'nodes': 3}, ('nodes', '3')),
        ({'gpus': 'a100:2'}, ('gpus', 'a100:2')),
        ({'mem_per_cpu': '500m'}, ('mem-per-cpu', '500m')),
        ({'extra': {'comment': ''}}, ('comment', '')),
        ({'extra': {'exclude': 'n[1-3]'}}, ('exclude', 'n[1-3]')),
        ({'extra': {'site-plugin': True}}, ('site-plugin', None)),
    ],
)
def test_single_options(options: dict[str, Any], given_to_sbatch: tuple[str, str | None]) -> None:
    """Spellings that are not just --name=value."""
    assert made(**options).sbatch_options() == (given_to_sbatch,)


def test_equal_resources_are_one_key() -> None:
    """Batching goes by equality: other spellings and orders of the same are one key."""
    one = made(
        nodes=2, gpus=1, exclusive=False, env={'A': '1', 'B': '2'}, extra={'mail_type': 'END'}
    )
    two = made(extra={'mail-type': 'END'}, env={'B': '2', 'A': '1'}, gpus='1', nodes='2')
    assert one == two
    assert len({one, two, made(nodes=3)}) == 2


def test_resources_are_immutable_and_travel() -> None:
    """They cannot be changed, and survive pickling and dataclasses.replace."""
    resources = made(env={'A': '1'}, extra={'hold': True}, setup=['a', 'b'])
    with pytest.raises(FrozenInstanceError):
        resources.partition = 'x'  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(resources)) == resources
    assert replace(resources) == resources


@pytest.mark.parametrize(
    'text',
    ['60', '0', '30:00', '01:00:00', '1-12', '1-12:30', '1-12:30:15', '100:99:99'],
)
def test_time_strings_are_taken_as_they_are(text: str) -> None:
    """All six formats of man sbatch, a plain number of minutes too."""
    assert made(time=text).time == text


@pytest.mark.parametrize('text', ['UNLIMITED', 'unlimited', 'infinite', 'INFINITE'])
def test_no_time_limit_has_one_spelling(text: str) -> None:
    """Slurm's words for no limit are one, so that equal resources are equal."""
    assert made(time=text).time == 'UNLIMITED'


@pytest.mark.parametrize(
    ('duration', 'text'),
    [
        (timedelta(hours=1), '0-01:00:00'),
        (timedelta(microseconds=1), '0-00:00:01'),
        (timedelta(days=30, seconds=-1), '29-23:59:59'),
        (timedelta(seconds=59, milliseconds=999), '0-00:01:00'),
    ],
)
def test_timedelta_is_rounded_up(duration: timedelta, text: str) -> None:
    """A timedelta becomes D-HH:MM:SS, never less than what was asked."""
    assert made(time=duration).time == text


@repeatable
@given(st.timedeltas(min_value=timedelta(microseconds=1), max_value=timedelta(days=10_000)))
def test_timedelta_round_trip(duration: timedelta) -> None:
    """Read back as Slurm reads it, the limit is at least the timedelta, and less than 1 s more."""
    days, _, clock = (made(time=duration).time or '').partition('-')
    hours, minutes, seconds = map(int, clock.split(':'))
    read = timedelta(days=int(days), hours=hours, minutes=minutes, seconds=seconds)
    assert duration <= read < duration + timedelta(seconds=1)
    assert (hours < 24, minutes < 60, seconds < 60) == (True, True, True)


@repeatable
@given(
    st.one_of(
        st.text(alphabet='0123456789:-', max_size=12),
        st.from_regex(r'[0-9]+(-[0-9]+)?(:[0-9]+){0,3}', fullmatch=True),
    )
)
def test_time_strings_are_the_formats_of_sbatch(text: str) -> None:
    """A string is taken exactly if it is one of the formats, counted by its separators."""
    days, dash, clock = text.rpartition('-')
    parts = clock.split(':')
    valid = all(map(str.isdigit, parts)) and len(parts) <= 3 and (not dash or days.isdigit())
    if valid:
        assert made(time=text).time == text
    else:
        assert refusal(time=text).startswith('time: got')


AMBIGUOUS = "is ambiguous: write '01:00:00' or timedelta(hours=1)"


@pytest.mark.parametrize('value', [60, 1.5, True, 0, [1], b'60'])
def test_bare_time_numbers_are_refused(value: Any) -> None:
    """A number could be seconds, minutes or hours: the message names both spellings."""
    assert refusal(time=value) == f'time: {value!r} {AMBIGUOUS}'


@pytest.mark.parametrize(
    'value',
    ['', '1h', '1:2:3:4', '1-', '-1', '1-2-3', '\uff11', ' 60', timedelta(0), timedelta(-1)],
)
def test_other_times_are_refused(value: Any) -> None:
    """Slurm takes a limit of 0 for none at all, so a timedelta of 0 is refused; so is a typo."""
    assert refusal(time=value).startswith('time: got ')


@pytest.mark.parametrize('value', ['4G', '500M', '4096', '0', '4gb', '1T', '10K'])
def test_memory_strings(value: str) -> None:
    """Slurm's spellings: whole numbers with K, M, G, T or none (megabytes); B may follow."""
    assert made(mem=value).mem == value


@pytest.mark.parametrize('value', ['1.5G', '4P', '4 G', 'B', '-1', '', '\uff14G'])
def test_memory_typos(value: str) -> None:
    """sbatch 22.05.8 refuses these, or they are no numbers; a space would be read, but by luck."""
    assert (
        refusal(mem=value)
        == f"mem: got {value!r}; write whole numbers: '4G', '500M' or '1536' (megabytes)"
    )


def test_memory_numbers_are_refused() -> None:
    """A number could be bytes or megabytes: the message names the spellings."""
    assert refusal(mem_per_cpu=4096) == (
        "mem_per_cpu: 4096 is ambiguous: write '4G', '500M' or '4096' (megabytes)"
    )


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        ({'partition': 1}, 'partition: got 1; write a string'),
        ({'partition': ''}, "partition: got ''; leave it out instead"),
        ({'job_name': 'a\nb'}, "job_name: got 'a\\nb'; line breaks and NUL are not possible here"),
        ({'account': 'a\0'}, "account: got 'a\\x00'; line breaks and NUL are not possible here"),
        ({'ntasks': 0}, 'ntasks: got 0; write a whole number of at least 1'),
        ({'ntasks': True}, 'ntasks: got True; write a whole number of at least 1'),
        ({'cpus_per_task': '4'}, "cpus_per_task: got '4'; write a whole number of at least 1"),
        ({'array_parallelism': 0}, 'array_parallelism: got 0; write a whole number of at least 1'),
        ({'nodes': 0}, 'nodes: got 0; write a whole number of at least 1'),
        ({'nodes': '1-'}, "nodes: got '1-'; write 2, '2' or '2-4'"),
        ({'gpus': -1}, 'gpus: got -1; write a whole number of at least 0'),
        ({'exclusive': 'yes'}, "exclusive: got 'yes'; write True, 'user', 'mcs' or 'topo'"),
        ({'requeue': 1}, 'requeue: got 1; write True or False'),
        ({'arrays': True}, "arrays: got True; write 'auto' or False"),
        ({'setup': 3}, 'setup: got 3; write shell lines, as one string or a list of strings'),
        ({'setup': 'a\r\n'}, "setup: got 'a\\r\\n'; NUL and carriage returns are not possible"),
        ({'env': ['A']}, 'env: got a list; write a mapping of names to values'),
        ({'env': (1, 2)}, 'env: got a tuple; write a mapping of names to values'),
        ({'env': {'1A': 'x'}}, "env: '1A' cannot be the name of an environment variable"),
        ({'env': {'A': 1}}, 'env: the value of A must be a string without NUL'),
        ({'env': {'A': 'x\0'}}, 'env: the value of A must be a string without NUL'),
        ({'mem': '1', 'mem_per_cpu': '1'}, 'mem and mem_per_cpu exclude each other: set one of'),
        ({'xyz': '1'}, "unknown resource 'xyz': another option of sbatch goes into extra"),
        ({'partitions': 'x'}, "unknown resource 'partitions': did you mean 'partition'?"),
        ({'mail_type': 'END'}, "unknown resource 'mail_type': write extra={'mail-type': ...}"),
    ],
)
def test_refusals_say_what_to_write(options: dict[str, Any], words: str) -> None:
    """Each refusal names the field, what was given, and what to write instead."""
    assert refusal(**options).startswith(words)


def test_all_bad_fields_are_named_at_once() -> None:
    """One error names every bad field."""
    assert refusal(ntasks=0, time=5, qos=1).count(';') == 4


def test_secrets_in_the_environment_stay_out_of_errors() -> None:
    """A refused variable's value is not in the message."""
    assert 'hunter2' not in refusal(env={'TOKEN': b'hunter2'})


def test_environment_values_may_be_hostile() -> None:
    """Values of variables may hold anything but NUL: they never reach an #SBATCH line."""
    value = 'a\n#SBATCH --x\n$(rm -rf /)\'"é'
    assert made(env={'A': value}).env == (('A', value),)


@pytest.mark.parametrize(
    ('name', 'words'),
    [
        ('--mail-type', "'--mail-type': write the name without leading dashes, 'mail-type'"),
        ('-p', "'-p': write the name without leading dashes, 'p'"),
        ('p', "'p' is not the long name of an sbatch option"),
        ('mail type', "'mail type' is not the long name of an sbatch option"),
        ('x=y', "'x=y' is not the long name of an sbatch option"),
        (3, 'got the name 3; write a string'),
        ('partition', "'partition' does not belong here: use partition="),
        ('job-name', "'job-name' does not belong here: use job_name="),
        ('job_name', "'job_name' does not belong here: use job_name="),
        ('mem-per-cpu', "'mem-per-cpu' does not belong here: use mem_per_cpu="),
        ('no-requeue', "'no-requeue' does not belong here: use requeue=False"),
        ('tasks-per-node', "'tasks-per-node' does not belong here: use ntasks_per_node="),
        ('array', "'array' does not belong here: map() and submit() make the arrays"),
        ('arr', "'arr' does not belong here: map() and submit() make the arrays"),
        ('output', "'output' does not belong here: the future's stdout() finds it"),
        ('chdir', "'chdir' does not belong here: use with_options(cwd=)"),
        ('export', "'export' does not belong here: use env="),
        ('wait', "'wait' does not belong here: the future's result() waits"),
        ('parsable', "'parsable' does not belong here: sbatch's own output is read"),
        ('test-only', "'test-only' does not belong here: nothing would be submitted"),
        ('kill-on-invalid-dep', "'kill-on-invalid-dep' does not belong here: it is always 'yes'"),
    ],
)
def test_extra_refuses_what_is_decided_elsewhere(name: Any, words: str) -> None:
    """Options that have a field or that slurm_futures sets itself say what to do instead."""
    assert refusal(extra={name: 'x'}).startswith(f'extra: {words}')


@pytest.mark.parametrize('name', ['error', 'input', 'wrap', 'quiet', 'help', 'get-user-env'])
def test_extra_refuses_the_rest_too(name: str) -> None:
    """Further options that would break the protocol are refused with a reason."""
    assert f'{name!r} does not belong here: ' in refusal(extra={name: True})


@pytest.mark.parametrize(
    ('extra', 'words'),
    [
        ({'hold': 'yes'}, 'hold takes no value: write True'),
        ({'comment': True}, 'comment needs a value'),
        ({'comment': 1.5}, 'comment: got 1.5; write a string, a whole number or True'),
        ({'comment': 'a\nb'}, "got 'a\\nb'; line breaks and NUL are not possible here"),
        ({'mail_type': 'A', 'mail-type': 'B'}, 'given twice, with dashes and with underscores'),
        ('hold', 'got a str; write a mapping of names to values'),
    ],
)
def test_extra_refuses_bad_values(extra: Any, words: str) -> None:
    """A flag takes no value, an option needs one, and a line break fits nowhere."""
    assert refusal(extra=extra).startswith(f'extra: {words}')


def test_merge_adds_replaces_and_unsets() -> None:
    """A second with_resources adds and replaces; None unsets; the base stays as it was."""
    base = made(partition='cpu', time='60', mem='4G', arrays=False, setup='a')
    merged = merge(base, {'time': '30', 'mem': None, 'qos': 'q', 'arrays': None, 'setup': None})
    assert merged == made(partition='cpu', time='30', qos='q')
    assert base == made(partition='cpu', time='60', mem='4G', arrays=False, setup='a')


def test_merge_goes_key_by_key_through_env_and_extra() -> None:
    """In env and extra, keys are added, replaced, and unset by None, however they are spelled."""
    base = made(env={'A': '1', 'B': '2'}, extra={'mail-type': 'END', 'hold': True, 'nice': 1})
    merged = merge(
        base,
        {'env': {'A': None, 'C': '3'}, 'extra': {'mail_type': None, 'hold': False, 'nice': 2}},
    )
    assert merged == made(env={'B': '2', 'C': '3'}, extra={'nice': 2})


def test_merge_unsets_env_and_extra_as_a_whole() -> None:
    """env=None forgets all variables, extra=None all options."""
    base = made(env={'A': '1'}, extra={'hold': True})
    assert merge(base, {'env': None, 'extra': None}) == Resources()


def test_merge_of_nothing_changes_nothing() -> None:
    """An empty merge gives an equal object; on no base, one that asks for nothing."""
    base = made(partition='cpu', env={'A': '1'}, extra={'hold': True})
    assert merge(base, {}) == base
    assert merge(None, {}) == Resources()


def test_merge_names_bad_keys() -> None:
    """A bad key in a merged mapping is refused in the same words as in a first one."""
    with pytest.raises(ConfigError, match=r"^invalid resources: extra: 'array' does not belong"):
        merge(made(extra={'hold': True}), {'extra': {'array': '1'}})


def test_numbers_of_other_types() -> None:
    """Any integer type counts as a whole number (numpy's too), as a plain int."""

    class Int64:
        def __index__(self) -> int:
            return 4

    assert made(ntasks=Int64(), nodes=Int64()).sbatch_options() == (('nodes', '4'), ('ntasks', '4'))
