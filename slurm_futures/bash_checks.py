"""Checks of what a `BashScript` is put together from, as in `checks`."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Sequence

from slurm_futures.checks import shell_lines, shown, text
from slurm_futures.errors import ConfigError
from slurm_futures.sbatch_options import OPTION_KINDS
from slurm_futures.script import parse_script

__all__ = ['code_lines', 'command', 'file_path', 'folder', 'header', 'optional', 'shebang']


def shebang(value: object) -> str:
    """Return the first line of a script for bash."""
    line = text(value)
    head = parse_script(f'{line}\n')
    words = [head.interpreter, *(head.argument or '').split()]
    if not any(posixpath.basename(word).startswith('bash') for word in words):
        raise ConfigError(f"got {shown(line)}; the steps need bash: write '#!/bin/bash'")
    return line


def header(value: object) -> tuple[str, ...]:
    """Return header lines, given as one string or as a list, each read as it is meant."""
    lines = value.split('\n') if isinstance(value, str) else value
    if not isinstance(lines, Sequence) or isinstance(lines, bytes):
        raise ConfigError(
            f"got {shown(value)}; write lines such as '#SBATCH --time=10', or ask for resources "
            'by with_resources()'
        )
    return tuple(_header_line(line) for line in lines if line != '')


def _header_line(value: object) -> str:
    """Return a header line that Slurm reads as it is meant."""
    line = text(value)
    if not line.startswith('#') or line.startswith('#!'):
        raise ConfigError(f"got {shown(line)}; write lines that start with '#SBATCH '")
    try:
        found = parse_script(f'#!/bin/bash\n{line}\n')
    except ConfigError as error:
        raise ConfigError(f'{shown(line)}: {str(error).removeprefix("line 2: ")}') from None
    # An option that is not known here may be a plugin's; submit() warns about that.
    if found.warnings and found.options.keys() <= OPTION_KINDS.keys():
        raise ConfigError(f'{shown(line)}: {found.warnings[0].removeprefix("line 2: ")}')
    return line


def code_lines(value: object) -> tuple[str, ...]:
    """Return shell lines that a script can carry."""
    return tuple(map(_carried, shell_lines(value)))


def command(value: object) -> str | tuple[str, ...]:
    """Return lines for bash, or the words of one command."""
    if isinstance(value, str):
        code = '\n'.join(code_lines(value))
        if not code:
            raise ConfigError(f'got {shown(value)}; write a command')
        return code
    if not isinstance(value, Sequence) or isinstance(value, bytes | bytearray):
        raise ConfigError(f'got {shown(value)}; write lines for bash, or a list of arguments')
    words = tuple(map(_word, value))
    if not words or not words[0]:
        raise ConfigError(f'got {shown(value)}; begin the list with a command')
    return words


def folder(value: object) -> str:
    """Return a path as a string; it is taken literally."""
    path = _word(value)
    if not path:
        raise ConfigError(f'got {shown(value)}; leave it out instead')
    if path.startswith('~'):
        raise ConfigError(f"got {shown(path)}; '~' is not expanded: write an absolute path")
    return path


def file_path(value: object) -> str:
    """Return a file's path as a string; it is taken literally."""
    path = folder(value)
    if path.endswith('/'):
        raise ConfigError(f'got {shown(path)}; write the path of a file')
    return path


def optional(check: Callable[[object], str]) -> Callable[[object], str | None]:
    """Return the check that lets None pass, too."""
    return lambda value: None if value is None else check(value)


def _word(value: object) -> str:
    """Return a string, given as one or as a path, that a script can carry."""
    word = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(word, str):
        raise ConfigError(f'got {shown(value)}; write strings or paths')
    return _carried(word)


def _carried(word: str) -> str:
    """Return text that a script can carry: Unicode without NUL."""
    try:
        word.encode()
    except UnicodeEncodeError:
        raise ConfigError(f'got {shown(word)}, which is not valid Unicode') from None
    if '\0' in word:
        raise ConfigError(f'got {shown(word)}; a NUL is not possible here')
    return word
