"""From settings to what the polling thread starts from."""

from __future__ import annotations

from typing import Any

import pytest

from slurm_futures.config import load_config
from slurm_futures.errors import ConfigError
from slurm_futures.plan import make_plan


def plan_of(**settings: Any) -> Any:
    """Return the plan for an executor."""
    return make_plan(load_config(settings))


def test_slurm() -> None:
    """The agent gets the names of Slurm's commands; Slurm is asked as often as the user says."""
    plan = plan_of(queue_system={'slurm': {'sbatch_bin': 'sb', 'polling_interval': 3}})
    assert plan.recipe.config['slurm']['sbatch_bin'] == 'sb'
    assert plan.recipe.config['slurm']['squeue_bin'] == 'squeue'
    assert 'local' not in plan.recipe.config
    assert (plan.polling_interval, plan.grace) == (3, 90)


@pytest.mark.parametrize('max_jobs', [None, 3])
def test_embedded_queue(max_jobs: int | None) -> None:
    """The agent gets the number of jobs; the queue is on the same machine, so all is quick."""
    plan = plan_of(queue_system={'local': {'max_jobs': max_jobs}})
    assert plan.recipe.config['local'] == {'max_jobs': max_jobs}
    assert 'slurm' not in plan.recipe.config
    assert (plan.polling_interval, plan.grace) == (0.5, 1)


@pytest.mark.parametrize('queue', ['slurm', 'local'])
def test_own_grace_period(queue: str) -> None:
    """The user's grace period counts, zero too."""
    assert plan_of(queue_system={queue: {}}, grace_period=0).grace == 0
    assert plan_of(queue_system={queue: {}}, grace_period=7).grace == 7


def test_ssh() -> None:
    """What does not exist yet is refused."""
    with pytest.raises(ConfigError, match='ssh: connections over SSH are not available yet'):
        plan_of(queue_system={'local': {}}, ssh={'host': 'somewhere'})
