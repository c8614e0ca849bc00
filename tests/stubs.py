"""Programs that stand in for others: for Slurm's commands, or for an interpreter."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

_STUB = """\
#!/bin/bash
real={real}
printf '%s\\n' "$(date +%s.%N) ${{*@Q}}" >>{log}
{body}
"""


class Stub:
    """A command that notes each of its calls, and then is the real one, or does as it is told.

    Args:
        folder: where it is written.
        name: of the real command.
        body: shell lines to run instead; ``$real`` is the path of the real one.
    """

    def __init__(self, folder: Path, name: str, body: str = 'exec "$real" "$@"') -> None:
        self.path = str(folder / name)
        self._log = folder / f'{name}.calls'
        real = shutil.which(name) or '/bin/false'
        text = _STUB.format(real=shlex.quote(real), log=shlex.quote(str(self._log)), body=body)
        write_program(folder / name, text)

    def _lines(self) -> list[list[str]]:
        if not self._log.exists():
            return []
        return [line.split(' ', 1) for line in self._log.read_text().splitlines()]

    @property
    def times(self) -> list[float]:
        """When it was called, in seconds since 1970."""
        return [float(line[0]) for line in self._lines()]

    @property
    def calls(self) -> list[str]:
        """The arguments of each call, quoted for bash."""
        return [line[1] for line in self._lines()]


def write_program(path: Path, text: str) -> str:
    """Write a program that anybody may run; returns its path."""
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def other_python(folder: Path, version: tuple[int, int, int]) -> str:
    """Write an interpreter that takes itself for one of another version; returns its path."""
    site = folder / 'site'
    site.mkdir()
    words = (*version, 'final', 0)
    (site / 'sitecustomize.py').write_text(f'import sys\nsys.version_info = {words!r}\n')
    command = f'PYTHONPATH={shlex.quote(str(site))} exec {shlex.quote(sys.executable)} "$@"'
    return write_program(folder / 'python', f'#!/bin/bash\n{command}\n')
