"""Code written for any Executor runs unchanged in threads and in jobs.

python any_executor.py                                         # on this machine
python any_executor.py --config cluster.toml --partition cpu   # on a cluster
"""

import argparse
import random
from concurrent.futures import Executor, ThreadPoolExecutor

import settings

from slurm_futures import SlurmExecutor


def count_hits(seed: int, throws: int = 20_000) -> int:
    """Return how many random points of the unit square lie within the quarter circle."""
    rng = random.Random(seed)
    return sum(rng.random() ** 2 + rng.random() ** 2 <= 1 for _ in range(throws))


def estimate_pi(executor: Executor, batches: int, throws: int = 20_000) -> float:
    """Estimate pi; knows nothing of Slurm."""
    hits = executor.map(count_hits, range(batches), [throws] * batches, chunksize=4)
    return 4 * sum(hits) / (batches * throws)


def main() -> None:
    """Estimate pi twice."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--n', type=int, default=16, help='how many batches (%(default)s)')
    settings.add_options(parser)
    args = parser.parse_args()

    with ThreadPoolExecutor() as threads:
        print('in threads:', estimate_pi(threads, args.n))
    with SlurmExecutor.from_config(settings.load(args)) as login:
        jobs = login.with_resources(partition=args.partition, time='00:10:00', mem='500M')
        print('in jobs:', estimate_pi(jobs, args.n))


if __name__ == '__main__':
    main()
