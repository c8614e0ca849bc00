"""examples/recipes.md: what can run on any cluster is run, the rest is checked without one."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cluster.client import Control
from documents import Document, check_promises
from outside import quick_queue
from slurm_futures import BashGroup, BashScript, JobState
from slurm_futures.resources import ResourceOptions, merge
from slurm_futures.script import parse_script

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

RECIPES = Document('examples/recipes.md')
NEEDY = [code for code in RECIPES.blocks('python') if code.startswith('# Needs')]


def test_recipes_give_what_they_promise(cluster: Control, work_dir: Path) -> None:
    """All blocks that need nothing special, run as one program, without a warning."""
    runnable = [code for code in RECIPES.blocks('python') if code not in NEEDY]
    assert check_promises(runnable, work_dir, quick_queue('slurm')) >= 4


def shell_code(script: BashScript) -> Iterator[str]:
    """Yield what is written for bash in a script."""
    yield '\n'.join(script.template.setup)
    for item in script.steps:
        for step in item.steps if isinstance(item, BashGroup) else [item]:
            if isinstance(step.cmd, str):
                yield step.cmd


class Checker:
    """Stands in for an executor: checks all that it is told, and runs nothing."""

    def __init__(self) -> None:
        self.checked = 0

    def with_resources(self, **options: Unpack[ResourceOptions]) -> Self:
        """Check the options as the real one does."""
        merge(None, options)
        return self

    def with_options(self, *, cwd: str | None = None, python_cmd: str | None = None) -> Self:
        """Take what the real one takes."""
        return self

    def submit(self, script: BashScript, *, cwd: str | None = None) -> Future[JobState]:
        """Check the script as the real one does, and for what it warns about."""
        assert parse_script(script.render()).warnings == ()
        for code in shell_code(script):
            subprocess.run(['bash', '-n'], input=code, text=True, check=True, timeout=10)
            self.checked += 1
        return Future()

    def map(self, fn: Callable[..., Any], *iterables: Any) -> Iterator[Any]:
        """Check that there is something to call with."""
        self.checked += len(list(zip(*iterables, strict=True)))
        return iter(())


@pytest.mark.parametrize('code', NEEDY, ids=[code.split('\n')[0] for code in NEEDY])
def test_the_others_are_valid(code: str) -> None:
    """Blocks marked with `# Needs` name settings that exist, and scripts that Slurm would take."""
    checker = Checker()
    exec(compile(code, 'recipes.md', 'exec'), {'ex': checker})
    assert checker.checked


def test_needy_recipes_are_found() -> None:
    """The mark has not changed, and no block loses its test by it."""
    assert len(NEEDY) == 4


def test_links() -> None:
    """Each leads somewhere; the README leads here."""
    assert RECIPES.broken_links() == []
    assert '](examples/recipes.md)' in Document('README.md').text
