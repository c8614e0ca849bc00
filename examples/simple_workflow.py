"""Prepare on the login node, compute in jobs, gather on the login node; then a parameter sweep.

python simple_workflow.py                                         # on this machine
python simple_workflow.py --config cluster.toml --partition cpu   # on a cluster
"""

import argparse
import math
import random
from concurrent.futures import Future, as_completed
from pathlib import Path

import settings

from slurm_futures import SlurmExecutor


def make_folder(name: str) -> str:
    """Make a folder with a random number in it."""
    folder = Path(name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'number.txt').write_text(f'{random.randint(1, 100)}\n')
    return name


def square(name: str) -> str:
    """Write the square of a folder's number beside it."""
    folder = Path(name)
    number = int((folder / 'number.txt').read_text())
    (folder / 'square.txt').write_text(f'{number**2}\n')
    return f'{name}: {number} squared is {number**2}'


def add_up(names: list[str]) -> int:
    """Return the sum of the squares in all folders."""
    return sum(int(Path(name, 'square.txt').read_text()) for name in names)


def lyapunov(rate: float, steps: int = 10_000) -> float:
    """Return the Lyapunov exponent of the logistic map: above 0 it is chaotic."""
    x, total = 0.4, 0.0
    for _ in range(steps):
        x = rate * x * (1 - x)
        total += math.log(abs(rate * (1 - 2 * x)))
    return total / steps


def squares(login: SlurmExecutor, jobs: SlurmExecutor, n: int) -> None:
    """Square n random numbers, one in each task of a job array."""
    names = list(login.map(make_folder, [f'squares/{i:03}' for i in range(n)]))
    for line in jobs.map(square, names):
        print(line)
    print('sum of squares:', login.submit(add_up, names).result())


def sweep(jobs: SlurmExecutor, rates: list[float]) -> None:
    """Print each result as soon as it is there."""
    futures: dict[Future[float], float] = {jobs.submit(lyapunov, rate): rate for rate in rates}
    for future in as_completed(futures):
        print(f'rate {futures[future]}: exponent {future.result():+.3f}')


def main() -> None:
    """Run both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--n', type=int, default=4, help='how many folders (%(default)s)')
    settings.add_options(parser)
    args = parser.parse_args()

    with SlurmExecutor.from_config(settings.load(args)) as login:
        jobs = login.with_resources(partition=args.partition, time='00:10:00', mem='500M')
        squares(login, jobs, args.n)
        sweep(jobs, [2.9, 3.3, 3.6, 3.83, 4.0])


if __name__ == '__main__':
    main()
