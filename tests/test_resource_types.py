"""What a type checker says of resources."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SNIPPET = """
from datetime import timedelta
from typing_extensions import Unpack
from slurm_futures.resources import ResourceOptions

def with_resources(**r: Unpack[ResourceOptions]) -> None: ...

with_resources(partition='cpu', time=timedelta(1), nodes=2, requeue=None, extra={'hold': True})
with_resources(partition=1)
with_resources(time=60)
with_resources(mem=4096)
with_resources(partitions='cpu')
with_resources(exclusive='all')
"""


def test_type_checkers_reject_wrong_resources(tmp_path: Path) -> None:
    """mypy --strict takes right keywords for Unpack[ResourceOptions] and rejects wrong ones."""
    pytest.importorskip('mypy')
    script = tmp_path / 'snippet.py'
    script.write_text(SNIPPET)
    result = subprocess.run(
        [sys.executable, '-m', 'mypy', '--strict', '--config-file=', '--no-error-summary', script],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    lines = [line for line in result.stdout.splitlines() if line.startswith('snippet.py')]
    assert [int(line.split(':')[1]) for line in lines if ': error:' in line] == [9, 10, 11, 12, 13]
