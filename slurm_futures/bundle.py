"""Packs what runs on the cluster, and the line that starts it."""

from __future__ import annotations

import functools
import importlib.util
import json
import shlex
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slurm_futures.remote import boot
from slurm_futures.remote.library import PACKAGE

DEFINE_MODULE = """\
if ! type module >/dev/null 2>&1; then
  for sf_init in /etc/profile.d/modules.sh /etc/profile.d/lmod.sh /etc/profile.d/z00_lmod.sh \\
      /usr/share/lmod/lmod/init/bash /usr/share/modules/init/bash; do
    if [ -r "$sf_init" ]; then . "$sf_init"; break; fi
  done
fi
if ! type conda 2>/dev/null | grep -q function && [ -n "${CONDA_EXE-}" ]; then
  . "${CONDA_EXE%/*/*}/etc/profile.d/conda.sh"
fi
"""
"""Defines what ``setup`` lines commonly call and a non-interactive bash often lacks."""


@functools.cache
def remote_files() -> dict[str, str]:
    """Return the source files that travel to the cluster, by path relative to the library."""
    found = _python_files(Path(boot.__file__).parent, PACKAGE)
    spec = importlib.util.find_spec('cloudpickle')
    if spec is None or spec.origin is None:
        raise ImportError('cloudpickle, which slurm_futures depends on, is not installed')
    return found | _python_files(Path(spec.origin).parent, 'cloudpickle')


def _python_files(folder: Path, prefix: str) -> dict[str, str]:
    return {f'{prefix}/{p.name}': p.read_text(encoding='utf-8') for p in folder.glob('*.py')}


def payload(config: Mapping[str, Any]) -> bytes:
    """Return what the started interpreter reads from its stdin: a length and the sources."""
    sources = remote_files()
    content = {
        'boot': sources[f'{PACKAGE}/boot.py'],
        'package': PACKAGE,
        'files': sources,
        'config': config,
    }
    data = zlib.compress(json.dumps(content).encode(), 1)
    return b'%012d' % len(data) + data


def start_command(python_cmd: str, setup: str, marker: str) -> Sequence[str]:
    """Return the command that starts the agent's interpreter on the login node."""
    first = f'exec({json.dumps(boot.FIRST)})'
    python = [python_cmd, '-c', first, marker]
    if not setup:
        return python
    # What setup prints belongs to nobody, and must not look like the agent's first word; and it
    # must not read what is meant for the agent.
    start = f'exec {shlex.join(python)} <&"$sf_stdin" {{sf_stdin}}<&-'
    script = f'exec {{sf_stdin}}<&0 </dev/null\n{DEFINE_MODULE}{setup}\n{start}\n'
    return ['/bin/bash', '-c', script]
