"""Batch scripts put together from steps: `BashScript` and its parts.

Pure: values in, the text of a bash script out. What is given is checked when an object is made; it
is quoted where it becomes a part of the text.
"""

from __future__ import annotations

import os
import posixpath
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from slurm_futures import bash_checks
from slurm_futures.bash_runtime import RUNTIME
from slurm_futures.bundle import DEFINE_MODULE
from slurm_futures.checks import at_least, shown, yes_or_no
from slurm_futures.errors import ConfigError
from slurm_futures.script import parse_script

__all__ = ['BashGroup', 'BashScript', 'BashStep', 'BashTemplate']


@dataclass(frozen=True)
class BashTemplate:
    """What the scripts of a project have in common: what stands around their steps.

    Attributes:
        shebang: The first line; the interpreter must be a bash, of version 4.2 or later.
        header: ``#SBATCH`` lines, as one string or as a list of lines.
        setup: Shell lines to run first, in the script's own shell: the steps see its variables,
            functions and options, and start in the folder where it ends. As in a script, a line
            that fails does not stop the others; ``exit`` ends the script, and ``|| exit 1`` behind
            a line makes its failure count.
        teardown: Shell lines to run at the end, each of them whatever becomes of the others: after
            the last step, a step that failed, or an ``exit`` in setup, whose variables it sees; and
            on SIGTERM, within the time that Slurm leaves until SIGKILL (KillWait, 30 seconds by
            default). If all steps have succeeded, the script's exit status is that of its last
            line; a step's failure it does not hide.

    Raises:
        ConfigError: A part that cannot work, or a header line that Slurm would ignore or
            misunderstand; the message names it.
    """

    shebang: str = '#!/bin/bash'
    header: str | Sequence[str] = ()
    setup: str | Sequence[str] = ()
    teardown: str | Sequence[str] = ()

    def __post_init__(self) -> None:
        _normalise(
            self,
            shebang=bash_checks.shebang,
            header=bash_checks.header,
            setup=bash_checks.code_lines,
            teardown=bash_checks.code_lines,
        )


@dataclass(frozen=True)
class BashStep:
    """A command, or several lines of them, that succeed or fail together.

    A step runs in a shell of its own: what it changes (variables, the working folder, loaded
    modules) is gone with its end. It fails with the exit status of the first of its lines that
    fails (``set -e``; for pipelines to count as a whole, write ``set -o pipefail`` into the setup),
    or of its ``exit``, which ends the step and not the script.

    Attributes:
        cmd: Lines for bash, as one string; or a list: a command and its arguments, which reach it
            exactly as they are.
        cwd: The folder where it runs, relative to where the script runs; None: there. A missing one
            fails the step. Taken literally: neither '~' nor variables are expanded.
        checkpoint: A file that marks the step as done, relative to ``cwd``, and literal likewise.
            Where it exists the step is skipped. It is created, empty, with its folder if need be,
            when the step has succeeded, and not when SIGTERM has come meanwhile.
        exit_on_error: Whether the script ends with the step's exit status if it fails; no further
            step is started then.

    Raises:
        ConfigError: A part that cannot work; the message names it.
    """

    cmd: str | Sequence[str | os.PathLike[str]]
    cwd: str | os.PathLike[str] | None = None
    checkpoint: str | os.PathLike[str] | None = None
    exit_on_error: bool = True

    def __post_init__(self) -> None:
        _normalise(
            self,
            cmd=bash_checks.command,
            cwd=bash_checks.optional(bash_checks.folder),
            checkpoint=bash_checks.optional(bash_checks.file_path),
            exit_on_error=yes_or_no,
        )


@dataclass(frozen=True)
class BashGroup:
    """Steps of one script that run at the same time, within the script's one job.

    They are started in their order. Where CUDA_VISIBLE_DEVICES lists several GPUs, each sees one of
    them, which nobody else has meanwhile: no more run at a time than there are GPUs. When one fails
    that must not, no further one is started, those that run are waited for, and the script ends
    with the exit status of the first, in their order, that failed.

    Attributes:
        steps: The steps.
        parallel: How many run at a time at most.

    Raises:
        ConfigError: A part that cannot work; the message names it.
    """

    steps: Sequence[BashStep]
    parallel: int

    def __post_init__(self) -> None:
        _normalise(self, steps=_steps(BashStep), parallel=at_least(1))


@dataclass(frozen=True)
class BashScript:
    """A batch script for ``submit()``: steps, one after the other, within a template.

    Attributes:
        template: What stands around the steps.
        steps: The steps, and groups of steps that run at the same time.

    Raises:
        ConfigError: A part that cannot work; the message names it.
    """

    template: BashTemplate
    steps: Sequence[BashStep | BashGroup]

    def __post_init__(self) -> None:
        _normalise(self, template=_template, steps=_steps(BashStep, BashGroup))
        _refuse_shared_checkpoints(self.template, list(_numbered(self.steps)))

    def render(self) -> str:
        """Return the text of the script."""
        template, groups = self.template, list(_numbered(self.steps))
        setup, teardown = '\n'.join(template.setup), '\n'.join(template.teardown)
        return _SCRIPT.format(
            head=_head(template),
            setup=_quote_lines(setup),
            teardown=_quote_lines(teardown),
            steps='\n'.join(line for first, group in groups for line in _definitions(first, group)),
            runtime=RUNTIME,
            define=DEFINE_MODULE if setup else '',
            runs='\n'.join(_run(first, group) for first, group in groups),
        )


