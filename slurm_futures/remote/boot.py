"""What the login node executes first: imports this package from memory and starts the agent.

``FIRST`` is the statement on the command line: it compiles on any Python, names the version of
one that is too old, and reads the rest from stdin only after it has said so, because some login
shells swallow what is sent behind a command. The client looks for its marker in whatever banners
and start-up files have printed before.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from types import ModuleType
from typing import Any, Dict, Optional, Sequence

FIRST = r"""
import os, sys
def say(text):
    os.write(1, ("\n%s %s\n" % (sys.argv[1], text)).encode())
def read(size):
    data = b""
    while len(data) < size:
        more = os.read(0, size - len(data))
        if not more:
            sys.exit(1)
        data += more
    return data
if sys.version_info < (3, 8):
    say("python %d.%d.%d" % sys.version_info[:3])
    sys.exit(1)
say("ready")
import json, zlib
payload = json.loads(zlib.decompress(read(int(read(12)))).decode())
exec(compile(payload["boot"], "boot.py", "exec"), {"__name__": "boot", "payload": payload})
"""


class MemoryFinder(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Imports modules from source text."""

    def __init__(self, files: Dict[str, str]) -> None:
        self._files = {}
        for path, text in files.items():
            name = path[: -len('.py')].replace('/', '.')
            is_package = name.endswith('.__init__')
            self._files[name[: -len('.__init__')] if is_package else name] = (is_package, text)

    def find_spec(
        self, name: str, path: Optional[Sequence[str]], target: Optional[ModuleType] = None
    ) -> Optional[importlib.machinery.ModuleSpec]:
        """Find a module among the files."""
        if name not in self._files:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=self._files[name][0])

    def is_package(self, name: str) -> bool:
        """Return whether a module is a package."""
        return self._files[name][0]

    def get_source(self, name: str) -> str:
        """Return a module's source text."""
        return self._files[name][1]


def start(payload: Dict[str, Any]) -> None:
    """Import the agent from the payload and run it."""
    files = payload['files']
    package = payload['package']
    ours = {name: text for name, text in files.items() if name.startswith(package + '/')}
    sys.meta_path.insert(0, MemoryFinder(ours))
    agent = importlib.import_module(package + '.agent')
    agent.main(payload['config'], {name: text.encode() for name, text in files.items()})


if __name__ == 'boot':
    start(globals()['payload'])
