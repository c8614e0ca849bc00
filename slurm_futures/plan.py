"""From settings to what the polling thread starts from."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from slurm_futures import payload
from slurm_futures.config import ExecutorConfig, LocalConfig, QueueSystemConfig
from slurm_futures.dispatcher import Plan, module_folders
from slurm_futures.errors import ConfigError
from slurm_futures.line import Recipe
from slurm_futures.snapshot import Snapshots
from slurm_futures.transports.local import LocalTransport

LOCAL_POLLING_INTERVAL = 0.5
"""Seconds between two questions to the embedded queue, which answers from its memory."""

LOCAL_GRACE_PERIOD = 1.0
"""Seconds that an outcome may take to appear where jobs and agent are on the same machine."""

SLURM_GRACE_PERIOD = 90.0
"""Seconds that it may take on a shared file system: NFS caches for 30 to 60."""


def make_plan(config: ExecutorConfig) -> Plan:
    """Return the plan for a new core.

    Raises:
        ConfigError: a setting asks for what does not exist yet.
    """
    if config.ssh is not None:
        raise ConfigError('ssh: connections over SSH are not available yet')
    python_cmd = config.python_cmd or sys.executable
    agent = {
        'run': _new_run(),
        'work_dir': config.work_dir or '~/slurm_futures',
        **_queue_settings(config.queue_system),
        'login_workers': config.login_workers,
        'sys_path': module_folders(),
    }
    return Plan(
        recipe=Recipe(LocalTransport(), python_cmd, '\n'.join(config.setup), agent),
        cwd=str(Path.cwd()) if config.work_dir is None else None,
        setup=config.setup,
        grace=_grace_period(config),
        polling_interval=_polling_interval(config.queue_system),
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


def _queue_settings(queue: QueueSystemConfig) -> dict[str, Any]:
    """Return what the agent has to know of the queue."""
    if queue.slurm is not None:
        return {'slurm': asdict(queue.slurm)}
    return {'local': asdict(queue.local or LocalConfig())}


def _polling_interval(queue: QueueSystemConfig) -> float:
    return LOCAL_POLLING_INTERVAL if queue.slurm is None else queue.slurm.polling_interval


def _grace_period(config: ExecutorConfig) -> float:
    if config.grace_period is not None:
        return config.grace_period
    return LOCAL_GRACE_PERIOD if config.queue_system.slurm is None else SLURM_GRACE_PERIOD


def _new_run() -> str:
    """Return a name that no other run has."""
    return time.strftime('%Y%m%d-%H%M%S-', time.gmtime()) + os.urandom(4).hex()
