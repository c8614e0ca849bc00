"""Checks of single values: each takes what the user gave and returns it in one normal form.

They are shared by the configuration and the resources, and know neither. A refusal is a ConfigError
whose message says what was given and what to write instead; the caller puts the field's name in
front.
"""

from __future__ import annotations

import difflib
import math
import operator
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from slurm_futures.errors import ConfigError

__all__ = [
    'at_least',
    'did_you_mean',
    'environment',
    'memory',
    'module_names',
    'named',
    'not_negative',
    'pairs',
    'path',
    'positive',
    'shell_lines',
    'shown',
    'text',
    'text_input',
    'time_limit',
    'yes_or_no',
]

_T = TypeVar('_T')

_TIME = re.compile(r'[0-9]+(:[0-9]+){0,2}|[0-9]+-[0-9]+(:[0-9]+){0,2}')
_MEMORY = re.compile(r'[0-9]+([KMGT]B?)?', re.IGNORECASE)
_VARIABLE = re.compile(r'[A-Za-z_][A-Za-z0-9_]*')
_SHOWN_CHARACTERS = 80
_DAY = 86400


def shown(value: object) -> str:
    """Return ``value`` as an error message shows it: on one line, cut where it is long."""
    words = repr(value)
    return words if len(words) <= _SHOWN_CHARACTERS else words[:_SHOWN_CHARACTERS] + '...'


