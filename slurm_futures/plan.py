"""From settings to what the polling thread starts from."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from slurm_futures import payload
from slurm_futures.config import ExecutorConfig
from slurm_futures.dispatcher import Plan, module_folders
from slurm_futures.errors import ConfigError
from slurm_futures.line import Recipe
from slurm_futures.snapshot import Snapshots
from slurm_futures.transports.local import LocalTransport


def make_plan(config: ExecutorConfig) -> Plan:
    """Return the plan for a new core.

    Raises:
        ConfigError: a setting asks for what does not exist yet.
    """
    slurm = config.queue_system.slurm
    if slurm is None:
        raise ConfigError('queue_system.local: the embedded queue is not available yet')
    if config.ssh is not None:
        raise ConfigError('ssh: connections over SSH are not available yet')
    python_cmd = config.python_cmd or sys.executable
    agent = {
        'run': _new_run(),
        'work_dir': config.work_dir or '~/slurm_futures',
        'slurm': {name: getattr(slurm, name) for name in slurm.__dataclass_fields__},
        'login_workers': config.login_workers,
        'sys_path': module_folders(),
    }
    return Plan(
        recipe=Recipe(LocalTransport(), python_cmd, '\n'.join(config.setup), agent),
        cwd=str(Path.cwd()) if config.work_dir is None else None,
        setup=config.setup,
        grace=config.grace_period,
        polling_interval=slurm.polling_interval,
        login_workers=config.login_workers,
        share_sys_path=True,
        snapshots=_make_snapshots(config.ship_modules),
    )


def _make_snapshots(ship_modules: tuple[str, ...] | None) -> Snapshots | None:
    """Return what takes the user's modules along; None if they are not wanted there."""
    if ship_modules == ():
        return None
    try:
        return Snapshots(ship_modules or (), payload.modules_by_value)
    except ConfigError as error:
        raise ConfigError(f'ship_modules: {error}') from None


def _new_run() -> str:
    """Return a name that no other run has."""
    return time.strftime('%Y%m%d-%H%M%S-', time.gmtime()) + os.urandom(4).hex()
