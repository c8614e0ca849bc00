"""A parameter sweep under asyncio: every parameter takes its two steps at its own pace.

python asyncio_sweep.py                                         # on this machine
python asyncio_sweep.py --config cluster.toml --partition cpu   # on a cluster
"""

import argparse
import asyncio
import itertools

import settings

from slurm_futures import SlurmExecutor


def simulate(damping: float, steps: int = 2000, dt: float = 0.01) -> list[float]:
    """Return the positions of a damped oscillator that starts at 1."""
    x, v, positions = 1.0, 0.0, []
    for _ in range(steps):
        v -= (x + damping * v) * dt
        x += v * dt
        positions.append(x)
    return positions


def count_swings(positions: list[float]) -> int:
    """Return how often the oscillator passes through 0."""
    return sum(a * b < 0 for a, b in itertools.pairwise(positions))


async def study(login: SlurmExecutor, jobs: SlurmExecutor, damping: float) -> int:
    """Simulate in a job, and look at the outcome on the login node as soon as it is there."""
    positions = await asyncio.wrap_future(jobs.submit(simulate, damping))
    return await asyncio.wrap_future(login.submit(count_swings, positions))


async def main() -> None:
    """Study all dampings at the same time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    settings.add_options(parser)
    args = parser.parse_args()

    dampings = [0.0, 0.2, 1.0, 2.0]
    with SlurmExecutor.from_config(settings.load(args)) as login:
        jobs = login.with_resources(partition=args.partition, time='00:10:00', mem='500M')
        swings = await asyncio.gather(*(study(login, jobs, damping) for damping in dampings))
    for damping, count in zip(dampings, swings, strict=True):
        print(f'damping {damping}: {count} swings')


if __name__ == '__main__':
    asyncio.run(main())
