#!/usr/bin/env python3
"""Brings up, and takes down, a real Slurm on this machine. For tests; run as root.

    python3 tests/cluster/cluster.py up --accounting
    eval "$(python3 tests/cluster/cluster.py env)"
    runuser -u sfuser -- sinfo
    python3 tests/cluster/cluster.py down

Several clusters live side by side when each has its own --root and --port.
"""

import argparse
import os
import shlex
import sys
from pathlib import Path

# Run as a script, this file finds the package that it belongs to only through its parent folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cluster import bringup, server
from cluster.layout import (
    DEFAULT_PORT,
    DEFAULT_ROOT,
    DEFAULT_USER,
    ClusterError,
    Layout,
    Settings,
)
from cluster.processes import free_ports


def main() -> int:
    """Run one command; the exit status is 1 when it failed, or `status` found a daemon missing."""
    arguments = parser().parse_args()
    layout = Layout(arguments.root.absolute())
    commands = {
        'up': up,
        'down': down,
        'status': status,
        'env': env,
        'serve': serve,
    }
    try:
        return commands[arguments.command](layout, arguments)
    except ClusterError as error:
        print(f'cluster: {error}', file=sys.stderr)
        return 1


def parser() -> argparse.ArgumentParser:
    """The command line."""
    folder = argparse.ArgumentParser(add_help=False)
    folder.add_argument(
        '--root',
        type=Path,
        default=Path(os.environ.get('SLURM_FUTURES_TEST_CLUSTER') or DEFAULT_ROOT),
        help='folder of configuration, state and logs (default: %(default)s)',
    )
    top = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = top.add_subparsers(dest='command', required=True)
    helps = {
        'up': 'bring it up, and wait until every node is idle',
        'down': 'end every job and daemon; the logs stay',
        'status': 'say which daemons run; exit status 1 when one is missing',
        'env': 'print the exports that a shell needs to use it',
        'serve': 'be the control server; `up` starts it',
    }
    found = {name: verbs.add_parser(name, parents=[folder], help=it) for name, it in helps.items()}
    _add_settings(found['up'])
    return top


def _add_settings(up_parser: argparse.ArgumentParser) -> None:
    up_parser.add_argument('--accounting', action='store_true', help='with slurmdbd, for sacct')
    up_parser.add_argument('--user', default=DEFAULT_USER, help='who runs jobs (%(default)s)')
    up_parser.add_argument(
        '--port',
        type=int,
        default=DEFAULT_PORT,
        help='first of 100 ports; 0 finds free ones (%(default)s)',
    )
    up_parser.add_argument('--nodes', type=int, default=4, help='number of nodes (%(default)s)')
    up_parser.add_argument('--cpus', type=int, default=4, help='CPUs of a node (%(default)s)')
    up_parser.add_argument(
        '--min-job-age',
        type=int,
        default=300,
        metavar='S',
        help='seconds that squeue knows a finished job (%(default)s)',
    )
    up_parser.add_argument(
        '--set',
        action='append',
        default=[],
        metavar='KEY=VALUE',
        help='a parameter of slurm.conf, such as MaxArraySize=50',
    )


def up(layout: Layout, arguments: argparse.Namespace) -> int:
    """Bring the cluster up."""
    options = {'MinJobAge': str(arguments.min_job_age)}
    for item in arguments.set:
        key, equals, value = item.partition('=')
        if not equals:
            raise ClusterError(f'--set takes KEY=VALUE, not {item!r}')
        options[key] = value
    settings = Settings(
        user=arguments.user,
        port=arguments.port or free_ports(),
        nodes=arguments.nodes,
        cpus=arguments.cpus,
        accounting=arguments.accounting,
        options=options,
    )
    fresh = bringup.up(layout, settings)
    print(f'cluster {layout.root}: {"up" if fresh else "was up already"}')
    return 0


def down(layout: Layout, _: argparse.Namespace) -> int:
    """Take the cluster down."""
    bringup.down(layout)
    print(f'cluster {layout.root}: down')
    return 0


def status(layout: Layout, _: argparse.Namespace) -> int:
    """Say which daemons run."""
    lines, complete = bringup.status(layout)
    print('\n'.join(lines))
    return 0 if complete else 1


def env(layout: Layout, _: argparse.Namespace) -> int:
    """Print what a shell should evaluate."""
    layout.load()
    print(f'export SLURM_CONF={shlex.quote(str(layout.slurm_conf))}')
    print(f'export SLURM_FUTURES_TEST_CLUSTER={shlex.quote(str(layout.root))}')
    return 0


def serve(layout: Layout, _: argparse.Namespace) -> int:
    """Be the control server."""
    server.serve(layout)
    return 0


if __name__ == '__main__':
    sys.exit(main())
