"""Which modules code imports: read off source text and off compiled code, which must agree."""

from __future__ import annotations

import warnings
from types import CodeType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_futures.imports import of_code, of_source


def compiled(source: str) -> CodeType:
    """Return source text as code, without what the compiler has to say about it."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return compile(source, 'source', 'exec')


@pytest.mark.parametrize(
    ('line', 'package', 'names'),
    [
        ('import a', '', {'a'}),
        ('import a.b.c', '', {'a.b.c'}),
        ('import a.b as c, d', '', {'a.b', 'd'}),
        ('from a import b', '', {'a', 'a.b'}),
        ('from a.b import c as d, e', '', {'a.b', 'a.b.c', 'a.b.e'}),
        ('from a import *', '', {'a'}),
        ('from . import a', 'p', {'p', 'p.a'}),
        ('from . import a', 'p.q', {'p.q', 'p.q.a'}),
        ('from .a.b import c', 'p', {'p.a.b', 'p.a.b.c'}),
        ('from .. import a', 'p.q', {'p', 'p.a'}),
        ('from ...a import b', 'p.q.r', {'p.a', 'p.a.b'}),
        ('from .. import a', 'p', set()),
        ('from . import a', '', set()),
        ('from __future__ import annotations', '', {'__future__', '__future__.annotations'}),
        ('x = "import a"  # import b', '', set()),
        ('importer.import_module("a")', '', set()),
    ],
)
def test_one_statement(line: str, package: str, names: set[str]) -> None:
    """Each form of import gives the module and what may be one of its submodules."""
    assert of_source(line.encode(), package) == names
    assert of_code(compiled(line), package) == names


PLACES = """
import top
if True:
    import a1
elif x:
    import a2
else:
    import a3
for _ in y:
    import b1
else:
    import b2
while z:
    import c1
else:
    import c2
try:
    import d1
except OSError:
    import d2
except ValueError:
    import d3
else:
    import d4
finally:
    import d5
with q:
    import e
match v:
    case 1:
        import f1
    case _:
        import f2
class K:
    import g
    def method(self):
        import h
        def inner():
            import i
        return [inner for _ in range(3)]
async def coroutine():
    async with q:
        import j1
    async for _ in y:
        import j2
def outer(default=lambda: 0): import k1; import k2
"""


def test_every_place_where_a_statement_can_stand() -> None:
    """Imports are found in all branches, in functions within functions, and in classes."""
    names = 'top a1 a2 a3 b1 b2 c1 c2 d1 d2 d3 d4 d5 e f1 f2 g h i j1 j2 k1 k2'
    assert of_source(PLACES.encode(), '') == set(names.split())
    # The compiler leaves out what never runs.
    assert of_code(compiled(PLACES.replace('True', 'w')), '') == set(names.split())


def test_branches_for_type_checkers_and_in_exception_groups() -> None:
    """`if TYPE_CHECKING` counts, where the compiler cannot know; so does what never runs."""
    source = b'if TYPE_CHECKING:\n    import a\nif 0:\n    import b\n'
    assert of_source(source, '') == {'a', 'b'}


@pytest.mark.parametrize(
    'source',
    [b'def', b'import', b'a = 1\x00', b'# coding: no-such\n', b'\xff', b'(' * 5000],
    ids=['cut', 'empty', 'null', 'encoding', 'bytes', 'depth'],
)
def test_what_is_no_source(source: bytes) -> None:
    """What does not parse is an error of a known kind, to be caught by whoever asks."""
    with pytest.raises((SyntaxError, ValueError, RecursionError, MemoryError)):
        of_source(source, '')


def test_encodings_and_warnings() -> None:
    """The file's own encoding counts; what its author did in strings warns nobody here."""
    source = '# coding: latin-1\nname = "é\\d"\nimport übung\n'
    assert of_source(source.encode('latin-1'), '') == {'übung'}


def test_many_constants() -> None:
    """Operands too large for one byte do not disturb the reading of compiled code."""
    lines = [f'x = {n}.5\ny.attribute{n}' for n in range(400)]
    source = '\n'.join([*lines, 'from a import b', 'from ..c import d'])
    assert of_code(compiled(source), 'p.q') == {'a', 'a.b', 'p.c', 'p.c.d'}


# ---- any program

Part = tuple[list[str], set[str]]
"""Lines of source, and the names that they import from within package p.q."""

NAME = st.sampled_from(['a', 'b', 'c', 'd', 'e'])
DOTTED = st.lists(NAME, min_size=1, max_size=3).map('.'.join)


@st.composite
def statements(draw: Any) -> Part:
    """Draw one import, or a statement without any."""
    kind = draw(st.sampled_from(['import', 'from', 'relative', 'other']))
    module, member = draw(DOTTED), draw(NAME)
    if kind == 'import':
        return [f'import {module}'], {module}
    if kind == 'from':
        return [f'from {module} import {member}'], {module, f'{module}.{member}'}
    if kind == 'relative':
        level = draw(st.integers(1, 3))
        base = {1: f'p.q.{module}', 2: f'p.{module}'}.get(level)
        names = {base, f'{base}.{member}'} if base else set()
        return [f'from {"." * level}{module} import {member}'], names
    return [f'{member} = "import {module}"'], set()


HEADS = ['def f():', 'class K:', 'if x:', 'for x in y:', 'while x:', 'with x:', 'async def g():']


def blocks(inner: st.SearchStrategy[Part]) -> st.SearchStrategy[Part]:
    """Put parts into a block of some kind."""

    def join(parts: list[Part]) -> Part:
        lines = [line for part in parts for line in part[0]]
        return lines, set().union(*(part[1] for part in parts))

    def put(head: str, part: Part) -> Part:
        return [head, *(f'    {line}' for line in part[0])], part[1]

    several = st.lists(inner, min_size=1, max_size=4).map(join)
    handled = several.map(lambda part: put('try:', part)).map(
        lambda part: ([*part[0], 'except OSError:', '    pass'], part[1])
    )
    return several | st.builds(put, st.sampled_from(HEADS), several) | handled


@given(st.recursive(statements(), blocks, max_leaves=20))
def test_any_program(part: Part) -> None:
    """Source and code give the names of all imports, however they are nested, and no others."""
    lines, names = part
    source = '\n'.join(lines)
    assert of_source(source.encode(), 'p.q') == names
    assert of_code(compiled(source), 'p.q') == names