_SCRIPT = """\
{head}
#
# Written by slurm_futures: first what is run, then how. All names in it begin with sf_.

sf_setup={setup}

sf_teardown={teardown}

{steps}
# ---- how they are run
{runtime}
# ---- the run

{define}eval "$sf_setup"$'\\nsf_ready=yes'
sf_begin

{runs}
sf_finish 0
"""


def _normalise(instance: Any, **checks: Callable[[Any], object]) -> None:
    """Bring the fields of a frozen instance into their normal forms.

    Raises:
        ConfigError: It names all those that cannot work.
    """
    problems = []
    for name, check in checks.items():
        try:
            object.__setattr__(instance, name, check(getattr(instance, name)))
        except ConfigError as error:
            problems.append(f'{name}: {error}')
    if problems:
        raise ConfigError(f'invalid {type(instance).__name__}: ' + '; '.join(problems))


def _steps(*kinds: type) -> Callable[[object], tuple[Any, ...]]:
    """Return the check for a list of steps of these kinds."""
    names = ' or '.join(kind.__name__ for kind in kinds)

    def check(value: object) -> tuple[Any, ...]:
        if not isinstance(value, Sequence) or isinstance(value, str) or not value:
            raise ConfigError(f'got {shown(value)}; write a list of {names}')
        for item in value:
            if not isinstance(item, kinds):
                raise ConfigError(f'got {shown(item)} in the list; write {names}')
        return tuple(value)

    return check


def _template(value: object) -> BashTemplate:
    if not isinstance(value, BashTemplate):
        raise ConfigError(f'got {shown(value)}; write a BashTemplate')
    return value


def _numbered(items: Sequence[BashStep | BashGroup]) -> Iterator[tuple[int, BashGroup]]:
    """Yield groups, a step by itself being one too, each with the number of its first step."""
    number = 1
    for item in items:
        group = item if isinstance(item, BashGroup) else BashGroup([item], 1)
        yield number, group
        number += len(group.steps)


def _refuse_shared_checkpoints(
    template: BashTemplate, groups: Sequence[tuple[int, BashGroup]]
) -> None:
    """Refuse a marker that would speak for several steps, so that some of them never run.

    Raises:
        ConfigError: It names the steps.
    """
    seen: dict[str, int] = {}
    steps = [step for _, group in groups for step in group.steps]
    for number, step in enumerate(steps, 1):
        marker = _marker(step)
        if marker is None:
            continue
        first = seen.setdefault(posixpath.normpath(marker), number)
        if first != number:
            raise ConfigError(
                f'invalid BashScript: steps: {first} and {number} have the same checkpoint, '
                f'{shown(marker)}: give each its own'
            )
    if seen and 'array' in parse_script(_head(template)).options:
        raise ConfigError(
            'invalid BashScript: steps: the tasks of a job array would share the checkpoint '
            f'{shown(min(seen))}: remove it, or --array from the header'
        )


def _head(template: BashTemplate) -> str:
    return '\n'.join([template.shebang, *template.header])


def _marker(step: BashStep) -> str | None:
    """Return the checkpoint's path from where the script runs, '' being that folder."""
    return None if step.checkpoint is None else posixpath.join(step.cwd or '', step.checkpoint)


def _definitions(first: int, group: BashGroup) -> Iterator[str]:
    """Yield the lines that tell what the steps of a group are."""
    several = f', at most {group.parallel} of its group at a time' if len(group.steps) > 1 else ''
    for number, step in enumerate(group.steps, first):
        yield f'# ---- step {number}{several}'
        yield from _definition(number, step)
        yield ''


def _definition(number: int, step: BashStep) -> Iterator[str]:
    for name, path in (('cwd', step.cwd), ('checkpoint', _marker(step))):
        if path is not None:
            yield f'sf_{name}[{number}]={_quote(posixpath.join(".", path))}'
    if not step.exit_on_error:
        yield f'sf_may_fail[{number}]=yes'
    if isinstance(step.cmd, str):
        words = f'eval {_quote_lines(step.cmd)}'
    else:
        words = ' '.join(_quote(os.fspath(word)) for word in step.cmd)
    yield f'sf_step_{number}=({words})'


def _run(first: int, group: BashGroup) -> str:
    """Return the line that runs the steps of a group."""
    numbers = range(first, first + len(group.steps))
    return ' '.join(map(str, ('sf_run', group.parallel, *numbers)))


_UNPRINTABLE = re.compile(r'[\x00-\x1f\x7f]')
_ESCAPES = {'\n': '\\n', '\r': '\\r', '\t': '\\t', "'": "\\'", '\\': '\\\\'}


def _quote(word: str) -> str:
    """Quote a word for bash, on one line."""
    if "'" not in word and not _UNPRINTABLE.search(word):
        return shlex.quote(word)
    return "$'" + re.sub(r"[\x00-\x1f\x7f'\\]", _escape, word) + "'"


def _escape(match: re.Match[str]) -> str:
    return _ESCAPES.get(match[0]) or f'\\x{ord(match[0]):02x}'


def _quote_lines(code: str) -> str:
    """Quote lines of shell code so that a person can still read them."""
    quoted = code.replace("'", "'\\''")
    if '\n' in code:
        # What looks like a line for Slurm belongs to a script within this one.
        quoted = re.sub('\n(?=#SBATCH)', "\n''", f'\n{quoted}')
    return f"'{quoted}'"
