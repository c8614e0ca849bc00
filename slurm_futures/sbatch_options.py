"""sbatch's options: their names, and how sbatch reads and we write them in ``#SBATCH`` lines.

Two steps, as in sbatch (src/sbatch/opt.c): every line is split into arguments by rules of its own
(not a shell's), then the arguments of all lines together go through getopt_long. Names and kinds
were measured on sbatch 22.05.8, by its getopt messages; those that later versions added come from
their man page.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from slurm_futures.checks import did_you_mean, shown
from slurm_futures.errors import ConfigError

__all__ = [
    'FAMILIES',
    'OPTION_KINDS',
    'SPACE',
    'Option',
    'canonical_name',
    'quote',
    'read_options',
    'split_arguments',
]

_VALUE = (
    'account', 'acctg-freq', 'array', 'batch', 'bb', 'bbf', 'begin', 'chdir',
    'cluster-constraint', 'clusters', 'comment', 'constraint', 'container', 'container-id',
    'context', 'core-spec', 'cores-per-socket', 'cpu-freq', 'cpus-per-gpu', 'cpus-per-task',
    'deadline', 'delay-boot', 'dependency', 'distribution', 'error', 'exclude', 'export',
    'export-file', 'extra', 'extra-node-info', 'gid', 'gpu-bind', 'gpu-freq', 'gpus',
    'gpus-per-node', 'gpus-per-socket', 'gpus-per-task', 'gres', 'gres-flags', 'hint', 'input',
    'job-name', 'kill-on-invalid-dep', 'licenses', 'mail-type', 'mail-user', 'mcs-label', 'mem',
    'mem-bind', 'mem-per-cpu', 'mem-per-gpu', 'mincpus', 'network', 'nodefile', 'nodelist',
    'nodes', 'ntasks', 'ntasks-per-core', 'ntasks-per-gpu', 'ntasks-per-node',
    'ntasks-per-socket', 'ntasks-per-tres', 'open-mode', 'output', 'partition', 'power',
    'prefer', 'priority', 'profile', 'qos', 'reservation', 'segment', 'signal',
    'sockets-per-node', 'switches', 'thread-spec', 'threads-per-core', 'time', 'time-min',
    'tmp', 'tres-bind', 'tres-per-task', 'uid', 'wait-all-nodes', 'wckey', 'wrap',
)  # fmt: skip
_FLAG = (
    'contiguous', 'help', 'hold', 'ignore-pbs', 'immediate', 'no-requeue', 'overcommit',
    'oversubscribe', 'parsable', 'quiet', 'reboot', 'requeue', 'spread-job', 'stepmgr',
    'test-only', 'usage', 'use-min-nodes', 'verbose', 'version', 'wait',
)  # fmt: skip
_OPTIONAL = (
    'exclusive', 'get-user-env', 'nice', 'no-kill', 'oom-kill-step', 'propagate', 'resv-ports',
)  # fmt: skip

OPTION_KINDS: Mapping[str, Literal['value', 'flag', 'optional']] = {
    **dict.fromkeys(_VALUE, 'value'),
    **dict.fromkeys(_FLAG, 'flag'),
    **dict.fromkeys(_OPTIONAL, 'optional'),
}
"""Long names of sbatch's options: taking a value, none, or perhaps one (after '=' only)."""

_ALIASES = {'cluster': 'clusters', 'share': 'oversubscribe', 'tasks-per-node': 'ntasks-per-node'}
_SHORT = {
    'A': 'account', 'B': 'extra-node-info', 'C': 'constraint', 'D': 'chdir', 'F': 'nodefile',
    'G': 'gpus', 'H': 'hold', 'I': 'immediate', 'J': 'job-name', 'L': 'licenses',
    'M': 'clusters', 'N': 'nodes', 'O': 'overcommit', 'Q': 'quiet', 'S': 'core-spec',
    'V': 'version', 'W': 'wait', 'a': 'array', 'b': 'begin', 'c': 'cpus-per-task',
    'd': 'dependency', 'e': 'error', 'h': 'help', 'i': 'input', 'k': 'no-kill',
    'm': 'distribution', 'n': 'ntasks', 'o': 'output', 'p': 'partition', 'q': 'qos',
    's': 'oversubscribe', 't': 'time', 'u': 'usage', 'v': 'verbose', 'w': 'nodelist',
    'x': 'exclude',
}  # fmt: skip

