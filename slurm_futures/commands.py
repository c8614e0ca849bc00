"""Commands on the login node: what users give, and what they get."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from slurm_futures.errors import CommandFailed


def arguments(command: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Return a command's arguments.

    Raises:
        TypeError: it is no sequence of strings and paths.
    """
    if not command or not all(isinstance(word, str | os.PathLike) for word in command):
        raise TypeError(f'a command is a string or a list of strings, not {command!r}')
    return [os.fspath(word) for word in command]


def completed(
    header: Mapping[str, Any], outcome: tuple[Mapping[str, Any], bytes], *, check: bool
) -> subprocess.CompletedProcess[str]:
    """Return how a command ended.

    Args:
        header: of the order to run it.
        outcome: header and body.
        check: whether an exit status other than 0 is raised.

    Raises:
        CommandFailed: with check, it failed.
        subprocess.TimeoutExpired: it took too long and has been killed.
    """
    argv, (item, output) = header['argv'], outcome
    split = item['sizes'][0]
    stdout = output[:split].decode(errors='replace')
    stderr = output[split:].decode(errors='replace')
    if item['kind'] == 'timeout':
        raise subprocess.TimeoutExpired(argv, header['timeout'], stdout, stderr)
    if check and item['returncode']:
        raise CommandFailed(item['returncode'], argv, stdout, stderr)
    return subprocess.CompletedProcess(argv, item['returncode'], stdout, stderr)
