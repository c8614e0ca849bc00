"""Which modules code imports, as far as that can be read off it. Pure; executes nothing.

Names are dotted and absolute. Of ``from a import b`` both ``a`` and ``a.b`` are given, for ``b``
may be a module: whoever looks for them goes as far as there is one. Imports count wherever they
stand: in functions, in ``try``, under ``if TYPE_CHECKING``.
"""

from __future__ import annotations

import ast
import dis
import warnings
from collections.abc import Iterator, Sequence
from types import CodeType

_BLOCKS = ('body', 'orelse', 'finalbody', 'handlers', 'cases')
"""The fields of statements that hold further statements; expressions hold none."""


def of_source(source: bytes, package: str) -> frozenset[str]:
    """Return what the source text of a module imports.

    Args:
        source: the file's content, in whatever encoding it names.
        package: the package that relative imports start from; empty: none.

    Raises:
        SyntaxError: it is not valid for this Python; ValueError, RecursionError, MemoryError
            likewise.
    """
    with warnings.catch_warnings():  # such as for invalid escapes, which are its author's affair
        warnings.simplefilter('ignore')
        tree = ast.parse(source)
    names: set[str] = set()
    for node in _statements(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            members = [alias.name for alias in node.names]
            names.update(_from(node.level, node.module or '', members, package))
    return frozenset(names)


def _statements(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield all statements, nested ones too."""
    stack = [tree]
    while stack:
        node = stack.pop()
        yield node
        for block in _BLOCKS:
            stack.extend(getattr(node, block, ()))


def of_code(code: CodeType, package: str) -> frozenset[str]:
    """Return what a function's compiled code imports, with that of the functions inside it.

    Args:
        code: of the function.
        package: the package that relative imports start from; empty: none.
    """
    names: set[str] = set()
    loaded: list[object] = []
    for instruction in dis.get_instructions(code):
        if instruction.opname == 'IMPORT_NAME':  # its level and its members were loaded before it
            level, members = loaded[-2:]
            assert isinstance(level, int)
            found = members if isinstance(members, tuple) else ()
            names.update(_from(level, instruction.argval, found, package))
        elif instruction.opname.startswith('LOAD_'):
            loaded.append(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= of_code(constant, package)
    return frozenset(names)


def _from(level: int, module: str, members: Sequence[str], package: str) -> Iterator[str]:
    """Yield the names in ``from <level dots><module> import <members>``."""
    base = module
    if level:
        parts = package.split('.') if package else []
        if level > len(parts):  # beyond the top: it raises ImportError when it runs
            return
        base = '.'.join(parts[: len(parts) - level + 1] + ([module] if module else []))
    yield base
    yield from (f'{base}.{member}' for member in members if member != '*')