FAMILIES = (
    frozenset({'mem', 'mem-per-cpu', 'mem-per-gpu'}),
    frozenset({'requeue', 'no-requeue'}),
    frozenset({'exclusive', 'oversubscribe'}),
    frozenset({'cpus-per-task', 'cpus-per-gpu'}),
    frozenset({'core-spec', 'thread-spec'}),
)
"""Options of which one job can have one only: they exclude or undo each other (man sbatch)."""

# What C's isspace() takes for a space: str.isspace() takes more, the no-break space among them.
SPACE = ' \t\n\v\f\r'
_PLAIN_VALUE = re.compile(r'[A-Za-z0-9_./:,=+@%^~-]*')


@dataclass(frozen=True)
class Option:
    """One option as getopt found it.

    Attributes:
        name: Long name, without dashes; abbreviations, short options and aliases are resolved.
        value: Its value; None for a bare flag.
        line: Number of the line it stands on, from 1.
        warning: What is suspicious about it; '' for nothing.
    """

    name: str
    value: str | None
    line: int
    warning: str = ''


def split_arguments(directive: str) -> tuple[list[str], str]:
    """Split what follows ``#SBATCH`` on a line into arguments, as sbatch does.

    Quotes of both kinds group; a backslash keeps the next character, within quotes of both kinds
    too, but does not join across a space; '#' begins a comment even within a word; an empty pair of
    quotes standing alone ends the reading of the line (all measured on 22.05.8).

    Returns:
        The arguments, and what sbatch left unread without a word, '' in general.

    Raises:
        ConfigError: An unmatched quote, or a ':' before an argument, both of which sbatch refuses.
    """
    arguments: list[str] = []
    position = 0
    while True:
        start = position
        argument, position = _next_argument(directive, position)
        if not argument:
            unread = directive[start:].strip(SPACE)
            return arguments, '' if unread.startswith('#') else unread
        arguments.append(argument)


def _next_argument(text: str, position: int) -> tuple[str, int]:
    """Return the next argument ('' where sbatch sees none), and the position behind it."""
    while position < len(text) and text[position] in SPACE:
        position += 1
    if text[position : position + 1] == ':':
        raise ConfigError(f"sbatch refuses the ':' in {shown(text)}: remove it")
    found, quote_mark, escaped = [], '', False
    while position < len(text) and (quote_mark or text[position] not in SPACE):
        character = text[position]
        if escaped:
            escaped = False
            found.append(character)
        elif character == '\\':
            escaped = True
        elif quote_mark and character == quote_mark:
            quote_mark = ''
        elif not quote_mark and character in '"\'':
            quote_mark = character
        elif not quote_mark and character == '#':
            break
        else:
            found.append(character)
        position += 1
    if quote_mark:
        raise ConfigError(f'{quote_mark} is not closed in {shown(text)}')
    return ''.join(found), position


def read_options(arguments: Iterable[tuple[int, str]]) -> Iterator[Option]:
    """Read arguments as sbatch's getopt_long does.

    Args:
        arguments: All ``#SBATCH`` lines' arguments, each with its line number: an option's value
            may stand on the next line. Options that are not known here pass (sites add some by
            plugins).

    Raises:
        ConfigError: What sbatch itself would refuse: a stray word, a missing or surplus value.
    """
    waiting = deque(arguments)
    while waiting:
        line, word = waiting.popleft()
        if word.startswith('--') and word != '--':
            yield _long_option(line, word, waiting)
        elif word.startswith('-') and len(word) > 1 and word != '--':
            yield from _short_options(line, word, waiting)
        elif waiting or word != '--':
            raise ConfigError(
                f'line {line}: sbatch refuses {shown(word)}, which is no option{_dash_hint(word)}'
            )


