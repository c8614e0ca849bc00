"""Headers of batch scripts: what sbatch reads from them, and the mistakes it keeps quiet about.

Pure: text in, facts out. How sbatch reads a script (src/sbatch/opt.c, and measured on 22.05.8):
lines that start with ``#SBATCH``, in capitals and without anything before them, up to the first
line that is neither blank nor a comment; what comes after that is ignored without a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from slurm_futures.checks import did_you_mean, shown
from slurm_futures.errors import ConfigError
from slurm_futures.sbatch_options import (
    FAMILIES,
    SPACE,
    Option,
    quote,
    read_options,
    split_arguments,
)

__all__ = ['ScriptHeader', 'array_indices', 'fill_gaps', 'parse_script', 'render_sbatch_lines']

_LARGEST_SCRIPT = 4 * 1024 * 1024
# Linux reads 256 bytes of an executable to find its interpreter (BINPRM_BUF_SIZE), 128 before 5.1.
_LONGEST_SHEBANG = 255
_OLD_LONGEST_SHEBANG = 127
# The largest MaxArraySize that slurm.conf allows is 4000001.
_LARGEST_INDEX = 4_000_000

_DIRECTIVE = re.compile(r'#(SBATCH|SLURM)')
# Meant for sbatch by the looks of it; not '##SBATCH', the usual way to switch an option off.
_LOOKALIKE = re.compile(r'\s*#\s*SBATCH\s*:?\s*--?\w', re.IGNORECASE)
_MISSPELT = re.compile(r'#([A-Z]{4,8})\s+--?\w')
_HERE_DOCUMENT = re.compile(r'(?<!<)<<-?\s*\\?["\']?([A-Za-z_]\w*)')
_SURROGATE = re.compile('[\ud800-\udfff]')
_ARRAY_PART = re.compile(r'([0-9]+)(?:-([0-9]+)(?::([0-9]+))?)?')

_UNUSABLE = {
    'help': 'sbatch prints its help and submits nothing',
    'quiet': 'sbatch does not print the job id',
    'test-only': 'sbatch submits nothing',
    'usage': 'sbatch prints its usage and submits nothing',
    'version': 'sbatch prints its version and submits nothing',
    'wait': "sbatch waits for the job's end; the future does that",
    'wrap': 'sbatch takes no script beside it',
}


@dataclass(frozen=True)
class ScriptHeader:
    """What the head of a batch script says.

    Attributes:
        shebang: The first line.
        interpreter: Absolute path of the program that runs the script.
        argument: What the kernel passes to it: all the rest of the first line as one argument;
            None: nothing.
        lines: All comment lines up to the first command, without the shebang.
        options: What the ``#SBATCH`` lines set: long name without dashes -> value, None for a bare
            flag. Where an option stands twice, the last one counts.
        warnings: What looks like a mistake, for the caller to warn about; each names its line.
    """

    shebang: str
    interpreter: str
    argument: str | None
    lines: tuple[str, ...]
    options: Mapping[str, str | None]
    warnings: tuple[str, ...] = ()


def parse_script(text: str) -> ScriptHeader:
    """Read the head of a batch script.

    Args:
        text: The whole script.

    Raises:
        ConfigError: Slurm or the kernel would refuse the script, or ignore a part of it that is
            meant for Slurm: no shebang, ``#SBATCH`` lines after the first command, mistakes in
            their syntax, DOS line ends, NUL, a byte order mark, more than 4 MB. The message names
            the line and what to change.
    """
    _refuse_unreadable(text)
    lines = text.split('\n')
    interpreter, argument = _split_shebang(lines[0])
    head = list(_head(lines))
    _refuse_late_directives(lines, head[-1][0])
    comments = [(number, line) for number, line in head[1:] if line.strip(SPACE)]
    options = list(_directive_options(comments))
    return ScriptHeader(
        shebang=lines[0],
        interpreter=interpreter,
        argument=argument,
        lines=tuple(line for _, line in comments),
        options={option.name: option.value for option in options},
        warnings=(
            *_shebang_warnings(lines[0], interpreter, argument),
            *_warnings(comments, options),
        ),
    )


def array_indices(spec: str) -> tuple[int, ...]:
    """Return the indices of an array in ascending order: '1,5-7,10-20:5%2' gives 1 5 6 7 10 15 20.

    Args:
        spec: The value of sbatch's --array: numbers and ranges with commas between them, a range
            with a step behind ':', and at the end '%' with the number of tasks that may run at
            once.

    Raises:
        ConfigError: Not of that form, a range that runs backwards, a step of 0, or an index beyond
            4000000.
    """
    parts = re.sub(r'%[0-9]+\Z', '', spec).split(',')
    return tuple(sorted({index for part in parts for index in _array_range(part, spec)}))


def render_sbatch_lines(options: Iterable[tuple[str, str | None]]) -> list[str]:
    """Write options as ``#SBATCH`` lines, quoted so that sbatch reads back the very same values.

    Args:
        options: (long name without dashes, value or None for a flag).

    Raises:
        ConfigError: A value with a line break or NUL: no line can carry it.
    """
    lines = []
    for name, value in options:
        if value is not None and set(value) & set('\0\n'):
            raise ConfigError(
                f'{name}: got {shown(value)}; line breaks and NUL are not possible here'
            )
        lines.append(f'#SBATCH --{name}' + ('' if value is None else f'={quote(value)}'))
    return lines


def fill_gaps(
    header: ScriptHeader, options: Iterable[tuple[str, str | None]]
) -> list[tuple[str, str | None]]:
    """Return those of ``options`` that the script leaves open: its own ``#SBATCH`` lines win.

    The command line would beat the script's lines, so what the script sets is left out, and so is
    what cannot stand beside it: mem beside mem-per-cpu, requeue beside no-requeue.
    """
    taken = set(header.options)
    for family in FAMILIES:
        if taken & family:
            taken |= family
    return [(name, value) for name, value in options if name not in taken]


def _refuse_unreadable(text: str) -> None:
    """Refuse what is not the text of a script that Slurm can take.

    Raises:
        ConfigError: It says what to change.
    """
    if not text.strip(SPACE):
        raise ConfigError('the script is empty')
    if text.startswith('\ufeff'):
        raise ConfigError(
            "line 1: a byte order mark stands before '#!': save the script as UTF-8 without it"
        )
    if '\0' in text:
        raise ConfigError(
            f'line {_line_of(text, chr(0))}: the script has a NUL in it, and Slurm takes none'
        )
    if '\r\n' in text or text.partition('\n')[0].endswith('\r'):
        raise ConfigError(
            f'line {_line_of(text, chr(13))}: DOS line ends (CRLF): sbatch refuses them, Linux '
            "says 'bad interpreter: ^M': convert the script with dos2unix"
        )
    if _SURROGATE.search(text):
        raise ConfigError('the script has bytes that are not UTF-8: save it as UTF-8')
    if len(text.encode('utf-8', 'surrogatepass')) > _LARGEST_SCRIPT:
        raise ConfigError("the script is larger than 4 MB, Slurm's limit: put its data into a file")


def _line_of(text: str, character: str) -> int:
    """Return the number of the line, from 1, where ``character`` first stands."""
    return text.count('\n', 0, text.index(character)) + 1


def _split_shebang(line: str) -> tuple[str, str | None]:
    """Split the first line as Linux does: an interpreter, and all the rest as one argument.

    Raises:
        ConfigError: No shebang, no absolute path in it, or longer than Linux reads.
    """
    if not line.startswith('#!'):
        raise ConfigError(
            f"line 1 must be '#!' and an interpreter, such as '#!/bin/bash'; it is {shown(line)} "
            '(the path of a local script is passed as a pathlib.Path)'
        )
    interpreter, *rest = re.split(r'[ \t]+', line[2:].strip(' \t'), maxsplit=1)
    if not interpreter.startswith('/'):
        raise ConfigError(
            f"line 1: {shown(interpreter)} must be an absolute path, such as '/bin/bash'"
        )
    if len(line.encode('utf-8', 'surrogatepass')) > _LONGEST_SHEBANG:
        raise ConfigError(
            f'line 1: Linux reads {_LONGEST_SHEBANG} bytes of it: use a shorter path or env'
        )
    return interpreter, rest[0] if rest else None


def _shebang_warnings(line: str, interpreter: str, argument: str | None) -> Iterator[str]:
    """Warn about first lines that fail on some machines, or always."""
    if len(line.encode('utf-8', 'surrogatepass')) > _OLD_LONGEST_SHEBANG:
        yield f'line 1: kernels before 5.1 cut it after {_OLD_LONGEST_SHEBANG} bytes'
    if interpreter.endswith('/env') and re.match(r'[^-=\s]+\s', argument or ''):
        yield f'line 1: {argument!r} is passed as one argument: write {interpreter} -S {argument}'


def _head(lines: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Yield the numbered lines up to the first command: comments and blank lines."""
    for number, line in enumerate(lines, 1):
        if line.strip(SPACE) and not line.lstrip(SPACE).startswith('#'):
            return
        yield number, line


