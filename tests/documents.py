"""Documents in Markdown: their code as programs that check what they promise, their links."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).parents[1]

_EXPECTATION = re.compile(
    r'^(?P<indent> *)(?P<expression>\S.*?)  # -> (?P<value>.+)$', re.MULTILINE
)
_BLOCK = re.compile(r'^```(?P<language>\w+)\n(?P<code>.*?)^```$', re.MULTILINE | re.DOTALL)
_LINK = re.compile(r'\]\(([^)#]+)\)')
_INTERNAL_LINK = re.compile(r'\]\(#([^)]+)\)')

_CHECKER = """\
def _check(expression, found, expected):
    if found != expected:
        raise AssertionError(f'{expression} is {found!r}, not {expected!r}')
    print('checked', expression)
"""


class Document:
    """A Markdown file of the project.

    Args:
        name: its path in the checkout.
    """

    def __init__(self, name: str) -> None:
        self._path = CHECKOUT / name
        self.text = self._path.read_text(encoding='utf-8')

    def blocks(self, language: str) -> list[str]:
        """Return the code of the blocks in one language."""
        return [code for name, code in _BLOCK.findall(self.text) if name == language]

    def broken_links(self) -> list[str]:
        """Return the links to files and headings that are not there."""
        headings = re.findall(r'^#+ (.+)$', self.text, re.MULTILINE)
        anchors = {heading.lower().replace(' ', '-') for heading in headings}
        files = [name for name in _LINK.findall(self.text) if not self._is_file(name)]
        return files + [name for name in _INTERNAL_LINK.findall(self.text) if name not in anchors]

    def _is_file(self, name: str) -> bool:
        return (self._path.parent / name).is_file()


def check_promises(blocks: Sequence[str], folder: Path, queue: Mapping[str, Any]) -> int:
    """Run blocks as one program; return how many values have been as promised.

    Args:
        blocks: the code.
        folder: where to run it.
        queue: the queue_system to use instead of what the code names.

    Raises:
        AssertionError: One is not, or something is written to stderr, be it a warning.
    """
    code = '\n'.join(blocks)
    # Only ends without a value wait for the next query, and they are not the point here.
    code = re.sub(r"\{'slurm': \{.*?\}\}", repr(queue), code)
    done = run_program(_as_program(code), folder)
    assert (done.returncode, done.stderr) == (0, '')
    checked = done.stdout.count('checked ')
    assert checked == code.count('# -> ')
    return checked


def _as_program(code: str) -> str:
    """Return the code as a program that checks the values its comments promise."""

    def check(match: re.Match[str]) -> str:
        indent, expression, value = match.groups()
        return f'{indent}_check({expression!r}, {expression}, {value})'

    return _CHECKER + _EXPECTATION.sub(check, code)


def run_program(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program in a folder that is its user's home, too."""
    path = folder / 'program.py'
    path.write_text(program, encoding='utf-8')
    return subprocess.run(
        [sys.executable, '-W', 'error', str(path)],
        cwd=folder,
        env=dict(os.environ, HOME=str(folder)),
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