def _dash_hint(word: str) -> str:
    """Explain what a word processor makes of a hyphen."""
    return '' if word[0].isascii() else f': {word[0]!r} is not a hyphen'


def _long_option(line: int, word: str, waiting: deque[tuple[int, str]]) -> Option:
    """Read '--name', '--name=value' or '--name value'."""
    given, equals, value = word[2:].partition('=')
    name = canonical_name(given, f'line {line}: ')
    kind = OPTION_KINDS.get(name)
    if kind == 'flag' and equals:
        raise ConfigError(f'line {line}: --{name} takes no value')
    if equals:
        return Option(name, value, line, _unknown_warning(name))
    if kind == 'value':
        return _with_next_value(name, line, waiting)
    if kind is None and waiting and waiting[0][0] == line and not waiting[0][1].startswith('-'):
        return Option(name, waiting.popleft()[1], line, _unknown_warning(name))
    return Option(name, None, line, _unknown_warning(name))


def _short_options(line: int, word: str, waiting: deque[tuple[int, str]]) -> Iterator[Option]:
    """Read '-H', '-N2', '-N 2', or several of them in one word, '-HN2'."""
    warning = _single_dash_warning(word)
    letters = word[1:]
    while letters:
        letter, letters = letters[0], letters[1:]
        name = _SHORT.get(letter)
        if name is None:
            raise ConfigError(
                f'line {line}: sbatch has no option -{letter}'
                + (f' ({warning})' if warning else '')
            )
        kind = OPTION_KINDS[name]
        if kind == 'value' and not letters:
            yield _with_next_value(name, line, waiting)
        elif kind != 'flag':
            yield Option(name, letters or None, line, warning)
            return
        else:
            yield Option(name, None, line, warning)
        warning = ''


def _with_next_value(name: str, line: int, waiting: deque[tuple[int, str]]) -> Option:
    """Take the next argument for the option's value, whatever it looks like: so does getopt."""
    if not waiting:
        raise ConfigError(f'line {line}: --{name} needs a value')
    where, value = waiting.popleft()
    warning = f'--{name} takes its value, {value!r}, from line {where}' if where != line else ''
    return Option(name, value, line, warning)


def canonical_name(name: str, where: str = '') -> str:
    """Return an option's full name for an alias or an abbreviation, which getopt_long allows.

    Args:
        name: Long name without dashes. One that is not known is returned as it is.
        where: What an error message starts with.

    Raises:
        ConfigError: An abbreviation of several options.
    """
    if name in OPTION_KINDS or name in _ALIASES:
        return _ALIASES.get(name, name)
    candidates = {
        _ALIASES.get(full, full) for full in (*OPTION_KINDS, *_ALIASES) if full.startswith(name)
    }
    if len(candidates) > 1:
        raise ConfigError(
            f'{where}--{name} could be any of {", ".join(sorted(candidates))}: write it out'
        )
    return candidates.pop() if candidates else name


def _unknown_warning(name: str) -> str:
    """Return a warning for a name that is not sbatch's, but close to one that is."""
    # Likeness 0.8: a typo, not the option of a site's plugin that shares a word with another.
    advice = '' if name in OPTION_KINDS else did_you_mean(name, OPTION_KINDS, likeness=0.8)
    return f'sbatch has no option --{name} of its own{advice}' if advice else ''


def _single_dash_warning(word: str) -> str:
    """Return a warning for '-partition=x', which sbatch reads as -p with 'artition=x'."""
    name = word[1:].partition('=')[0]
    if len(name) > 1 and name in OPTION_KINDS:
        return f'{word!r} means -{word[1]} with the value {word[2:]!r}: write two dashes'
    return ''


def quote(value: str) -> str:
    """Quote an option's value so that sbatch reads exactly it from an ``#SBATCH`` line."""
    if _PLAIN_VALUE.fullmatch(value):
        return value
    return '"' + value.replace('\\', '\\\\').replace('"', '\\"') + '"'