def _refuse_late_directives(lines: Sequence[str], end: int) -> None:
    """Refuse ``#SBATCH`` lines after the first command, but for those in here-documents.

    Raises:
        ConfigError: It names their line numbers.
    """
    last_seen = {line.strip(): number for number, line in enumerate(lines, 1)}
    late, closing = [], ''
    for number, line in enumerate(lines[end:], end + 1):
        if closing:
            closing = '' if line.strip() == closing else closing
        elif line.startswith('#SBATCH'):
            late.append(number)
        elif match := _HERE_DOCUMENT.search(line):
            # Without its end it was none, but a shift as in $((1<<n)).
            closing = match[1] if last_seen.get(match[1], 0) > number else ''
    if late:
        where = f'line{"s" if len(late) > 1 else ""} {", ".join(map(str, late))}'
        raise ConfigError(
            f'{where}: Slurm ignores #SBATCH behind the first command (line {end + 1}): move it up'
        )


def _directive_options(comments: Iterable[tuple[int, str]]) -> Iterator[Option]:
    """Yield the options of the ``#SBATCH`` lines in their order.

    Raises:
        ConfigError: sbatch would refuse the lines, or they keep it from submitting a job as it
            should.
    """
    arguments = [(number, word) for number, line in comments for word in _arguments(number, line)]
    for option in read_options(arguments):
        if option.name in _UNUSABLE:
            raise ConfigError(
                f'line {option.line}: remove --{option.name}: {_UNUSABLE[option.name]}'
            )
        yield option


