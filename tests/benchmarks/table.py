"""One figure a line: what was measured, against what, and the bound it is to keep."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A measured figure.

    Attributes:
        name: what was measured.
        figure: the value that the bound is about.
        unit: of the figure.
        bound: what it may be at most; None: it is for information.
        note: the absolute values behind it.
    """

    name: str
    figure: float
    unit: str
    bound: float | None = None
    note: str = ''

    @property
    def kept(self) -> bool:
        """Whether the figure keeps its bound."""
        return self.bound is None or self.figure <= self.bound


def print_title(title: str) -> None:
    """Print what the table is about, and its head."""
    print(title)
    print(f'{"figure":44} {"value":>9} {"bound":>7}  {"":4} note')


def print_row(row: Row) -> None:
    """Print a line of the table."""
    bound = '' if row.bound is None else f'{row.bound:g}'
    verdict = '' if row.bound is None else 'ok' if row.kept else 'OVER'
    value = f'{row.figure:.3g} {row.unit}'.strip()
    print(f'{row.name:44} {value:>9} {bound:>7}  {verdict:4} {row.note}', flush=True)
