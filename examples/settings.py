"""Where the examples run: on this machine, or on the cluster that a TOML file describes."""

import argparse
from typing import Any

HERE: dict[str, Any] = {'queue_system': {'local': {}}}
"""The queue that comes with the library: no Slurm needed."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that all examples take."""
    parser.add_argument('--config', help='TOML file about a cluster (none: run on this machine)')
    parser.add_argument('--partition', help="Slurm partition (the site's default)")
    parser.add_argument('--work-dir', help='folder to work in (the one that the file names)')


def load(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of an executor."""
    settings = read_toml(args.config) if args.config else HERE
    return {**settings, 'work_dir': args.work_dir} if args.work_dir else settings


def read_toml(path: str) -> dict[str, Any]:
    """Return what a TOML file says."""
    try:
        import tomllib
    except ImportError:
        try:
            import tomli as tomllib  # the same, for Python 3.10
        except ImportError:
            raise SystemExit('reading TOML needs Python 3.11, or: pip install tomli') from None
    with open(path, 'rb') as file:
        return tomllib.load(file)