def _arguments(number: int, line: str) -> list[str]:
    """Return the arguments on one comment line; none where it is not for sbatch."""
    match = _DIRECTIVE.match(line)
    if match is None:
        return []
    try:
        words, _ = split_arguments(line[match.end() :])
    except ConfigError as error:
        raise ConfigError(f'line {number}: {error}') from None
    if words and words[0].lower() in ('hetjob', 'packjob'):
        raise ConfigError(
            f'line {number}: heterogeneous jobs are not supported: submit their parts one by one'
        )
    return words


def _warnings(comments: Iterable[tuple[int, str]], options: Iterable[Option]) -> Iterator[str]:
    """Yield what looks like a mistake in the head, line by line, then option by option."""
    for number, line in comments:
        warning = _line_warning(line)
        if warning:
            yield f'line {number}: {warning}'
    for option in options:
        if option.warning:
            yield f'line {option.line}: {option.warning}'


def _line_warning(line: str) -> str:
    """Return what is wrong with a line that is, or seems, meant for sbatch; '' for nothing."""
    match = _DIRECTIVE.match(line)
    if match:
        unread = split_arguments(line[match.end() :])[1]
        if unread:
            return f'sbatch stops reading at {shown(unread)}, because of the empty quotes'
        return 'write #SBATCH for #SLURM: only old versions know it' if match[1] == 'SLURM' else ''
    misspelt = _MISSPELT.match(line)
    if _LOOKALIKE.match(line) or (misspelt and did_you_mean(misspelt[1], ['SBATCH'])):
        return f"Slurm ignores {shown(line)}: the line must start with '#SBATCH '"
    return ''


def _array_range(part: str, spec: str) -> range:
    """Return the indices of one part of an array's specification."""
    match = _ARRAY_PART.fullmatch(part)
    if match is None:
        raise ConfigError(f"array {shown(spec)}: write '0-15', '1,3,5-7', '0-15:4' or '0-15%2'")
    first, last, step = int(match[1]), int(match[2] or match[1]), int(match[3] or 1)
    if last < first or step == 0:
        raise ConfigError(f'array {shown(spec)}: {part!r} has no indices')
    if last > _LARGEST_INDEX:
        raise ConfigError(f'array {shown(spec)}: no Slurm takes indices beyond {_LARGEST_INDEX}')
    return range(first, last + 1, step)
