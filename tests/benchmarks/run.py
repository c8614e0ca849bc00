"""Measures what slurm_futures costs, as ratios within one run on one machine, and prints a table.

Usage, as an ordinary user where Slurm answers (tests/cluster/cluster.py brings one up)::

    python tests/benchmarks/run.py [--work-dir DIR] [--rounds N] [NAME ...]

DIR is for the spool: a folder on a real disk, for tmpfs hides what fsync costs.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import jobs
import local
from table import Row, print_row, print_title

BENCHMARKS: dict[str, Callable[[str, int], list[Row]]] = {
    'import': local.imports,
    'submit': local.submit,
    'login': local.login_call,
    'large': local.large_result,
    'single': jobs.single_job,
    'array': jobs.array_of_calls,
    'sweep': jobs.chunked_sweep,
}


def main() -> int:
    """Run the benchmarks that are named, or all; return 1 if a bound is not kept."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('names', nargs='*', metavar='NAME', help=', '.join(BENCHMARKS))
    parser.add_argument('--work-dir', default=None, help='folder for the spool')
    parser.add_argument('--rounds', type=int, default=3, help='alternated rounds of job arrays')
    options = parser.parse_args()
    work_dir = options.work_dir or tempfile.mkdtemp(prefix='slurm_futures-bench.', dir=Path.home())
    print_title(f'{os.cpu_count()} CPUs, Python {sys.version.split()[0]}, spool in {work_dir}')
    kept = True
    for name in options.names or BENCHMARKS:
        for row in BENCHMARKS[name](work_dir, options.rounds):
            print_row(row)
            kept = kept and row.kept
    return 0 if kept else 1


if __name__ == '__main__':
    sys.exit(main())