def did_you_mean(name: str, known: Iterable[str], likeness: float = 0.6) -> str:
    """Return ``": did you mean 'x'?"`` for the closest known name, '' where none is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=likeness)
    return f': did you mean {close[0]!r}?' if close else ''


def named(name: str, check: Callable[[object], _T], value: object) -> _T | None:
    """Return an optional argument of a call in its normal form; None stays None.

    Raises:
        ConfigError: It cannot work; the message names it.
    """
    try:
        return None if value is None else check(value)
    except ConfigError as error:
        raise ConfigError(f'{name}: {error}') from None


def text_input(value: object) -> bytes:
    """Return text as the bytes that a command reads.

    Raises:
        ConfigError: Not a string: bytes of any encoding could be meant otherwise.
    """
    if not isinstance(value, str):
        raise ConfigError(f'got {shown(value)}; write a string')
    return value.encode(errors='surrogateescape')


def text(value: object) -> str:
    """Return a string of one line that is not blank.

    Raises:
        ConfigError: Not a string, blank, or with a line break or NUL, which neither a command line
            nor an ``#SBATCH`` line can carry.
    """
    if not isinstance(value, str):
        raise ConfigError(f'got {shown(value)}; write a string')
    if not value.strip():
        raise ConfigError(f'got {shown(value)}; leave it out instead')
    if set(value) & set('\0\r\n'):
        raise ConfigError(f'got {shown(value)}; line breaks and NUL are not possible here')
    return value


def path(value: object) -> str:
    """Return a path as a string; takes strings and PathLike objects.

    Raises:
        ConfigError: As for :func:`text`.
    """
    return text(os.fspath(value) if isinstance(value, os.PathLike) else value)


def at_least(minimum: int) -> Callable[[object], int]:
    """Return the check for whole numbers from ``minimum`` on (any integer type, but not bool)."""

    def whole_number(value: Any) -> int:
        try:
            number = minimum - 1 if isinstance(value, bool) else operator.index(value)
        except TypeError:
            number = minimum - 1
        if number < minimum:
            raise ConfigError(f'got {shown(value)}; write a whole number of at least {minimum}')
        return number

    return whole_number


def yes_or_no(value: object) -> bool:
    """Return a bool.

    Raises:
        ConfigError: Anything else; nothing is taken for one.
    """
    if not isinstance(value, bool):
        raise ConfigError(f'got {shown(value)}; write True or False')
    return value


def positive(value: object) -> float:
    """Return a finite number greater than 0.

    Raises:
        ConfigError: Anything else; a string is not read as a number.
    """
    number = _finite(value)
    if number is None or number <= 0:
        raise ConfigError(f'got {shown(value)}; write a number greater than 0')
    return number


def not_negative(value: object) -> float:
    """Return a finite number of at least 0.

    Raises:
        ConfigError: Anything else; a string is not read as a number.
    """
    number = _finite(value)
    if number is None or number < 0:
        raise ConfigError(f'got {shown(value)}; write a number of at least 0')
    return number


def _finite(value: object) -> float | None:
    """Return a finite number as a float; None for anything else, bools and strings included."""
    if isinstance(value, (bool, str, bytes)):
        return None
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def time_limit(value: object) -> str:
    """Return a time limit in Slurm's spelling.

    Args:
        value: A timedelta (rounded up to whole seconds), or one of sbatch's formats: "minutes",
            "minutes:seconds", "hours:minutes:seconds", "days-hours", "days-hours:minutes",
            "days-hours:minutes:seconds" (man sbatch, --time), 'UNLIMITED', 'INFINITE'.

    Raises:
        ConfigError: Any other string; a bare number, for nobody could tell seconds from minutes or
            hours.
    """
    if isinstance(value, timedelta):
        return _days_and_clock(value)
    if not isinstance(value, str):
        raise ConfigError(f"{shown(value)} is ambiguous: write '01:00:00' or timedelta(hours=1)")
    if value.upper() in ('UNLIMITED', 'INFINITE'):
        return 'UNLIMITED'
    if not _TIME.fullmatch(value):
        raise ConfigError(
            f"got {shown(value)}; write '30' (minutes), '30:00' (minutes:seconds), '01:00:00', "
            "'1-12' (days-hours), '1-12:30', '1-12:30:00', 'UNLIMITED' or timedelta(hours=1)"
        )
    return value


def _days_and_clock(duration: timedelta) -> str:
    """Return ``duration`` as D-HH:MM:SS, rounded up to whole seconds."""
    seconds = -(-duration // timedelta(seconds=1))
    if seconds <= 0:
        # Slurm takes a limit of 0 for no limit at all: the opposite of what a computed 0 means.
        raise ConfigError(f"got {shown(duration)}; write more than 0, or 'UNLIMITED'")
    days, clock = divmod(seconds, _DAY)
    return f'{days}-{clock // 3600:02}:{clock // 60 % 60:02}:{clock % 60:02}'


def memory(value: object) -> str:
    """Return an amount of memory in Slurm's spelling: digits, then K, M (the default), G or T.

    Raises:
        ConfigError: Anything else. Numbers are refused: bytes and megabytes could not be told
            apart.
    """
    if not isinstance(value, str):
        raise ConfigError(f"{shown(value)} is ambiguous: write '4G', '500M' or '4096' (megabytes)")
    if not _MEMORY.fullmatch(value):
        raise ConfigError(
            f"got {shown(value)}; write whole numbers: '4G', '500M' or '1536' (megabytes)"
        )
    return value


def module_names(value: object) -> tuple[str, ...] | None:
    """Return names of modules as they are, and paths of folders in absolute form; None stays None.

    Raises:
        ConfigError: Not a list, or a member is neither. What has no '/' in it is a name, unless it
            is a PathLike.
    """
    if value is None:
        return None
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ConfigError(f'got {shown(value)}; write a list of module names and folders')
    return tuple(_module_name(member) for member in value)


def _module_name(value: object) -> str:
    if isinstance(value, os.PathLike) or (isinstance(value, str) and os.sep in value):
        return os.path.abspath(os.path.expanduser(path(value)))
    name = text(value)
    if not all(map(str.isidentifier, name.split('.'))):
        raise ConfigError(f"got {shown(name)}; write 'package.module', or a folder as './folder'")
    return name


def shell_lines(value: object) -> tuple[str, ...]:
    r"""Return lines of shell code, given as one string or as a sequence of strings.

    'a\nb' and ['a', 'b'] are the same. Indentation and inner blank lines stay (here-documents).

    Raises:
        ConfigError: Something else, or a NUL or carriage return in it.
    """
    parts = [value] if isinstance(value, str) else value
    if not isinstance(parts, Sequence) or not all(isinstance(part, str) for part in parts):
        raise ConfigError(
            f'got {shown(value)}; write shell lines, as one string or a list of strings'
        )
    code = '\n'.join(parts)
    if '\0' in code or '\r' in code:
        raise ConfigError(
            f'got {shown(value)}; NUL and carriage returns are not possible in shell lines'
        )
    lines = code.split('\n')
    while lines and not lines[-1].strip():
        lines.pop()
    while lines and not lines[0].strip():
        lines.pop(0)
    return tuple(lines)


def environment(value: object) -> tuple[tuple[str, str], ...]:
    """Return environment variables as pairs, sorted by name.

    A variable that is None is left out. Values may hold anything but NUL, line breaks too: they get
    quoted, and never reach an ``#SBATCH`` line.

    Raises:
        ConfigError: A name that no shell can export, a value that is not a string.
    """
    items = [(name, word) for name, word in pairs(value) if word is not None]
    for name, word in items:
        if not isinstance(name, str) or not _VARIABLE.fullmatch(name):
            raise ConfigError(f'{shown(name)} cannot be the name of an environment variable')
        # The value is not shown: what people keep in variables includes tokens.
        if not isinstance(word, str) or '\0' in word:
            raise ConfigError(f'the value of {name} must be a string without NUL')
    return tuple(sorted(items))


def pairs(value: object) -> list[tuple[Any, Any]]:
    """Return the items of a mapping, or of the tuple of pairs that is its normal form here.

    Raises:
        ConfigError: Neither of them.
    """
    if isinstance(value, (Mapping, tuple)):
        try:
            return list(dict(value).items())
        except (TypeError, ValueError):
            pass
    raise ConfigError(f'got a {type(value).__name__}; write a mapping of names to values')
